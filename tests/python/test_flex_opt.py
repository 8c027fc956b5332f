# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen.flex_opt`` as FlexGen's users call it: output, records, refusals."""

from __future__ import annotations

import hashlib
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexgen_runs import converted
from hybridgen.flexgen import flex_opt
from hybridgen.flexgen.apps import completion
from hybridgen.flexgen.opt_config import main as opt_config
from hybridgen.flexgen.utils import project_decode_latency, read_benchmark_log, write_benchmark_log
from trained import ROOT, folder_of

WORDS = "k17 v3 w5 w90 k2 v77 w31 Q k17"
LINES = (WORDS, "w12 k30 v8 w2 Q k30", "k9 v9 w1 w2 w3 w4 Q k9", "w7 w8 w9 k11 v12 Q")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("opt_weights"))


class Run:
    """One call of the program in a folder of its own."""

    def __init__(self, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.offload = folder / "offload"
        self._weights = weights
        self._capsys = capsys
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(LINES) + "\n")

    def __call__(self, line: str) -> str:
        """Run a command line on the tiny OPT, in float32, and return what it prints."""
        code, out, err = self.ends(f"--model tiny-opt --path {self._weights} {line}")
        assert code == 0, err
        return out

    def ends(self, line: str, *, reads: bool = True) -> tuple[int, str, str]:
        """Return exit code and what is printed to both streams."""
        own = "--hg-device cpu --hg-dtype float32 --hg-threads 1"
        own += f" --hg-prompt-file {self.prompts}" if reads and "_DUMMY_" not in line else ""
        code = flex_opt.main([*own.split(), *line.split(), "--offload-dir", str(self.offload)])
        shown = self._capsys.readouterr()
        return code, shown.out, shown.err


@pytest.fixture
def run(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path, weights, capsys)


# --------------------------------------------------------------------------- FlexGen's own format

NUMBER = r"(\d+\.\d{3})"
RECORD = re.compile(
    rf"model size: {NUMBER} GB\tcache size: {NUMBER} GB\thidden size \(p\): {NUMBER} GB\n"
    rf"peak gpu mem: {NUMBER} GB\tprojected: (True|False)\n"
    rf"prefill latency: {NUMBER} s\tprefill throughput: {NUMBER} token/s\n"
    rf"decode latency: {NUMBER} s\tdecode throughput: {NUMBER} token/s\n"
    rf"total latency: {NUMBER} s\ttotal throughput: {NUMBER} token/s\n"
    rf"to device: {NUMBER} GB\tto host: {NUMBER} GB\tweights: {NUMBER} GB\tfrom disk: {NUMBER} GB\t"
    rf"to disk: {NUMBER} GB\thidden: (\d+\.\d) %\tprompt tokens without pads: (\d+)\n"
)
"""Five lines from FlexGen's log format, and ours."""


def records_of(text: str) -> list[tuple[str, ...]]:
    return [found.groups() for found in RECORD.finditer(text)]


def texts_of(out: str) -> list[str]:
    return re.findall(r"^\d+: (.*)$", out, re.MULTILINE)


# ------------------------------------------------------------------------------------- invocations


def test_1_everything_on_the_gpu(run: Run) -> None:
    out = run("")
    lines = out.splitlines()
    assert lines[0] == "<run_hybridgen>: args.model: tiny-opt"
    assert re.fullmatch(
        r"model size: 0\.\d{3} GB, cache size: 0\.\d{3} GB, hidden size \(prefill\): 0\.\d{3} GB",
        lines[1],
    )
    order = ["init weight...", "warmup - generate", "benchmark - generate", "Outputs:"]
    assert [lines.index(line) for line in order] == sorted(lines.index(line) for line in order)
    assert out.count("-" * 70) == 3
    first, last = texts_of(out)
    assert first.startswith(WORDS)
    assert last.startswith(LINES[3])
    assert re.search(r"TorchDevice: cpu\n  cur_mem: \d\.\d{4} GB,  peak_mem: \d\.\d{4} GB\n", out)
    name = "fo-opt-gbs4-ngbs1-prompt512-gen32-percent-100-0-100-0-100-0-gpu-cache.log"
    log = (run.folder / name).read_text()
    assert log in out
    (record,) = records_of(log)
    assert record[4] == "False"
    assert record[-1] == "6"  # of the shortest line
    found = read_benchmark_log(run.folder / name)
    assert found.prefill_latency > 0
    total = found.prefill_latency + found.decode_latency
    assert found.total_latency == pytest.approx(total, abs=0.0011)
    # 4 rows of 512 tokens, pads counted, and 31 and 32 new tokens of each.
    for latency, rate, tokens in [
        (found.prefill_latency, found.prefill_throughput, 4 * 512),
        (found.decode_latency, found.decode_throughput, 4 * 31),
        (found.total_latency, found.total_throughput, 4 * 32),
    ]:
        assert tokens / (latency + 0.0006) < rate < tokens / max(latency - 0.0006, 1e-9)
    assert not list(run.offload.iterdir())


