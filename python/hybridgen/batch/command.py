# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen batch``: its own options, and the run that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .. import _core
from .._checks import as_int
from ..engine_options import EngineSetup
from ..errors import ConfigError, GenerationError
from ..llm import LLM
from ..model_folder import local_path, model_name, resolve_model
from ..plan import OF_LOADING
from ..sampling import SamplingParams
from .engine_spec import EngineSpec
from .engine_window import EngineWindow
from .fingerprint import manifest_of, text_options
from .input_file import open_input
from .line import Answerer
from .line_forms import LineForms
from .run import Outcome, run_batch
from .shard_files import shard_format
from .shard_folder import ShardFolder


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is read and written."""
    parser.add_argument("input", help="file with an object of JSON in every line, or .parquet")
    parser.add_argument("--out", required=True, help="folder for the answers; the same goes on")
    parser.add_argument("--overwrite", action="store_true", help="drop the batch that is in --out")
    parser.add_argument("--format", default="jsonl", help="of the answers: jsonl, parquet")
    parser.add_argument("--lines-per-shard", type=int, default=1000, help="answers in each file")
    parser.add_argument("--token-ids", action="store_true", help="write token ids beside text")
    parser.add_argument(
        "--model-name",
        help="what lines of OpenAI's format call the model; default: its folder's name or hub id",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="answer by engines of a Ray cluster: local, auto, or HOST:PORT; see docs/batch.md",
    )
    parser.add_argument("--actors", type=int, help="engines with --ray; default: one on each node")
    parser.add_argument("--no-progress", action="store_true", help="write nothing but errors")


def run_batch_command(
    arguments: argparse.Namespace, engine: Mapping[str, Any], sampling: Mapping[str, Any]
) -> None:
    """Answer a file's lines, as far as they are not answered yet.

    Parameters
    ----------
    arguments : argparse.Namespace
        With the options of `add_batch_arguments`, and ``model``.
    engine : mapping
        Options of `LLM`.
    sampling : mapping
        Fields of `SamplingParams` for lines that do not give them.

    Raises
    ------
    ConfigError
        For what cannot be run as it was asked for; nothing was written then.
    GenerationError
        At the end, if lines failed; all answers are written.
    HybridGenError
        If the model does not fit, the disk is full, or the machine fails.
    """
    lines_per_shard = as_int("batch", "--lines-per-shard", arguments.lines_per_shard, 1)
    files = shard_format(arguments.format)
    forms = LineForms(
        arguments.model_name or model_name(arguments.model),
        has_token_ids=arguments.token_ids,
        is_table=arguments.format == "parquet",
    )
    _check_options(engine, sampling)
    if arguments.actors is not None and arguments.ray is None:
        raise ConfigError(
            "[batch] --actors is given without --ray; allowed: both; --ray local has several "
            "engines on this machine"
        )
    source = open_input(arguments.input)
    with ExitStack() as stack:
        folder = stack.enter_context(
            ShardFolder(
                arguments.out, files, num_lines=source.num_lines, lines_per_shard=lines_per_shard
            )
        )
        manifest = manifest_of(
            source,
            resolve_model(arguments.model, None, str(engine["load_format"]), arguments.gguf_file),
            text_options(engine, sampling),
            {
                "hybridgen": str(_core.build_info()["version"]),
                "format": arguments.format,
                "lines_per_shard": lines_per_shard,
                "token_ids": forms.has_token_ids,
                "model_name": forms.model_name,
            },
        )
        folder.check(manifest, overwrite=arguments.overwrite)
        done = {} if arguments.overwrite else folder.done()
        answerer = None
        if len(done) < folder.num_shards:
            answerer = stack.enter_context(_answerer(arguments, engine, forms, sampling))
        folder.begin(manifest, overwrite=arguments.overwrite)
        outcome = run_batch(
            source,
            folder,
            answerer,
            done,
            lines_per_shard=lines_per_shard,
            progress=not arguments.no_progress,
        )
    _report(outcome, folder.path)


@contextmanager
def _answerer(
    arguments: argparse.Namespace,
    engine: Mapping[str, Any],
    forms: LineForms,
    sampling: Mapping[str, Any],
) -> Iterator[Answerer]:
    """Yield what answers lines, once its model is loaded."""
    seed = int(engine["seed"])
    if arguments.ray is None:
        with LLM(arguments.model, **engine) as llm:
            yield EngineWindow(llm, forms, sampling, seed)
        return
    from ..ray.cluster import engines_of  # which imports Ray

    path = local_path(arguments.model)
    model = str(path.resolve()) if path.exists() else arguments.model
    spec = EngineSpec(model, engine, forms, sampling, seed)
    with engines_of(spec, arguments.ray, arguments.actors, quiet=arguments.no_progress) as pool:
        yield pool


def _check_options(engine: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """Refuse options that no line could be answered with, before anything is read."""
    SamplingParams(**sampling)
    EngineSetup(**{name: value for name, value in engine.items() if name not in OF_LOADING})
    if str(engine["device"]).startswith("emulated:"):
        raise ConfigError(
            f"[batch] device is {engine['device']!r}, where nothing is computed and there is no "
            "text; allowed: cpu, cuda:0, or 'emulated' without a profile"
        )


def _report(outcome: Outcome, folder: Path) -> None:
    """Say what the folder has; raises if lines of it failed."""
    if outcome.num_failed:
        first = f"; the first of this run: {outcome.first_problem}" if outcome.first_problem else ""
        raise GenerationError(
            f"[batch] {outcome.num_failed} of {outcome.num_lines} lines failed, which their "
            f"answers in {folder} say{first}"
        )
    print(f"{outcome.num_lines} lines answered, {outcome.num_fresh} now: {folder}")
