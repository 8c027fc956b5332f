# SPDX-License-Identifier: Apache-2.0
"""The demonstration: what it hides, and that it shows what it claims."""

from __future__ import annotations

import re

import pytest

import demo

PARAGRAPHS = [f"Paragraph {i:02} says nothing of interest." for i in range(100)]


def test_a_fact_is_hidden_once_between_two_paragraphs() -> None:
    fact = demo.Fact("Amina", "12345", 0.5)
    pieces = demo.hide(fact, PARAGRAPHS).split("\n\n")
    assert [piece for piece in pieces if piece != fact.sentence] == PARAGRAPHS
    assert pieces.index(fact.sentence) == 50


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (1.0, 100)])
def test_the_ends_of_the_text_are_depths_too(depth: float, place: int) -> None:
    fact = demo.Fact("Amina", "12345", depth)
    assert demo.hide(fact, PARAGRAPHS).split("\n\n").index(fact.sentence) == place


@pytest.mark.parametrize("count", range(1, len(demo.NAMES) + 1))
def test_no_fact_lies_among_the_sinks_or_in_the_window(count: int) -> None:
    facts = demo.draw_facts(count, seed=7)
    assert len({fact.code for fact in facts}) == count
    assert all(re.fullmatch(r"[1-9][0-9]{4}", fact.code) for fact in facts)
    assert all(0.05 <= fact.depth <= 0.76 for fact in facts)


def test_the_same_seed_draws_the_same_codes() -> None:
    assert demo.draw_facts(3, seed=1) == demo.draw_facts(3, seed=1)
    assert demo.draw_facts(3, seed=1) != demo.draw_facts(3, seed=2)


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
def test_a_tenth_on_the_device_finds_what_the_window_misses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert demo.main(["--facts", "1", "--tokens", "1000", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^right answers +1 of 1 +1 of 1 +0 of 1 *$", printed, re.MULTILINE)
    on_device = re.search(r"^KV cache on the device +(\S+) MB +(\S+) MB", printed, re.MULTILINE)
    assert on_device
    full, hybrid = map(float, on_device.groups())
    assert hybrid < 0.2 * full