def test_2_everything_on_the_cpu_says_the_same(run: Run) -> None:
    expected = texts_of(run("--gen-len 8"))
    assert texts_of(run("--gen-len 8 --percent 0 100 100 0 100 0")) == expected
    assert texts_of(run("--gen-len 8 --percent 0 100 0 100 0 100")) == expected


def test_3_and_9_weights_on_the_disk_say_the_same(run: Run) -> None:
    expected = texts_of(run("--gen-len 8"))
    for percent in ("0 0 100 0 100 0", "0 50 100 0 0 100", "20 30 0 100 100 0"):
        out = run(f"--gen-len 8 --percent {percent} --pin-weight 0")
        assert texts_of(out) == expected
        assert re.search(r"placement: weights: .* [1-9]\d?\.\d % disk, no matrix divided", out)
        assert float(records_of(out)[0][14]) > 0  # read from the disk
    # All matrices in the prompt's pass and in each of seven steps, 4 bytes a number.
    (record,) = records_of(run("--gen-len 8 --percent 0 0 100 0 100 0 --no-log"))
    matrices = 4 * (4 * 128**2 + 2 * 128 * 256) * 4
    assert float(record[14]) == pytest.approx(8 * matrices / 2**30, rel=0.15, abs=0.001)
    assert not list(run.offload.iterdir())


def test_equal_prompts_of_flexgens_own_give_equal_rows(run: Run) -> None:
    run.prompts.write_text(WORDS + "\n")
    first, last = texts_of(run("--gen-len 8"))
    assert first == last


def test_a_record_is_appended(run: Run) -> None:
    for _ in range(2):
        run("--gen-len 4 --log-file mine.log --verbose 0")
    assert len(records_of((run.folder / "mine.log").read_text())) == 2
    assert len(list(run.folder.glob("*.log"))) == 1


def test_no_log_writes_none_and_verbose_says_how_much_is_printed(run: Run) -> None:
    out = run("--gen-len 4 --no-log --verbose 1")
    assert records_of(out)
    assert "Outputs:" not in out
    assert not records_of(run("--gen-len 4 --no-log --verbose 0"))
    assert not list(run.folder.glob("*.log"))


def test_a_cut_run_is_projected_with_finite_numbers_however_short(run: Run) -> None:
    for cut in (2, 3, 8):
        (record,) = records_of(run(f"--gen-len 12 --cut-gen-len {cut} --no-log"))
        assert record[4] == "True"
        assert float(record[7]) > 0


@pytest.mark.parametrize(
    ("line", "name", "shape", "rows"),
    [
        (
            "--percent 100 0 50 50 100 0 --cpu",
            "50-50-100-0-cpu-cache",
            (16, 600),
            "8 on the device, 8 in DRAM",
        ),
        (
            "--percent 100 0 0 0 100 0 --cpu --attn-sparsity 0.1",
            "0-0-100-0-cpu-cache",
            (16, 600),
            "16 on disk",
        ),
        (
            "--percent 100 0 0 0 100 0 --compress-cache",
            "0-0-100-0-gpu-cache-compc",
            (2, 2000),  # blocks of rows so narrow hold more tokens
            "2 on disk, in int4",
        ),
    ],
    ids=("4", "5", "6"),
)
def test_4_to_6_caches_on_gpu_cpu_and_disk(
    run: Run, line: str, name: str, shape: tuple[int, int], rows: str
) -> None:
    batch, length = shape
    sizes = f"--gpu-batch-size {batch} --prompt-len {length} --hg-fill-prompts"
    out = run(f"{sizes} {line} --cut-gen-len 8")
    (record,) = records_of(out)
    assert (record[4], record[-1]) == ("True", f"{length}")
    assert f"placement: cache: of {batch} rows {rows}\n" in out
    assert (float(record[15]) > 0) == ("disk" in rows)  # to the disk
    log = run.folder / f"fo-opt-gbs{batch}-ngbs1-prompt{length}-gen32-percent-100-0-{name}.log"
    assert records_of(log.read_text()) == [record]
    assert not list(run.offload.iterdir())


