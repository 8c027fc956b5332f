# SPDX-License-Identifier: Apache-2.0
"""Engines on the machines of a Ray cluster: for batches, and for `ray.data.Dataset.map_batches`.

Ray starts processes, moves lines and answers, and says what died; here is only what an engine needs
on a machine that it shares: cores of its own (``core_claims``) and its part of the memory
(``node_share``). docs/batch.md says how a cluster is started, and who must not reach it.

Ray is imported where it is needed: importing this package does not.
"""

from __future__ import annotations

from .data import BatchEngine

__all__ = ["BatchEngine"]
