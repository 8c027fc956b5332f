# SPDX-License-Identifier: Apache-2.0
"""From making an LLM to closing it: memory, copies, forks, threads and the interpreter's end."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridgen as hg
from hybridgen import LLM, ConfigError, KVConfig, SamplingParams, SchedulerConfig, _core
from hybridgen.devices import resolve_device

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 100_000,
}
WIDE = TINY | {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 2048}
WIDE_MIB = 125 + 2 * 16
HYBRID: dict[str, Any] = {"kv": KVConfig(device_tokens=8), "scheduler": SchedulerConfig(k=4)}
PROMPT = [5, 6, 7] * 10
FEW = SamplingParams(max_tokens=3, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=90_000, ignore_eos=True)


def tiny(**options: Any) -> LLM:
    return LLM(TINY, load_format="dummy", **options)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with tiny() as made:
        yield made


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# ------------------------------------------------------------------------------------- closing


def test_memory_goes_back_to_the_system_with_the_last_sharer() -> None:
    LLM(WIDE, load_format="dummy").close()  # fills what libraries keep
    before = resident_mib()
    first = LLM(WIDE, load_format="dummy")
    assert resident_mib() > before + 0.8 * WIDE_MIB
    second = LLM(first, method="full")
    first.close()
    assert resident_mib() > before + 0.8 * WIDE_MIB
    assert len(second.generate_ids([PROMPT], FEW)[0]) == 3
    options = second.engine_options
    second.close()
    assert resident_mib() < before + 0.2 * WIDE_MIB
    assert options.max_model_len == TINY["max_position_embeddings"]


def test_a_block_gives_memory_back_while_its_name_is_bound() -> None:
    LLM(WIDE, load_format="dummy").close()
    before = resident_mib()
    for _ in range(3):
        with LLM(WIDE, load_format="dummy") as llm:
            llm.generate_ids([PROMPT], FEW)
        assert resident_mib() < before + 0.2 * WIDE_MIB


def test_closing_in_any_order_and_twice_is_fine() -> None:
    first = tiny()
    second = LLM(first)
    third = LLM(second, method="full")
    second.close()
    second.close()
    with third:
        first.close()
        assert len(third.generate_ids([PROMPT], FEW)[0]) == 3
    third.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda llm: llm.generate([PROMPT], FEW),
        lambda llm: llm.generate_ids([PROMPT], FEW),
        lambda llm: list(llm.stream(PROMPT, FEW)),
        lambda llm: llm.score([(PROMPT, [1, 2])]),
        lambda llm: llm.stats,
        lambda llm: llm.memory,
        lambda llm: llm.numa_parts,
        lambda llm: llm.engine_options,
        lambda llm: llm.tracing("run.json").__enter__(),
        lambda llm: llm.__enter__(),
        LLM,
        lambda llm: hg.calibrate(llm, [PROMPT]),
    ],
)
def test_a_closed_llm_refuses_with_the_way_out(use: Callable[[LLM], Any]) -> None:
    llm = tiny()
    llm.close()
    with pytest.raises(ConfigError, match="the engine is closed; allowed: an LLM that is open"):
        use(llm)


def test_what_was_read_from_the_checkpoint_outlives_closing(llm: LLM) -> None:
    llm.close()
    assert llm.model_config["num_layers"] == 2
    assert llm.path is None
    assert "2 layers of 32" in repr(llm)


def test_closing_inside_a_stream_makes_its_next_token_raise(llm: LLM) -> None:
    stream = llm.stream(PROMPT, ENDLESS)
    next(stream)
    llm.close()
    with pytest.raises(ConfigError, match="closed"):
        next(stream)


@pytest.mark.parametrize("options", [{}, HYBRID])
def test_closing_from_another_thread_ends_calls_with_an_error(options: dict[str, Any]) -> None:
    llm = tiny(**options)
    raised: list[BaseException] = []
    started = threading.Barrier(3)

    def streaming() -> None:
        for i, _ in enumerate(llm.stream(PROMPT, ENDLESS)):
            if i == 0:
                started.wait()

    def generating() -> None:
        started.wait()
        llm.generate_ids([PROMPT], ENDLESS)

    def catching(call: Callable[[], None]) -> None:
        try:
            call()
        except ConfigError as error:
            raised.append(error)

    threads = [threading.Thread(target=catching, args=(call,)) for call in (streaming, generating)]
    for thread in threads:
        thread.start()
    started.wait()
    llm.close()
    for thread in threads:
        thread.join()
    assert len(raised) == 2
    assert all("closed" in str(error) for error in raised)


def test_an_llm_in_a_cycle_is_collected_with_its_threads() -> None:
    before = threads_of_process()
    llm = tiny()
    loop = [llm]
    loop.append(loop)  # type: ignore[arg-type]
    del llm, loop
    gc.collect()
    assert threads_of_process() <= before


def threads_of_process() -> int:
    return len([name for name in thread_names() if name.startswith("hybridgen")])


def thread_names() -> list[str]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found.append((task / "comm").read_text().strip())
        except OSError:
            continue  # ended meanwhile
    return found


# ------------------------------------------------------------------------------------- copying


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_llm_refuses_to_be_copied(llm: LLM, copied: Callable[[Any], Any]) -> None:
    for holder in (llm, [llm], {"model": llm}):
        if copied is copy.copy and holder is not llm:
            continue  # shares the object, as it should
        with pytest.raises(ConfigError, match=r"LLM\(llm\) makes another one"):
            copied(holder)
    assert len(llm.generate_ids([PROMPT], FEW)[0]) == 3


def test_what_an_llm_hands_out_can_be_copied_and_sent(llm: LLM) -> None:
    output = llm.generate([PROMPT], SamplingParams(max_tokens=3, logprobs=2))[0]
    chunk = next(llm.stream(PROMPT, FEW))
    handed_out = [output, chunk, llm.stats, FEW, KVConfig(device_tokens=8), SchedulerConfig(k=4)]
    handed_out += [hg.CpuConfig(), hg.QueryConfig(), hg.info(), llm.memory]
    handed_out += [hg.methods.H2O(heavy=0.1), ConfigError("why")]
    for thing in handed_out:
        for again in (copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
            assert type(again) is type(thing)
            assert repr(again) == repr(thing)


def test_what_belongs_to_the_engine_refuses_to_be_copied(llm: LLM) -> None:
    for thing in (llm.engine_options, llm.stream(PROMPT, FEW)):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot pickle"):
                copied(thing)


# ------------------------------------------------------------------------------------- forking


def in_child(check: Callable[[], None]) -> None:
    """Run a check in a forked child; a failure there is one here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            check()
            os._exit(0)
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [{"method": "full"}, HYBRID])
def test_a_forked_child_is_refused_and_may_let_go(options: dict[str, Any]) -> None:
    made = [tiny(**options)]
    made[0].generate_ids([PROMPT], FEW)
    stream = made[0].stream(PROMPT, ENDLESS)
    next(stream)

    def check() -> None:
        for use in (
            lambda: made[0].generate_ids([PROMPT], FEW),
            lambda: list(made[0].stream(PROMPT, FEW)),
            lambda: next(stream),
            lambda: made[0].stats,
            lambda: LLM(made[0]),
        ):
            with pytest.raises(ConfigError, match=r"was forked from .*get_context\('spawn'\)"):
                use()
        engine = made[0]._loop._engine
        with pytest.raises(hg.DeviceError, match="forked"):
            engine.step()
        del engine
        made[0].close()
        made.clear()
        gc.collect()

    in_child(check)
    assert len(made[0].generate_ids([PROMPT], FEW)[0]) == 3
    assert next(stream).index == 1
    stream.close()
    made[0].close()