def test_7_dummy_weights_need_no_tokenizer_and_print_no_text(run: Run) -> None:
    code, out, err = run.ends(
        "--model facebook/opt-125m --path _DUMMY_ --prompt-len 24 --gen-len 4 "
        "--percent 100 0 100 0 100 0 --gpu-batch-size 6 --overlap False "
        "--compress-weight --compress-cache"
    )
    assert code == 0, err
    assert "Outputs:" not in out
    (record,) = records_of(out)
    assert record[-1] == "24"
    name = "fo-125m-gbs6-ngbs1-prompt24-gen4-percent-100-0-100-0-100-0-gpu-cache-compw-compc.log"
    assert (run.folder / name).exists()
    assert "a cache in 4 bits lies in DRAM" in out


@pytest.mark.parametrize("percent", ["20 80 0 100 0 100", "0 50 0 0 0 100"])
def test_8_and_9_blocks_of_batches_with_attention_on_the_cpu(run: Run, percent: str) -> None:
    line = f"--percent {percent} --gpu-batch-size 3 --num-gpu-batches 3 --cpu --no-log"
    (record,) = records_of(run(f"{line} --debug fewer_batch"))
    assert record[4] == "True"
    out = run(f"{line} --debug breakdown --pin-weight 0")
    assert "#layers: 10" in out
    for stage in ("load_cache", "store_cache", "compute_layer"):
        for phase in ("prefill", "decoding"):
            assert re.search(rf"{stage}_{phase} +\(per-batch\): \d\.\d{{6}} s", out)


def test_10_one_token_has_no_decode(run: Run) -> None:
    line = "--percent 0 100 100 0 100 0 --pin-weight 0 --gpu-batch-size 1 --gen-len 1 --sep-layer 0"
    (record,) = records_of(run(line))
    assert record[7:9] == ("0.000", "0.000")


def test_11_completions_stop_at_the_end_of_a_line(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "PROMPTS", LINES[:2])
    words = "--percent 0 100 100 0 100 0 --hg-device cpu"
    place = ["--model", "tiny-opt", "--path", str(run._weights), "--offload-dir", str(run.offload)]
    assert completion.main([*place, *words.split()]) == 0
    out = capsys.readouterr().out
    steps = ["Initialize...", "Generate...", "Outputs:", "Shutdown..."]
    assert [line for line in out.splitlines() if line in steps] == steps
    assert [text.startswith(LINES[i]) for i, text in enumerate(texts_of(out))] == [True, True]
    assert out.count("-" * 70) == 3


FORK_BLOCK = re.compile(
    r"\+{10,}\n(?P<scheme>.+)\ninput: (\d+) output: (\d+) bsz: (\d+)\n\+{10,}\n"
    r"Total: (\S+) Prefill: (\S+) Decode: (\S+)\n={10,}\n"
)


@pytest.mark.parametrize(
    ("flags", "scheme"),
    [
        ("", "FlexGen"),
        ("--compress-cache", "FlexGen + INT4"),
        ("--hh-ratio 0.1", "FlexGen + H2O"),
        ("--alpha 4 --partial-weight-ratio 0.2 --max-num-kv 20", "InfiniGen (Ours)"),
    ],
)
def test_13_infinigens_command_prints_its_block(run: Run, flags: str, scheme: str) -> None:
    text = run.folder / "book.txt"
    text.write_text(" ".join(f"w{i % 200} k{i % 90}" for i in range(1500)))
    out = run(
        f"--percent 100 0 0 100 100 0 --overlap false --gpu-batch-size 2 --num-gpu-batches 1 "
        f"--prompt-len 96 --gen-len 8 --warmup-input-path {text} --test-input-path {text} {flags}"
    )
    found = FORK_BLOCK.fullmatch(out)
    assert found, out
    assert found["scheme"] == scheme
    assert found.groups()[1:4] == ("96", "8", "2")
    total, prefill, decode = map(float, found.groups()[4:])
    assert total == pytest.approx(prefill + decode)
    assert not list(run.folder.glob("*.log"))


