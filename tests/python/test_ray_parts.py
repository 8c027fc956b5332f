# SPDX-License-Identifier: Apache-2.0
"""What engines on a cluster decide: shares, cores, batches of the dead. Without Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from batch_runs import run, write_lines
from hybridgen import ConfigError, DeviceError, OutOfMemoryError, WeightConfig, quantize
from hybridgen.batch.line import Answer, Line
from hybridgen.ray import cluster, data
from hybridgen.ray.actor_pool import ActorPool
from hybridgen.ray.core_claims import CoreClaim, chosen_cpus
from hybridgen.ray.engine_actor import with_shared_weights
from hybridgen.ray.node_share import (
    ActorShare,
    NodeOffer,
    budgets_within,
    memory_share,
    share_of_nodes,
)
from trained import folder_of

# ------------------------------------------------------------------------------------------ shares


@pytest.mark.parametrize(
    ("nodes", "actors", "device", "expected"),
    [
        ([(8, 0)], 1, "auto", (8, 0)),
        ([(8, 0)], 3, "cpu", (2, 0)),
        ([(8, 0), (8, 0)], 2, "cpu", (8, 0)),
        ([(8, 0), (3, 0)], 2, "cpu", (4, 0)),
        ([(16, 2)], 2, "auto", (8, 1)),
        ([(16, 2)], 2, "cpu", (8, 0)),
        ([(16, 1)], 2, "auto", (8, 0)),
        ([(16, 1), (4, 1)], 2, "cuda:0", (4, 1)),
    ],
)
def test_actors_have_the_largest_equal_share(
    nodes: list[tuple[int, int]], actors: int, device: str, expected: tuple[int, int]
) -> None:
    offers = [NodeOffer(*node) for node in nodes]
    assert share_of_nodes(offers, actors, device=device) == ActorShare(*expected)


@pytest.mark.parametrize(
    ("nodes", "actors", "device"), [([(2, 0)], 3, "cpu"), ([], 1, "cpu"), ([(8, 1)], 2, "cuda:0")]
)
def test_more_actors_than_there_is_room_for_are_refused(
    nodes: list[tuple[int, int]], actors: int, device: str
) -> None:
    with pytest.raises(ConfigError, match=f"--actors is {actors}; allowed"):
        share_of_nodes([NodeOffer(*node) for node in nodes], actors, device=device)


def test_budgets_of_all_actors_of_a_node_are_within_its_memory() -> None:
    for cpus, actor_cpus in ((8, 8), (8, 3), (2, 1)):
        share = memory_share(1000.0, cpus, actor_cpus)
        assert share * (cpus // actor_cpus) <= 1000
        on_host = budgets_within(share, 100, device_is_host=True)
        assert on_host.device is not None
        assert 100 + on_host.dram + on_host.device <= share
        on_gpu = budgets_within(share, 0, device_is_host=False)
        assert (on_gpu.device, on_gpu.dram <= share) == (None, True)
    with pytest.raises(OutOfMemoryError, match="the weights take 500 bytes"):
        budgets_within(500, 500, device_is_host=True)


def test_weights_are_shared_where_nobody_says_otherwise_and_files_have_them_as_used(
    tmp_path: Path,
) -> None:
    folder = folder_of("tiny-llama")
    held = with_shared_weights(str(folder), {"device": "cpu"})
    assert held == {"device": "cpu", "weights": WeightConfig(shared=True)}
    quantize(folder, tmp_path / "coded", weights=WeightConfig(format="int8"))
    for model, options in {
        folder: {"device": "cpu", "dtype": "bfloat16"},
        str(folder): {"device": "cpu", "weights": WeightConfig(host=1.0)},
        f"{folder}/": {"device": "emulated"},
        tmp_path / "coded": {"device": "cpu"},
    }.items():
        assert with_shared_weights(str(model), options) == options


# ------------------------------------------------------------------------------------------- cores


def test_a_claim_takes_cpus_of_one_node_if_it_can() -> None:
    assert chosen_cpus([[0], [4, 5, 6]], 2) == [4, 5]
    assert chosen_cpus([[0], [4, 5]], 3) == [0, 4, 5]
    assert chosen_cpus([[0], [4, 5]], 4) == []


HOLDING = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
"""What another process has of a claim."""


def test_no_cpu_is_claimed_twice_and_the_dead_claim_none(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    theirs = cpus[0]
    arguments = [sys.executable, "-S", "-c", HOLDING, str(tmp_path / f"cpu-{theirs}")]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        claims = [CoreClaim(1, folder=tmp_path, wait_seconds=0) for _ in cpus[1:]]
        assert sorted(cpu for claim in claims for cpu in claim.cpus) == cpus[1:]
        with pytest.raises(ConfigError, match="1 CPUs of its own"):
            CoreClaim(1, folder=tmp_path, wait_seconds=0)
        other.kill()
        last = CoreClaim(1, folder=tmp_path, wait_seconds=10)
    assert last.cpus == {theirs}
    for claim in [last, *claims]:
        claim.release()
    whole = CoreClaim(len(cpus), folder=tmp_path, wait_seconds=0)
    assert whole.cpus == set(cpus)
    whole.release()


# -------------------------------------------------------------------------------------------- pool


class Dead(Exception):
    """In the place of RayActorError."""


class TaskError(Exception):
    """In the place of RayTaskError."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """Ray in one process: calls end one after the other, the newest first.

    Parameters
    ----------
    answer : callable
        Makes an actor's answers of its number and lines, or raises.
    place : callable
        The same of where it is.
    """

    exceptions = SimpleNamespace(RayActorError=Dead, RayTaskError=TaskError)

    def __init__(
        self,
        answer: Callable[[int, list[Line]], Any],
        place: Callable[[int], Any] = lambda number: f"actor {number}",
    ) -> None:
        self._answer, self._place = answer, place
        self.num_actors = self.num_killed = self.most_running = 0

    def remote(self, _kind: type) -> Any:
        """Return what stands for an actor's class."""
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._made))

    def _made(self, _spec: Any) -> Any:
        number = self.num_actors
        self.num_actors += 1
        return SimpleNamespace(
            place=SimpleNamespace(remote=lambda: _Reference(lambda: self._place(number))),
            answer=SimpleNamespace(
                remote=lambda lines: _Reference(lambda: self._answer(number, lines))
            ),
        )

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        """Return a reference whose call has ended."""
        assert references
        self.most_running = max(self.most_running, len(references))
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        """Return what a call came to."""
        return reference.call()

    def kill(self, _actor: Any) -> None:
        """Count it."""
        self.num_killed += 1