@pytest.mark.timeout(60)
def test_a_child_forked_while_another_thread_generates_is_refused_too(llm: LLM) -> None:
    def stream_on() -> None:
        for _ in llm.stream(PROMPT, ENDLESS):
            started.set()
            if stopped.is_set():
                return

    started, stopped = threading.Event(), threading.Event()
    thread = threading.Thread(target=stream_on)
    thread.start()
    started.wait()

    def check() -> None:
        with pytest.raises(ConfigError, match="forked"):
            llm.generate_ids([PROMPT], FEW)
        llm.close()

    for _ in range(5):
        in_child(check)
    stopped.set()
    thread.join()


@pytest.mark.timeout(60)
def test_a_forked_child_may_make_an_llm_of_its_own() -> None:
    config = TINY | {"vocab_size": 4000}
    torch.set_num_threads(2)  # the parent's team of OpenMP, which the child does not have
    try:
        with LLM(config, load_format="dummy") as llm:
            expected = llm.generate_ids([PROMPT], FEW)

            def check() -> None:
                with LLM(config, load_format="dummy") as own:
                    assert own.generate_ids([PROMPT], FEW) == expected

            in_child(check)
    finally:
        torch.set_num_threads(1)


# ------------------------------------------------------------------------------------- callbacks


def test_a_callback_that_uses_its_busy_engine_is_refused() -> None:
    class Nested:
        """Selects the newest, after trying to generate inside of a step."""

        def __init__(self, **_: object) -> None: ...

        def select(self, _layer: int, _head: int, logits: Any, count: int) -> list[int]:
            for use in (lambda: llm.generate_ids([PROMPT], FEW), llm.close):
                try:
                    use()
                except ConfigError as error:
                    refusals.add(str(error))
            return list(range(len(logits) - count, len(logits)))

    refusals: set[str] = set()
    hg.register_selector("nested-use", Nested, strategy="post")
    llm = tiny(query="exact", selector="nested-use", **HYBRID)
    assert len(llm.generate_ids([PROMPT], FEW)[0]) == 3
    llm.close()
    assert len(refusals) == 1
    assert "uses an LLM that is busy" in refusals.pop()


