# SPDX-License-Identifier: Apache-2.0
"""Models by FlexGen's names, and what they take by FlexGen's formulas."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import describe_model
from ..cli import run_command
from ..errors import ConfigError
from ..model_folder import local_path, resolve_model
from ..np_weights import SUFFIX, copy_beside, is_np_folder, new_np_folder, write_tensor
from ..opt_shapes import SHAPES, hf_config, shape_name
from ..plan import plan
from ..weight_files import open_weights
from ..weight_loading import follows
from ..weight_shards import find_shards


@dataclasses.dataclass(frozen=True)
class OptConfig:
    """Sizes of a model, as FlexGen's scripts read them.

    Parameters
    ----------
    name : str
        Without organisation, lower case.
    num_hidden_layers, max_seq_len, hidden_size, n_head, input_dim, ffn_embed_dim : int
        Sizes.
    pad, pad_token_id, vocab_size : int
        Token ids.
    activation_fn, layer_norm_eps, dtype
        Kept for scripts; the engine reads the model's config.json.
    """

    name: str = "opt-125m"
    num_hidden_layers: int = 12
    max_seq_len: int = 2048
    hidden_size: int = 768
    n_head: int = 12
    input_dim: int = 768
    ffn_embed_dim: int = 3072
    pad: int = 1
    activation_fn: str = "relu"
    vocab_size: int = 50272
    layer_norm_eps: float = 0.00001
    pad_token_id: int = 1
    dtype: type = np.float16

    def model_bytes(self) -> int:
        """Return bytes of the weights in float16, the token table once."""
        h = self.input_dim
        attention, mlp, norms = h * (3 * h + 1) + h * (h + 1), h * (8 * h + 5), 4 * h
        return 2 * (self.num_hidden_layers * (attention + mlp + norms) + self.vocab_size * (h + 1))

    def cache_bytes(self, batch_size: int, seq_len: int) -> int:
        """Return bytes of all keys and values in float16."""
        return 4 * batch_size * seq_len * self.num_hidden_layers * self.input_dim

    def hidden_bytes(self, batch_size: int, seq_len: int) -> int:
        """Return bytes of the rows between two layers in float16."""
        return 2 * batch_size * seq_len * self.input_dim

    def source(self) -> dict[str, Any]:
        """Return what a config.json says of this shape."""
        base = SHAPES.get(shape_name(self.name), SHAPES["opt-125m"])
        return hf_config(base) | {
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.n_head,
            "hidden_size": self.hidden_size,
            "word_embed_proj_dim": self.hidden_size,
            "ffn_dim": self.ffn_embed_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_seq_len,
            "pad_token_id": self.pad_token_id,
        }


@dataclasses.dataclass(frozen=True)
class FolderConfig(OptConfig):
    """Sizes of a model in a local folder, of any family that there is.

    Parameters
    ----------
    folder : Path
        A checkpoint, or FlexGen's weights with a config.json beside them.
    kv_size : int
        Numbers of a token's keys in one layer.
    """

    folder: Path = Path()
    kv_size: int = 0

    def model_bytes(self) -> int:
        """Return bytes of the weights in the dtype that they have."""
        tiers = plan(self.folder, prompt_tokens=1, new_tokens=1, device="cpu").tiers
        return sum(tier["weights"] for tier in tiers.values())

    def cache_bytes(self, batch_size: int, seq_len: int) -> int:
        """Return bytes of all keys and values in float16."""
        return 4 * batch_size * seq_len * self.num_hidden_layers * self.kv_size

    def source(self) -> dict[str, Any]:
        """Return the folder's config.json."""
        return describe_model(self.folder, needs_weights=False).hf_config


class NoSuchShapeError(ConfigError, NotImplementedError):
    """A model that FlexGen names and does not run."""


def get_opt_config(name: str, **kwargs: Any) -> OptConfig:
    """Return the sizes of a model by its name, with some of them replaced.

    Raises
    ------
    NoSuchShapeError
        For opt-350m, which has another architecture.
    ConfigError
        For any other name that is not FlexGen's.
    """
    full = (name.split("/")[1] if "/" in name else name).lower()
    base = shape_name(name)
    if base == "opt-350m":
        raise NoSuchShapeError(
            "[get_opt_config] name is 'opt-350m', whose norms and projections FlexGen has no "
            "weights for; pass the checkpoint's folder as --model, or use hybridgen.LLM"
        )
    if base not in SHAPES:
        raise ConfigError(
            f"[get_opt_config] model name is {name!r}; allowed: {', '.join(SHAPES)}, their -iml "
            "variants, or a local folder"
        )
    shape = SHAPES[base]
    made = OptConfig(
        name=full,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        n_head=shape.heads,
        input_dim=shape.hidden,
        ffn_embed_dim=4 * shape.hidden,
        vocab_size=shape.vocabulary,
    )
    return dataclasses.replace(made, **kwargs)


