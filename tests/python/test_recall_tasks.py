# SPDX-License-Identifier: Apache-2.0
"""The recall tasks say the truth about their sequences, and the tiny models solve them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from hybridgen.evaluation.recall_tasks import (
    MAX_LENGTH,
    MAX_WRITES,
    NUM_SINKS,
    TASKS,
    RecallSequence,
    Vocabulary,
    exact_match,
    make_samples,
    make_sequence,
    vocabulary_words,
)

REPOSITORY = Path(__file__).resolve().parents[2]
VOCABULARY = Vocabulary.from_words(vocabulary_words())
FAMILIES = ("llama", "opt", "qwen2")
TASKS_AND_BUCKETS = [(task.name, bucket) for task in TASKS.values() for bucket in task.buckets]


def draw(task: str, seed: int = 0, length: int = 512) -> RecallSequence:
    rng = random.Random(seed)
    return make_sequence(task, VOCABULARY, length, rng, num_records=24, num_queries=20)


def written_values(ids: tuple[int, ...], key: int) -> list[int]:
    """Positions of the values written to a key by records, in order."""
    return [i + 1 for i, token in enumerate(ids) if token == key and ids[i - 1] != VOCABULARY.query]


@pytest.mark.parametrize("task", TASKS)
def test_sequence_depends_on_the_seed_only(task: str) -> None:
    assert draw(task, seed=5) == draw(task, seed=5)
    assert draw(task, seed=5) != draw(task, seed=6)


@pytest.mark.parametrize("task", TASKS)
def test_sequence_states_its_rows_answers_and_sources(task: str) -> None:
    for seed in range(20):
        sequence = draw(task, seed)
        assert len(sequence.ids) == 512
        assert len(sequence.rows) == 20
        assert sequence.ids[0] == VOCABULARY.bos
        for row, answer, source, distance in zip(
            sequence.rows, sequence.answers, sequence.sources, sequence.distances, strict=True
        ):
            key = sequence.ids[row]
            assert key in VOCABULARY.keys
            assert sequence.ids[row - 1] == VOCABULARY.query
            assert sequence.ids[row + 1] == answer
            assert answer in VOCABULARY.values
            assert sequence.ids[source] == answer
            assert source == written_values(sequence.ids[:row], key)[-1]
            assert distance == row - source > 0


@pytest.mark.parametrize("task", TASKS)
def test_sequence_lists_every_write(task: str) -> None:
    sequence = draw(task)
    assert len(sequence.writes) == (44 if task == "local" else 24)
    for write in sequence.writes:
        so_far = written_values(
            sequence.ids[: write.position + 1], sequence.ids[write.position - 1]
        )
        assert so_far[-1] == write.position
        assert len(so_far) == write.count <= MAX_WRITES
        assert write.previous == (so_far[-2] if write.count > 1 else -1)
    assert (max(w.count for w in sequence.writes) > 1) == (task == "updated")


def test_local_queries_follow_their_record_closely() -> None:
    low, high = TASKS["local"].buckets[0]
    assert all(low <= distance <= high for distance in draw("local").distances)


def test_sequence_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 16 tokens"):
        draw("kv", length=16)


@pytest.mark.parametrize(("task", "bucket"), TASKS_AND_BUCKETS)
def test_samples_hold_one_source_at_the_stated_distance(task: str, bucket: tuple[int, int]) -> None:
    for sample in make_samples(task, VOCABULARY, bucket, 50, seed=1):
        ids, row = sample.prompt_ids, len(sample.prompt_ids) - 1
        assert bucket[0] <= sample.distance <= bucket[1]
        assert len(ids) + len(sample.answer_ids) <= MAX_LENGTH
        assert ids[row - 1] == VOCABULARY.query
        source = row - sample.distance
        assert (ids[source],) == sample.answer_ids
        assert source > NUM_SINKS
        values = written_values(ids[:-1], ids[row])
        assert values[-1] == source
        # The key occurs nowhere else, above all in no earlier query.
        assert ids[:-1].count(ids[row]) == len(values)
        assert 1 < len(values) <= MAX_WRITES if task == "updated" else len(values) == 1
        assert all(ids[stale] != ids[source] for stale in values[:-1])


@pytest.mark.parametrize("task", ["kv", "updated", "mqar"])
@pytest.mark.parametrize("bucket", TASKS["kv"].buckets)
def test_window_of_a_tenth_never_holds_the_source(task: str, bucket: tuple[int, int]) -> None:
    for sample in make_samples(task, VOCABULARY, bucket, 50, seed=2):
        assert sample.distance > 0.1 * len(sample.prompt_ids) + 1


def test_mqar_prompts_hold_earlier_queries_with_their_answers() -> None:
    for sample in make_samples("mqar", VOCABULARY, (256, 512), 20, seed=3):
        ids = sample.prompt_ids
        queries = [i for i, token in enumerate(ids[:-2]) if token == VOCABULARY.query]
        assert len(queries) >= 8
        for i in queries:
            assert ids[i + 2] == ids[written_values(ids, ids[i + 1])[-1]]


@pytest.mark.parametrize("task", TASKS)
def test_samples_depend_on_the_seed_only(task: str) -> None:
    bucket = TASKS[task].buckets[0]
    first = make_samples(task, VOCABULARY, bucket, 5, seed=4)
    assert first == make_samples(task, VOCABULARY, bucket, 5, seed=4)
    assert first != make_samples(task, VOCABULARY, bucket, 5, seed=5)
    assert first[:3] == make_samples(task, VOCABULARY, bucket, 3, seed=4)


def test_samples_can_have_a_fixed_length() -> None:
    samples = make_samples("kv", VOCABULARY, (100, 200), 5, seed=0, length=1000)
    assert {len(sample.prompt_ids) for sample in samples} == {1000}


@pytest.mark.parametrize(
    ("task", "distance", "message"),
    [("kv", (2048, 4096), "largest possible is 2040"), ("sudoku", (1, 2), "the tasks are kv,")],
)
def test_impossible_samples_are_refused(task: str, distance: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_samples(task, VOCABULARY, distance, 1, seed=0)


def test_exact_match_ignores_what_follows_the_answer() -> None:
    assert exact_match([7, 8, 9], (7, 8))
    assert not exact_match([7], (7, 8))
    assert not exact_match([7, 9, 8], (7, 8))


def test_vocabulary_without_keys_is_refused() -> None:
    words = {word: i for word, i in vocabulary_words().items() if word[0] != "k"}
    with pytest.raises(ValueError, match="found 0 keys, 100 values, 256 fillers"):
        Vocabulary.from_words(words)


def model_folder(family: str) -> Path:
    folder = REPOSITORY / "tests" / "models" / f"tiny-{family}"
    assert folder.is_dir(), f"{folder} is missing; scripts/train_tiny_models.py makes it"
    return folder


def test_models_are_small_enough_to_be_committed() -> None:
    weights = [model_folder(family) / "model.safetensors" for family in FAMILIES]
    assert sum(path.stat().st_size for path in weights) < 12e6


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_round_trips_ids(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = model_folder(family)
    # Not AutoTokenizer: for the model type qwen2 it replaces the class that the folder declares.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    vocabulary = Vocabulary.from_model_dir(folder)
    assert vocabulary == VOCABULARY
    ids = list(make_samples("kv", vocabulary, (64, 256), 1, seed=0)[0].prompt_ids)
    assert tokenizer(tokenizer.decode(ids)).input_ids == ids
    assert tokenizer.decode(ids).startswith("<s> ")


@pytest.mark.parametrize("family", FAMILIES)
def test_model_reproduces_its_recorded_recall(family: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = model_folder(family)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = Vocabulary.from_model_dir(folder)
    record = json.loads((folder / "recall.json").read_text(encoding="utf-8"))
    far = [r for r in record["recall"] if r["task"] == "kv" and r["distance"][0] >= 256]
    assert len(far) == 3
    hits, samples = 0, []
    for row in far:
        assert row["full"] >= 0.9
        assert row["window_only"] <= 0.1
        samples += make_samples("kv", vocabulary, tuple(row["distance"]), 20, seed=77)
    with torch.inference_mode():
        for sample in samples:
            logits = model(torch.tensor([sample.prompt_ids]), logits_to_keep=1).logits
            assert torch.isfinite(logits).all()
            hits += exact_match([int(logits[0, -1].argmax())], sample.answer_ids)
    assert hits >= 0.8 * len(samples)
