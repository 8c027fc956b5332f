# SPDX-License-Identifier: Apache-2.0
"""Sizes of the models that the HybridGen paper runs, and of a few more: layers, widths, parameters.

From published configs; parameters are computed and equal the published files' bytes where those
are known (OPT-1.3B, 2.7B, 6.7B). Memory is in 16-bit numbers: 2 bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._checks import brief, did_you_mean
from ..errors import ConfigError

ELEMENT_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder-only model by its sizes.

    Parameters
    ----------
    name : str
        As reports call it.
    family : str
        "opt" (biases, learned positions, FFN of two matrices), "llama" or "qwen2" (gated FFN; qwen2
        has biases of q, k and v).
    layers, hidden_size, heads, kv_heads, head_dim, ffn_size, vocab_size, positions : int
        Sizes.
    tied : bool
        Whether the output head is the token table.
    """

    name: str
    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    positions: int
    tied: bool

    @property
    def query_width(self) -> int:
        """Elements of a token's queries in one layer."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, or of its values, in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def projection_params(self) -> int:
        """Weights of q, k, v and output of a layer, without biases: also its MACs per token."""
        return 2 * self.hidden_size * (self.query_width + self.kv_width)

    @property
    def ffn_params(self) -> int:
        """Weights of a layer's FFN, without biases: also its MACs per token."""
        return (2 if self.family == "opt" else 3) * self.hidden_size * self.ffn_size

    @property
    def layer_params(self) -> int:
        """Everything in a layer: weights, biases, norms."""
        weights = self.projection_params + self.ffn_params
        if self.family == "opt":
            biases = 4 * self.hidden_size + self.ffn_size + self.hidden_size
            return weights + biases + 4 * self.hidden_size
        biases = self.query_width + 2 * self.kv_width if self.family == "qwen2" else 0
        return weights + biases + 2 * self.hidden_size

    @property
    def head_params(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def params(self) -> int:
        """All parameters, a tied head once."""
        tables = self.head_params * (1 if self.tied else 2)
        if self.family == "opt":
            # The position table has two rows more than positions; the final norm has a bias.
            return (
                self.layers * self.layer_params
                + tables
                + (self.positions + 2) * self.hidden_size
                + 2 * self.hidden_size
            )
        return self.layers * self.layer_params + tables + self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters."""
        return self.params * ELEMENT_BYTES

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer."""
        return self.layer_params * ELEMENT_BYTES

    @property
    def kv_bytes_per_layer(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.kv_width * ELEMENT_BYTES

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.layers * self.kv_bytes_per_layer

    def kv_bytes(self, batch: int, tokens: int) -> int:
        """Bytes of the cache of ``batch`` texts of ``tokens`` each."""
        return batch * tokens * self.kv_bytes_per_token


def _opt(name: str, layers: int, width: int, heads: int) -> ModelShape:
    return ModelShape(
        name=name,
        family="opt",
        layers=layers,
        hidden_size=width,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ffn_size=4 * width,
        vocab_size=50272,
        positions=2048,
        tied=True,
    )


def _llama(name: str, *sizes: int, tied: bool) -> ModelShape:
    layers, width, heads, head_dim, ffn = sizes
    return ModelShape(
        name=name,
        family="llama",
        layers=layers,
        hidden_size=width,
        heads=heads,
        kv_heads=8,
        head_dim=head_dim,
        ffn_size=ffn,
        vocab_size=128256,
        positions=131072,
        tied=tied,
    )


def _qwen(name: str, *sizes: int, tied: bool) -> ModelShape:
    layers, width, heads, kv_heads, ffn, vocab, positions = sizes
    return ModelShape(
        name=name,
        family="qwen2",
        layers=layers,
        hidden_size=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        ffn_size=ffn,
        vocab_size=vocab,
        positions=positions,
        tied=tied,
    )


SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _opt("opt-1.3b", 24, 2048, 32),
        _opt("opt-2.7b", 32, 2560, 32),
        _opt("opt-6.7b", 32, 4096, 32),
        _opt("opt-13b", 40, 5120, 40),
        _opt("opt-30b", 48, 7168, 56),
        _opt("opt-66b", 64, 9216, 72),
        _llama("llama-3.2-1b", 16, 2048, 32, 64, 8192, tied=True),
        _llama("llama-3.2-3b", 28, 3072, 24, 128, 8192, tied=True),
        _llama("llama-3.1-8b", 32, 4096, 32, 128, 14336, tied=False),
        _llama("llama-3.1-70b", 80, 8192, 64, 128, 28672, tied=False),
        _qwen("qwen2.5-1.5b", 28, 1536, 12, 2, 8960, 151936, 131072, tied=True),
        _qwen("qwen2.5-3b", 36, 2048, 16, 2, 11008, 151936, 32768, tied=True),
        _qwen("qwen2.5-7b", 28, 3584, 28, 4, 18944, 152064, 131072, tied=False),
        _qwen("qwen2.5-14b", 48, 5120, 40, 8, 13824, 152064, 131072, tied=False),
    )
}

PAPER_MODELS = (
    *("opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b"),
    *("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"),
    *("qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b"),
)
"""The eleven sizes of the paper's evaluation. It once calls Llama-3.1-8B "7B"; there is no 7B."""


def shape_of(name: str) -> ModelShape:
    """Return a shape by its name; ConfigError if there is none."""
    if name not in SHAPES:
        raise ConfigError(
            f"[simulate] model is {brief(name)}; allowed: {', '.join(SHAPES)}"
            f"{did_you_mean(name, SHAPES)}"
        )
    return SHAPES[name]
