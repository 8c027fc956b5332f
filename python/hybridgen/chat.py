# SPDX-License-Identifier: Apache-2.0
"""Conversations to prompts: messages are checked, templates rendered within limits.

A chat template is a program of the checkpoint's. It runs in the sandbox of jinja2, and in a process
of its own that ends where the template needs more than `LIMITS` allows.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ._checks import brief, one_line
from .codec import Codec, is_foreign, words_of
from .errors import ConfigError, DeviceError

Messages = list[dict[str, Any]] | list[list[dict[str, Any]]]

_START_SECONDS = 120
_WAY_OUT = "generate takes a prompt as it is, and tokenizer= a tokenizer with another chat_template"


@dataclass(frozen=True)
class Limits:
    """What the rendering of one conversation may need."""

    seconds: int = 10
    memory_bytes: int = 512 << 20
    characters: int = 16 << 20


LIMITS = Limits()


def chat_prompts(codec: Codec, messages: Any) -> list[list[int]]:
    """Return the token ids of each conversation, up to where the answer begins.

    Parameters
    ----------
    codec : Codec
        Of a tokenizer with a chat template.
    messages : list of dict, or list of such lists
        As for `LLM.chat`.

    Raises
    ------
    ConfigError
        If there is no template, messages are malformed, or the template refuses or breaks.
    """
    conversations = read_conversations(messages)
    tokenizer = codec.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "[chat] the tokenizer has no chat template; use generate with a prompt in the form the "
            "model was trained on"
        )
    if not _renders_templates(tokenizer):
        return [_applied(codec, conversation) for conversation in conversations]
    try:
        template, variables = tokenizer.get_chat_template(), tokenizer.special_tokens_map
    except Exception as error:
        raise ConfigError(f"[chat] there is no one chat template: {words_of(error)}") from error
    if not isinstance(template, str):
        raise ConfigError(f"[chat] the chat template is {brief(template)}; allowed: a string")
    variables = {name: str(token) for name, token in variables.items()}
    return [
        codec.encode(render(template, conversation, variables), special=False)
        for conversation in conversations
    ]


def _renders_templates(tokenizer: Any) -> bool:
    """Say whether the tokenizer does no more than render its template."""
    from transformers import PreTrainedTokenizerBase

    own = getattr(type(tokenizer), "apply_chat_template", None)
    return own is PreTrainedTokenizerBase.apply_chat_template


def _applied(codec: Codec, conversation: list[dict[str, Any]]) -> list[int]:
    """Return what a tokenizer with a way of its own makes of a conversation."""
    try:
        made = codec.tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return codec.encode(made, special=False) if isinstance(made, str) else list(map(int, made))
    except BaseException as error:
        if is_foreign(error):
            raise ConfigError(
                f"[chat] the tokenizer refuses the messages: {words_of(error)}"
            ) from error
        raise


# ------------------------------------------------------------------------------------- messages


def read_conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """Return every conversation as a list of plain dicts, contents as text."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, list | tuple):
        raise ConfigError(
            f"[chat] messages is {brief(messages)}; allowed: a list of dicts with role and "
            "content, or a list of such lists"
        )
    if not messages:
        raise ConfigError("[chat] messages is empty; allowed: at least one message")
    conversations = messages if isinstance(messages[0], list | tuple) else [messages]
    return [_read_conversation(conversation) for conversation in conversations]


