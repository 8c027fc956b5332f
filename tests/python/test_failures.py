# SPDX-License-Identifier: Apache-2.0
"""One prompt's failure is its own: all others get what they would have got without it.

What fails here: numbers of one prompt (a token that overflows), a selector of the user's
own, memory at admission, the tokenizer, the user's patience.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridgen as hg
import hybridgen.codec
import hybridgen.detokenizer
import hybridgen.generation
import hybridgen.sequence
import hybridgen.stop_strings
from broken_model import (
    BROKEN,
    CONFIG,
    EARLY,
    FULL,
    GREEDY,
    HEALTHY,
    HYBRID,
    ToyTokenizer,
    broken,
    is_idle,
)
from hybridgen import (
    LLM,
    ConfigError,
    GenerationError,
    HybridGenError,
    NumericError,
    OutOfMemoryError,
    SamplingParams,
    SchedulerConfig,
)
from hybridgen.errors import own_error
from trained import ROOT, run_python


@pytest.fixture(scope="module", params=["full", "hybrid"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with broken(**(FULL if request.param == "full" else HYBRID)) as model:
        yield model


def test_generate_runs_all_other_prompts_to_their_end_and_names_the_failed_ones(llm: LLM) -> None:
    expected = llm.generate(HEALTHY, GREEDY)
    prompts = [HEALTHY[0], EARLY, HEALTHY[1], [BROKEN], HEALTHY[2]]
    with pytest.raises(GenerationError, match=r"2 of 5 prompts failed") as caught:
        llm.generate(prompts, GREEDY)
    error = caught.value
    assert "prompt 1 ([3, 63, 4, 5])" in str(error)
    assert "prompt 3 ([63])" in str(error)
    assert sorted(error.errors) == [1, 3]
    assert error.__cause__ is error.errors[1]
    assert [o.finish_reason for o in error.outputs] == [
        "length",
        "error",
        "length",
        "error",
        "length",
    ]
    assert [o.finished for o in error.outputs] == [True, False, True, False, True]
    for output, alone in zip(error.outputs[::2], expected, strict=True):
        assert output.token_ids == alone.token_ids
        assert output.outputs[0].cumulative_logprob == alone.outputs[0].cumulative_logprob
    assert is_idle(llm)


def test_a_call_whose_failures_are_of_one_class_is_caught_as_that_class(llm: LLM) -> None:
    with pytest.raises(NumericError) as caught:
        llm.generate_ids([EARLY, HEALTHY[1], [BROKEN]], GREEDY)
    assert isinstance(caught.value, GenerationError)
    assert isinstance(caught.value, ArithmeticError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert (str(again), again.outputs) == (str(caught.value), caught.value.outputs)
    mixed = GenerationError.of("m", {0: NumericError("a"), 1: ConfigError("b")}, [])
    assert type(mixed) is GenerationError
    of_more_than_a_message = UnicodeDecodeError("utf-8", b"x", 0, 1, "r")
    assert type(GenerationError.of("m", {0: of_more_than_a_message}, [])) is GenerationError


class OfACode(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"code {int(str(code))}")


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class WithoutHeirs(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no heirs")


class Sealed(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("sealed")

    def add_note(self, note: str) -> None:
        raise RuntimeError("sealed")


class Rewording(Exception):
    def __init__(self, *_: object) -> None:
        super().__init__("mine")


class Another(Exception):
    def __new__(cls, *_: object) -> Any:
        return 5 if issubclass(cls, GenerationError) else super().__new__(cls)


USERS_OWN: list[tuple[BaseException, bool]] = [
    (OfACode(7), False),
    (Speechless("x"), True),
    (WithoutHeirs("x"), False),
    (Sealed("x"), False),
    (Rewording(), True),
    (Another("x"), False),
    (SystemExit(3), False),
    (KeyError("x"), True),
]


@pytest.mark.parametrize(
    ("error", "is_of_its_class"), USERS_OWN, ids=[type(error).__name__ for error, _ in USERS_OWN]
)
def test_an_exception_of_any_class_in_a_selector_comes_out_with_the_outputs_of_all(
    error: BaseException, is_of_its_class: bool
) -> None:
    name = f"raising_{type(error).__name__}"

    class Raising(FailingSelector):
        def select(self, layer: int, head: int, logits: Any, k: int) -> Any:
            if self.fails:
                raise error
            return np.sort(np.argsort(-logits, kind="stable")[:k])

        victim = 30 + 6 - 4

    hg.register_selector(
        name, lambda *, max_offloaded, **_: Raising(max_offloaded, "post"), strategy="post"
    )
    with broken(**HYBRID, selector=name) as llm:
        expected = llm.generate_ids(HEALTHY, GREEDY)
        with pytest.raises(GenerationError, match=r"^\[generate_ids\] 2 of 3 prompts") as caught:
            llm.generate_ids([[7] * 30, HEALTHY[0], [8] * 30], GREEDY)
        assert isinstance(caught.value, type(error)) == is_of_its_class
        assert list(caught.value.errors.values()) == [error, error]
        assert caught.value.outputs[1] == expected[0]
        with pytest.raises(type(error)) as alone:
            llm.generate_ids([[7] * 30], GREEDY)
        assert alone.value is error


def test_a_lack_of_memory_is_found_beside_exceptions_without_words() -> None:
    error = Speechless()
    assert own_error(error, "text") is error


def test_a_single_prompts_failure_comes_as_it_is_with_its_outputs(llm: LLM) -> None:
    with pytest.raises(NumericError, match=r"\[generate\] prompt 0 \(\[3, 63, 4, 5\]\)") as caught:
        llm.generate(EARLY, GREEDY)
    assert not isinstance(caught.value, GenerationError)
    assert caught.value.outputs is not None
    assert [o.finish_reason for o in caught.value.outputs] == ["error"]


def test_generate_ids_has_the_ids_of_all_in_input_order(llm: LLM) -> None:
    expected = llm.generate_ids(HEALTHY, GREEDY)
    with pytest.raises(GenerationError) as caught:
        llm.generate_ids([HEALTHY[0], EARLY, *HEALTHY[1:]], GREEDY)
    assert caught.value.outputs == [expected[0], [], *expected[1:]]


def test_the_samples_of_one_prompt_fail_together_and_others_do_not(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4, n=3, temperature=1.0, seed=3, ignore_eos=True)
    expected = llm.generate([HEALTHY[0]], params)
    with pytest.raises(GenerationError) as caught:
        llm.generate([EARLY, HEALTHY[0]], params)
    failed, fine = caught.value.outputs
    assert [c.finish_reason for c in failed.outputs] == ["error"] * 3
    assert [c.token_ids for c in fine.outputs] == [c.token_ids for c in expected[0].outputs]
    assert list(caught.value.errors) == [0]


def test_score_never_returns_a_part_of_a_sum(llm: LLM) -> None:
    pairs = [([5, 6, 7], [8, 9]), ([5, 6, 7, 8], [9, BROKEN, 10]), ([1], [2, 3])]
    expected = llm.score([pairs[0], pairs[2]])
    with pytest.raises(GenerationError, match=r"1 of 3 prompts failed.*prompt 1 ") as caught:
        llm.score(pairs)
    assert caught.value.outputs == [expected[0], None, expected[1]]
    with pytest.raises(NumericError, match=r"\[score\] prompt 0"):
        llm.score(pairs[1:2])


def test_a_stream_beside_a_failing_generate_goes_on_and_is_the_same(llm: LLM) -> None:
    expected = llm.generate_ids(HEALTHY[:1], GREEDY)[0]
    stream = llm.stream(HEALTHY[0], GREEDY)
    got = [next(stream).token_id]
    with pytest.raises(GenerationError) as caught:
        llm.generate([EARLY, HEALTHY[1]], GREEDY)
    assert [o.finish_reason for o in caught.value.outputs] == ["error", "length"]
    got += [chunk.token_id for chunk in stream]
    assert got == expected
    assert is_idle(llm)


def test_a_stream_that_cannot_be_finished_raises(llm: LLM) -> None:
    with pytest.raises(NumericError, match=r"\[stream\] prompt 0 \(\[3, 63, 4, 5\]\) failed"):
        list(llm.stream(EARLY, GREEDY))
    # In a call of somebody else's: it hears of it all the same.
    stream = llm.stream(HEALTHY[1], GREEDY)
    next(stream)
    failing = llm.stream([*HEALTHY[1], BROKEN], GREEDY, decode_prompt_tokens=1)
    threads_first = llm.generate_ids(HEALTHY[:1], GREEDY)
    assert threads_first
    with pytest.raises(NumericError):
        next(failing)
    assert len(list(stream)) == GREEDY.max_tokens - 1


def test_two_threads_on_one_model_do_not_hear_of_each_others_failures(llm: LLM) -> None:
    expected = llm.generate_ids(HEALTHY, GREEDY)
    results: dict[str, Any] = {}

    def work(name: str, prompts: list[list[int]]) -> None:
        try:
            results[name] = [llm.generate_ids(prompts, GREEDY) for _ in range(5)]
        except HybridGenError as error:
            results[name] = error

    threads = [
        threading.Thread(target=work, args=("fine", HEALTHY)),
        threading.Thread(target=work, args=("failing", [EARLY, HEALTHY[0]])),
        threading.Thread(target=work, args=("alone", [EARLY])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["fine"] == [expected] * 5
    assert isinstance(results["failing"], GenerationError)
    assert results["failing"].outputs == [[], expected[0]]
    assert type(results["alone"]) is NumericError
    assert is_idle(llm)


class FailingSelector:
    """Top-K, but for requests with so much room; `failing` counts what it refused."""

    def __init__(self, max_offloaded: int, strategy: str) -> None:
        self.fails = max_offloaded == self.victim
        if max_offloaded == self.misfit:
            raise LookupError("there is no selector for this one")
        self.strategy = strategy

    victim = -1
    misfit = -1

    def select(self, layer: int, head: int, logits: Any, k: int) -> Any:
        if self.fails:
            raise LookupError(f"no idea in layer {layer}")
        return np.sort(np.argsort(-logits, kind="stable")[:k])

    def plan(self, layer: int, kv_head: int, queries: Any, num_offloaded: int, k: int) -> Any:
        if self.fails:
            raise LookupError(f"no idea in layer {layer}")
        return list(range(min(k, num_offloaded)))


@pytest.mark.parametrize("strategy", ["post", "pre"])
@pytest.mark.parametrize("query", ["exact", "speculative", "rescore"])
def test_a_users_selector_that_raises_ends_its_own_prompt_only(strategy: str, query: str) -> None:
    hg.register_selector(
        f"failing_{strategy}",
        lambda *, max_offloaded, **_: FailingSelector(max_offloaded, strategy),
        strategy=strategy,
    )
    option = "selector" if strategy == "post" else "pre_selector"
    options = HYBRID | {"scheduler": SchedulerConfig(k=4, strategy=strategy), "query": query}
    with broken(**options, **{option: f"failing_{strategy}"}) as llm:
        expected = llm.generate_ids(HEALTHY, GREEDY)
        victim, misfit = [7] * 30, [8] * 41
        FailingSelector.victim = 30 + 6 - 4
        FailingSelector.misfit = 41 + 6 - 4
        try:
            with pytest.raises(LookupError, match="no idea in layer 0") as caught:
                llm.generate_ids([HEALTHY[0], victim, *HEALTHY[1:], misfit], GREEDY)
            error = caught.value
            assert isinstance(error, GenerationError)
            assert list(error.errors) == [1, 4]
            assert str(error.errors[4]) == "there is no selector for this one"
            frames = []
            trace = error.errors[1].__traceback__
            while trace is not None:
                frames.append(trace.tb_frame.f_code.co_name)
                trace = trace.tb_next
            assert frames[-1] in ("select", "plan")
            assert error.outputs[0] == expected[0]
            assert error.outputs[2:4] == expected[1:]
            with pytest.raises(LookupError) as alone:
                llm.generate_ids([victim], GREEDY)
            assert type(alone.value) is LookupError
            assert any("prompt 0" in note for note in alone.value.__notes__)
        finally:
            FailingSelector.victim = FailingSelector.misfit = -1
        assert is_idle(llm)


@pytest.mark.parametrize("options", [FULL, HYBRID], ids=["full", "hybrid"])
def test_a_tokenizer_that_raises_ends_the_text_it_was_to_make(options: dict[str, Any]) -> None:
    tokenizer = ToyTokenizer()
    with broken(tokenizer=tokenizer, **options) as llm:
        ids = llm.generate_ids(["ABC", "DEFGH"], GREEDY)
        assert set(ids[1]) - set(ids[0])
        tokenizer.broken_on = next(i for i in ids[1] if i not in ids[0] and i not in range(33, 42))
        with pytest.raises(GenerationError, match="cannot say that") as caught:
            llm.generate(["ABC", "DEFGH"], GREEDY)
        assert isinstance(caught.value, ConfigError)
        fine, failed = caught.value.outputs
        assert fine.token_ids == ids[0]
        assert (fine.finish_reason, failed.finish_reason) == ("length", "error")
        assert "'DEFGH'" in str(caught.value)
        with pytest.raises(ConfigError, match=r"prompt 0 \('DEFGH'\).*cannot say that"):
            list(llm.stream("DEFGH", GREEDY))
        assert is_idle(llm)


def test_a_list_with_one_prompt_that_cannot_run_runs_nothing(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=r"prompt 1 \(\[1, 1, .*the prompt has 300 tokens"):
        llm.generate([HEALTHY[0], [1] * 300, HEALTHY[1]], GREEDY)
    assert is_idle(llm)
    assert llm.stats.decode_tokens == 0
    assert llm.stats.prefill_tokens == 0


def test_closing_beside_a_stream_ends_it_with_an_error() -> None:
    llm = broken(**FULL)
    stream = llm.stream(HEALTHY[0], GREEDY)
    next(stream)
    llm.close()
    with pytest.raises(ConfigError, match="was closed before the text ended"):
        list(stream)


def test_a_progress_bar_that_cannot_be_drawn_costs_no_result(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm.auto

    expected = llm.generate_ids(HEALTHY, GREEDY)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(tqdm.auto.tqdm, "update", refuse)
    assert llm.generate_ids(HEALTHY, GREEDY, progress=True) == expected


def test_what_is_looked_at_per_step_does_not_grow_with_the_number_of_prompts(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridgen.sequence import Sequence

    looks = 0

    def finished(self: Sequence) -> bool:
        nonlocal looks
        looks += 1
        return self.output.finish_reason is not None

    counts = {}
    for count in (20, 160):
        looks = 0
        with monkeypatch.context() as patch:
            patch.setattr(Sequence, "finished", property(finished))
            llm.generate_ids([[5, 6]] * count, SamplingParams(max_tokens=1))
        counts[count] = looks
    assert counts[160] <= 8 * counts[20] + 50


MEMORY = """
import resource
import hybridgen as hg
config = dict(architectures=["LlamaForCausalLM"], hidden_act="silu", vocab_size=512,
              hidden_size=256, intermediate_size=256, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=65536)
