# SPDX-License-Identifier: Apache-2.0
"""K_min: how it is found, where it is kept, and who reads it."""

from __future__ import annotations

import builtins
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridgen import LLM, ConfigError, KVConfig, SchedulerConfig, calibrate
from hybridgen.cli import main
from hybridgen.engine_options import EngineSetup
from hybridgen.k_min import (
    KMinProfile,
    find_k_min,
    fingerprint,
    read_dataset,
)
from hybridgen.k_min_profile import FILE_NAME
from hybridgen.methods import HybridGen
from trained import CPU, folder_of, new_tokens, prompts_of, run_python, samples

Trained = Callable[[str], LLM]

PROFILE = KMinProfile(
    k_min=32,
    metric="agreement",
    tolerance=0.02,
    curve=((16, 0.5), (32, 0.99), (64, 1.0)),
    all_tokens=1.0,
    num_prompts=3,
    device_tokens=0.1,
    model="tiny",
    fingerprint="abc",
)

# ----------------------------------------------------------------------------------- find_k_min


@pytest.mark.parametrize(
    ("accuracies", "all_tokens", "tolerance", "expected"),
    [
        ((0.2, 0.5, 0.97, 0.98, 1.0), 1.0, 0.02, 8),  # 0.98 is just enough
        ((0.2, 0.5, 0.97, 0.98, 1.0), 1.0, 0.03, 4),
        ((0.2, 0.5, 0.97, 0.98, 1.0), 1.0, 0.0, 16),
        ((1.0, 1.0, 1.0, 1.0, 1.0), 1.0, 0.0, 1),
        ((1.0, 1.0, 0.5, 1.0, 1.0), 1.0, 0.02, 8),  # a dip counts: from K_min on, not at K_min
        ((0.2, 0.5, 0.97, 0.98, 0.9), 1.0, 0.02, None),
        ((0.3, 0.4, 0.45, 0.5, 0.5), 0.5, 0.1, 4),  # relative to all tokens, not to 1
        ((0.6, 0.6, 0.6, 0.6, 0.6), 0.5, 0.0, 1),  # better than all tokens is fine
        ((0.0, 0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 1),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 1.0, 1.0, 1),
    ],
)
def test_k_min_is_the_smallest_from_which_on_all_are_accurate(
    accuracies: tuple[float, ...], all_tokens: float, tolerance: float, expected: int | None
) -> None:
    curve = list(zip((1, 2, 4, 8, 16), accuracies, strict=True))
    assert find_k_min(curve, all_tokens, tolerance) == expected


def test_no_curve_has_no_k_min() -> None:
    assert find_k_min([], 1.0, 0.5) is None


SHARES = st.floats(0.0, 1.0)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(accuracies=st.lists(SHARES, min_size=1, max_size=8), all_tokens=SHARES, tolerance=SHARES)
def test_k_min_is_correct_and_as_small_as_can_be(
    accuracies: list[float], all_tokens: float, tolerance: float
) -> None:
    curve = [(1 << i, accuracy) for i, accuracy in enumerate(accuracies)]
    bar = (1.0 - tolerance) * all_tokens
    good = [k for k, _ in curve if all(a >= bar for other, a in curve if other >= k)]
    assert find_k_min(curve, all_tokens, tolerance) == (min(good) if good else None)
    # Who accepts more loss never needs more tokens.
    looser = find_k_min(curve, all_tokens, min(1.0, tolerance + 0.1))
    if good:
        assert looser is not None
        assert looser <= min(good)


# ----------------------------------------------------------------------------------- the file


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    PROFILE.save(file)
    assert KMinProfile.load(file) == PROFILE
    assert KMinProfile.load(str(file)) == PROFILE
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["format"] == 1
    assert set(content) == {"format", *(f.name for f in dataclasses.fields(KMinProfile))}


def _content(**changes: Any) -> str:
    content = {"format": 1, **vars(PROFILE), "curve": [list(p) for p in PROFILE.curve]}
    return json.dumps({k: v for k, v in (content | changes).items() if v != "absent"})


BROKEN = {
    "empty": "",
    "no-json": "{",
    "no-dict": "[1, 2]",
    "no-format": _content(format="absent"),
    "other-format": _content(format=2),
    "no-k-min": _content(k_min="absent"),
    "k-min-0": _content(k_min=0),
    "k-min-text": _content(k_min="32"),
    "k-min-fraction": _content(k_min=32.5),
    "no-curve": _content(curve="absent"),
    "odd-curve": _content(curve=[[1, 2, 3]]),
    "curve-of-texts": _content(curve=[["a", "b"]]),
    "more": _content(surplus=1),
}


@pytest.fixture
def copied(copy_of: Callable[[Path], Path]) -> Path:
    """Return a folder of this test's own with tiny-llama in it."""
    return copy_of(folder_of("tiny-llama"))


