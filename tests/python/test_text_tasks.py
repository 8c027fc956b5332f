# SPDX-License-Identifier: Apache-2.0
"""Documents of the text tasks hold their answer, and scores say how much of it a text has."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from hybridgen.evaluation.text_tasks import FIELDS, TASKS, Document, make_documents, score


def draw(task: str, words: int = 400, seed: int = 3) -> list[Document]:
    return make_documents(task, count=20, words=words, seed=seed)


@pytest.mark.parametrize("task", TASKS)
def test_documents_depend_on_the_seed_only(task: str) -> None:
    assert draw(task) == draw(task) != draw(task, seed=4)
    assert draw(task)[:3] == make_documents(task, count=3, words=400, seed=3)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("words", [300, 2000])
def test_a_prompt_has_about_as_many_words_as_asked_for(task: str, words: int) -> None:
    for document in draw(task, words):
        assert 0.85 * words <= len(document.prompt.split()) <= 1.1 * words + 40


@pytest.mark.parametrize("task", TASKS)
def test_the_whole_answer_scores_one_whatever_follows_and_none_scores_zero(task: str) -> None:
    for document in draw(task):
        assert score(task, document.answer, document.parts) == 1.0
        assert score(task, f"{document.answer}\nQuestion: 12345", document.parts) == 1.0
        assert score(task, "", document.parts) == 0.0
        assert score(task, "I do not know.", document.parts) == 0.0


@pytest.mark.parametrize("task", ["keys", "variables", "aggregation"])
def test_an_answer_to_another_document_scores_little(task: str) -> None:
    documents = draw(task)
    scores = [score(task, a.answer, b.parts) for a, b in itertools.pairwise(documents)]
    assert sum(scores) / len(scores) < 0.3


def test_keys_have_one_code_each_and_the_code_stands_once_in_the_text() -> None:
    for document in draw("keys"):
        (code,) = document.parts
        assert document.prompt.count(code) == 1
        asked = re.search(r"What is the code of the (.+)\?", document.prompt)
        assert asked is not None
        assert f"The code of the {asked[1]} is {code}." in document.prompt


def test_variables_reach_their_value_through_those_before_them() -> None:
    for document in draw("variables"):
        found: dict[str, str] = {}
        for name, source in re.findall(r"VAR (\w+) = (\w+)\.", document.prompt):
            found[name] = found.get(source, source)
        asked = re.search(r"have the value (\d+)", document.prompt)
        assert asked is not None
        assert [name for name, value in found.items() if value == asked[1]] == list(document.parts)


def test_the_words_that_are_asked_for_occur_four_times_as_often_as_all_others() -> None:
    for document in draw("aggregation"):
        listed = document.prompt.split("\n")[0].split()
        counts = {word: listed.count(word) for word in set(listed)}
        least = min(counts.values())
        assert {word for word, count in counts.items() if count == 4 * least} == {*document.parts}
        assert sorted(counts.values())[:-3] == [least] * (len(counts) - 3)


def test_an_order_is_scored_by_the_fields_of_a_json_object() -> None:
    document = draw("extraction")[0]
    order = dict(zip(FIELDS, document.parts, strict=True))
    assert score("extraction", json.dumps(order | {"city": "Rome"}), document.parts) == 0.75
    as_number = json.dumps(order | {"count": int(order["count"])})
    assert score("extraction", as_number, document.parts) == 1.0
    assert score("extraction", json.dumps(list(order.values())), document.parts) == 0.0
    assert score("extraction", json.dumps(order)[:-1], document.parts) == 0.0
    assert score("extraction", "[" * 100_000, document.parts) == 0.0


def test_naming_everything_is_worth_less_than_naming_what_is_right() -> None:
    (document, *_) = draw("variables")
    everything = " ".join(re.findall(r"VAR (\w+)", document.prompt))
    assert score("variables", everything, document.parts) == 0.25
    assert score("variables", document.parts[0], document.parts) == 0.25


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("keys", 199, "words is 199; allowed: 200 to 40000"),
        ("keys", 40001, "words is 40001; allowed: 200 to 40000"),
        ("sums", 300, "unknown task 'sums'; the tasks"),
    ],
)
def test_impossible_documents_are_refused(task: str, words: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_documents(task, count=1, words=words, seed=0)
