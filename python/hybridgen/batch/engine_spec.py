# SPDX-License-Identifier: Apache-2.0
"""What an engine of a batch is made of, in whichever process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .line_forms import LineForms


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is made of; the same for all of a batch.

    Parameters
    ----------
    model : str
        As for `LLM`; a path is one on every node.
    engine : mapping
        Options of `LLM`.
    forms : LineForms
        How lines are read and answers written.
    sampling : mapping
        Fields of `SamplingParams` that lines do not give.
    seed : int
        Of lines without one.
    """

    model: str
    engine: Mapping[str, Any]
    forms: LineForms
    sampling: Mapping[str, Any]
    seed: int = 0
