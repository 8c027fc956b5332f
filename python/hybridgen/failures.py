# SPDX-License-Identifier: Apache-2.0
"""What a call tells of the prompts that failed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ._checks import brief
from .errors import GenerationError, HybridGenError, shortened, text_of

_MOST_SHOWN = 4
_MOST_CHARACTERS = 300


def attach_outputs(error: BaseException, outputs: list[Any]) -> None:
    """Let an exception carry what its call had; a user's class may refuse."""
    with suppress(Exception):
        error.outputs = outputs  # type: ignore[attr-defined]


def name_prompt(error: BaseException, operation: str, index: int, prompt: object) -> BaseException:
    """Return the error with the prompt it belongs to in its message.

    An exception of a user's own code keeps its words; the prompt is then a note below them.
    """
    name = f"[{operation}] prompt {index} ({brief(prompt)}) failed"
    if isinstance(error, HybridGenError):
        error.args = (shortened(f"{name}: {text_of(error)}"),)
    else:
        with suppress(Exception):  # a user's class may refuse
            error.add_note(name)
    return error


def raise_failures(
    operation: str,
    prompts: list[Any],
    failures: Mapping[int, BaseException],
    outputs: list[Any],
) -> None:
    """Raise what the failures of one call come to; nothing if there are none.

    Parameters
    ----------
    operation : str
        As messages begin.
    prompts : list
        Text or token ids, for messages.
    failures : mapping
        The error of each failed prompt by its number in the call.
    outputs : list
        What the call would have returned.

    Raises
    ------
    GenerationError
        If there were several prompts.
    BaseException
        The failure itself, if there was one prompt.
    """
    if not failures:
        return
    if len(prompts) == 1:
        error = name_prompt(failures[0], operation, 0, prompts[0])
        attach_outputs(error, outputs)
        raise error
    shown = [
        f"prompt {index} ({brief(prompts[index])}): {type(error).__name__}: "
        f"{shortened(text_of(error), _MOST_CHARACTERS)}"
        for index, error in list(failures.items())[:_MOST_SHOWN]
    ]
    if len(failures) > _MOST_SHOWN:
        numbers = ", ".join(map(str, list(failures)[_MOST_SHOWN : _MOST_SHOWN + 20]))
        more = len(failures) - _MOST_SHOWN
        shown.append(f"and {more} more: prompts {numbers}{', ...' if more > 20 else ''}")
    raise GenerationError.of(
        f"[{operation}] {len(failures)} of {len(prompts)} prompts failed, the others ran to their "
        f"end: {'; '.join(shown)}; see .outputs and .errors of this exception",
        dict(failures),
        outputs,
    ) from next(iter(failures.values()))
