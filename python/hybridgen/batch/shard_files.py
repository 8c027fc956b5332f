# SPDX-License-Identifier: Apache-2.0
"""What a shard of answers looks like on disk: lines of JSON, or Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from .parquet_input import parquet_module


@dataclass(frozen=True)
class Written:
    """What is known of an answer that was written.

    Parameters
    ----------
    index : int or None
        That of its line, where the form says it.
    is_failure : bool
        Whether there is an error in place of a text.
    """

    index: int | None
    is_failure: bool


class ShardFormat(Protocol):
    """Writes and reads the answers of one shard."""

    suffix: str

    def write(self, path: Path, answers: Iterable[dict[str, Any]]) -> None:
        """Write a file; OSError where the system cannot."""

    def read(self, path: Path) -> Iterator[Written]:
        """Yield what is known of each answer; ValueError or OSError for a damaged file."""


class JsonlShards:
    """An object of JSON in every line."""

    suffix = ".jsonl"

    def write(self, path: Path, answers: Iterable[dict[str, Any]]) -> None:
        """Write a file."""
        with path.open("wb") as file:
            for answer in answers:
                file.write(_encoded(answer) + b"\n")

    def read(self, path: Path) -> Iterator[Written]:
        """Yield what is known of each answer."""
        with path.open("rb") as file:
            for raw in file:
                content = json.loads(raw)
                index, error = content.get("index"), content.get("error")
                yield Written(index if isinstance(index, int) else None, error is not None)


class ParquetShards:
    """A row for every answer, in the plain form; ConfigError without pyarrow."""

    suffix = ".parquet"

    def __init__(self) -> None:
        self._parquet = parquet_module()

    def write(self, path: Path, answers: Iterable[dict[str, Any]]) -> None:
        """Write a file."""
        import pyarrow

        rows = [_row(answer) for answer in answers]
        table = pyarrow.Table.from_pylist(rows, schema=_schema())
        with path.open("wb") as file:
            self._parquet.write_table(table, file, compression="zstd")

    def read(self, path: Path) -> Iterator[Written]:
        """Yield what is known of each answer."""
        import pyarrow

        try:
            table = self._parquet.read_table(path, columns=["index", "error"], memory_map=False)
        except pyarrow.ArrowException as error:
            raise ValueError(str(error)) from error
        for row in table.to_pylist():
            yield Written(row["index"], row["error"] is not None)


def shard_format(name: str) -> ShardFormat:
    """Return the format of a name; ConfigError for another one."""
    if name == "jsonl":
        return JsonlShards()
    if name == "parquet":
        return ParquetShards()
    raise ConfigError(f"[batch] --format is {name!r}; allowed: jsonl, parquet")


def _encoded(answer: dict[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError:  # a lone surrogate in a line's name, which UTF-8 has no bytes for; infinity
        return json.dumps(_finite(answer), allow_nan=False).encode("ascii")


def _finite(value: Any) -> Any:
    """Return a value of JSON with null for what is no number there."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a plain answer as a row: what has no fixed columns is JSON."""
    return answer | {
        "id": _name(answer["id"]),
        "outputs": [
            text
            | {
                "stop_reason": _json_or_none(text["stop_reason"]),
                "logprobs": _json_or_none(text.get("logprobs")),
            }
            for text in answer["outputs"]
        ],
        "prompt_logprobs": _json_or_none(answer.get("prompt_logprobs")),
    }


def _name(name: Any) -> str | None:
    if isinstance(name, str):  # Parquet has no lone surrogates
        return name.encode("utf-8", "backslashreplace").decode("utf-8")
    return _json_or_none(name)


def _json_or_none(value: Any) -> str | None:
    return None if value is None else json.dumps(_finite(value))


def _schema() -> Any:
    import pyarrow as pa

    text = pa.struct(
        [
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("stop_reason", pa.string()),
            ("cumulative_logprob", pa.float64()),
            ("generated_tokens", pa.int64()),
            ("token_ids", pa.list_(pa.int32())),
            ("logprobs", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("index", pa.int64()),
            ("id", pa.string()),
            ("outputs", pa.list_(text)),
            ("prompt_tokens", pa.int64()),
            ("prompt_logprobs", pa.string()),
            ("error", pa.struct([("type", pa.string()), ("message", pa.string())])),
        ]
    )
