# SPDX-License-Identifier: Apache-2.0
"""Rows of a Parquet file as lines: a column for each key, nothing where it is null."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .line import Line

_ROWS = 1024
_PIECE = 1 << 20


class ParquetInput:
    """A Parquet file.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ConfigError
        If pyarrow is not installed, or the file is no Parquet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet = parquet_module()
        with self._opened() as file:
            self._rows = int(file.metadata.num_rows)

    def count(self, seen: Callable[[bytes], object]) -> int:
        """Return how many rows there are, and show all bytes of the file to `seen`."""
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                seen(piece)
        return self._rows

    def lines(self) -> Iterator[Line]:
        """Yield every row; what is held is one group of rows."""
        index = 0
        with self._opened() as file:
            try:
                for batch in file.iter_batches(batch_size=_ROWS):
                    for row in batch.to_pylist(maps_as_pydicts="lossy"):
                        yield Line(index, f"row {index}", without_nulls(row))
                        index += 1
            except (self._arrow_error, OSError) as error:
                raise self._unreadable(error) from error

    def _opened(self) -> Any:
        try:
            return self._parquet.ParquetFile(self.path, memory_map=False)
        except (self._arrow_error, OSError) as error:
            raise self._unreadable(error) from error

    @property
    def _arrow_error(self) -> Any:
        import pyarrow

        return pyarrow.ArrowException

    def _unreadable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"[batch] {self.path} cannot be read as Parquet: {error}; allowed: a .parquet file "
            "that is whole, or lines of JSON"
        )


def parquet_module() -> Any:
    """Return pyarrow's; ConfigError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "[batch] Parquet needs pyarrow, which is not installed; pip install "
            "'hybridgen[parquet]', or use lines of JSON"
        ) from error
    return pyarrow.parquet


def without_nulls(value: Any) -> Any:
    """Return a value of Arrow as JSON has it: without keys that are null."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
