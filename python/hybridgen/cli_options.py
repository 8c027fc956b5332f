# SPDX-License-Identifier: Apache-2.0
"""Options of model, engine and sampling on a command line, and what they say to `LLM`.

Flags come from the tables of the option classes, so that a new option has one at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from . import _core
from .config import CpuConfig, KVConfig, QueryConfig, SchedulerConfig, WeightConfig
from .disk import Disk
from .errors import ConfigError
from .llm import LLM
from .sampling import SamplingParams


def number_or_word(text: str) -> Any:
    """Return an int or float if the text is one, else the text: 64, 0.1, "auto"."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def name_and_value(text: str) -> tuple[str, Any]:
    """Return the name and the value in ``heavy=0.1``."""
    name, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, _value(value)


def _bias(text: str) -> tuple[int, float]:
    """Return the token id and the number in ``50256=-100``."""
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN_ID=NUMBER") from None


def _value(text: str) -> Any:
    """Return an option as Python has it; what leaves K to stage times has a word here."""
    words = {"true": True, "false": False, "steered": None, "none": None}
    return words.get(text.lower(), number_or_word(text))


def add_options(
    parser: argparse.ArgumentParser,
    rows: Iterable[Mapping[str, Any]],
    *,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
) -> None:
    """Add a flag for each option of a table; those that are not given are absent afterwards."""
    for row in rows:
        name = (names or {}).get(row["name"], prefix + row["name"])
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"{prefix}{row['name']}",
            type=_value,
            default=argparse.SUPPRESS,
            metavar=row["name"].upper(),
            help=f"{row['meaning']} {row['allowed']}; default: {row['default']!r}".replace(
                "%", "%%"
            ),
        )


def rows_of(kind: str) -> list[Mapping[str, Any]]:
    """Return the options of a class by its name."""
    return next(row["options"] for row in _core.option_classes() if row["name"] == kind)


def kv_from(arguments: argparse.Namespace) -> KVConfig:
    """Return what a command line said of where keys and values live."""
    given = given_of(arguments, "KVConfig")
    if isinstance(disk := given.get("disk"), str):
        path, found, size = disk.rpartition(":")
        if not found:
            raise ConfigError(f"[KVConfig] disk is {disk!r}; allowed: FOLDER:SIZE, such as /x:9GiB")
        given["disk"] = Disk(path, number_or_word(size))
    return KVConfig(**given)


def _sampling_rows() -> list[Mapping[str, Any]]:
    """Return the options of the sampler that are one value and have no flag of their own."""
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    own = ("seed", "max_tokens", "stop_token_ids", "logit_bias")
    rows = _core.SamplingOptions.describe()
    return [row for row in rows if row["name"] in fields and row["name"] not in own]


def given_of(arguments: argparse.Namespace, kind: str, prefix: str = "") -> dict[str, Any]:
    """Return what a command line said of a class's options."""
    said = vars(arguments)
    names = [row["name"] for row in rows_of(kind)]
    return {name: said[prefix + name] for name in names if prefix + name in said}


# What these flags were called before there was one for each option of a QueryConfig.
_QUERY_FLAGS = {"mode": "query", "first_layer": "spec_first_layer"}


def add_model_arguments(parser: argparse.ArgumentParser, *, comes_first: bool = False) -> None:
    """Add the options that say which model runs on what; every method reads them."""
    if comes_first:
        parser.add_argument("model", help="folder, GGUF file or hub id")
    else:
        parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda:0, emulated, or emulated:PROFILE, which has times and no results",
    )
    parser.add_argument("--load-format", default="auto", help="auto, safetensors, bin, gguf, dummy")
    parser.add_argument("--gguf-file", help="which GGUF file of a folder or hub id is the model")
    add_options(parser, rows_of("LLM"))
    add_options(parser, rows_of("CpuConfig"))
    add_options(parser, rows_of("WeightConfig"), prefix="weight_")
    parser.add_argument("--seed", type=int, default=0)


def add_engine_arguments(parser: argparse.ArgumentParser, *, comes_first: bool = False) -> None:
    """Add the options that say how an engine is built; read them with `engine_from`."""
    add_model_arguments(parser, comes_first=comes_first)
    parser.add_argument("--method", default="hybridgen", help="see: python -m hybridgen methods")
    parser.add_argument(
        "--method-config",
        type=name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method; may be given several times",
    )
    add_options(parser, rows_of("KVConfig"))
    add_options(parser, rows_of("SchedulerConfig"))
    add_options(parser, rows_of("QueryConfig"), prefix="guess_", names=_QUERY_FLAGS)
    by_name = [row for row in rows_of("HybridGen") if row["name"] in ("selector", "pre_selector")]
    add_options(parser, by_name)


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the options of `add_model_arguments` say to `LLM`, but for the model itself."""
    return {
        "dtype": arguments.dtype,
        "device": arguments.device,
        "load_format": arguments.load_format,
        "gguf_file": arguments.gguf_file,
        "seed": arguments.seed,
        "cpu": CpuConfig(**given_of(arguments, "CpuConfig")),
        "weights": WeightConfig(**given_of(arguments, "WeightConfig", "weight_")),
        **given_of(arguments, "LLM"),
    }


def model_from(arguments: argparse.Namespace, **options: Any) -> LLM:
    """Load the model that the options of `add_model_arguments` name; more options are LLM's."""
    return LLM(arguments.model, **model_options(arguments), **options)


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_engine_arguments` adds to that."""
    query = given_of(arguments, "QueryConfig", "guess_")
    return {
        "method": arguments.method,
        "method_config": dict(arguments.method_config) or None,
        "query": QueryConfig(**query) if query else None,
        "selector": getattr(arguments, "selector", None),
        "pre_selector": getattr(arguments, "pre_selector", None),
        "kv": kv_from(arguments),
        "scheduler": SchedulerConfig(**given_of(arguments, "SchedulerConfig")),
    }


def engine_from(arguments: argparse.Namespace) -> LLM:
    """Build the engine that the options of `add_engine_arguments` describe."""
    return model_from(arguments, **method_options(arguments))


def add_sampling_arguments(
    parser: argparse.ArgumentParser, *, max_tokens: int | None = 128
) -> None:
    """Add the options that say how texts are sampled; read them with `sampling_options`."""
    parser.add_argument("--max-tokens", type=int, default=max_tokens)
    add_options(parser, _sampling_rows())
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="TOKEN_ID=NUMBER",
        help="added to the logit of a token, from -100 to 100; may be given several times",
    )
    parser.add_argument("--stop", action="append", default=[], help="may be given several times")
    parser.add_argument("--ignore-eos", action="store_true")


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the options of `add_sampling_arguments` say to `SamplingParams`."""
    said = vars(arguments)
    most = {} if arguments.max_tokens is None else {"max_tokens": arguments.max_tokens}
    return {
        **most,
        **{row["name"]: said[row["name"]] for row in _sampling_rows() if row["name"] in said},
        "logit_bias": dict(arguments.logit_bias) or None,
        "stop": arguments.stop,
        "ignore_eos": arguments.ignore_eos,
    }
