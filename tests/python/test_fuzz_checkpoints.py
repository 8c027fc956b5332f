# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoint folders: a load works, and then two tokens too, or it ends in our own errors.

2,000 mutations by default, 20,000 with HYBRIDGEN_LONG=1; HYBRIDGEN_FUZZ_SEED=N runs seed N alone
(with ``-s`` what was damaged is shown before the load, in case that ends the process).
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from checkpoint_mutations import mutate
from hybridgen import LLM, CpuConfig, HybridGenError, SamplingParams

LONG = os.environ.get("HYBRIDGEN_LONG") == "1"
MUTATIONS = 20_000 if LONG else 2_000
PARTS = 8
# Longer than any load of so small a model; then the traceback shows where it hangs.
HANG_SECONDS = 120.0

TWO = SamplingParams(max_tokens=2, ignore_eos=True)
CPU = CpuConfig(threads=1, device_threads=1, numa="off")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 2,
    "attention_factor": 1.1,
    "beta_fast": 4.0,
    "mscale": 1.0,
}
# Two tokens of a prompt of three lie behind the original positions.
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 2,
}


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(letters[33:93])} | {"<s>": 60}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return sound folders: every family; one file, shards, pickles, and with a tokenizer."""
    torch.manual_seed(0)
    rotary = SIZES | {"intermediate_size": 16, "num_key_value_heads": 1}
    made: dict[str, Any] = {
        "llama": LlamaForCausalLM(LlamaConfig(**rotary, rope_parameters=DYNAMIC)),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**rotary, tie_word_embeddings=True)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**rotary, head_dim=6, rope_parameters=YARN)),
        "mistral": MistralForCausalLM(
            MistralConfig(**rotary, sliding_window=None, rope_parameters=LONGROPE)
        ),
        "opt": OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=16, word_embed_proj_dim=8)),
    }
    folders = []
    for name, model in made.items():
        one = tmp_path_factory.mktemp(name)
        model.save_pretrained(one)
        sharded = tmp_path_factory.mktemp(f"{name}-sharded")
        model.save_pretrained(sharded, max_shard_size="4KB")
        pickled = tmp_path_factory.mktemp(f"{name}-pickled")
        for file in one.iterdir():
            if file.suffix == ".json":
                shutil.copyfile(file, pickled / file.name)
        torch.save(load_file(one / "model.safetensors"), pickled / "pytorch_model.bin")
        with_text = tmp_path_factory.mktemp(f"{name}-text")
        shutil.copytree(one, with_text, dirs_exist_ok=True)
        _tokenizer().save_pretrained(with_text)
        folders += [one, sharded, pickled, with_text]
    return folders


@contextmanager
def ends(seconds: float) -> Iterator[None]:
    """End the process with a traceback if the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def use(folder: Path) -> None:
    """Load a checkpoint and let it say something."""
    with LLM(folder, device="cpu", method="full", cpu=CPU) as llm:
        ids = llm.generate_ids([[1, 2, 3]], TWO)[0]
        assert len(ids) == 2
        assert all(0 <= i < llm.model_config["vocab_size"] for i in ids), llm.model_config
        if llm.tokenizer is not None:
            output = llm.generate("ab", TWO)[0].outputs[0]
            assert len(output.token_ids) <= 2
        SamplingParams.from_generation_config(llm.generation_config)


def fails(damage: str, folder: Path, using: Callable[[Path], object] = use) -> str | None:
    """Return what went wrong with a damaged checkpoint, beyond an error of our own."""
    print(damage, flush=True)
    try:
        with warnings.catch_warnings(), ends(HANG_SECONDS):
            warnings.simplefilter("ignore")
            using(folder)
    except HybridGenError as error:
        if len(str(error)) > 2000:
            return f"{damage}: a message of {len(str(error))} characters"
    except KeyboardInterrupt:
        raise
    # A panic of a compiled reader is a BaseException.
    except BaseException as error:
        return f"{damage}: {type(error).__name__}: {str(error)[:300]}"
    return None


def test_the_sound_folders_work(whole: list[Path]) -> None:
    for folder in whole:
        use(folder)


def _seeds(part: int) -> range:
    chosen = os.environ.get("HYBRIDGEN_FUZZ_SEED")
    if chosen is not None:
        return range(int(chosen), int(chosen) + 1) if part == 0 else range(0)
    return range(part, MUTATIONS, PARTS)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_folder_works_or_is_refused_by_our_own_errors(
    whole: list[Path], tmp_path: Path, part: int
) -> None:
    wrong: list[str] = []
    for seed in _seeds(part):
        folder = tmp_path / "checkpoint"
        shutil.copytree(whole[seed % len(whole)], folder)
        found = fails(f"{whole[seed % len(whole)].name} {mutate(folder, seed)}", folder)
        wrong += [] if found is None else [found]
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} failures:\n" + "\n".join(wrong[:20])
