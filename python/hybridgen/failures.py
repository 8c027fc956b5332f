# SPDX-License-Identifier: Apache-2.0
"""What a call tells of the prompts that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ._checks import brief
from .errors import GenerationError, HybridGenError, shortened, text_of

if TYPE_CHECKING:
    from .request import Request

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


@contextmanager
def reported(
    operation: str, requests: list[Request], outputs: Callable[[], list[Any]]
) -> Iterator[None]:
    """Run a block that runs requests: what it raises names their prompts and carries `outputs()`.

    Parameters
    ----------
    operation : str
        As messages begin.
    requests : list of Request
        One for each prompt of the call, in order.
    outputs : callable
        Makes what the call would have returned.

    Raises
    ------
    GenerationError
        At the end of the block, if some of several prompts failed.
    BaseException
        The failure itself, if there was one prompt; what interrupted the block.
    """
    try:
        yield
    except GeneratorExit:  # a stream is left early
        raise
    except BaseException as error:
        for index, request in enumerate(requests):
            if any(s.error is error for s in request.sequences):  # refused: nothing was run
                name_prompt(error, operation, index, request.shown)
        attach_outputs(error, outputs())
        raise
    if any(request.error is not None for request in requests):
        _raise_failures(operation, requests, outputs())


def _raise_failures(operation: str, requests: list[Request], outputs: list[Any]) -> None:
    failures = {i: r.error for i, r in enumerate(requests) if r.error is not None}
    if len(requests) == 1:
        error = name_prompt(failures[0], operation, 0, requests[0].shown)
        attach_outputs(error, outputs)
        raise error
    shown = [
        f"prompt {index} ({brief(requests[index].shown)}): {type(error).__name__}: "
        f"{shortened(text_of(error), _MOST_CHARACTERS)}"
        for index, error in list(failures.items())[:_MOST_SHOWN]
    ]
    if len(failures) > _MOST_SHOWN:
        numbers = ", ".join(map(str, list(failures)[_MOST_SHOWN : _MOST_SHOWN + 20]))
        more = len(failures) - _MOST_SHOWN
        shown.append(f"and {more} more: prompts {numbers}{', ...' if more > 20 else ''}")
    raise GenerationError.of(
        f"[{operation}] {len(failures)} of {len(requests)} prompts failed, the others ran to their "
        f"end: {'; '.join(shown)}; see .outputs and .errors of this exception",
        failures,
        outputs,
    ) from next(iter(failures.values()))
