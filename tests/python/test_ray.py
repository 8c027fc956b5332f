# SPDX-License-Identifier: Apache-2.0
"""Engines on a real Ray cluster of two nodes: what dies in mid-run costs no line."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_runs import MODEL, answers, command, run, shards, write_lines
from hybridgen.batch.shard_folder import ShardFolder
from hybridgen.cli import main

NODE_BYTES = 1 << 30
PROMPTS = [f"v{i % 60} v{i % 7}" for i in range(400)]
ENVIRONMENT = {
    # Nobody else on this machine may have these nodes run something.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "RAY_USAGE_STATS_ENABLED": "0",
    # What is started ahead of time takes the time of two cores.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU and 1 GiB each, in processes of their own."""
    with (
        pytest.MonkeyPatch.context() as patch,
        # Not pytest's: names of sockets have to be short.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)  # before Ray is imported, which then reads it
        reason = "pip install 'hybridgen[ray]' would run it"
        kind = pytest.importorskip("ray.cluster_utils", reason=reason).Cluster
        of_head = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
        head = of_head | {"num_cpus": 1, "memory": NODE_BYTES}
        found = kind(initialize_head=True, head_node_args=head)
        try:
            found.add_node(num_cpus=1, memory=NODE_BYTES)
            yield found
        finally:
            found.shutdown()


def cpus_of_threads(pid: int) -> set[tuple[int, ...]]:
    """Return on which CPUs the threads of a process may run."""
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    return {tuple(sorted(os.sched_getaffinity(task))) for task in tasks}


class Watched:
    """A pool that waits for both of its engines, and what happens as shards are written."""

    def __init__(self, patch: pytest.MonkeyPatch, happenings: dict[int, Any]) -> None:
        from hybridgen.ray.actor_pool import ActorPool

        self.pool: Any = None
        self.places: list[Any] = []
        self.threads: dict[int, set[tuple[int, ...]]] = {}
        enter, write = ActorPool.__enter__, ShardFolder.write
        num_written = 0

        def entered(pool: ActorPool) -> ActorPool:
            self.pool = enter(pool)
            pool.wait_for_all()
            self.places = pool.places
            self.threads = {place.pid: cpus_of_threads(place.pid) for place in self.places}
            return pool

        def written(folder: ShardFolder, shard: int, found: Any) -> None:
            nonlocal num_written
            write(folder, shard, found)
            num_written += 1
            happenings.pop(num_written, lambda: None)()

        patch.setattr(ActorPool, "__enter__", entered)
        patch.setattr(ShardFolder, "write", written)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_an_engine_that_is_killed_and_a_node_that_is_lost_cost_no_line(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"prompt": p, "id": i, "max_tokens": 9} for i, p in enumerate(PROMPTS)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    out, alone = tmp_path / "out", tmp_path / "alone"
    options = ["--lines-per-shard", "10", "--ignore-eos", "--max-num-seqs", "8"]
    options += ["--temperature", "1.2", "--dtype", "auto"]  # as the files have it
    assert run(source, alone, *options) == 0
    worker = cluster.list_all_nodes()[1]

    def killed() -> None:
        os.kill(watched.places[0].pid, signal.SIGKILL)

    def lost() -> None:
        cluster.remove_node(worker, allow_graceful=False)

    happenings = {2: killed, 20: lost}
    watched = Watched(monkeypatch, happenings)
    arguments = command(source, out, *options, "--ray", cluster.address, "--actors", "2")
    for name in ("--threads", "--device-threads"):  # those of the cores that an engine has
        del arguments[arguments.index(name) : arguments.index(name) + 2]
    assert main(arguments) == 0
    assert not happenings
    first, second = watched.places
    assert first.pid != second.pid
    assert len(first.cpus) == len(second.cpus) == 1
    assert set(first.cpus).isdisjoint(second.cpus)
    for place in (first, second):
        assert place.share == NODE_BYTES
        assert watched.threads[place.pid] == {place.cpus}
        assert 0 < place.dram == place.device_bytes < NODE_BYTES // 2
        assert place.shared_bytes > 0
    assert len(shards(out)) == 40
    assert [a["id"] for a in answers(out)] == list(range(400))
    assert answers(out) == answers(alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_dataset_is_mapped_by_engines(cluster: Any) -> None:
    import ray

    import hybridgen.ray
    from hybridgen import LLM, SamplingParams

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"prompt": prompt, "kept": prompt[::-1]} for prompt in PROMPTS[:20]]
        rows[3]["prompt"] = ""
        found = (
            ray.data.from_items(rows)
            .map_batches(
                hybridgen.ray.BatchEngine,
                fn_constructor_kwargs={
                    "model": str(MODEL),
                    "method": "full",
                    "dtype": "float32",
                    "sampling_params": {"max_tokens": 5},
                },
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=1,
                batch_size=8,
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    by_prompt = {row["kept"][::-1]: row for row in found}
    assert len(found) == 20
    with LLM(MODEL, method="full", dtype="float32") as llm:
        expected = llm.generate(PROMPTS[:20], SamplingParams(max_tokens=5))
    for number, output in enumerate(expected):
        row = by_prompt[PROMPTS[number]]
        if number == 3:
            assert (row["text"], "prompt is empty" in row["error"]) == (None, True)
        else:
            assert (row["text"], row["error"]) == (output.text, None)
            assert list(row["token_ids"]) == output.token_ids
