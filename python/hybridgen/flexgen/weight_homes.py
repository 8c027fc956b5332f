# SPDX-License-Identifier: Apache-2.0
"""FlexGen's rule of mid-points: which of a model's tensors have their home where.

A layer is cut into lists of tensors. In each list a tensor's mid-point is a percentage of the
list's numbers, and its home the first of disk, CPU and GPU whose cumulative share is beyond it. No
tensor is ever divided, so that the real shares are steps: 25 % of the weights on the GPU are 8 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HOMES = ("disk", "cpu", "gpu")
"""In the order in which shares are laid out."""


@dataclass(frozen=True)
class WeightHomes:
    """What lies where.

    Parameters
    ----------
    of_tensor : Mapping[str, str]
        Each tensor's home by the engine's name, such as "layers.3.q_proj.weight".
    elements : Mapping[str, int]
        How many numbers each home has.
    """

    of_tensor: Mapping[str, str]
    elements: Mapping[str, int]

    def share(self, home: str) -> float:
        """Return the part of all numbers that a home has, in percent."""
        return 100 * self.elements.get(home, 0) / sum(self.elements.values())


def homes_of_list(sizes: Sequence[int], gpu: float, cpu: float) -> list[str]:
    """Return the home of each tensor of one list, by sizes and the percentages asked for.

    Examples
    --------
    >>> homes_of_list([100, 1, 100, 1, 100, 1, 100, 1, 1, 1], gpu=25, cpu=75)
    ['cpu', 'cpu', 'cpu', 'cpu', 'cpu', 'cpu', 'gpu', 'gpu', 'gpu', 'gpu']
    """
    total = sum(sizes)
    ends = list(itertools.accumulate((100 - gpu - cpu, cpu, gpu)))
    found = []
    before = 0
    for size in sizes:
        middle = 100 * (before + size / 2) / total
        before += size
        found.append(
            next((home for home, end in zip(HOMES, ends, strict=True) if middle < end), "gpu")
        )
    return found


def weight_homes(config: Mapping[str, Any], gpu: float, cpu: float) -> WeightHomes:
    """Return the homes of a model's tensors.

    Parameters
    ----------
    config : mapping
        Fields of ``_core.ModelConfig``.
    gpu, cpu : float
        Percentages; the rest is on the disk.
    """
    of_tensor: dict[str, str] = {}
    elements = dict.fromkeys(HOMES, 0)
    for tensors in tensor_lists(config):
        for (name, size), home in zip(
            tensors.items(), homes_of_list(list(tensors.values()), gpu, cpu), strict=True
        ):
            of_tensor[name] = home
            elements[home] += size
    return WeightHomes(of_tensor, elements)


def tensor_lists(config: Mapping[str, Any]) -> list[dict[str, int]]:
    """Return the lists that the rule is applied to, with the number of numbers of each tensor.

    The order is FlexGen's: token table and positions; per layer q, k, v, output and norm; per layer
    the FFN and its norm; final norm and the output's token table. A table that input and output
    share is listed at both, as FlexGen holds it twice.
    """
    hidden, width = config["hidden_size"], config["embedding_size"]
    query = config["num_heads"] * config["head_dim"]
    keys = config["num_kv_heads"] * config["head_dim"]
    ffn = config["ffn_size"]
    table = config["vocab_size"] * width

    def norm(name: str) -> dict[str, int]:
        bias = {f"{name}.bias": hidden} if config["norm"] == "layer" else {}
        return {f"{name}.weight": hidden} | bias

    def linear(name: str, outputs: int, inputs: int, has_bias: bool) -> dict[str, int]:
        return {f"{name}.weight": outputs * inputs} | (
            {f"{name}.bias": outputs} if has_bias else {}
        )

    first = {"embed_tokens.weight": table}
    if config["position"] == "learned":
        rows = config["max_positions"] + config["position_offset"]
        first["embed_positions.weight"] = rows * hidden
    lists = [first]
    for layer in range(config["num_layers"]):
        at = f"layers.{layer}."
        qkv, out, has_ffn_bias = config["qkv_bias"], config["output_bias"], config["ffn_bias"]
        lists.append(
            linear(f"{at}q_proj", query, hidden, qkv)
            | linear(f"{at}k_proj", keys, hidden, qkv)
            | linear(f"{at}v_proj", keys, hidden, qkv)
            | linear(f"{at}o_proj", hidden, query, out)
            | norm(f"{at}attention_norm")
        )
        is_gated = config["activation"] != "relu"
        gate = linear(f"{at}gate_proj", ffn, hidden, has_ffn_bias) if is_gated else {}
        lists.append(
            gate
            | linear(f"{at}up_proj", ffn, hidden, has_ffn_bias)
            | linear(f"{at}down_proj", hidden, ffn, has_ffn_bias)
            | norm(f"{at}ffn_norm")
        )
    last = norm("final_norm") if config["final_norm"] else {}
    lists.append(last | {"lm_head.weight": table})
    return lists
