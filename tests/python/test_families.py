# SPDX-License-Identifier: Apache-2.0
"""Reading config.json: transformers' own config classes are the oracle."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from conftest import CONFIGS, make_config, make_model
from hybridgen import CheckpointError, ConfigError, UnsupportedModelError
from hybridgen.config_fields import unknown_fields
from hybridgen.families import FAMILIES, OPT, family_of, read_model_config
from hybridgen.model_config import read_eos_ids, resolve_dtype

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 64,
}


def saved(name: str) -> dict[str, Any]:
    """Return config.json as today's transformers writes it."""
    content: dict[str, Any] = json.loads(make_config(name).to_json_string())
    return content


def changed(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return the content with other fields; those that are ... are absent."""
    return {name: value for name, value in (content | change).items() if value is not ...}


def old_spelling(content: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a config as files from before transformers 5 have it."""
    old = {k: v for k, v in content.items() if k not in ("rope_parameters", "dtype")}
    rope = dict(content.get("rope_parameters") or {})
    if rope:
        old["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        old["rope_scaling"] = None if kind == "default" else rope | {"type": kind}
    return old | {"torch_dtype": "float32"}


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_agree_with_transformers(name: str) -> None:
    oracle = make_config(name)
    config = read_model_config(saved(name))
    assert config["num_layers"] == oracle.num_hidden_layers
    assert config["hidden_size"] == oracle.hidden_size
    assert config["num_heads"] == oracle.num_attention_heads
    assert config["vocab_size"] == oracle.vocab_size
    assert config["max_positions"] == oracle.max_position_embeddings
    assert config["tie_embeddings"] == oracle.tie_word_embeddings
    assert config["architecture"] == oracle.model_type
    if oracle.model_type == "opt":
        assert config["ffn_size"] == oracle.ffn_dim
        assert config["embedding_size"] == oracle.word_embed_proj_dim
        assert config["pre_norm"] == oracle.do_layer_norm_before
        assert config["qkv_bias"] == config["output_bias"] == config["ffn_bias"]
        assert config["qkv_bias"] == oracle.enable_bias
    else:
        assert config["ffn_size"] == oracle.intermediate_size
        assert config["num_kv_heads"] == oracle.num_key_value_heads
        assert config["norm_eps"] == oracle.rms_norm_eps
        assert config["rope_theta"] == oracle.rope_parameters["rope_theta"]


@pytest.mark.parametrize("name", CONFIGS)
def test_both_generations_of_field_names_mean_the_same(name: str) -> None:
    new = saved(name)
    old = old_spelling(new)
    assert read_model_config(old) == read_model_config(new)
    renamed = dict(old)
    if renamed.get("rope_scaling"):
        scaling = dict(renamed["rope_scaling"])
        renamed["rope_scaling"] = scaling | {"rope_type": scaling.pop("type")}
    assert read_model_config(renamed) == read_model_config(new)
    assert resolve_dtype("auto", old) == "float32"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_transformers_has_a_name_here(name: str) -> None:
    family = family_of(saved(name))
    modules = [f"layers.{i}.{m}" for i in range(3) for m in family.layer_modules]
    ours = {family.source_name(f"{m}.weight") for m in [*family.modules, *modules]}
    theirs = {n for n, _ in make_model(name).named_parameters() if n.endswith("weight")}
    assert theirs <= ours


def test_fields_that_old_files_lack_have_their_old_meaning() -> None:
    content = saved("llama")
    for name in ("head_dim", "num_key_value_heads", "rope_parameters", "rms_norm_eps"):
        content.pop(name, None)
    config = read_model_config(content)
    assert config["num_kv_heads"] == config["num_heads"] == 4
    assert config["head_dim"] == 8
    assert (config["rope_theta"], config["rope_scaling"]) == (10000.0, None)


def test_a_head_may_be_wider_than_its_share_of_the_model() -> None:
    assert read_model_config(saved("llama-wide-heads"))["head_dim"] == 16


def test_llama3_scaling_is_read_in_full() -> None:
    assert read_model_config(saved("llama3"))["rope_scaling"] == {
        "kind": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_positions": 64,
    }


def test_opt_350m_has_no_final_norm_and_a_narrow_embedding() -> None:
    config = read_model_config(saved("opt-350m"))
    assert (config["pre_norm"], config["final_norm"]) == (False, False)
    assert (config["embedding_size"], config["hidden_size"]) == (16, 32)


def test_a_removed_final_norm_of_opt_is_honoured() -> None:
    config = read_model_config(saved("opt") | {"_remove_final_layer_norm": True})
    assert (config["pre_norm"], config["final_norm"]) == (True, False)


def test_opt_positions_begin_at_row_two() -> None:
    assert read_model_config(saved("opt"))["position_offset"] == 2


def test_only_qwen2_has_biases_without_being_asked() -> None:
    for name, biased in (("llama", False), ("qwen2", True), ("qwen3", False), ("mistral", False)):
        config = read_model_config(saved(name))
        assert (config["qkv_bias"], config["output_bias"]) == (biased, False)


def test_qwen3_norms_queries_and_keys_and_may_have_biases() -> None:
    assert read_model_config(saved("qwen3"))["qk_norm"]
    config = read_model_config(saved("qwen3-biased"))
    assert (config["qkv_bias"], config["output_bias"], config["ffn_bias"]) == (True, True, False)


def test_llama_bias_flags_are_honoured() -> None:
    config = read_model_config(saved("llama-biased"))
    assert config["qkv_bias"]
    assert config["output_bias"]
    assert config["ffn_bias"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("opt", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("llama", {"rope_parameters": {"rope_type": "proportional"}}, "allowed: default, linear"),
        (
            "llama",
            {"rope_parameters": None, "rope_scaling": {"type": "mrope", "factor": 2.0}},
            "rope_type is 'mrope'",
        ),
        (
            "llama",
            {"head_dim": 2, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "head_dim is 2",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
            "rope_theta is 1",
        ),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier is 0.22, which changes"),
        ("qwen2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("llama", {"num_local_experts": 8}, "num_local_experts is 8, which changes"),
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192}, "window is 4096"),
        ("mistral", {"sliding_window": 255}, "sliding_window is 255, less than the model's 256"),
        ("mistral", {"layer_types": ["full_attention"] * 3, "sliding_window": 9}, "is 9, less"),
        ("llama", {"per_layer_config": {"0": {"hidden_size": 16}}}, "per_layer_config is set"),
        ("llama", {"quantization": {"bits": 4}}, "quantization is set"),
        ("llama", {"rope_parameters": {"a": {"rope_theta": 1.0}}}, "kinds of layers"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "sliding_attention",
        ),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 2,
                "layer_types": None,
            },
            "sliding_window is 64",
        ),
    ],
)
def test_what_the_engine_has_no_code_for_is_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_model_config(changed(saved(name), change))


