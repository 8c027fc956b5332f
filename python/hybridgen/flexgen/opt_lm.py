# SPDX-License-Identifier: Apache-2.0
"""FlexGen's model object over the one engine: loads, places, generates, keeps FlexGen's timers."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._checks import MAX_COUNT, as_int, brief
from ..errors import ConfigError
from ..failures import reported
from ..generation import Call
from ..llm import LLM
from ..model import Model
from ..plan import MemoryPlan, plan
from ..request import Request
from ..sampling import SamplingParams
from ..sequence import Sequence
from .breakdown import breakdown_lines, stages_between
from .engine_choices import EngineChoices, engine_options, has_window, weight_options
from .opt_config import FolderConfig, OptConfig, download_opt_weights, find_config
from .placement import DEVICE, DISK, InfiniGenFork, Placement, place
from .policy import Policy, Task
from .pytorch_backend import ExecutionEnv
from .timer import timers
from .token_rows import as_rectangle, real_tokens, with_new_tokens

DUMMY_WEIGHT = "_DUMMY_"
"""Where a path contains it, weights are drawn and nothing is read."""

_DEBUG_MODES = (None, "fewer_batch", "breakdown")
_SAMPLED_STEPS = 3
"""Decode steps that a debug mode runs; the first of them does not count."""
_GREEDY_BELOW = 1e-5


class OptLM:
    """A model with a policy.

    Parameters
    ----------
    config : str or OptConfig
        A name of FlexGen's, a local folder of any family, or sizes.
    env : ExecutionEnv
        Devices; its disk is where keys and values of the disk's share lie.
    path : str
        The folder that ``<name>-np`` lies in; ``_DUMMY_`` in it draws weights.
    policy : Policy
        What is kept where.
    *fork : numbers
        InfiniGen's fork: partial_weight_ratio, alpha, max_num_kv; H2O's: max_num_kv.
    engine : EngineChoices, optional
        What FlexGen has no word for.

    Raises
    ------
    ConfigError
        For a policy that cannot be, before anything is loaded; and for what the engine lacks.
    CheckpointError, OutOfMemoryError
        If the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        config: str | OptConfig,
        env: ExecutionEnv,
        path: str,
        policy: Policy,
        *fork: Any,
        engine: EngineChoices | None = None,
    ) -> None:
        self._llm: LLM | None = None
        self.engine = engine or EngineChoices()
        self.config = find_config(config, path) if isinstance(config, str) else config
        self.env = env
        self.path = path
        self.policy = policy
        self.num_gpu_batches = policy.num_gpu_batches
        self.placement = self._place(fork)
        self.layers = _layer_names(self.config.num_hidden_layers, policy.sep_layer)
        self.num_layers = len(self.layers)
        self.task: Task | None = None
        self.output_ids: npt.NDArray[np.int32] | None = None
        self.stopped: npt.NDArray[np.bool_] | None = None
        self.device_peak_bytes = 0
        """Most bytes of the device that weights and requests took."""
        self.init_all_weights()

    # ------------------------------------------------------------------------------------- weights

    def init_all_weights(self) -> None:
        """Load the weights, if they are not loaded."""
        if self._llm is not None:
            return
        model = Model(
            self._source(),
            dtype=self._dtype(),
            device=self.env.gpu.engine_device,
            load_format="dummy" if self.is_dummy else "auto",
            weights=weight_options(self.placement, self.policy, self.env),
            seed=self.engine.seed,
        )
        try:
            self._llm = LLM(model, **self._engine_options(model))
        finally:
            model.close()  # the LLM has its own share

    def delete_all_weights(self) -> None:
        """Let the weights go; `init_all_weights` loads them again."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def __del__(self, quietly: Any = suppress) -> None:
        with quietly(Exception):  # a script may end before it: then no module has its names
            self.delete_all_weights()

    @property
    def llm(self) -> LLM:
        """The engine's front door; ConfigError while no weights are loaded."""
        if self._llm is None:
            raise ConfigError("[OptLM] the weights were deleted; call init_all_weights first")
        return self._llm

    @property
    def is_dummy(self) -> bool:
        """Whether weights are drawn."""
        return DUMMY_WEIGHT in str(self.path)

    @property
    def codec(self) -> Any:
        """The codec of the tokenizer in the weights' folder; None without one."""
        return self.llm.model.codec

    # ---------------------------------------------------------------------------------- generation

    def generate(
        self,
        inputs: Any,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        temperature: float = 1.0,
        stop: Any = None,
        debug_mode: str | None = None,
        cut_gen_len: int | None = None,
        verbose: int = 0,
        warmup: bool = False,
    ) -> npt.NDArray[np.int32]:
        """Continue a rectangle of token ids.

        ``timers("generate").costs`` gets one entry per token: the first has the prompt.

        Parameters
        ----------
        inputs : list, tuple, array or tensor
            Rows of equal length, `gpu_batch_size` times `num_gpu_batches` of them, with pads.
        max_new_tokens : int
            New tokens.
        do_sample, temperature
            Sample from the whole vocabulary, by torch's global generator; below 1e-5 the likeliest.
        stop : int, str or list of int, optional
            Token ids that end a row; a text needs the tokenizer in the weights' folder.
        debug_mode : str, optional
            "fewer_batch" or "breakdown": a few decode steps stand for all.
        cut_gen_len : int, optional
            Run so many tokens only.
        verbose, warmup
            Not read.

        Returns
        -------
        array of int32, [rows, prompt + max_new_tokens]
            The ending token included; pads where no token came.

        Raises
        ------
        ConfigError
            For inputs or options that are not allowed.
        """
        if debug_mode not in _DEBUG_MODES:
            raise ConfigError(
                f"[generate] debug_mode is {brief(debug_mode)}; allowed: None, fewer_batch, "
                "breakdown"
            )
        as_int("generate", "max_new_tokens", max_new_tokens, 1)
        rectangle = as_rectangle(inputs)
        expected = self.policy.gpu_batch_size * self.policy.num_gpu_batches
        if len(rectangle) != expected:
            raise ConfigError(
                f"[generate] inputs have {len(rectangle)} rows; allowed: {expected}, "
                "gpu_batch_size times num_gpu_batches"
            )
        self.task = Task(
            inputs=inputs,
            prompt_len=rectangle.shape[1],
            gen_len=max_new_tokens,
            cut_gen_len=cut_gen_len or None,
            do_sample=do_sample,
            temperature=temperature,
            stop=stop,
        )
        pad = self.config.pad_token_id
        is_own = pad not in self.llm.eos_token_ids
        prompts = [real_tokens(row, pad, is_own=is_own) for row in rectangle]
        longest = max(map(len, prompts))
        if longest + max_new_tokens > self.llm.engine_options.max_model_len:
            raise ConfigError(
                f"[generate] a row has {longest} tokens and max_new_tokens is {max_new_tokens}; "
                f"allowed: {self.llm.engine_options.max_model_len} together, the model's positions"
            )
        requests = self._requests(prompts)
        steps = min(max_new_tokens, self.task.cut_gen_len or max_new_tokens)
        if debug_mode is not None:
            steps = min(steps, 1 + _SAMPLED_STEPS)
        self._run([request for request in requests if request is not None], steps, debug_mode)
        new = [[] if r is None else r.sequences[0].output.token_ids for r in requests]
        if self.llm.model.machine_profile is not None:  # nothing was computed
            new = [[] for _ in new]
        self.output_ids = with_new_tokens(rectangle, new, max_new_tokens, pad)
        ends = [r is not None and r.sequences[0].output.finish_reason == "stop" for r in requests]
        self.stopped = np.array(ends)[:, None]
        return self.output_ids

    def _requests(self, prompts: list[list[int]]) -> list[Request | None]:
        """Return a request for each row, in its place; None for rows of pads, which stay pads."""
        llm, shared = self.llm, self._sampling()
        found: list[Request | None] = []
        for row, ids in enumerate(prompts):
            if not ids:
                found.append(None)
                continue
            params = shared if shared.seed is None else shared.replace(seed=shared.seed + row)
            text = llm.model._reader("generate").read_one(ids)
            request = llm._maker.make("generate", text, params, makes_text=False)
            self._give_home(request.sequences[0], self.placement.rows[row])
            found.append(request)
        return found

    def _give_home(self, sequence: Sequence, home: str) -> None:
        """Say where a row lies, where the engine's options do not say it of all."""
        if home == DEVICE and has_window(self.placement):
            sequence.device_tokens = MAX_COUNT
        sequence.on_disk = home == DISK

    def _sampling(self) -> SamplingParams:
        task = self.task
        assert task is not None
        samples = task.do_sample and task.temperature >= _GREEDY_BELOW
        stop, texts = task.stop, []
        if isinstance(stop, str):
            if self.codec is None:
                warnings.warn(
                    "[generate] stop is a text and there is no tokenizer in the weights' folder, "
                    "so that no row ends at it; pass a token id",
                    stacklevel=4,
                )
            else:
                texts = [stop]
            stop = None
        return SamplingParams(
            max_tokens=task.gen_len,
            temperature=float(task.temperature) if samples else 0.0,
            seed=int(torch.randint(1 << 31, (1,))) if samples else None,
            stop_token_ids=stop,
            stop=texts,
            ignore_eos=True,
        )

    def _run(self, requests: list[Request], steps: int, debug_mode: str | None) -> None:
        """Run requests for so many tokens; the timer gets a cost for each."""
        timer = timers("generate")
        loop = self.llm._loop
        sequences = [request.sequences[0] for request in requests]
        call, before = Call(), loop.all_stats()
        with reported("generate", requests, lambda: []):
            try:
                timer.start()
                loop.add(sequences, call)
                while not all(sequence.pieces or sequence.finished for sequence in sequences):
                    loop.step()
                    self._note_memory()
                timer.stop()
                prompt_done = loop.all_stats()
                for _ in range(steps - 1):
                    if all(sequence.finished for sequence in sequences):
                        break
                    timer.start()
                    loop.step()
                    timer.stop()
                self._note_memory()
                done = loop.all_stats()
            finally:
                for sequence in sequences:
                    loop.abort(sequence)
                timer.started = False
        if debug_mode is not None:
            self._project(steps)
        if debug_mode == "breakdown":
            stages = stages_between(before, prompt_done, done)
            for line in breakdown_lines(stages, self.num_layers, self.num_gpu_batches, steps - 1):
                print(line)

    def _project(self, steps: int) -> None:
        """Let what a debug mode ran stand for all tokens of the task."""
        costs, task = timers("generate").costs, self.task
        assert task is not None
        ran = costs[-(steps - 1) :] if steps > 1 else []
        counted = ran[1:] or ran
        mean = sum(counted) / len(counted) if counted else 0.0
        del costs[len(costs) - len(ran) :]
        costs += [mean] * (task.gen_len - 1)

    def _note_memory(self) -> None:
        loop = self.llm._loop
        used = loop.device_bytes() + loop.run_stats()["weight_device_bytes"]
        self.device_peak_bytes = max(self.device_peak_bytes, used)

    # ----------------------------------------------------------------------------------- placement

    def realised(self) -> list[str]:
        """Return what lies where, and what is done otherwise than asked, a line each."""
        stats = self.llm.stats
        lie = {name: stats[f"weight_{name}_bytes"] for name in ("device", "host", "disk")}
        shares = ", ".join(
            f"{100 * n / sum(lie.values()):.1f} % {place}" for place, n in lie.items()
        )
        lines = [f"weights: {shares}, no matrix divided", self.placement.sentence()]
        if self.env.gpu.engine_device == "cpu":
            lines.append("there is no GPU in this run: its share is the CPU's memory, too")
        return [f"placement: {line}" for line in lines] + [
            f"note: {note}" for note in self.placement.notes
        ]

    def _place(self, fork: tuple[Any, ...]) -> Placement:
        own = None
        if len(fork) == 3:
            own = InfiniGenFork(fork[1], fork[0], fork[2])
        elif len(fork) > 1:
            raise ConfigError(
                f"[OptLM] there are {len(fork)} arguments behind the policy; allowed: none, those "
                "of InfiniGen's fork (partial_weight_ratio, alpha, max_num_kv) or H2O's "
                "(max_num_kv)"
            )
        return place(
            self.policy,
            device_is_host=self.env.gpu.engine_device == "cpu",
            fork=own,
            splits_tokens=self.engine.splits_tokens,
        )

    def _source(self) -> Any:
        if self.is_dummy:
            return self.config.source()
        if isinstance(self.config, FolderConfig):
            return self.config.folder
        return download_opt_weights(self.config.name, self.path)

    def _dtype(self) -> str:
        if self.engine.dtype != "auto" or not self.is_dummy:
            return self.engine.dtype
        return str(np.dtype(self.config.dtype))

    def _engine_options(self, model: Model) -> dict[str, Any]:
        return engine_options(self.placement, self.env, self.engine, model)

    def plan(self, prompt_len: int, gen_len: int) -> MemoryPlan:
        """Return what the policy's rows take of every tier, in bytes; errors as `hg.plan`.

        Parameters
        ----------
        prompt_len, gen_len : int
            Tokens of each row. A row on the disk counts as one in DRAM.
        """
        model = self.llm.model
        shape = {"prompt_tokens": prompt_len, "new_tokens": gen_len}
        return plan(
            model, batch_size=len(self.placement.rows), **shape, **self._engine_options(model)
        )


def _layer_names(count: int, is_separate: bool) -> list[str]:
    """Return what FlexGen schedules as layers, attention and FFN apart or together."""
    parts = ("SelfAttention", "MLP") if is_separate else ("TransformerLayer",)
    middle = [f"{part} {layer}" for layer in range(count) for part in parts]
    return ["InputEmbed", *middle, "OutputEmbed"]