@pytest.fixture
def steered(copied: Path) -> Iterator[Callable[..., LLM]]:
    """Make steered engines of the copied folder, loaded once."""
    with LLM(copied, dtype="float32", cpu=CPU, method="full") as f:
        yield lambda **options: LLM(
            f, cpu=CPU, scheduler=SchedulerConfig(**({"k": None} | options))
        )


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_a_way_out(tmp_path: Path, case: str) -> None:
    file = tmp_path / FILE_NAME
    file.write_text(BROKEN[case], encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^\[k_min\] .*{FILE_NAME}.*calibrate.*k_min="):
        KMinProfile.load(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=r"^\[k_min\] cannot read"):
            KMinProfile.load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^\[k_min\] cannot read"):
        KMinProfile.load(tmp_path / FILE_NAME)


def steered_k_min(path: Path | None, **steering: Any) -> int:
    """Return the first K of a request whose K is steered."""
    setup = EngineSetup(scheduler=SchedulerConfig(k=None, **steering))
    return int(setup.options(path).scheduler["k_min"])


def test_without_a_file_k_min_is_the_papers(steered: Callable[..., LLM]) -> None:
    with steered() as llm:
        assert steered_k_min(llm.path) == 128
    assert steered_k_min(None) == 128
    assert steered_k_min(None, k_min=7) == 7


def test_by_default_k_is_what_the_file_says_or_the_usual(copied: Path) -> None:
    with LLM(copied, dtype="float32", cpu=CPU, method="full") as base:
        for profiled, expected in ((None, (256, 0.125)), (5, 5)):
            if profiled is not None:
                profile = dataclasses.replace(
                    PROFILE, k_min=profiled, fingerprint=fingerprint(copied)
                )
                profile.save(copied / FILE_NAME)
            with LLM(base, cpu=CPU, kv=KVConfig(device_tokens=9)) as llm:
                assert llm.engine_options.k == expected
                metrics = llm.generate(prompts_of(60)[0], new_tokens(4))[0].metrics
                assert metrics.offloaded_tokens > 0
                assert metrics.scheduler_decisions == 0
                assert metrics.k == (profiled or metrics.offloaded_tokens)


def test_auto_reads_the_file_beside_the_checkpoint(
    copied: Path, steered: Callable[..., LLM]
) -> None:
    profile = dataclasses.replace(PROFILE, k_min=5, fingerprint=fingerprint(copied))
    profile.save(copied / FILE_NAME)
    options: dict[str, Any] = {"k": None, "adapt_k": False, "adapt_strategy": False}
    for k_min, expected in (("auto", 5), (9, 9)):
        with (
            steered(k_min=k_min, **options) as llm,
            LLM(
                llm,
                cpu=CPU,
                kv=KVConfig(device_tokens=9),
                scheduler=SchedulerConfig(k_min=k_min, **options),
            ) as hybrid,
        ):
            metrics = hybrid.generate(prompts_of(60)[0], new_tokens(4))[0].metrics
            assert metrics.k == expected


def test_a_file_of_another_model_is_refused_and_what_is_loaded_stays_usable(
    copied: Path, steered: Callable[..., LLM]
) -> None:
    PROFILE.save(copied / FILE_NAME)
    message = r"^\[k_min\] .*k_min\.json was made for another checkpoint \(tiny\); .*calibrate"
    with pytest.raises(ConfigError, match=message):
        steered()
    with pytest.raises(ConfigError, match=message):
        LLM(copied)
    # Whoever fixes K or names K_min does not need the file; nor does a method that has no K.
    for options in ({"k": 4}, {"k": "all"}, {"k_min": 4}):
        with steered(**options) as llm:
            assert len(llm.generate_ids([[5, 6, 7]], new_tokens(3))[0]) == 3
    for method in ("h2o", HybridGen(mass=0.9)):
        with LLM(copied, method=method) as llm:
            assert len(llm.generate_ids([[5, 6, 7]], new_tokens(3))[0]) == 3


def test_a_broken_file_beside_the_checkpoint_is_refused(
    copied: Path, steered: Callable[..., LLM]
) -> None:
    (copied / FILE_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^\[k_min\] cannot read"):
        steered()
    (copied / FILE_NAME).unlink()
    with steered() as llm:
        assert len(llm.generate_ids([[5, 6, 7]], new_tokens(3))[0]) == 3


def test_a_fingerprint_tells_weights_apart_and_ignores_the_profile(copied: Path) -> None:
    before = fingerprint(copied)
    assert before == fingerprint(folder_of("tiny-llama"))
    assert before != fingerprint(folder_of("tiny-qwen2"))
    PROFILE.save(copied / FILE_NAME)
    (copied / "README.md").write_text("else", encoding="utf-8")
    assert fingerprint(copied) == before
    with (copied / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(copied) != before


# ----------------------------------------------------------------------------------- calibrate

KS = (1, 2, 64, 256)


def recall_items(count: int = 4) -> list[dict[str, Any]]:
    return [
        {"prompt": list(s.prompt_ids), "answer": list(s.answer_ids)}
        for s in samples("kv", 260, count, seed=11)
    ]


def test_calibration_finds_how_many_tokens_recall_needs(trained: Trained) -> None:
    base = trained("tiny-llama")
    options: dict[str, Any] = {"max_tokens": 1, "device_tokens": 26}
    profile = calibrate(base, recall_items(), k_values=(*KS, 64), **options)
    assert profile.metric == "exact_match"
    assert [k for k, _ in profile.curve] == sorted(KS)
    assert profile.all_tokens == 1.0
    accuracies = [accuracy for _, accuracy in profile.curve]
    assert accuracies[-1] == 1.0  # every offloaded token is among 256
    assert accuracies[0] <= accuracies[-1]
    assert profile.k_min == find_k_min(profile.curve, profile.all_tokens, 0.02)
    assert (profile.num_prompts, profile.model) == (4, "tiny-llama")
    assert profile.fingerprint == fingerprint(folder_of("tiny-llama"))
    # The model that was measured is as it was.
    assert base.engine_options.method == "full"
    assert calibrate(base, recall_items(), k_values=KS, **options) == profile


def test_without_answers_agreement_with_full_attention_counts(trained: Trained) -> None:
    prompts = [item["prompt"] for item in recall_items(2)]
    profile = calibrate(
        trained("tiny-llama"), prompts, k_values=(256,), max_tokens=4, device_tokens=26
    )
    assert (profile.metric, profile.all_tokens) == ("agreement", 1.0)
    assert profile.curve == ((256, 1.0),)
    assert profile.k_min == 256


def test_a_text_and_its_answer_are_compared_as_text(trained: Trained) -> None:
    base = trained("tiny-llama")
    items = [
        {
            "prompt": base.tokenizer.decode(item["prompt"], skip_special_tokens=True),
            "answer": base.tokenizer.decode(item["answer"]),
        }
        for item in recall_items(2)
    ]
    profile = calibrate(base, items, k_values=(256,), max_tokens=1, device_tokens=26)
    assert (profile.metric, profile.all_tokens) == ("exact_match", 1.0)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ([], {}, "nothing to run"),
        ([[5, 6]], {"k_values": []}, "nothing to run"),
        ([[5, 6]], {"k_values": [0]}, "k_values is 0; allowed: an int >= 1"),
        ([[5, 6]], {"metric": "bleu"}, "metric is 'bleu'; allowed: auto, agreement"),
        ([[5, 6]], {"metric": "exact_match"}, "needs an answer for every prompt"),
        (5, {}, "dataset is 5, so there is nothing to run; allowed: a list"),
        ("ab", {}, "dataset is 'ab'"),
        ([[5, 6]], {"k_values": 5}, "k_values is 5, so there is nothing to run"),
        ([{"prompt": [5, 6], "answer": 5}], {}, "answer 0 is 5; allowed: token ids"),
        ([{"prompt": [5, 6], "answer": [0.5]}], {}, "a token id of answer 0 is 0.5"),
        ([{5: 6, "a": 7}], {}, "a prompt has the keys .*allowed: prompt, answer"),
        ([[5, 6]], {"tolerance": 1.5}, "tolerance is 1.5; allowed: "),
        ([[5, 6]], {"max_tokens": 0}, "max_tokens is 0; allowed: "),
        ([{"text": "a"}], {}, "the keys .*text.*allowed: prompt, answer"),
        # Of what is no longer than the window nothing is offloaded: every K is all tokens.
        ([[5, 6] * 100], {}, "prompt 0 has 200 tokens, and device_tokens=0.1 keeps up to 256"),
        ([[5] * 9, [5] * 8], {"device_tokens": 8}, "prompt 1 has 8 tokens.*keeps up to 8"),
        ([[5]], {"device_tokens": 0}, "prompt 0 has 1 tokens"),
        ([[5] * 300], {"device_tokens": 1.0}, "prompt 0 has 300 tokens.*keeps up to 300"),
        ([[5] * 300], {"device_tokens": "auto"}, "device_tokens is 'auto'; allowed: an int"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    trained: Trained, dataset: list[Any], options: dict[str, Any], message: str
) -> None:
    base = trained("tiny-llama")
    with pytest.raises(ConfigError, match=rf"^\[calibrate\] .*{message}"):
        calibrate(base, dataset, **options)
    assert len(base.generate_ids([[5, 6, 7]], new_tokens(2))[0]) == 2


def test_only_an_llm_is_calibrated() -> None:
    with pytest.raises(ConfigError, match=r"^\[calibrate\] llm is 5; allowed: an LLM"):
        calibrate(5, [[5, 6]])  # type: ignore[arg-type]


def test_more_tokens_agree_better_and_too_few_are_refused(trained: Trained) -> None:
    base = trained("tiny-opt")
    prompts = [list(s.prompt_ids) for s in samples("mqar", 260, 4, seed=11)]
    options: dict[str, Any] = {"max_tokens": 8, "device_tokens": 1}
    profile = calibrate(base, prompts, k_values=(1, 32, 512), **options)
    accuracies = [accuracy for _, accuracy in profile.curve]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < 0.9
    assert (accuracies[-1], profile.k_min) == (1.0, 512)
    message = r"^\[calibrate\] even K = 2 reaches .*larger k_values or a larger tolerance"
    with pytest.raises(ConfigError, match=message):
        calibrate(base, prompts, k_values=(1, 2), **options)


def test_a_data_set_is_one_json_value_a_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('"text"\n\n[5, 6]\n{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    assert read_dataset(file) == ["text", [5, 6], {"prompt": "a", "answer": "b"}]
    file.write_text('"text"\n{\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 2 of .* is no JSON: .*; allowed: one prompt"):
        read_dataset(file)
    with pytest.raises(ConfigError, match=r"^\[calibrate\] cannot read"):
        read_dataset(tmp_path / "none")


# ----------------------------------------------------------------------------------- the drawing


@pytest.mark.parametrize("path", [5, None, "a\0b", "x" * 5000, "/", "/dev/null"])
def test_a_data_set_that_is_no_file_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"^\[calibrate\] .*; allowed: "):
        read_dataset(path)


def test_the_curve_is_drawn_as_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    PROFILE.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_without_matplotlib_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"^\[k_min\] drawing needs matplotlib.*pip install"):
        PROFILE.plot(tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


# ----------------------------------------------------------------------------------- command line


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "recall.jsonl"
    file.write_text("".join(json.dumps(i) + "\n" for i in recall_items()), encoding="utf-8")
    return file


def test_calibrate_writes_a_file_that_auto_reads(
    copied: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", "--model", str(copied), "--dtype", "float32", "--data", str(data)]
    arguments += ["--threads", "1", "--device-threads", "1"]
    arguments += ["--k-values", "8", "256", "--max-tokens", "1", "--tolerance", "0.1"]
    arguments += ["--device-tokens", "26", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    profile = KMinProfile.load(copied / FILE_NAME)
    assert printed["k_min"] == profile.k_min
    assert [k for k, _ in profile.curve] == [8, 256]
    assert profile.fingerprint == fingerprint(copied)
    assert steered_k_min(copied) == profile.k_min
    assert EngineSetup().options(copied).k == profile.k_min
    # Again, with the file in place, to another file and for people.
    out = copied / "other.json"
    assert main([*arguments[:-1], "--out", str(out)]) == 0
    assert f"K_min = {profile.k_min}, written to {out}" in capsys.readouterr().out
    assert KMinProfile.load(out) == profile


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/does/not/exist"], "cannot read /does/not/exist"),
        (["--k-values", "0"], "k_values is 0"),
        (["--metric", "bleu"], "metric is 'bleu'"),
        (["--tolerance", "2"], "tolerance is 2.0"),
        (["--device-tokens", "300"], "keeps up to 300 on the device"),
    ],
)
def test_a_wrong_option_of_calibrate_is_one_line_and_writes_nothing(
    copied: Path,
    data: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["calibrate", "--model", str(copied), "--data", str(data), "--json"]
    assert main([*common, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (copied / FILE_NAME).exists()


@pytest.mark.parametrize(
    "arguments",
    [["--method", "h2o"], ["--query", "exact"], ["--k", "5"], ["--selector", "h2o"]],
    ids=lambda arguments: arguments[0],
)
def test_calibrate_has_no_options_that_it_would_ignore(
    copied: Path, data: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", "--model", str(copied), "--data", str(data), *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_methods_are_printed_as_standard_json() -> None:
    code = "from hybridgen.__main__ import main; import sys; sys.exit(main())"
    finished = run_python(code, "methods", "--json")
    assert finished.returncode == 0, finished.stderr

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not standard JSON")

    printed = json.loads(finished.stdout, parse_constant=refuse)
    names = [row["name"] for row in printed["methods"]]
    assert len(names) == 9
    assert set(names) >= {"full", "hybridgen", "hgca", "h2o"}
    assert {"topk", "h2o", "keyformer"} <= set(printed["selectors"])
    assert {"sinks_recent", "block_digests"} <= set(printed["pre_selectors"])
    for row in printed["methods"]:
        for option in row["tunables"]:
            assert set(option) == {"name", "type", "default", "allowed", "meaning"}
