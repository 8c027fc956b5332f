# SPDX-License-Identifier: Apache-2.0
"""config.json in mixed spellings: what wins in transformers wins here, and so do its defaults."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from hybridgen import LLM, SamplingParams, UnsupportedModelError
from hybridgen.families import family_of, read_model_config
from hybridgen.model_config import resolve_dtype

ABSENT = object()
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.5] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
ROTARY: dict[str, list[Any]] = {
    "rope_parameters": [
        ABSENT,
        None,
        {},
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_theta": 600.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
        {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32},
        YARN | {"original_max_position_embeddings": 32},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 16, "truncate": False},
        LLAMA3 | {"rope_theta": 800.0, "original_max_position_embeddings": 16},
        LLAMA3 | {"rope_theta": 800.0},
    ],
    "rope_scaling": [
        ABSENT,
        ABSENT,
        None,
        {},
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "default", "type": "linear", "factor": 3.0},
        LLAMA3 | {"original_max_position_embeddings": 32},
        {"type": "yarn", "factor": 2.0, "attention_factor": 1.5, "beta_fast": 0, "beta_slow": None},
        {"type": "yarn", "factor": None, "mscale": 0.0, "mscale_all_dim": 1.0, "truncate": None},
        LONGROPE,
        LONGROPE | {"original_max_position_embeddings": 48, "attention_factor": 1.25},
        LONGROPE | {"factor": 3.0, "original_max_position_embeddings": 32},
        LLAMA3 | {"rope_theta": 900.0},
    ],
    "rope_theta": [ABSENT, 1000.0, 2000],
    "original_max_position_embeddings": [ABSENT, ABSENT, 24],
    "num_key_value_heads": [None, 2, 4],
    "head_dim": [ABSENT, None, 16],
    "intermediate_size": [48],
    "hidden_act": [ABSENT, "silu", "swish"],
    "rms_norm_eps": [ABSENT, 1e-5],
    "tie_word_embeddings": [ABSENT, True, False],
    "dtype": [ABSENT, None, "float16"],
    "torch_dtype": [ABSENT, None, "bfloat16", "half"],
}
LLAMA = ROTARY | {
    "num_key_value_heads": [ABSENT, None, 2],
    "attention_bias": [ABSENT, True],
    "mlp_bias": [ABSENT, True],
    "sliding_window": [ABSENT, ABSENT, None, 128],
    "layer_types": [ABSENT, None, ["full_attention"] * 2, ["attention"] * 2],
}
QWEN2 = ROTARY | {
    "attention_bias": [ABSENT, False],
    "use_sliding_window": [ABSENT, False, True],
    "sliding_window": [ABSENT, None, 64, 128],
    "max_window_layers": [ABSENT, 1, 2],
}
QWEN3 = QWEN2 | {"attention_bias": [ABSENT, False, True], "head_dim": [8, 16]}
MISTRAL = ROTARY | {
    "num_key_value_heads": [2, 4],
    "sliding_window": [None, None, 128, 64, ABSENT],
    "layer_types": [ABSENT, ["full_attention"] * 2],
}
OPT: dict[str, list[Any]] = {
    "ffn_dim": [ABSENT, 48],
    "word_embed_proj_dim": [ABSENT, None, 16],
    "num_key_value_heads": [ABSENT, 2],
    "head_dim": [ABSENT, 16],
    "do_layer_norm_before": [ABSENT, True, False],
    "_remove_final_layer_norm": [ABSENT, True],
    "enable_bias": [ABSENT, False],
    "tie_word_embeddings": [ABSENT, False],
    "dtype": ROTARY["dtype"],
    "torch_dtype": ROTARY["torch_dtype"],
}
FAMILIES: dict[str, tuple[dict[str, list[Any]], Any, Any]] = {
    "llama": (LLAMA, LlamaConfig, LlamaRotaryEmbedding),
    "qwen2": (QWEN2, Qwen2Config, Qwen2RotaryEmbedding),
    "qwen3": (QWEN3, Qwen3Config, Qwen3RotaryEmbedding),
    "mistral": (MISTRAL, MistralConfig, MistralRotaryEmbedding),
    "opt": (OPT, OPTConfig, None),
}


def drawn(choices: dict[str, list[Any]], seed: int) -> dict[str, Any]:
    generator = random.Random(seed)
    picked = {name: generator.choice(values) for name, values in choices.items()}
    content = {name: copy.deepcopy(v) for name, v in picked.items() if v is not ABSENT}
    for rope in (content.get("rope_parameters"), content.get("rope_scaling")):
        for factors in ("short_factor", "long_factor"):
            if factors in (rope or {}):
                rope[factors] *= 2 if content.get("head_dim") == 16 else 1
    kind = str(content.get("rope_scaling") or content.get("rope_parameters"))
    if content.get("head_dim", 0) is None and any(k in kind for k in ("dyn", "yarn", "long")):
        del content["head_dim"]  # transformers multiplies None there
    return content


def frequencies(config: dict[str, Any]) -> torch.Tensor:
    """Return inverse frequencies [D / 2] as the engine computes them."""
    exponent = torch.arange(0, config["head_dim"], 2).float() / config["head_dim"]
    found = 1.0 / config["rope_theta"] ** exponent
    scaling = config["rope_scaling"]
    if scaling is None:
        return found
    if scaling["kind"] in ("linear", "dynamic"):
        return found / scaling["factor"] if scaling["kind"] == "linear" else found
    original, factor = scaling["original_max_positions"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = 2 * torch.pi / found
    smooth = (original / waves - low) / (high - low)
    blended = (1 - smooth) * found / factor + smooth * found
    medium = (waves >= original / high) & (waves <= original / low)
    return torch.where(medium, blended, torch.where(waves > original / low, found / factor, found))


def reach_of(oracle: Any) -> int:
    """Return the positions that a model is meant for: further than its table's length if scaled."""
    rope = oracle.rope_parameters
    original = rope.get("original_max_position_embeddings", 128)
    factor = rope.get("factor") or 128 / original
    stretched = {"linear": 128, "dynamic": 128, "yarn": original, "longrope": original}
    return max(128, int(factor * stretched.get(rope["rope_type"], 0)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(60))
def test_mixed_spellings_mean_what_they_mean_in_transformers(name: str, seed: int) -> None:
    choices, config_class, rotary = FAMILIES[name]
    content = SIZES | drawn(choices, seed) | {"model_type": name}
    oracle = config_class(**copy.deepcopy(content))
    # It completes the configuration's rotary parameters, too.
    expected = None if rotary is None else rotary(oracle)
    kinds = getattr(oracle, "layer_types", None) or []
    window = getattr(oracle, "sliding_window", None)
    # Mistral has it in every layer; Llama would not read it, but says that it is there.
    slides = name == "mistral" or (name == "llama" and not kinds) or "sliding_attention" in kinds
    if slides and window is not None and window < reach_of(oracle):
        with pytest.raises(UnsupportedModelError, match=f"sliding_window is {window}"):
            read_model_config(content)
        return
    config = read_model_config(content)
    assert config["max_positions"] == (128 if rotary is None else reach_of(oracle))
    assert config["tie_embeddings"] == oracle.tie_word_embeddings
    named = content.get("dtype") or content.get("torch_dtype")
    if named:
        assert getattr(torch, resolve_dtype("auto", content)) == oracle.dtype
    if expected is None:
        assert config["head_dim"] * oracle.num_attention_heads == oracle.hidden_size
        assert config["num_kv_heads"] == oracle.num_attention_heads
        assert config["embedding_size"] == oracle.word_embed_proj_dim
        assert config["ffn_size"] == oracle.ffn_dim
        assert config["pre_norm"] == oracle.do_layer_norm_before
        assert config["qkv_bias"] == oracle.enable_bias
        return
    assert config["num_kv_heads"] == oracle.num_key_value_heads
    assert config["norm_eps"] == oracle.rms_norm_eps
    assert config["qk_norm"] == (name == "qwen3")
    scaling = config["rope_scaling"] or {"kind": "default"}
    theirs = oracle.rope_parameters
    assert scaling["kind"] == theirs["rope_type"]
    assert config["rope_theta"] == theirs["rope_theta"]
    assert scaling.get("attention_factor", 1.0) == pytest.approx(expected.attention_scaling)
    if scaling["kind"] not in ("yarn", "longrope"):
        torch.testing.assert_close(frequencies(config), expected.inv_freq, rtol=1e-6, atol=0)
        return
    # Their frequencies follow from these numbers (tests/cpp/device/rope_table_test.cpp).
    original = theirs["original_max_position_embeddings"]
    assert scaling["original_max_positions"] == original
    if scaling["kind"] == "yarn":
        assert scaling["factor"] == (theirs["factor"] or 128 / original)
        assert scaling["beta_fast"] == (theirs.get("beta_fast") or 32)
        assert scaling["beta_slow"] == (theirs.get("beta_slow") or 1)
        assert scaling["truncate"] == bool(theirs.get("truncate", True))
    else:
        assert list(scaling["short_factors"]) == theirs["short_factor"]
        assert list(scaling["long_factors"]) == theirs["long_factor"]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_absent_field_has_transformers_default(name: str) -> None:
    _, config_class, _ = FAMILIES[name]
    # A window that is absent has 4,096 tokens in Mistral.
    content = {"model_type": name} | ({"sliding_window": None} if name == "mistral" else {})
    oracle, config = config_class(), read_model_config(content)
    assert config["num_layers"] == oracle.num_hidden_layers
    assert config["hidden_size"] == oracle.hidden_size
    assert config["num_heads"] == oracle.num_attention_heads
    assert config["vocab_size"] == oracle.vocab_size
    assert config["max_positions"] == oracle.max_position_embeddings
    assert config["ffn_size"] == (oracle.ffn_dim if name == "opt" else oracle.intermediate_size)


def test_the_model_type_decides_and_a_contradiction_is_named() -> None:
    content = SIZES | {"model_type": "llama", "architectures": ["MixtralForCausalLM"]}
    with pytest.warns(UserWarning, match="model_type decides"):
        assert family_of(content).name == "Llama"
    # An old spelling of the same, and a head of another kind, are no contradictions.
    for spelling in ("LLaMAForCausalLM", "LlamaModel", "LlamaForSequenceClassification"):
        assert family_of(content | {"architectures": [spelling]}).name == "Llama"
    with pytest.raises(UnsupportedModelError, match="mixtral"):
        family_of({"model_type": "mixtral", "architectures": ["LlamaForCausalLM"]})
    assert family_of({"architectures": ["OPTForCausalLM"]}).name == "OPT"


def test_a_window_counts_against_the_positions_that_a_scaling_reaches() -> None:
    content = SIZES | {"model_type": "llama", "sliding_window": 128}
    with pytest.raises(UnsupportedModelError, match="less than the model's 512 positions"):
        read_model_config(content | {"rope_scaling": YARN})


def test_a_window_of_all_positions_is_no_obstacle_and_a_shorter_one_is() -> None:
    content = SIZES | {"model_type": "llama"}
    assert read_model_config(content | {"sliding_window": 128}) == read_model_config(content)
    with pytest.raises(UnsupportedModelError, match="sliding_window is 127"):
        read_model_config(content | {"sliding_window": 127})


def test_a_linear_scaling_of_positions_gives_transformers_tokens(tmp_path: Path) -> None:
    torch.manual_seed(3)
    content = SIZES | {"intermediate_size": 48, "rope_scaling": {"type": "linear", "factor": 4.0}}
    oracle = LlamaForCausalLM(LlamaConfig(**content)).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    oracle.save_pretrained(tmp_path)
    prompt = list(range(3, 43))
    expected = oracle.generate(
        torch.tensor([prompt]),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )[0, len(prompt) :]
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    with LLM(tmp_path, method="full", device="cpu") as llm:
        assert llm.generate_ids([prompt], params)[0] == expected.tolist()
