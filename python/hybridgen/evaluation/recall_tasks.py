# SPDX-License-Identifier: Apache-2.0
"""Synthetic recall tasks: does a model find a value that it read long ago?

Every sequence is one line of words. A *record* is a key followed by its value (``k17 v3``), a
*query* is the marker ``Q`` followed by a key, and the next word is then the value of that key
(``Q k17 v3``). Everything else is filler, drawn at random, so nothing but the record tells the
answer. Four tasks share this format and differ in where the records and queries stand:

``kv``
    Each key is written once; queries come at the end.
``updated``
    Keys are written up to three times; the latest value wins.
``mqar``
    Multi-query associative recall: many queries in a row, each answered before the next.
``local``
    The control: the record lies only a few words before its query.

Positions count tokens from 0. A *row* is the position of a query's key: the logits of that row
predict the answer. A *source* is the position of the value (not the key) in the record that
decides the answer. A *distance* is ``row - source`` in tokens. The same seed gives the same
sequences on every machine; nothing here needs more than the standard library.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_LENGTH = 2048
"""Tokens of a prompt with its answer: the context length of the tiny models."""

MAX_WRITES = 3
"""How often a key is written at most in the ``updated`` task."""

NUM_SINKS = 4
"""No answer ever lies in the first tokens, which restricted attention keeps for free."""

_BUCKETS = ((64, 256), (256, 512), (512, 1024), (1024, 2048))


@dataclass(frozen=True)
class Task:
    """What a task is, and the distances at which it is usually measured.

    Parameters
    ----------
    name : str
        Key in ``TASKS``.
    description : str
        One sentence for a table's caption.
    buckets : tuple[tuple[int, int], ...]
        Distances (lowest, highest), in tokens.
    """

    name: str
    description: str
    buckets: tuple[tuple[int, int], ...]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("kv", "one record per key, one query at the end", _BUCKETS),
        Task("updated", "keys written up to three times, the latest value wins", _BUCKETS),
        Task("mqar", "many queries in a row, each answered before the next", _BUCKETS),
        Task("local", "control: the record lies a few tokens before its query", ((2, 16),)),
    )
}


@dataclass(frozen=True)
class Vocabulary:
    """Token ids by the part they play in a sequence.

    Parameters
    ----------
    bos : int
        First token of every sequence.
    query : int
        The marker ``Q`` before the key of a query.
    keys, values, fillers : tuple[int, ...]
        The words ``k…``, ``v…`` and ``w…``.
    """

    bos: int
    query: int
    keys: tuple[int, ...]
    values: tuple[int, ...]
    fillers: tuple[int, ...]

    @classmethod
    def from_words(cls, ids: dict[str, int]) -> Vocabulary:
        """Sort a word-to-id table into parts by the first letter of each word.

        Raises
        ------
        ValueError
            If ``<s>``, ``Q``, or one of the three kinds of words is missing.
        """

        def numbered(letter: str) -> tuple[int, ...]:
            words = [w for w in ids if w[0] == letter and w[1:].isdecimal()]
            return tuple(ids[w] for w in sorted(words, key=lambda w: int(w[1:])))

        keys, values, fillers = numbered("k"), numbered("v"), numbered("w")
        if "<s>" not in ids or "Q" not in ids or not (keys and values and fillers):
            raise ValueError(
                "not a recall vocabulary: it needs the words <s>, Q, k0…, v0… and w0…, "
                f"found {len(keys)} keys, {len(values)} values, {len(fillers)} fillers"
            )
        return cls(ids["<s>"], ids["Q"], keys, values, fillers)

    @classmethod
    def from_model_dir(cls, path: str | Path) -> Vocabulary:
        """Read the vocabulary from the ``tokenizer.json`` in a model's folder.

        Raises
        ------
        FileNotFoundError
            If the folder has no ``tokenizer.json``.
        ValueError
            If its words are not those of the recall tasks.
        """
        file = Path(path) / "tokenizer.json"
        words = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
        if not isinstance(words, dict):
            raise ValueError(f"{file} is not a word-level tokenizer")
        return cls.from_words(words)


def vocabulary_words(
    num_keys: int = 384, num_values: int = 100, num_fillers: int = 256
) -> dict[str, int]:
    """Return the word-to-id table of the tiny models: specials first, then k, v and w words."""
    words = ["<pad>", "<s>", "</s>", "Q"]
    words += [f"k{i}" for i in range(num_keys)]
    words += [f"v{i}" for i in range(num_values)]
    words += [f"w{i}" for i in range(num_fillers)]
    return {word: i for i, word in enumerate(words)}


@dataclass(frozen=True)
class Write:
    """One record in a sequence.

    Parameters
    ----------
    position : int
        Position of the record's value.
    previous : int
        Position of the value written to the same key before, or -1.
    count : int
        How often the key has been written so far, this record included.
    """

    position: int
    previous: int
    count: int


@dataclass(frozen=True)
class RecallSequence:
    """A training sequence of T tokens with R answered queries.

    Parameters
    ----------
    ids : tuple[int, ...]
        Token ids [T].
    rows, answers, sources, distances : tuple[int, ...]
        One entry for each query [R]: its position, the token that follows it, the position of
        the value that decides it, and ``row - source`` in tokens.
    writes : tuple[Write, ...]
        All records in order of position.
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]
    answers: tuple[int, ...]
    sources: tuple[int, ...]
    distances: tuple[int, ...]
    writes: tuple[Write, ...]