def find_config(model: str, path: str) -> OptConfig:
    """Return the sizes of what ``--model`` names: a folder, weights below `path`, or a name.

    Raises
    ------
    ConfigError, CheckpointError, UnsupportedModelError
        If it is none of these, or a folder that cannot be read.
    """
    for place in (local_path(model), local_path(path) / f"{Path(model).name.lower()}{SUFFIX}"):
        if place.is_dir() and (place / "config.json").is_file():
            return folder_config(place)
    if local_path(model).is_dir() and is_np_folder(local_path(model)):
        folder = local_path(model).resolve()
        named = get_opt_config(folder.name.removesuffix(SUFFIX))
        return FolderConfig(
            **{f.name: getattr(named, f.name) for f in dataclasses.fields(OptConfig)},
            folder=folder,
            kv_size=named.hidden_size,
        )
    return get_opt_config(model)


def folder_config(folder: Path) -> FolderConfig:
    """Return the sizes of a model in a local folder."""
    found = describe_model(folder, needs_weights=False)
    sizes, pad = found.config, found.hf_config.get("pad_token_id")
    eos = found.hf_config.get("eos_token_id", 1)
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return FolderConfig(
        name=folder.resolve().name.removesuffix(SUFFIX).lower(),
        num_hidden_layers=sizes["num_layers"],
        max_seq_len=sizes["max_positions"],
        hidden_size=sizes["hidden_size"],
        n_head=sizes["num_heads"],
        input_dim=sizes["hidden_size"],
        ffn_embed_dim=sizes["ffn_size"],
        pad=pad,
        activation_fn=sizes["activation"],
        vocab_size=sizes["vocab_size"],
        layer_norm_eps=sizes["norm_eps"],
        pad_token_id=pad,
        folder=folder.resolve(),
        kv_size=sizes["num_kv_heads"] * sizes["head_dim"],
    )


def download_opt_weights(model_name: str, path: str) -> Path:
    """Return the folder with a model's NumPy files, made from the hub's where it is missing.

    Parameters
    ----------
    model_name : str
        With or without organisation; "facebook/" is meant where none is said.
    path : str
        The folder that ``<name>-np`` lies in.
    """
    name = model_name.split("/")[-1].lower()
    target = local_path(path) / f"{name}{SUFFIX}"
    if not target.exists():
        organisation, _, base = model_name.rpartition("/")
        source = resolve_model(f"{organisation or 'facebook'}/{base}", None, "auto")
        convert(source, target)
    return target


def convert(source: Path, target: Path) -> None:
    """Write the OPT checkpoint in a folder as NumPy files, in FlexGen's layout.

    Raises
    ------
    ConfigError
        If it is no OPT model, for which FlexGen has no layout.
    CheckpointError, DeviceError
        If it cannot be read or written; nothing of this call stays then.
    """
    found = describe_model(source)
    if found.family.name != "OPT":
        raise ConfigError(
            f"[convert] {source} is a {found.family.name} model; allowed: OPT; other families run "
            "from their own folder: pass it as --model"
        )
    if found.packing is not None:
        raise ConfigError(
            f"[convert] {source} is quantized; allowed: weights in float32, bfloat16 or float16; "
            "quantized models run from their own folder: pass it as --model"
        )
    with new_np_folder(target) as folder:
        is_tied = bool(found.config["tie_embeddings"])
        for shard in find_shards(source, "auto"):
            with open_weights(shard.file) as opened:
                for name in opened.names:
                    if shard.names is not None and name not in shard.names:
                        continue
                    bare = name if name.startswith(("model.", "lm_head")) else f"model.{name}"
                    if not follows(bare, is_tied):
                        write_tensor(folder, bare, opened.read(name))
                    if is_tied and bare == "model.decoder.embed_tokens.weight":
                        write_tensor(folder, "lm_head.weight", opened.read(name))
        copy_beside(source, folder)


def _run(arguments: argparse.Namespace) -> None:
    local = local_path(arguments.model)
    if local.is_dir():
        target = local_path(arguments.path) / f"{local.resolve().name.lower()}{SUFFIX}"
        convert(local, target)
    else:
        target = download_opt_weights(arguments.model, arguments.path)
    print(target)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m hybridgen.opt_config``: bring a model into FlexGen's layout."""
    parser = argparse.ArgumentParser(prog="hybridgen.opt_config", description=main.__doc__)
    parser.add_argument("--model", type=str, required=True, help="a name, a hub id or a folder")
    parser.add_argument("--path", type=str, required=True, help="where <name>-np is to lie")
    return run_command(_run, parser.parse_args(argv))
