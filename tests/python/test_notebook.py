# SPDX-License-Identifier: Apache-2.0
"""The notebooks of docs/notebooks run in real kernels, in which cells may be interrupted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from trained import ROOT

pytestmark = [
    pytest.mark.slow,
    # What the kernel's own packages say at their start.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:zmq.*"),
]

NOTEBOOKS = ROOT / "docs" / "notebooks"


class Notebook:
    """The notebook in a kernel of its own: its cells, and others, one after another."""

    def __init__(self, client: nbclient.NotebookClient) -> None:
        self._client = client
        self._cells = client.nb.cells
        self._own = list(self._cells)

    def run(self, source: str) -> str:
        """Run code in the kernel and return what it prints; raises what the cell raises."""
        cell = nbformat.v4.new_code_cell(source)
        self._cells.append(cell)
        self._client.execute_cell(cell, len(self._cells) - 1)
        return printed(cell)

    def run_own(self, words: str = "") -> list[Any]:
        """Run the notebook's own code cells that contain some words; return the cells."""
        found = [c for c in self._own if c.cell_type == "code" and words in c.source]
        assert found
        for cell in found:
            self._client.execute_cell(cell, self._own.index(cell))
        return found

    def run_until(self, source: str, sign: Path) -> str:
        """Run code and interrupt the kernel, as the stop button does, when a file is there."""
        interrupter = threading.Thread(target=self._interrupt_at, args=(sign,))
        interrupter.start()
        try:
            return self.run(source)
        finally:
            interrupter.join()

    def _interrupt_at(self, sign: Path) -> None:
        end = time.monotonic() + 120
        while not sign.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(self._client.km.provisioner.pid, 2)  # what interrupt_kernel() does, from any thread


def printed(cell: Any) -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


@contextmanager
def kernel_of(name: str) -> Iterator[Notebook]:
    content = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(content)
    metadata = {"path": str(NOTEBOOKS)}
    client = nbclient.NotebookClient(content, timeout=240, resources={"metadata": metadata})
    with client.setup_kernel():
        yield Notebook(client)


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    with kernel_of("first_steps.ipynb") as opened:
        yield opened


def test_the_notebook_of_figures_runs_and_shows_a_picture_with_its_mode() -> None:
    with kernel_of("figures.ipynb") as opened:
        cells = opened.run_own()
    text = "".join(printed(cell) for cell in cells)
    assert "differs AoC takes at least four times as long as AoG" in text
    assert text.count("ms; busy: gpu") == 6
    assert "times as fast with twice the link" in text
    assert ", pre ," in text
    kinds = [set(o.data) for c in cells for o in c.outputs if "data" in o]
    assert any("image/png" in kind for kind in kinds)


def test_every_cell_of_from_flexgen_runs_and_shows_what_the_text_says() -> None:
    with kernel_of("from_flexgen.ipynb") as opened:
        text = "".join(printed(cell) for cell in opened.run_own())
    assert "68 tensors\n" in text
    assert "exit code 0\n" in text
    assert "fo-opt-gbs2-ngbs2-prompt64-gen8-percent-100-0-0-100-100-0-cpu-cache.log\nTrue" in text
    assert "int32 (4, 33) 8 costs" in text
    places = ("on the CPU", "attention there, too", "half on the GPU, half on the disk")
    for placement in (*places, "in four batches"):
        assert f"{placement.ljust(34)} True\n" in text
    assert "Q k182 ->  v10" in text
    assert "tokens went to the host: True" in text


def test_every_cell_runs_and_shows_what_the_text_says(notebook: Notebook) -> None:
    cells = notebook.run_own()
    shown = {c.source.split("\n")[0]: printed(c) for c in cells}
    text = "".join(shown.values())
    assert "LLM(llama, 4 layers" in text
    assert "answer:  v10" in text
    assert "176 were in host memory" in text
    assert "0  v10" in text
    assert "1  v23" in text
    assert "while the loop went on: True" in text
    answers = dict(line.split()[:2] for line in text.splitlines() if "bytes to the device" in line)
    assert {answers[name] for name in ("full", "hybridgen", "flexgen")} == {"v10"}
    assert answers["streaming_llm"] != "v10"
    kinds = [set(o.data) for c in cells for o in c.outputs if o.output_type == "display_data"]
    assert any("image/png" in kind for kind in kinds)


