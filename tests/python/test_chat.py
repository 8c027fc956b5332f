# SPDX-License-Identifier: Apache-2.0
"""Chat: messages as clients send them, templates within limits, whatever they try."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from hybridgen import ConfigError, chat
from hybridgen.chat import Limits, chat_prompts, read_conversations, render
from hybridgen.codec import Codec
from tokenizer_kinds import byte_level, tokenizer_of

USER = {"role": "user", "content": "hi"}


SMALL = Limits(seconds=3, memory_bytes=64 << 20, characters=10_000)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rendering need little time and memory, in a process of these tests' own."""
    monkeypatch.setattr(chat, "LIMITS", SMALL)


def made(template: Any, messages: Any = None) -> str:
    """Return what a template makes of messages."""
    tokenizer = byte_level()
    tokenizer.chat_template = template
    (ids,) = chat_prompts(Codec(tokenizer), messages or [USER])
    text: str = tokenizer.decode(ids)
    return text


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{{ ns.n }}{{ m.content | trim | tojson }}{% endfor %}{{ dict(a=1) }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ add_generation_prompt }}",
        {"default": "{{ messages | length }}", "tool_use": "no"},
    ],
)
def test_a_template_gives_what_transformers_gives(template: Any) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    conversations = [
        [USER],
        [{"role": "system", "content": "Żółć 🙂", "name": None}, USER],
        [{"role": "assistant", "tool_calls": [{"id": 1}], "content": None, "thinking": "so"}, USER],
    ]
    for ids, conversation in zip(
        chat_prompts(Codec(tokenizer), conversations), conversations, strict=True
    ):
        assert ids == tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "h"}, "i", {"text": "!"}]
    for content in ("hi!", parts, tuple(parts)):
        assert read_conversations([{"role": "user", "content": content}]) == [
            [{"role": "user", "content": "hi!"}]
        ]


def test_messages_may_be_objects_of_a_client() -> None:
    message = SimpleNamespace(model_dump=lambda: {**USER, "refusal": None})
    assert read_conversations([message]) == [[USER]]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "messages is 'hi'"),
        (USER, "allowed: a list of dicts"),
        (None, "messages is None"),
        ([], "messages is empty"),
        ([[]], r"a conversation is \[\]"),
        ([[USER], USER], "a conversation is {"),
        ([USER, "hi"], "message 1 is 'hi'"),
        ([{"role": "user"}], "message 0 has no content"),
        ([{"content": "hi"}], "message 0 has the role None"),
        ([{"role": 5, "content": "hi"}], "message 0 has the role 5"),
        ([{"role": "user", "content": 5}], "message 0 has the content 5"),
        ([{"role": "user", "content": {"text": "hi"}}], "message 0 has the content {"),
        (
            [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "message 1 has a content part of type 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type 'text' without a text"),
        ([{"role": "user", "content": [3]}], "content part of type 'int'"),
        ([{**USER, "extra": {1, 2}}], "message 0 holds what JSON cannot"),
        ([{**USER, "extra": float("nan")}], "message 0 holds what JSON cannot"),
    ],
)
def test_malformed_messages_are_refused_by_what_is_wrong(messages: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[chat\] .*{words}"):
        read_conversations(messages)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ cycler.__init__.__globals__ }}", "__init__"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('x' * 100000) }}", "xxx"),
        (5, "the chat template is 5"),
        ({"other": "x"}, "there is no one chat template"),
    ],
)
def test_a_template_that_refuses_or_breaks_is_heard(template: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[chat\] .*{words}") as caught:
        made(template)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) %}{{ messages[0].content * 9 }}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ ('x' | center(100000000)) | length }}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
    ],
)
def test_an_endless_or_huge_template_is_ended(small_limits: None, template: str) -> None:
    with pytest.raises(ConfigError, match=r"\[chat\] .* (more than|more memory)"):
        made(template)
    assert made("{{ messages[0].content }}") == "hi"


def test_no_module_of_the_folder_one_is_in_is_run(
    small_limits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jinja2", "json", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert render("{{ messages[0].content }}", [USER], {}) == "hi"
    assert not (tmp_path / "ran").exists()


def test_without_a_template_the_way_out_is_named() -> None:
    with pytest.raises(ConfigError, match="no chat template; use generate"):
        chat_prompts(Codec(tokenizer_of("byte_level")), [USER])


class Own(PreTrainedTokenizerFast):
    """A tokenizer with its own way to write a conversation."""

    def apply_chat_template(self, conversation: Any, **_: Any) -> Any:
        if conversation[0]["content"] == "no":
            raise KeyError("of my own")
        return "the" if conversation[0]["content"] == "text" else [1, 2]


def test_a_tokenizer_may_write_conversations_itself() -> None:
    codec = Codec(Own(tokenizer_object=byte_level().backend_tokenizer, chat_template="x"))
    assert chat_prompts(codec, [USER]) == [[1, 2]]
    ids = codec.tokenizer.encode("the")
    assert chat_prompts(codec, [{**USER, "content": "text"}]) == [ids]
    with pytest.raises(ConfigError, match="refuses the messages: KeyError: 'of my own'"):
        chat_prompts(codec, [{**USER, "content": "no"}])


def test_the_interpreters_end_waits_for_a_template_and_starts_no_other_process() -> None:
    code = (
        "import atexit, threading\n"
        "texts = []\n"
        "@atexit.register\n"
        "def last():\n"
        "    thread.join()\n"
        "    print(*texts, sep='\\n')\n"
        "from hybridgen import chat\n"
        "def work():\n"
        "    for template in (slow, slow, 'more'):\n"
        "        try:\n"
        "            texts.append(chat.render(template, [], {}))\n"
        "        except Exception as error:\n"
        "            texts.append(f'{type(error).__name__}: {error}')\n"
        "slow = '{% for i in range(2000) %}{% for j in range(999) %}{% endfor %}{% endfor %}done'\n"
        "thread = threading.Thread(target=work, daemon=True)\n"
        "thread.start()\n"
        "while not chat._lock.locked():\n"
        "    pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *others = ended.stdout.splitlines()
    assert first == "done"
    # The end may have come before either of the others.
    assert len(others) == 2
    for text, whole in zip(others, ("done", "more"), strict=True):
        assert text == whole or text.startswith("DeviceError: [chat] the interpreter is ending")


def test_what_a_process_reports_are_the_limits_that_it_has(
    small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert render("a", [USER], {}) == "a"
    process = chat._running_renderer()
    monkeypatch.setattr(chat, "LIMITS", Limits(seconds=77))
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    answer = process.ask({"template": endless, "messages": [USER], "variables": {}})
    assert answer == {"error": "it needs more than 3 s or 64 MiB"}
