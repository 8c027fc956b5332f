# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as GGUF files, written by the library of llama.cpp (gguf)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """Return GGUF's name of a tensor of transformers."""
    module, parameter = name.removeprefix("model.").rsplit(".", 1)
    if module.startswith("layers."):
        _, layer, inner = module.split(".", 2)
        return f"blk.{layer}.{NAMES[inner]}.{parameter}"
    return f"{TOP_NAMES[module]}.{parameter}"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of q or k in the order for a rotation of neighbours, as converters write them."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any = None,
    kind: Type = Type.F32,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    more: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Write a model of transformers; matrices in ``kind``, other tensors in float32.

    Parameters
    ----------
    path : Path
        Of the file.
    model, tokenizer
        Of transformers.
    kind : Type
        Of matrices whose rows are whole blocks of it.
    change : callable
        Adds more metadata.
    more : dict
        Float32 tensors beside the model's.
    **options
        Of gguf's writer, such as ``split_max_tensors``.

    Returns
    -------
    dict
        What the file's numbers are, by transformers' names, restored by gguf.
    """
    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, architecture, **options)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if tokenizer is not None:
        add_byte_level(writer, tokenizer, config.vocab_size)
    if change is not None:
        change(writer)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    restored = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        module = name.split(".")[-2]
        if architecture == "llama" and module in heads:
            values = permuted(values, heads[module])
        is_whole = values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        own = kind if is_whole else Type.F32
        data = gguf.quants.quantize(values, own)
        writer.add_tensor(gguf_name(name), data, raw_dtype=own)
        values = gguf.quants.dequantize(data, own).reshape(values.shape)
        if architecture == "llama" and module in heads:
            pairs = values.reshape(heads[module], -1, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        restored[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return restored


def add_byte_level(writer: gguf.GGUFWriter, tokenizer: Any, size: int, pre: str = "gpt-2") -> None:
    """Add a byte-level BPE tokenizer of transformers, its vocabulary padded to the model's."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(
        [5 if i not in words else 3 if words[i] in special else 1 for i in range(size)]
    )
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def with_weights(model: Any, restored: dict[str, np.ndarray]) -> Any:
    """Return a float32 model of transformers with other weights."""
    other = getattr(transformers, model.config.architectures[0])(model.config).float().eval()
    state = {name: torch.from_numpy(np.array(values)) for name, values in restored.items()}
    missing = other.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert not missing.unexpected_keys
    other.tie_weights()
    return other