def test_h2os_own_fork_has_flexgens_report(run: Run) -> None:
    out = run("--hh-ratio 0.2 --hh-all --gen-len 4 --prompt-len 96 --hg-fill-prompts --no-log")
    assert records_of(out)[0][-1] == "96"


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--percent 100 0 100", "--percent has 3 numbers; allowed: 6"),
        ("--percent 100 0 70 40 100 0", "allowed: 0 to 100 each and 100 together"),
        ("--percent 100 0 100 0 50 50", "allowed: 100 % in one of them"),
        ("--compress-cache --attn-sparsity 0.5", "allowed: one of them"),
        ("--attn-sparsity 0", "allowed: a share of the tokens"),
        ("--gpu-batch-size 0", "allowed: an int >= 1"),
        ("--gen-len 0", "--gen-len is 0; allowed: an int >= 1"),
        ("--prompt-len 0", "--prompt-len is 0; allowed: an int >= 1"),
        ("--cut-gen-len 1", "allowed: 2 at least"),
        ("--cut-gen-len -1", "allowed: an int >= 0"),
        ("--prompt-len 2040 --gen-len 32 --hg-fill-prompts", "allowed: 2048 together"),
        ("--hh-ratio 0.001 --prompt-len 64", "of 64 tokens is none"),
        ("--hh-ratio 0.5 --hh-long-seq", "--hh-long-seq is True"),
        ("--hh-ratio 0.5 --percent 100 0 50 50 100 0", "the cache is divided"),
        (
            "--alpha 4 --test-input-path f --warmup-input-path f",
            "write --percent 100 0 0 100 100 0",
        ),
        (
            "--test-input-path nowhere --warmup-input-path nowhere",
            "cannot read --warmup-input-path",
        ),
        ("--test-input-path f", "--warmup-input-path is missing"),
        ("--hg-prompt-file nowhere", "cannot read --hg-prompt-file nowhere"),
        ("--hg-device cuda:77", "torch"),
    ],
)
def test_a_wrong_combination_is_one_sentence_and_exit_code_2(
    run: Run, line: str, words: str
) -> None:
    reads = "--hg-prompt-file" not in line
    code, _out, err = run.ends(f"--model tiny-opt --path {run._weights} {line}", reads=reads)
    assert code == 2
    assert err.startswith("error: [")
    assert err.count("\n") == 1
    assert words in err
    assert not run.offload.exists()  # what this run made is gone


def test_unknown_models_are_named_and_nothing_is_left(run: Run) -> None:
    before = sorted(run.folder.rglob("*"))
    for model, words in {
        "facebook/opt-9b": "allowed: opt-125m",
        "opt-350m": "pass the checkpoint's folder",
        "gpt2": "model name is 'gpt2'",
    }.items():
        code, _out, err = run.ends(f"--model {model} --path {run.folder / 'none'}")
        assert (code, words in err) == (2, True), err
    code, _out, err = run.ends(f"--model opt-13b --path {run.folder / 'none'}")
    assert (code, "cannot be reached" in err) == (1, True)
    assert sorted(run.folder.rglob("*")) == before


def test_a_half_written_folder_is_refused_and_stays_as_it_was(run: Run) -> None:
    folder = run.folder / "weights" / "opt-125m-np"
    folder.mkdir(parents=True)
    (folder / "decoder.embed_positions.weight").write_bytes(b"\x93NUMPY\x01\x00")
    digest = hashlib.sha256((folder / "decoder.embed_positions.weight").read_bytes()).hexdigest()
    code, _out, err = run.ends(f"--model opt-125m --path {folder.parent}")
    assert code == 1
    assert err.startswith("error: [load_model]")
    assert [file.name for file in folder.iterdir()] == ["decoder.embed_positions.weight"]
    after = hashlib.sha256((folder / "decoder.embed_positions.weight").read_bytes()).hexdigest()
    assert after == digest