class _Reference:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call


def answered(_number: int, lines: list[Line]) -> list[Answer]:
    return [Answer(line.index, {"index": line.index}) for line in lines]


def run_pool(ray: Any, count: int, *, actors: int = 2, size: int = 5) -> list[int]:
    """Return the numbers of answers to so many lines, in the order in which they came."""
    lines = (Line(index, f"line {index + 1}", {}) for index in range(count))
    spec: Any = None
    with ActorPool(ray, spec, ActorShare(1), actors, lines_per_batch=size) as pool:
        assert pool.num_lines_together == 2 * actors * size
        return [answer.index for answer in pool.answers(lines)]


@pytest.mark.parametrize("count", [0, 1, 5, 23, 60])
def test_a_pool_answers_every_line_once(count: int) -> None:
    ray = FakeRay(answered)
    assert sorted(run_pool(ray, count)) == list(range(count))
    assert ray.num_killed == ray.num_actors == 2
    assert ray.most_running <= 4  # two batches in each of two actors


def test_batches_of_actors_that_die_are_answered_by_others() -> None:
    deaths = {0, 1, 2}

    def dying(number: int, lines: list[Line]) -> Any:
        if number in deaths and lines[0].index >= 10 * number:
            raise Dead("killed")
        return answered(number, lines)

    ray = FakeRay(dying)
    assert sorted(run_pool(ray, 100, size=3)) == list(range(100))
    assert ray.num_actors > 2


def test_lines_that_kill_every_actor_end_the_run() -> None:
    def dying(number: int, lines: list[Line]) -> Any:
        if any(line.index == 12 for line in lines):
            raise Dead("segmentation fault")
        return answered(number, lines)

    with pytest.raises(DeviceError, match=r"3 actors died with line 11 to line 15: segmentation"):
        run_pool(FakeRay(dying), 30)


