# SPDX-License-Identifier: Apache-2.0
"""How groups of numbers are written in few bits, as FlexGen's scripts say it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class CompressionConfig:
    """Group-wise quantisation.

    Parameters
    ----------
    num_bits : int
        Only 4.
    group_size : int
        Numbers of a group.
    group_dim : int
        The dimension that groups lie along.
    symmetric : bool
        Only False: between the group's minimum and maximum.
    enabled : bool
        Whether it is used at all.
    """

    num_bits: int
    group_size: int
    group_dim: int
    symmetric: bool
    enabled: bool = True