options = dict(load_format="dummy", dtype="{dtype}", cpu=hg.CpuConfig(threads=1, device_threads=1))
if "{method}" == "full":
    options["method"] = "full"
else:
    options["kv"] = hg.KVConfig(device_tokens=16)
two = hg.SamplingParams(max_tokens=2)
many = hg.SamplingParams(max_tokens=60000)
prompts = [[7] * 300, [5, 6, 7]]  # the first needs a matrix product of oneDNN or LibTorch
llm = hg.LLM(config, **options)
llm.generate_ids([[1, 2, 3]], two)  # threads and their stacks are there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for room in (0, 4):
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
    try:
        llm.generate_ids(prompts, two)
    except hg.OutOfMemoryError as error:
        print(room, error)
    try:
        next(llm.stream([5, 6, 7], many))
        raise SystemExit("there was room for 60,000 tokens")
    except hg.OutOfMemoryError as error:
        assert "prompt 0 ([5, 6, 7])" in str(error), error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = llm.generate_ids(prompts, two)
assert [len(ids) for ids in again] == [2, 2], again
assert next(llm.stream([5, 6, 7], many)).token_id == again[1][0]
fresh = hg.LLM(config, **options).generate_ids(prompts, two)
assert again == fresh, (again, fresh)
print("works again")
"""


@pytest.mark.parametrize(("method", "dtype"), [("full", "float32"), ("hybridgen", "bfloat16")])
def test_memory_that_was_short_for_a_moment_is_no_fault_for_good(method: str, dtype: str) -> None:
    result = run_python(MEMORY.replace("{method}", method).replace("{dtype}", dtype))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "works again" in result.stdout


def test_memory_that_is_short_before_a_worker_has_run_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "late_threads.so"
    source = ROOT / "tests/support/late_threads.cpp"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C++ compiler here; one in CXX, or named c++, runs it")
    # Without C++'s own library, whose thread-local data would be there from the start.
    flags = ["-std=c++20", "-fno-exceptions", "-fno-threadsafe-statics", "-shared", "-fPIC"]
    subprocess.run([*compiler, *flags, "-Wl,--as-needed", "-o", library, source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    code = MEMORY.replace("{method}", "hybridgen").replace("{dtype}", "bfloat16")
    result = run_python(code)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "works again" in result.stdout


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("unable to mmap 99 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lacks_of_memory_while_loading_are_called_that(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    def taken_for_other(*_: Any, **__: Any) -> None:
        try:
            refuse()
        except (RuntimeError, OSError, MemoryError) as cause:
            raise hg.CheckpointError("[load_model] cannot read w in f") from cause

    makers: list[Callable[..., None]] = [refuse, taken_for_other]
    for make in makers:
        monkeypatch.setattr("hybridgen.model.load_model", make)
        with pytest.raises(OutOfMemoryError, match="an allocation failed"):
            LLM(CONFIG, load_format="dummy")


def test_python_and_the_engine_know_the_same_words_for_a_lack_of_memory() -> None:
    source = (Path(__file__).parents[2] / "src/device/own_error.cpp").read_text(encoding="utf-8")
    lists = re.findall(r"kLackOfMemory\w* = \{(.*?)\}", source, re.DOTALL)
    words = [word for part in lists for word in re.findall(r'"([^"]+)"', part)]
    assert len(lists) == 2
    assert len(words) >= 6
    for word in words:
        found = own_error(RuntimeError(f"x: {word} y"), "load_model")
        assert isinstance(found, OutOfMemoryError), word


def test_the_accuracy_script_counts_the_given_tokens_that_the_model_would_choose(llm: LLM) -> None:
    import methods_accuracy

    prompts = HEALTHY[:2]
    texts = llm.generate_ids(prompts, GREEDY, decode_prompt_tokens=1)
    hits, metrics = methods_accuracy.agreement(llm, prompts, texts, 1)
    assert hits == [1.0] * 12
    assert [m.generated_tokens for m in metrics] == [6, 6]
    other = (texts[0][2] + 1) % BROKEN
    changed = [[*texts[0][:2], other, *texts[0][3:]], texts[1]]
    hits, _ = methods_accuracy.agreement(llm, prompts, changed, 1)
    assert hits[:3] == [1.0, 1.0, 0.0]
    assert hits[6:] == [1.0] * 6