def test_a_window_that_no_layer_uses_is_no_obstacle() -> None:
    change = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}
    content = saved("qwen2") | change | {"layer_types": None}
    assert read_model_config(content) == read_model_config(saved("qwen2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"hidden_size": 33, "head_dim": None}, "hidden_size is 33"),
        ({"rope_parameters": "fast"}, "rope_parameters is 'fast'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "is missing"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": YARN | {"factor": -4.0}}, "factor is -4.0"),
        ({"rope_parameters": YARN | {"attention_factor": 1e5}}, "attention_factor is 100000.0"),
        ({"rope_parameters": YARN | {"beta_fast": "x"}}, "beta_fast is 'x'"),
        ({"rope_parameters": YARN | {"truncate": 3}}, "truncate is 3"),
        (
            {"rope_parameters": YARN | {"mscale": float("nan"), "mscale_all_dim": 1}},
            "mscale is nan",
        ),
        ({"rope_parameters": LONGROPE | {"short_factor": [1.0]}}, "a list of 4 numbers"),
        ({"rope_parameters": LONGROPE | {"long_factor": [1.0, 0.0, 1.0, 1.0]}}, "long_factor is 0"),
        (
            {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 1}},
            "original_max_position_embeddings is 1",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types is"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is"),
    ],
)
def test_a_malformed_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_model_config(saved("llama") | change)


def test_an_unsupported_architecture_is_answered_with_the_supported_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        family_of({"architectures": ["Qwen2MoeForCausalLM"]})
    for family in FAMILIES:
        assert family.architecture in str(caught.value)
    assert "did you mean 'Qwen2ForCausalLM'" in str(caught.value)


def test_an_unknown_family_is_told_which_of_its_fields_nobody_here_has() -> None:
    content = json.loads(transformers.Gemma2Config().to_json_string())
    with pytest.raises(UnsupportedModelError) as caught:
        family_of(content)
    message = str(caught.value)
    assert "model_type 'gemma2'" in message
    assert "no known family has" in message
    assert "'attn_logit_softcapping', 'final_logit_softcapping'" in message
    assert "hidden_size" not in message
    many = {f"field_{i}": 1 for i in range(1000)} | {"model_type": "x" * 5000}
    with pytest.raises(UnsupportedModelError, match="and 992 more") as caught:
        family_of(many)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_that_transformers_writes_is_read_or_changes_nothing(name: str) -> None:
    assert unknown_fields(saved(name)) == ""


def test_a_field_that_changes_results_is_welcome_with_the_value_that_changes_nothing() -> None:
    neutral = {"residual_multiplier": 1.0, "num_experts": 0, "clip_qkv": None, "alibi": False}
    assert read_model_config(saved("llama") | neutral) == read_model_config(saved("llama"))


def test_a_file_without_architectures_is_known_by_its_model_type() -> None:
    assert family_of({"model_type": "opt"}) is OPT
    with pytest.raises(UnsupportedModelError, match="model_type 'bert'"):
        family_of({"model_type": "bert"})


def test_names_without_the_outer_prefix_are_accepted_too() -> None:
    assert OPT.spellings("layers.3.o_proj.bias") == [
        "model.decoder.layers.3.self_attn.out_proj.bias",
        "decoder.layers.3.self_attn.out_proj.bias",
    ]


def test_ending_tokens_are_the_union_of_all_files() -> None:
    assert read_eos_ids({"eos_token_id": 5}, {"eos_token_id": [7, 5]}, {}, None) == (5, 7)
    assert read_eos_ids({"eos_token_id": None}, {"eos_token_id": -1}) == ()
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read_eos_ids({"eos_token_id": "</s>"})


def test_dtype_is_the_requested_one_or_the_files() -> None:
    assert resolve_dtype("auto", {"dtype": "bfloat16", "torch_dtype": "float32"}) == "bfloat16"
    assert resolve_dtype("auto", {"torch_dtype": "torch.float16"}) == "float16"
    assert resolve_dtype("auto", {}) == "float32"
    assert resolve_dtype("float32", {"dtype": "bfloat16"}) == "float32"
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        resolve_dtype("int8", {})
    with pytest.raises(UnsupportedModelError, match="float64"):
        resolve_dtype("auto", {"dtype": "float64"})
