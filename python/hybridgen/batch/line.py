# SPDX-License-Identifier: Apache-2.0
"""One line of an input, and its answer: what flows through a batch, also between machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Line:
    """One line as it was read.

    Parameters
    ----------
    index : int
        Its number among the input's lines, from 0; blank ones do not count.
    place : str
        Where it is, for messages: "line 17".
    content : dict, optional
        What it says; None if it cannot be read.
    problem : str
        Why it cannot be read; empty if it can.
    """

    index: int
    place: str
    content: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Answer:
    """What a line came to.

    Parameters
    ----------
    index : int
        That of its line.
    content : dict
        What is written, ready for JSON.
    problem : str
        Why there is no text; empty if there is.
    generated_tokens : int
        Of all its texts.
    """

    index: int
    content: dict[str, Any]
    problem: str = ""
    generated_tokens: int = 0


class Answerer(Protocol):
    """What answers lines: an engine of this process, or several of a cluster."""

    @property
    def num_lines_together(self) -> int:
        """Lines that keep it busy; with fewer to take it may wait for nothing."""

    def answers(
        self, lines: Iterable[Line], may_take: Callable[[], bool] = lambda: True
    ) -> Iterator[Answer]:
        """Yield an answer to every line, in any order.

        Parameters
        ----------
        lines : iterable of Line
            Each is taken when there is room for it.
        may_take : callable
            Whether the next one may be taken now. It has to be true again once all that were taken
            are answered.

        Raises
        ------
        HybridGenError
            If the machine fails, or the engine: what is no line's own failure.
        """
