# SPDX-License-Identifier: Apache-2.0
"""FlexGen's rectangles of token ids, with pads, to rows of real tokens and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._checks import brief
from ..errors import ConfigError


def as_rectangle(inputs: Any) -> npt.NDArray[np.int64]:
    """Return token ids as an array of rows, from lists, NumPy or torch.

    Raises
    ------
    ConfigError
        If they are no rows of equal length, none at all, or no integers.
    """
    try:
        found = np.asarray(inputs.cpu() if hasattr(inputs, "cpu") else inputs)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"[generate] inputs have rows of unequal length: {brief(str(error), 200)}; allowed: a "
            "rectangle; put pads before shorter rows"
        ) from error
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iu":
        raise ConfigError(
            f"[generate] inputs have shape {list(found.shape)} and dtype {found.dtype}; allowed: "
            "integers in two dimensions, rows of equal length that are not empty"
        )
    return found.astype(np.int64)


def real_tokens(row: npt.NDArray[np.int64], pad: int, *, is_own: bool) -> list[int]:
    """Return the tokens of a row that FlexGen does not mask.

    A masked token is attended to by nobody and takes no position, so that leaving it out changes no
    result. A row of pads alone has none.

    Parameters
    ----------
    row : array of int
        With pads.
    pad : int
        The padding token.
    is_own : bool
        Whether it stands for nothing else. If it does, as a model's ending token, only those before
        the text are pads.
    """
    if is_own:
        return [int(token) for token in row[row != pad]]
    real = np.flatnonzero(row != pad)
    return [int(token) for token in row[real[0] :]] if real.size else []


def with_new_tokens(
    inputs: npt.NDArray[np.int64], new: list[list[int]], gen_len: int, pad: int
) -> npt.NDArray[np.int32]:
    """Return what FlexGen returns: prompts with their pads, new tokens, and pads where none "
    "came."""
    rows, prompt_len = inputs.shape
    found = np.full((rows, prompt_len + gen_len), pad, np.int32)
    found[:, :prompt_len] = inputs
    for row, tokens in enumerate(new):
        found[row, prompt_len : prompt_len + len(tokens)] = tokens
    return found


def pad_left(rows: list[list[int]], length: int, pad: int) -> list[list[int]]:
    """Return rows of equal length: `length`, or that of the longest, which is never cut."""
    length = max(length, *map(len, rows))
    return [[pad] * (length - len(row)) + row for row in rows]