def test_what_keeps_an_engine_from_being_made_is_said_as_it_is() -> None:
    def refused(_number: int) -> Any:
        raise TaskError(OutOfMemoryError("[load_model] the weights take 9 TiB"))

    ray = FakeRay(answered, refused)
    with pytest.raises(OutOfMemoryError, match=r"^\[load_model\] the weights take 9 TiB$"):
        run_pool(ray, 3)
    assert ray.num_killed == ray.num_actors


def test_actors_that_die_as_they_start_end_the_run() -> None:
    def dying(_number: int) -> Any:
        raise Dead("killed by the system")

    with pytest.raises(DeviceError, match="3 actors died as they started: killed by the system"):
        run_pool(FakeRay(answered, dying), 3)


def test_a_failure_that_is_no_lines_own_ends_the_run() -> None:
    def failing(_number: int, _lines: list[Line]) -> Any:
        raise TaskError(DeviceError("[disk] the tier is full"))

    with pytest.raises(DeviceError, match="the tier is full"):
        run_pool(FakeRay(failing), 3)


# ------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actors", "2"], "--actors is given without --ray"),
        (["--ray", "nowhere"], "it is no HOST:PORT"),
        (["--ray", "local", "--actors", "0"], "--actors is 0"),
        (["--ray", "PORT"], "refused"),
    ],
)
def test_what_is_no_cluster_is_one_sentence(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        options = [address if word == "PORT" else word for word in options]
        source = write_lines(tmp_path / "in.jsonl", [{"prompt": "v1"}])
        assert run(source, tmp_path / "out", *options) == 2
    words = capsys.readouterr().err
    assert message in words
    assert words.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_cluster_of_this_machine_takes_no_call_without_its_token(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    fake = SimpleNamespace(
        is_initialized=lambda: is_there,
        init=lambda **options: started.append(options),
        shutdown=lambda: started.append({}),
    )
    monkeypatch.setattr(cluster, "_imported", lambda: fake)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    with cluster.connected("local") as found:
        assert found is fake
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    if is_there:  # somebody else's, who ends it
        assert started == []
    else:
        first, last = started
        assert (first["address"], first["include_dashboard"], last) == ("local", False, {})


def test_where_ray_is_imported_without_a_token_no_cluster_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with (
        pytest.raises(ConfigError, match="imported Ray without a token; allowed: a process that"),
        cluster.connected("local"),
    ):
        pass


# ----------------------------------------------------------------------------------------- datasets


def test_a_row_has_a_text_or_an_error_and_nulls_beside_it() -> None:
    text = {"text": "b", "token_ids": [2], "finish_reason": "length", "generated_tokens": 1}
    plain = {"outputs": [text | {"cumulative_logprob": -1.0}], "prompt_tokens": 3, "error": None}
    row = data.row_of(Answer(0, plain))
    assert (row["text"], row["prompt_tokens"], row["error"]) == ("b", 3, None)
    failed = {"outputs": [], "prompt_tokens": 0, "error": {"type": "E", "message": "why"}}
    row = data.row_of(Answer(0, failed))
    assert row.pop("error") == "why"
    assert set(row.values()) == {None}


def test_options_that_no_row_could_be_answered_with_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown option 'max_token'"):
        data.BatchEngine("no/such/model", sampling_params={"max_token": 3})


def test_rows_of_a_dataset_become_lines() -> None:
    ids = np.empty(2, dtype=object)
    ids[:] = [np.array([1, 2]), np.array([3])]
    params = np.array([{"max_tokens": 3, "seed": None}, None], dtype=object)
    first, second = data.lines_of({"prompt_token_ids": ids, "sampling_params": params}, seed=5)
    assert first.content is not None
    assert second.content is not None
    assert first.content["prompt_token_ids"] == [1, 2]
    assert (first.content["max_tokens"], second.content.get("max_tokens")) == (3, None)
    again = data.lines_of({"prompt_token_ids": ids[:1]}, seed=5)[0]
    assert again.content is not None
    assert again.content["seed"] == first.content["seed"] != second.content["seed"]
    assert data.lines_of({"prompt": np.array([], dtype=str)}, seed=0) == []
    (refused,) = data.lines_of({"prompt": ["a"], "sampling_params": [{"n": 2}]}, seed=0)
    assert "n is 2; allowed: 1" in refused.problem
    for columns in (("text", "prompt"), ("prompt", "messages"), ("question",)):
        with pytest.raises(ConfigError, match="the dataset has the columns"):
            data.lines_of({name: ["a"] for name in columns}, seed=0)
