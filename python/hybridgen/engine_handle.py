# SPDX-License-Identifier: Apache-2.0
"""An engine that is open: what it is made of, what it does, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ._files import check_writable
from ._lifetime import Closable, guarded
from .checkpoint import LoadedModel
from .errors import ConfigError
from .generation import EngineLoop
from .model import Model
from .outputs import RunStats
from .tracing import write_chrome_trace


class EngineHandle(Closable):
    """What `LLM` is before it is asked for text.

    Parameters
    ----------
    model : Model
        Closed with this.
    loop : EngineLoop
        An engine on it.
    """

    def __init__(self, model: Model, loop: EngineLoop) -> None:
        self.model = model
        """The model that it runs; it closes with this. ``LLM(llm.model)`` makes another engine."""
        self._loop = loop
        self._tracing = False

    @property
    def open_model(self) -> Model:
        """The model that it runs; ConfigError once this is closed, and in a forked process."""
        _ = self._loop.engine
        return self.model

    @property
    def _loaded(self) -> LoadedModel:
        """Where checks of what was loaded look, which are older than `Model`."""
        return self.model._loaded

    @property
    def path(self) -> Path | None:
        """The model's folder; None if it was made from a dict."""
        return self.model.path

    @property
    def model_config(self) -> dict[str, Any]:
        """The model's sizes and kinds, as the engine sees them."""
        return self.model.config

    @property
    def generation_config(self) -> dict[str, Any]:
        """Content of generation_config.json; see `SamplingParams.from_generation_config`."""
        return self.model.generation_config

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The model's ending tokens."""
        return self.model.eos_token_ids

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None without one."""
        return self.model.tokenizer

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer; ConfigError without one."""
        return self.model.get_tokenizer()

    # ----------------------------------------------------------------------------- observation

    @property
    def stats(self) -> RunStats:
        """What the engine did since the last call began."""
        return RunStats(self._loop.run_stats(), self.model.emulated)

    @contextmanager
    def measure(self) -> Iterator[RunStats]:
        """Count what the engine does while the block runs, in however many calls.

        Examples
        --------
        >>> with llm.measure() as stats:  # doctest: +SKIP
        ...     llm.generate(prompts)
        ...     llm.generate(more)
        >>> stats.decode_tps  # doctest: +SKIP
        41.5
        """
        before = self._loop.all_stats()
        stats = RunStats({}, self.model.emulated)
        stats.fill(before, before)
        try:
            yield stats
        finally:
            with suppress(ConfigError):  # it was closed
                stats.fill(before, self._loop.all_stats())

    @property
    def memory(self) -> dict[str, dict[str, Any]]:
        """Capacity and use of each memory tier, and where the system says that its pages lie.

        One dict per tier: ``capacity``, what this engine's requests have ``used`` (reserved), and
        those of all engines of this ``process``, in bytes; of the keys and values of the requests
        that run now ``bytes``, the same by memory node as ``nodes``, and
        ``huge_page_share``, of all their bytes in host memory. The system is asked about every
        page: about a tenth of a second for four gigabytes on small pages.
        """
        return self._loop.memory()

    @property
    def numa_parts(self) -> list[dict[str, Any]]:
        """Memory nodes that key/value heads are divided over; empty where they are not.

        One dict per node with workers: its ``node``, its heads as ``first_head`` and ``num_heads``
        and the ``cpus`` of its workers.
        """
        return list(self._loop.engine.numa_parts())

    @property
    def engine_options(self) -> Any:
        """The engine's options with every automatic value resolved."""
        return self._loop.engine.options

    @contextmanager
    def tracing(self, path: str | Path) -> Iterator[None]:
        """Record a timeline while the block runs; open the file in ui.perfetto.dev.

        Parameters
        ----------
        path : str or Path
            The JSON file to write, also if the block fails. It is written whole or not at all; if
            it cannot be written after the block failed, the block's exception carries a note.

        Raises
        ------
        ConfigError, DeviceError
            If the file cannot be written; before the block runs, where that is known already.
        """
        if self._tracing:
            raise ConfigError("[tracing] a trace is being recorded; leave its block first")
        engine = self._loop.engine
        check_writable(path, "tracing")
        engine.start_trace()
        self._tracing = True
        try:
            yield
        except BaseException as error:
            self._tracing = False
            try:
                write_chrome_trace(path, engine.stop_trace(), self.model.emulated)
            except Exception as failure:
                error.add_note(f"[tracing] and no trace was written: {failure}")
            raise
        self._tracing = False
        write_chrome_trace(path, engine.stop_trace(), self.model.emulated)

    # -------------------------------------------------------------------------------- lifetime

    @guarded
    def close(self) -> None:
        """Free what this object holds; calling it again does nothing.

        The weights go back to the system with the last LLM or Model that shares them; the others
        work on. Requests that are running end, in other threads too: their next token raises
        ConfigError, as does every later call. What was read from the checkpoint (``path``,
        ``model_config``, ``tokenizer`` and so on) stays.
        """
        self._loop.close()
        self.model.close()

    def __reduce_ex__(self, _protocol: object) -> Any:
        raise ConfigError(
            "[LLM] an LLM owns threads and memory of this process and cannot be copied or pickled; "
            "LLM(llm) makes another one on the same weights; in another process make one from the "
            "same path"
        )

    def __repr__(self) -> str:
        emulated = self.model.emulated
        return f"LLM({self.model._describe()}{'' if emulated is None else f', {emulated}'})"