# ------------------------------------------------------------------------------ interpreter's end

ENDING = f"""
import sys, threading
import hybridgen as hg
TINY = {TINY!r}
endless = hg.SamplingParams(max_tokens=90_000, ignore_eos=True)
full = hg.LLM(TINY, load_format="dummy", method="full")
hybrid = hg.LLM(TINY, load_format="dummy", kv=hg.KVConfig(device_tokens=8))
started = threading.Barrier(6)

def stream(llm):
    for i, _ in enumerate(llm.stream({PROMPT!r}, endless)):
        if i == 0:
            started.wait()

def generate(llm):
    started.wait()
    llm.generate([{PROMPT!r}] * 3, endless)

def load():
    started.wait()
    while True:
        hg.LLM(TINY, load_format="dummy").generate_ids([[5, 6]])

calls = [(stream, full), (stream, hybrid), (generate, full), (generate, hybrid), (load,)]
for target, *arguments in calls:
    threading.Thread(target=target, args=arguments, daemon=True).start()
own = hg.LLM(full)
suspended = own.stream({PROMPT!r}, endless)
next(suspended)
last = threading.Thread(target=lambda: own.generate_ids([{PROMPT!r}]))
last.start()
started.wait()
"""


def test_the_interpreter_ends_while_daemon_threads_generate() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ------------------------------------------------------------------------- processors and threads

CPUS = """
import json, os
before = os.sched_getaffinity(0)
import hybridgen as hg
with hg.LLM({config}, load_format="dummy", method="full") as llm:
    found = [hg.info().cpu["usable"], llm.engine_options.device_threads]
    allowed = set()
    for task in os.listdir("/proc/self/task"):
        if open(f"/proc/self/task/{{task}}/comm").read().startswith("hybridgen"):
            allowed |= os.sched_getaffinity(int(task))
print(json.dumps([len(before), found, max(before) in allowed]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@pytest.mark.parametrize(
    "settings",
    [
        {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
        {"GOMP_CPU_AFFINITY": str(min(os.sched_getaffinity(0)))},
    ],
)
def test_binding_openmp_takes_no_cpu_away(settings: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CPUS.format(config=TINY)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | settings,
    )
    count, found, uses_last = json.loads(done.stdout)
    assert found == [count, count]
    assert uses_last


FEW_THREADS = """
import os, resource, sys
import hybridgen as hg
from hybridgen import _core
loaded = hg.LLM({config}, load_format="dummy")
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)  # the limit does not hold for root
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for make in (
    lambda: hg.LLM(loaded, method="full", cpu=hg.CpuConfig(device_threads=2)),
    lambda: hg.LLM(loaded, cpu=hg.CpuConfig(threads=2, device_threads=1)),
    lambda: hg.LLM({config}, load_format="dummy"),
):
    try:
        make()
    except hg.DeviceError as error:
        print(error)
print(len(loaded.generate_ids([[5, 6]])[0]))
"""


def test_a_limit_on_threads_is_named_before_openmp_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW_THREADS.format(config=TINY)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1:]) == (0, ["16"]), done.stderr
    assert len(lines) == 4
    assert all("RLIMIT_NPROC (ulimit -u) is 1" in line for line in lines[:3])


# --------------------------------------------------------------------------------------- devices


def test_torch_says_which_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [
        resolve_device("LLM", d).name for d in ("auto", "cuda", "cuda:1", torch.device("cuda", 1))
    ] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cuda:1",
    ]
    with pytest.raises(ConfigError, match=r"sees 2 CUDA devices; allowed: .*cuda:0 to cuda:1"):
        resolve_device("LLM", "cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("LLM", "auto").name == "cpu"
    with pytest.raises(ConfigError, match=r"sees 0 CUDA devices.*a CUDA build of torch"):
        resolve_device("LLM", "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU says it")
def test_the_kernels_build_does_not_decide_about_the_device() -> None:
    with pytest.raises(hg.DeviceError, match=r"is a CPU build|torch sees 0"):
        _core.Model(_core.ModelConfig(**MODEL_FIELDS), dtype="float32", device="cuda:0")


MODEL_FIELDS: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "num_layers": 1,
    "hidden_size": 8,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 8,
    "ffn_size": 8,
    "vocab_size": 8,
    "max_positions": 8,
}