def _read_conversation(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError(
            f"[chat] a conversation is {brief(messages)}; allowed: a list of at least one message"
        )
    return [_read_message(index, message) for index, message in enumerate(messages)]


def _read_message(index: int, message: Any) -> dict[str, Any]:
    # The message classes of OpenAI's client.
    if callable(getattr(message, "model_dump", None)):
        message = message.model_dump()
    if not isinstance(message, Mapping):
        raise ConfigError(
            f"[chat] message {index} is {brief(message)}; allowed: a dict with role and content"
        )
    found = {name: value for name, value in message.items() if value is not None}
    if not isinstance(found.get("role"), str):
        raise ConfigError(
            f"[chat] message {index} has the role {brief(found.get('role'))}; allowed: a string, "
            "such as 'user', 'assistant' or 'system'"
        )
    if "content" in found:
        found["content"] = _read_content(index, found["content"])
    elif "tool_calls" not in found:
        raise ConfigError(
            f"[chat] message {index} has no content; allowed: a string, or a list of text parts"
        )
    try:
        return dict(json.loads(json.dumps(found, allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"[chat] message {index} holds what JSON cannot ({words_of(error)}); allowed: strings, "
            "numbers, lists and dicts"
        ) from error


def _read_content(index: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ConfigError(
            f"[chat] message {index} has the content {brief(content)}; allowed: a string, or a "
            "list of text parts"
        )
    return "".join(_read_part(index, part) for part in content)


def _read_part(index: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise ConfigError(
            f"[chat] message {index} has a content part of type {brief(kind)}"
            f"{'' if kind != 'text' else ' without a text'}; allowed: parts like "
            "{'type': 'text', 'text': '...'}, since the model reads nothing but text"
        )
    return text


# ------------------------------------------------------------------------------------ rendering


def render(template: str, messages: list[dict[str, Any]], variables: dict[str, str]) -> str:
    """Return the text that a template makes of messages, with the prompt for an answer behind it.

    Parameters
    ----------
    template : str
        As in ``chat_template.jinja``.
    messages : list of dict
        Of one conversation, nothing but JSON.
    variables : dict of str
        Names that the template may use, such as ``bos_token``.

    Raises
    ------
    ConfigError
        With the template's own words if it refuses or fails, or if it exceeds `LIMITS`.
    DeviceError
        If the process for it cannot be started, or the interpreter is ending.
    """
    request = {"template": template, "messages": messages, "variables": variables}
    with _lock:
        answer = _running_renderer().ask(request)
    if "text" in answer:
        return answer["text"]
    raise ConfigError(
        "[chat] the chat template makes no prompt of these messages: "
        f"{one_line(answer['error'])}; {_WAY_OUT}"
    )


class _Renderer:
    """The process that renders templates."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._limits = LIMITS
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("chat_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the process that asks
            )
        except (OSError, ValueError, TypeError) as error:
            raise DeviceError(
                f"[chat] cannot start {sys.executable} to render the chat template: {error}; "
                f"{_WAY_OUT}"
            ) from error
        settings = {
            # The folder that one happens to be in may be a checkpoint's.
            "path": [folder for folder in sys.path if folder],
            **asdict(self._limits),
        }
        if "text" not in self._exchange(settings, _START_SECONDS):
            raise DeviceError(
                f"[chat] the process that renders chat templates does not start; {_WAY_OUT}"
            )

    @property
    def is_usable(self) -> bool:
        """Whether it can be asked from this process."""
        is_running = self._process.poll() is None
        return self.pid == os.getpid() and is_running and self._limits == LIMITS

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """Return the answer to a request; if there is none in time, the process is gone."""
        return self._exchange(request, self._limits.seconds)

    def close(self) -> None:
        """End the process."""
        if self.pid != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _exchange(self, request: dict[str, Any], seconds: int) -> dict[str, str]:
        try:
            self._write(json.dumps(request).encode("ascii") + b"\n")
            line = self._read_line(seconds)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            line = b""
        if not line:
            self.close()
            mebibytes = self._limits.memory_bytes >> 20
            return {"error": f"it needs more than {seconds} s or {mebibytes} MiB"}
        return dict(json.loads(line))

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _read_line(self, seconds: int) -> bytes:
        """Return one line; nothing if there is none in time."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        end = time.monotonic() + seconds
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):
            is_ready = poller.poll(max(0.0, 1000 * (end - time.monotonic())))
            part = os.read(pipe, 1 << 20) if is_ready else b""
            if not part:
                return b""
            parts.append(part)
        return b"".join(parts)


_lock = threading.Lock()
_renderer: _Renderer | None = None
_is_ending = False


def _begin_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_begin_in_child)


def _running_renderer() -> _Renderer:
    """Return the process's renderer, started at the first call and after one was lost.

    The caller holds the lock.
    """
    global _renderer
    if _is_ending:
        raise DeviceError(
            "[chat] the interpreter is ending, and with it what renders chat templates; chat "
            "before that, or wait for the threads that do"
        )
    if _renderer is None or not _renderer.is_usable:
        _close()
        _renderer = _Renderer()
    return _renderer


def _close() -> None:
    global _renderer
    if _renderer is not None:
        _renderer.close()
        _renderer = None


@atexit.register
def _end() -> None:
    global _is_ending
    with _lock:  # a daemon thread may be rendering
        _is_ending = True
        _close()