@dataclass(frozen=True)
class Sample:
    """An evaluation prompt whose next token is the answer.

    Parameters
    ----------
    prompt_ids : tuple[int, ...]
        Token ids; the last one is the key of the final query.
    answer_ids : tuple[int, ...]
        The token that a model with perfect recall says next.
    distance : int
        From the last prompt token back to the deciding value, in tokens.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    distance: int


def exact_match(predicted_ids: Sequence[int], answer_ids: Sequence[int]) -> bool:
    """Say whether the prediction starts with the whole answer; what follows does not matter."""
    return list(predicted_ids[: len(answer_ids)]) == list(answer_ids)


def make_sequence(
    task: str,
    vocabulary: Vocabulary,
    length: int,
    rng: random.Random,
    *,
    num_records: int,
    num_queries: int,
) -> RecallSequence:
    """Draw one training sequence with exactly ``length`` tokens and ``num_queries`` answers.

    Parameters
    ----------
    task : str
        A key of ``TASKS``.
    length : int
        Tokens, the first ``<s>`` included.
    rng : random.Random
        Source of randomness; it is advanced.
    num_records : int
        Records to write, besides the record that each ``local`` query brings along.
    num_queries : int
        Queries to ask. Their keys are drawn with replacement (training never leaves guessing
        by elimination otherwise), but for ``updated`` without as long as there are keys enough.

    Raises
    ------
    ValueError
        If the task is unknown or the records and queries do not fit.
    """
    _check_task(task)
    if task == "local":
        return _make_local_sequence(vocabulary, length, rng, num_records, num_queries)
    num_fillers = length - 1 - 2 * num_records - 3 * num_queries
    if num_records < 1 or num_queries < 0 or num_fillers < 0:
        raise ValueError(
            f"{num_records} records and {num_queries} queries do not fit into {length} tokens"
        )
    writes = _draw_keys(task, vocabulary.keys, num_records, rng)
    items = [[key, rng.choice(vocabulary.values)] for key in writes]
    items += [[filler] for filler in rng.choices(vocabulary.fillers, k=num_fillers)]
    rng.shuffle(items)
    ids = [vocabulary.bos, *(token for item in items for token in item)]
    keys = _key_set(vocabulary)
    latest = {token: i + 1 for i, token in enumerate(ids) if token in keys}
    written = sorted(latest)
    if task == "updated" and num_queries <= len(written):
        # A key queried again has its answer close by, and would hide whether the latest write
        # of several is found.
        queries = rng.sample(written, num_queries)
    else:
        queries = rng.choices(written, k=num_queries)
    rows, sources = [], []
    for key in queries:
        ids += [vocabulary.query, key, ids[latest[key]]]
        rows.append(len(ids) - 2)
        sources.append(latest[key])
    return _finish(vocabulary, ids, rows, sources)


def make_samples(
    task: str,
    vocabulary: Vocabulary,
    distance: tuple[int, int],
    n: int,
    seed: int,
    *,
    length: int | None = None,
) -> list[Sample]:
    """Draw evaluation prompts whose answer lies at a chosen distance.

    Parameters
    ----------
    task : str
        A key of ``TASKS``.
    distance : tuple[int, int]
        Lowest and highest distance in tokens, both allowed; distances that no prompt of
        ``MAX_LENGTH - 1`` tokens can have are left out.
    n : int
        Number of prompts.
    seed : int
        Prompts depend on the task, the distance, the length and this number only.
    length : int, optional
        Tokens of every prompt. By default each prompt draws its own: up to 1.25 times the
        highest distance (so that a window of the last 10 % never reaches the source), for
        ``local`` between 256 and ``MAX_LENGTH - 1``.

    Returns
    -------
    list[Sample]
        The key of the final query was queried nowhere before, and its source lies behind the
        first ``NUM_SINKS`` tokens.

    Raises
    ------
    ValueError
        If the task is unknown or no prompt can have such a distance.
    """
    _check_task(task)
    # A string seed is hashed with SHA-512, hence the same in every process; a tuple is not.
    rng = random.Random(f"{task} {distance[0]} {distance[1]} {length} {seed}")
    return [_make_sample(task, vocabulary, distance, length, rng) for _ in range(n)]


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def _key_set(vocabulary: Vocabulary) -> frozenset[int]:
    return frozenset(vocabulary.keys)


def _draw_keys(task: str, keys: Sequence[int], num_records: int, rng: random.Random) -> list[int]:
    """Choose the key of each record: all different, or for ``updated`` up to MAX_WRITES times."""
    if task != "updated":
        if num_records > len(keys):
            raise ValueError(f"{num_records} records need more than the {len(keys)} keys")
        return rng.sample(list(keys), num_records)
    pool = rng.sample(list(keys), min(num_records, len(keys)))
    drawn: list[int] = []
    for key in pool:
        drawn += [key] * rng.randint(1, MAX_WRITES)
        if len(drawn) >= num_records:
            return drawn[:num_records]
    raise ValueError(f"{num_records} records need more than the {len(keys)} keys")


def _make_local_sequence(
    vocabulary: Vocabulary, length: int, rng: random.Random, num_records: int, num_queries: int
) -> RecallSequence:
    """Scatter ``record, few fillers, query, answer`` groups and lone records over the line."""
    keys = rng.sample(list(vocabulary.keys), num_records + num_queries)
    room = length - 1 - 2 * num_records - 5 * num_queries
    if room < 0:
        raise ValueError(
            f"{num_records} records and {num_queries} local queries do not fit into {length} tokens"
        )
    items: list[list[int]] = [[key, rng.choice(vocabulary.values)] for key in keys[num_queries:]]
    nearest, farthest = TASKS["local"].buckets[0]
    for key in keys[:num_queries]:
        value = rng.choice(vocabulary.values)
        # The gap leaves room for Q and the key, which count as distance too.
        gap = min(rng.randint(nearest - 2, farthest - 2), room)
        room -= gap
        between = rng.choices(vocabulary.fillers, k=gap)
        items.append([key, value, *between, vocabulary.query, key, value])
    items += [[filler] for filler in rng.choices(vocabulary.fillers, k=room)]
    rng.shuffle(items)
    ids = [vocabulary.bos]
    rows, sources = [], []
    for item in items:
        if len(item) > 2:
            sources.append(len(ids) + 1)
            rows.append(len(ids) + len(item) - 2)
        ids += item
    return _finish(vocabulary, ids, rows, sources)


def _finish(
    vocabulary: Vocabulary, ids: list[int], rows: list[int], sources: list[int]
) -> RecallSequence:
    keys = _key_set(vocabulary)
    writes: list[Write] = []
    latest: dict[int, Write] = {}
    for i, token in enumerate(ids):
        if token in keys and ids[i - 1] != vocabulary.query:
            before = latest.get(token, Write(-1, -1, 0))
            latest[token] = Write(i + 1, before.position, before.count + 1)
            writes.append(latest[token])
    return RecallSequence(
        ids=tuple(ids),
        rows=tuple(rows),
        answers=tuple(ids[row + 1] for row in rows),
        sources=tuple(sources),
        distances=tuple(row - source for row, source in zip(rows, sources, strict=True)),
        writes=tuple(writes),
    )


def _make_sample(
    task: str,
    vocabulary: Vocabulary,
    distance: tuple[int, int],
    length: int | None,
    rng: random.Random,
) -> Sample:
    # Tokens before the source: <s>, the sinks and its key; for `updated` also older writes.
    ahead = 32 if task == "updated" else NUM_SINKS + 2
    longest = MAX_LENGTH - 1 if length is None else length
    nearest = max(distance[0], 2)
    farthest = min(distance[1], longest - 1 - ahead)
    if not nearest <= farthest or longest >= MAX_LENGTH:
        raise ValueError(
            f"no {task} prompt of at most {min(longest, MAX_LENGTH - 1)} tokens has a distance "
            f"in {distance}: the largest possible is {longest - 1 - ahead}"
        )
    drawn = rng.randint(nearest, farthest)
    if length is None:
        shortest = drawn + 1 + ahead
        if task == "local":
            shortest = max(shortest, 256)
            length = rng.randint(shortest, longest)
        else:
            length = rng.randint(shortest, max(shortest, min(longest, distance[1] * 5 // 4)))
    source = length - 1 - drawn

    # Earlier queries take at most half of the way back to the source.
    num_earlier = min(rng.randint(8, 32), drawn // 6) if task == "mqar" else 0
    num_left = source - 2
    num_right = drawn - 2 - 3 * num_earlier
    num_records = max(2, round(rng.uniform(0.05, 0.08) * length))
    share = num_left / (num_left + num_right)
    records_left = max(1, min(round(num_records * share), num_left // 2))
    records_right = max(0, min(num_records - records_left, num_right // 2))

    target = rng.choice(vocabulary.keys)
    others = [key for key in vocabulary.keys if key != target]
    drawn_keys = _draw_keys(task, others, records_left + records_right, rng)
    rng.shuffle(drawn_keys)
    left_keys, right_keys = drawn_keys[:records_left], drawn_keys[records_left:]
    if task == "updated":
        older = min(rng.randint(1, MAX_WRITES - 1), records_left)
        for i in rng.sample(range(records_left), older):
            left_keys[i] = target

    answer = rng.choice(vocabulary.values)
    # A stale value must never pass for the right one.
    stale = [value for value in vocabulary.values if value != answer]

    def region(keys: list[int], tokens: int) -> list[int]:
        items = [[k, rng.choice(stale if k == target else vocabulary.values)] for k in keys]
        fillers = rng.choices(vocabulary.fillers, k=tokens - 2 * len(keys))
        items += [[filler] for filler in fillers]
        rng.shuffle(items)
        return [token for item in items for token in item]

    ids = [vocabulary.bos, *region(left_keys, num_left), target, answer]
    ids += region(right_keys, num_right)
    key_set = _key_set(vocabulary)
    latest = {t: ids[i + 1] for i, t in enumerate(ids) if t in key_set and t != target}
    for key in rng.choices(sorted(latest), k=num_earlier):
        ids += [vocabulary.query, key, latest[key]]
    ids += [vocabulary.query, target]
    return Sample(tuple(ids), (answer,), drawn)
