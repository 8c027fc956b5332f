# SPDX-License-Identifier: Apache-2.0
"""Damaged GGUF files: a load works, and then two tokens too, or it ends in our own errors.

2,000 mutations by default, 20,000 with HYBRIDGEN_LONG=1; HYBRIDGEN_FUZZ_SEED=N runs seed N alone
(with ``-s`` what was damaged is shown before the load, in case that ends the process).
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from gguf_models import write_gguf
from gguf_mutations import mutate_gguf, take_apart
from hybridgen.gguf_file import read_gguf
from test_fuzz_checkpoints import _tokenizer, fails, use

LONG = os.environ.get("HYBRIDGEN_LONG") == "1"
MUTATIONS = 20_000 if LONG else 2_000
PARTS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return sound files: two architectures, plain and quantised, with and without a tokenizer."""
    torch.manual_seed(0)
    rotary = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "architectures": ["LlamaForCausalLM"],
    }
    models = [
        LlamaForCausalLM(LlamaConfig(**rotary)),
        Qwen2ForCausalLM(Qwen2Config(**rotary, tie_word_embeddings=True)),
    ]
    folder, files = tmp_path_factory.mktemp("gguf"), []
    for model in models:
        for kind in (Type.F32, Type.Q8_0, Type.Q4_1):
            file = folder / "model.gguf"
            write_gguf(file, model, _tokenizer() if kind == Type.F32 else None, kind)
            files.append(file.read_bytes())
    return files


def test_the_sound_files_work(whole: list[bytes], tmp_path: Path) -> None:
    for data in whole:
        (tmp_path / "model.gguf").write_bytes(data)
        use(tmp_path / "model.gguf")
        assert take_apart(data).bytes() == data


def _seeds(part: int) -> range:
    chosen = os.environ.get("HYBRIDGEN_FUZZ_SEED")
    if chosen is not None:
        return range(int(chosen), int(chosen) + 1) if part == 0 else range(0)
    return range(part, MUTATIONS, PARTS)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_file_works_or_is_refused_by_our_own_errors(
    whole: list[bytes], tmp_path: Path, part: int
) -> None:
    wrong: list[str] = []
    file = tmp_path / "model.gguf"
    for seed in _seeds(part):
        file.write_bytes(whole[seed % len(whole)])
        found = fails(mutate_gguf(file, seed), file)
        wrong += [] if found is None else [found]
    assert not wrong, f"{len(wrong)} failures:\n" + "\n".join(wrong[:20])


def test_no_damage_makes_the_header_s_reader_take_much_memory(
    whole: list[bytes], tmp_path: Path
) -> None:
    """With as much address space as it has now and 64 MiB more: larger requests would fail."""
    file = tmp_path / "model.gguf"
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        for seed in range(10_000 if LONG else 1_000):
            file.write_bytes(whole[seed % len(whole)])
            done = mutate_gguf(file, seed)
            found = fails(done, file, read_gguf)
            assert found is None, found
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
