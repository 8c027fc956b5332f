# SPDX-License-Identifier: Apache-2.0
"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

import functools
from collections import deque
from itertools import islice


class StopStrings:
    """Some strings, to be found in a text that comes letter by letter (Aho and Corasick, 1975).

    A state stands for the longest end of the text that is the beginning of one of the strings.

    Parameters
    ----------
    strings : tuple of str
        None of them empty.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]
        self.found: list[str] = [""]
        """Per state, the longest of the strings that ends here, if any."""
        self.held: list[int] = [0]
        """Per state, how many last letters may yet be the beginning of one of the strings."""
        for string in strings:
            state = 0
            for letter in string:
                state = self._next[state].setdefault(letter, len(self._next))
                if state == len(self._next):
                    self._next.append({})
                    self._shorter.append(0)
                    self.found.append("")
                    self.held.append(self.held[0])
            self.found[state] = string
        self._link()

    def _link(self) -> None:
        """Find for each state the next shorter end of the text that is a beginning too."""
        states = deque((state, 1) for state in self._next[0].values())
        while states:
            state, depth = states.popleft()
            shorter = self._shorter[state]
            self.found[state] = self.found[state] or self.found[shorter]
            self.held[state] = depth if self._next[state] else self.held[shorter]
            for letter, longer in self._next[state].items():
                self._shorter[longer] = self.after(shorter, letter)
                states.append((longer, depth + 1))

    def after(self, state: int, letter: str) -> int:
        """Return the state after one more letter."""
        while state and letter not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(letter, 0)


@functools.lru_cache(maxsize=64)
def _compiled(strings: tuple[str, ...]) -> StopStrings:
    return StopStrings(strings)


class StopMatcher:
    """Finds the first stop string that a stream of text completes, and cuts the text there.

    Text that could be the beginning of a stop string is held back until what follows decides. How
    the text is divided into pieces does not matter, nor how many stop strings there are.

    Parameters
    ----------
    stops : sequence of str
        None of them empty.
    keeps_stop : bool
        Cut behind the string, not before it.
    """

    def __init__(self, stops: tuple[str, ...], *, keeps_stop: bool = False) -> None:
        self._stops = _compiled(tuple(stops)) if stops else None
        self._keeps_stop = keeps_stop
        self._state = 0
        # What is shown of each letter that is held back: itself, or nothing.
        self._held: deque[str] = deque()

    def push(
        self, shown: str, *, seen: str | None = None, armed: bool = True
    ) -> tuple[str, str | None]:
        """Take a piece; return the text that is certain, and the stop string if one is complete.

        Parameters
        ----------
        shown : str
            The next text.
        seen : str, optional
            What ends in this text and is looked at: special tokens that are left out, for example.
        armed : bool
            False lets stop strings that end in this piece pass.
        """
        if self._stops is None:
            return shown, None
        seen = shown if seen is None else seen
        out: list[str] = []
        first = len(seen) - len(shown)
        for i, letter in enumerate(seen):
            self._held.append(letter if i >= first else "")
            self._state = self._stops.after(self._state, letter)
            stop = self._stops.found[self._state]
            if armed and stop:
                kept = len(self._held) - (0 if self._keeps_stop else len(stop))
                out += islice(self._held, kept)
                self._held.clear()
                self._state = 0
                return "".join(out), stop
            while len(self._held) > self._stops.held[self._state]:
                out.append(self._held.popleft())
        return "".join(out), None

    def flush(self) -> str:
        """Return the text that was held back and led to no stop string."""
        text = "".join(self._held)
        self._held.clear()
        self._state = 0
        return text