def contents(*folders: Path) -> dict[str, str]:
    """Return all that lies below folders, and of files their hashes."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "line",
    [
        "--percent 100 0 100",
        "--percent 100 0 70 40 100 0",
        "--model opt-9b",
        "--model opt-125m --path half",
        "--compress-cache --attn-sparsity 0.5",
        "--percent 0 0 0 0 100 0 --prompt-len 2040 --hg-fill-prompts",
    ],
)
def test_bad_input_changes_nothing_that_lay_there_before(
    run: Run, weights: Path, line: str
) -> None:
    half = run.folder / "half" / "opt-125m-np"
    half.mkdir(parents=True)
    shutil.copy(weights / "tiny-opt-np" / "decoder.embed_positions.weight", half)
    run.offload.mkdir()
    (run.offload / "t_0").write_text("another run's")
    (run.folder / "fo-opt.log").write_text("an old record")
    before = contents(run.folder, weights)
    code, _out, err = run.ends(f"--model tiny-opt --path {weights} {line}")
    assert code in (1, 2)
    assert err.startswith("error: [")
    assert err.count("\n") == 1
    assert contents(run.folder, weights) == before


@pytest.mark.parametrize("percent", ["0 0 100 0 100 0", "100 0 0 0 100 0"])
def test_a_disk_folder_that_is_not_writable_is_one_sentence(run: Run, percent: str) -> None:
    run.offload = Path("/proc/self/fdinfo")  # nobody makes a file there, whoever they are
    code, _out, err = run.ends(
        f"--model tiny-opt --path {run._weights} --percent {percent} --no-log"
    )
    assert code in (1, 2)
    assert err.startswith("error: [")
    assert err.count("\n") == 1
    assert "/proc/self/fdinfo" in err


def test_an_offload_folder_that_cannot_be_is_one_sentence(run: Run) -> None:
    run.offload.write_text("a file")
    code, _out, err = run.ends(f"--model tiny-opt --path {run._weights}")
    assert (code, err.count("\n")) == (1, 1)
    assert "name another one" in err
    assert run.offload.read_text() == "a file"


def test_a_failure_in_a_run_ends_it_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no more memory")

    monkeypatch.setattr(flex_opt.OptLM, "generate", fail)
    with pytest.raises(MemoryError):
        run("--gen-len 4")
    assert not run.offload.exists()


# ----------------------------------------------------------------------------------------- modules


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT / "python"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("apps.helm_run", "as_flexgen runs"),
        ("apps.data_wrangle.data_wrangle_run", "as_flexgen runs"),
        ("dist_flex_opt", "python -m hybridgen.flex_opt runs"),
    ],
)
def test_what_is_not_here_says_what_to_use_instead(
    capsys: pytest.CaptureFixture[str], module: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"hybridgen.{module}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err


def test_modules_run_by_their_names(weights: Path, tmp_path: Path) -> None:
    own = ["--hg-device", "cpu", "--path", str(weights), "--offload-dir", str(tmp_path / "o")]
    (tmp_path / "lines").write_text(WORDS)
    words = [*own, "--model", "tiny-opt", "--gen-len", "2", "--hg-prompt-file", "lines"]
    done = python("-m", "hybridgen.flex_opt", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert records_of(done.stdout)


@pytest.mark.parametrize("module", ["apps.completion", "opt_config", "as_flexgen"])
def test_programs_have_a_help_text(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, f"hybridgen.{module}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"hybridgen.{module}", run_name="__main__")
    assert ended.value.code == 0
    assert f"hybridgen.{module}" in capsys.readouterr().out


def test_opt_config_names_the_hub_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opt_config(["--model", "facebook/opt-1.3b", "--path", str(tmp_path / "new")]) == 1
    assert "[load_model] facebook/opt-1.3b is neither" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_opt_config_brings_a_folder_into_flexgens_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(folder_of("tiny-opt")), "--path", str(tmp_path)]
    assert opt_config(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tiny-opt-np'}\n"
    assert opt_config(words) == 1
    assert "is there already" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- figures


def test_projection_counts_two_steps_as_they_are_and_the_mean_of_the_others() -> None:
    assert project_decode_latency([9, 5, 3, 1, 2], 512, 32) == pytest.approx(8 + 1.5 * 29)
    assert project_decode_latency([9, 5], 512, 3) == 10
    assert project_decode_latency([9], 512, 1) == 0
    with pytest.raises(ValueError, match="no decode step was run of 31"):
        project_decode_latency([9], 512, 32)


def test_a_record_is_read_as_flexgen_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    sizes = [2.443 * 2**30, 0.398 * 2**30, 0.008 * 2**30, 3.24 * 2**30]
    figures = [False, 1.301, 1573.627, 1.797, 68.991, 3.099, 41.306]
    text = write_benchmark_log(file, *sizes, *figures)
    assert text.splitlines() == [
        "model size: 2.443 GB\tcache size: 0.398 GB\thidden size (p): 0.008 GB",
        "peak gpu mem: 3.240 GB\tprojected: False",
        "prefill latency: 1.301 s\tprefill throughput: 1573.627 token/s",
        "decode latency: 1.797 s\tdecode throughput: 68.991 token/s",
        "total latency: 3.099 s\ttotal throughput: 41.306 token/s",
    ]
    assert vars(read_benchmark_log(file)) == {
        "prefill_latency": 1.301,
        "prefill_throughput": 1573.627,
        "decode_latency": 1.797,
        "decode_throughput": 68.991,
        "total_latency": 3.099,
        "total_throughput": 41.306,
    }