# ------------------------------------------------------------- in the kernel that the cells ran in

# Longer than anybody waits, in a window that streams on without end.
ENDLESS = """
import threading, time
from pathlib import Path
model = hg.Model(MODEL)
llm = hg.LLM(model, method="streaming_llm", method_config={"positions": "shift", "window": 16},
             max_model_len=1_000_000)
params = [hg.SamplingParams(max_tokens=3, ignore_eos=True),
          hg.SamplingParams(max_tokens=None, ignore_eos=True)]
whole = llm.generate("k182 v10 Q", params[0])[0]

def tell(sign):
    # A sign that the call is under way, and that the first of its prompts is finished.
    while llm.stats.generated_tokens < 20:
        time.sleep(0.01)
    Path(sign).touch()
"""


def test_interrupting_a_cell_keeps_finished_text(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(ENDLESS)
    sign = tmp_path / "running"
    cell = f"""
threading.Thread(target=tell, args=({str(sign)!r},)).start()
try:
    llm.generate(["k182 v10 Q", "k107 v23 Q"], params)
except KeyboardInterrupt as interrupt:
    outputs = interrupt.outputs
print([output.finish_reason for output in outputs], outputs[0].text == whole.text)
print(len(outputs[1].token_ids) > 3, outputs[1].text != "")
"""
    shown = notebook.run_until(cell, sign)
    assert shown.splitlines() == ["['length', 'abort'] True", "True True"]
    assert notebook.run('print(llm.generate("k182 v10 Q", params[0])[0].text == whole.text)') == (
        "True\n"
    )


def test_the_cell_after_an_interrupted_one_finds_its_texts(
    notebook: Notebook, tmp_path: Path
) -> None:
    notebook.run(ENDLESS)
    sign = tmp_path / "running"
    cell = f"""
threading.Thread(target=tell, args=({str(sign)!r},)).start()
llm.generate(["k182 v10 Q", "k107 v23 Q"], params)
"""
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
        notebook.run_until(cell, sign)
    shown = notebook.run("import sys; print([o.finish_reason for o in sys.last_value.outputs])")
    assert shown == "['length', 'abort']\n"


def test_running_the_loading_cell_again_frees_the_old_model(notebook: Notebook) -> None:
    notebook.run("import sys; sys.last_value = sys.last_exc = None")
    notebook.run_own("import os")
    notebook.run_own("model = hg.Model(MODEL)")
    notebook.run("""
import weakref
old = [weakref.ref(model.weights), weakref.ref(model), weakref.ref(llm)]
assert None not in [reference() for reference in old]
llm.generate("k182 v10 Q")
""")
    notebook.run_own("model = hg.Model(MODEL)")
    assert notebook.run("print([reference() for reference in old])") == "[None, None, None]\n"


def test_a_running_event_loop_neither_disturbs_nor_is_disturbed(notebook: Notebook) -> None:
    notebook.run_own("model = hg.Model(MODEL)")
    shown = notebook.run("""
import asyncio
params = hg.SamplingParams(max_tokens=6, ignore_eos=True)
await asyncio.sleep(0)
alone = llm.generate_ids(["k182 v10 Q"], params)
await asyncio.sleep(0)
both = await asyncio.gather(*(
    asyncio.to_thread(llm.generate_ids, ["k182 v10 Q"], params) for _ in range(2)))

async def answer():
    return [chunk.token_id for chunk in llm.stream("k182 v10 Q", params)]

print(both == [alone, alone], await answer() == alone[0], asyncio.get_running_loop().is_running())
""")
    assert shown == "True True True\n"
