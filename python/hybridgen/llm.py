# SPDX-License-Identifier: Apache-2.0
"""The front door: load a model, generate, stream, chat, score."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import _core
from ._checks import MAX_INT64, as_int, brief, check_keywords, items_of, one_of
from ._files import check_writable
from ._lifetime import guarded
from .chat import chat_prompts
from .checkpoint import LOAD_FORMATS, LoadedModel, load_model
from .codec import Codec
from .config import (
    CpuConfig,
    KVConfig,
    QueryConfig,
    SchedulerConfig,
    WeightConfig,
    is_auto,
)
from .engine_options import EngineSetup, instance
from .errors import ConfigError, own_errors
from .failures import attach_outputs, name_prompt, raise_failures
from .generation import EngineLoop
from .method_options import MethodOptions
from .model_config import read_eos_ids
from .outputs import RequestMetrics, RequestOutput, RunStats, StreamChunk
from .progress import ProgressBar
from .prompts import Prompt, PromptReader
from .sampling import SamplingParams
from .sequence import Sequence, sampling_options
from .tokenizer import checked_codec, load_codec
from .tracing import write_chrome_trace

T = TypeVar("T")

_MAX_SEED = MAX_INT64

_HOMES = {
    "device_tokens": "kv=KVConfig(device_tokens=...)",
    "dram": "kv=KVConfig(dram=...)",
    "k": "scheduler=SchedulerConfig(k=...)",
    "strategy": "scheduler=SchedulerConfig(strategy=...)",
    "threads": "cpu=CpuConfig(threads=...)",
    "device_threads": "cpu=CpuConfig(device_threads=...)",
    "numa": "cpu=CpuConfig(numa=...)",
    "isa": "cpu=CpuConfig(isa=...)",
    "max_tokens": "SamplingParams(max_tokens=...) and pass that to generate",
    "temperature": "SamplingParams(temperature=...) and pass that to generate",
}


class LLM:
    """A model ready to generate, with the older part of its KV cache in host memory.

    Parameters
    ----------
    model : str, Path, dict or LLM
        A local folder, a hub id, or with ``load_format="dummy"`` the content of a config.json.
        Another LLM shares its weights and tokenizer: the way to compare methods on one model.
        Each of them is closed for itself, and the weights go with the last.
    tokenizer : str, Path or object, optional
        A folder, a hub id, or an object with encode and decode as in transformers. By default the
        one in the model's folder; without any, token ids still work.
    revision : str, optional
        Branch, tag or commit of a hub id.
    dtype : str
        "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
    device : str
        "auto", "cpu" or "cuda:0".
    max_model_len : int, optional
        Prompt and new tokens of a request at most, of a score context and continuation; by default
        the model's own limit. More than that with ``positions="shift"`` or ``"clamp"`` of
        streaming_llm or h2o, which stream on without end.
    seed : int
        Of samples without a seed of their own, and of dummy weights.
    load_format : str
        "auto", "safetensors", "bin" or "dummy".
    method : str
        A name from ``hybridgen.methods()``.
    method_config : dict or object, optional
        That method's own options: a dict, or one of the classes in ``hybridgen.methods``, such as
        ``hybridgen.methods.H2O(heavy=0.1)``.
    kv : KVConfig, optional
        Where keys and values live.
    query : str or QueryConfig
        "rescore" chooses tokens by a query guessed one layer ahead and scores them with the layer's
        own, "speculative" (the paper's) takes the guessed scores as well, "exact" waits for the
        layer's own query.
    selector, pre_selector : str
        Names from ``hybridgen.selectors("post")`` and ``hybridgen.selectors("pre")``.
    scheduler : SchedulerConfig, optional
        How many offloaded tokens count (K) and when they are chosen: a fixed K that keeps the
        answers of full attention, unless it says otherwise.
    weights : WeightConfig, optional
        Where the weights live.
    cpu : CpuConfig, optional
        Threads, memory node and instruction set.

    Raises
    ------
    ConfigError
        For an option that is not allowed or that the method does not read
        (``hybridgen.methods.reads``); checked before anything is loaded.
    UnsupportedModelError, CheckpointError
        If the model cannot be run or read.
    OutOfMemoryError
        If it does not fit.

    Examples
    --------
    >>> llm = LLM("path/to/model", kv=KVConfig(device_tokens=1024))  # doctest: +SKIP
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=8))[0].text  # doctest: +SKIP
    """

    _codec: Codec | None
    _loaded: LoadedModel
    _loop: EngineLoop

    @guarded
    def __init__(
        self,
        model: str | Path | dict[str, Any] | LLM,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        seed: int = 0,
        load_format: str = "auto",
        method: str = "hybridgen",
        method_config: MethodOptions | Mapping[str, Any] | None = None,
        kv: KVConfig | None = None,
        query: str | QueryConfig = "rescore",
        selector: str = "topk",
        pre_selector: str = "partial_keys",
        scheduler: SchedulerConfig | None = None,
        weights: WeightConfig | None = None,
        cpu: CpuConfig | None = None,
    ) -> None:
        instance("weights", weights, WeightConfig)
        self._seed = as_int("LLM", "seed", seed, 0, _MAX_SEED)
        one_of("LLM", "load_format", load_format, LOAD_FORMATS)
        codec: Codec | None = None
        if not (tokenizer is None or isinstance(tokenizer, str | Path)):
            codec = checked_codec(tokenizer)
        setup = EngineSetup(
            method=method,
            method_config=method_config,
            kv=kv,
            query=query,
            selector=selector,
            pre_selector=pre_selector,
            scheduler=scheduler,
            cpu=cpu,
            max_model_len=max_model_len,
        )
        self._cpu = setup.cpu
        has_id = any(isinstance(part, str | Path) for part in (model, tokenizer))
        if revision is not None and not has_id:
            raise ConfigError(
                f"[LLM] revision is {brief(revision)} and nothing is read from the hub; allowed: "
                "None; pass the hub id that it belongs to"
            )
        if isinstance(model, LLM):
            for name, value in (("dtype", dtype), ("device", device), ("load_format", load_format)):
                if not is_auto(value):
                    raise ConfigError(
                        f"[LLM] {name} is {value!r} for a model that is loaded already; allowed: "
                        "'auto'; pass its path to load it again"
                    )
            loaded = replace(model._loaded)  # closing one leaves the other its own
            _ = model._loop.engine  # refuses one that is closed
            codec = model._codec if tokenizer is None else codec
        else:
            with own_errors("load_model"):
                loaded = load_model(
                    model,
                    dtype=dtype,
                    device=_resolve_device(device),
                    load_format=load_format,
                    revision=revision,
                    seed=self._seed,
                )
        self._loaded = loaded
        self._codec = codec or _load_codec(tokenizer, revision, loaded.path)
        self.tokenizer: Any = None if self._codec is None else self._codec.tokenizer

        self.model_config: dict[str, Any] = loaded.config
        """The model's sizes and kinds, as the engine sees them."""
        self.generation_config: dict[str, Any] = loaded.generation_config
        """Content of generation_config.json; see `SamplingParams.from_generation_config`."""
        self.eos_token_ids: tuple[int, ...] = loaded.eos_token_ids
        """The model's ending tokens."""
        self.partial_outputs: list[RequestOutput] = []
        """What an interrupted `generate` had so far, in input order."""
        self._valid_vocab = 0
        if self._codec is not None:
            self.eos_token_ids = read_eos_ids(
                {"eos_token_id": [*loaded.eos_token_ids, self._codec.special_id("eos_token_id")]}
            )
            # Embeddings are padded to a round number of rows; the padding means nothing.
            size = self._codec.vocabulary_size
            self._valid_vocab = size if 0 < size < loaded.config["vocab_size"] else 0
        self._request_numbers = itertools.count()
        self._tracing = False
        free_bytes = _free_device_bytes(loaded.model.device)
        self._loop = EngineLoop(setup.engine(loaded.model, loaded.path, free_bytes))

    @classmethod
    def from_pretrained(cls, model: str | Path | dict[str, Any], **options: Any) -> LLM:
        """Do the same as ``LLM(model, **options)``."""
        return cls(model, **options)

    @property
    def path(self) -> Path | None:
        """The model's folder; None if it was made from a dict."""
        return self._loaded.path

    # ------------------------------------------------------------------------------ generation

    @guarded
    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        progress: bool = False,
        decode_prompt_tokens: int = 0,
    ) -> list[RequestOutput]:
        """Continue prompts; returns one result per prompt, in order.

        Parameters
        ----------
        prompts : str, list of int, dict, or a list of these
            Text, token ids, or a dict with ``prompt`` or ``prompt_token_ids``. Lengths may differ.
            Text gets the special tokens that the tokenizer puts around it, those before it once.
        sampling_params : SamplingParams or list of them, optional
            For all prompts, or one each; greedy with 16 tokens by default.
        progress : bool
            Show a progress bar.
        decode_prompt_tokens : int
            This many last prompt tokens pass through decode steps instead of the prefill, so that
            already the first new token is computed with hybrid attention.

        Raises
        ------
        ConfigError, OutOfMemoryError
            If a prompt or its parameters cannot be run; then nothing is run.
        GenerationError
            If some of several prompts failed while they ran: all others ran to their end, and its
            ``outputs`` has what there is of each. The failure of a single prompt comes as it is
            (NumericError, OutOfMemoryError, what a selector of yours raised), with ``outputs``.
        KeyboardInterrupt
            Results so far, finished or not, are in its ``outputs`` and in ``partial_outputs``.
        """
        decode_prompt_tokens = as_int("generate", "decode_prompt_tokens", decode_prompt_tokens, 0)
        texts_and_ids = self._reader("generate").read(prompts)
        params = _per_prompt("generate", sampling_params, len(texts_and_ids))
        groups = [
            [
                self._sequence(
                    ids,
                    p,
                    self._codec if self._has_text("generate", p) else None,
                    index,
                    decode_prompt_tokens=decode_prompt_tokens,
                )
                for index in range(p.n)
            ]
            for (_, ids), p in zip(texts_and_ids, params, strict=True)
        ]

        def outputs() -> list[RequestOutput]:
            return [
                _output(text, group) for (text, _), group in zip(texts_and_ids, groups, strict=True)
            ]

        shown = [ids if text is None else text for text, ids in texts_and_ids]
        try:
            return self._run("generate", groups, shown, outputs, progress=progress)
        except BaseException:
            self.partial_outputs = outputs()
            raise

    @guarded
    def generate_ids(
        self,
        prompts: list[list[int]],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        progress: bool = False,
        decode_prompt_tokens: int = 0,
    ) -> list[list[int]]:
        """Continue token ids; returns the new ids only, one list per prompt, in order.

        No text is made unless stop strings ask for it. An ending token is part of the result.
        Raises as `generate`; ``outputs`` are then such lists.
        """
        name = "decode_prompt_tokens"
        decode_prompt_tokens = as_int("generate_ids", name, decode_prompt_tokens, 0)
        ids = [ids for _, ids in self._reader("generate_ids").read(prompts)]
        params = _per_prompt("generate_ids", sampling_params, len(ids))
        for p in params:
            if p.n != 1:
                raise ConfigError(f"[generate_ids] n is {p.n}; allowed: 1; use generate for more")
        sequences = [
            self._sequence(
                prompt,
                p,
                self._codec if self._needs_text("generate_ids", p) else None,
                decode_prompt_tokens=decode_prompt_tokens,
            )
            for prompt, p in zip(ids, params, strict=True)
        ]

        def outputs() -> list[list[int]]:
            return [sequence.output.token_ids for sequence in sequences]

        groups = [[sequence] for sequence in sequences]
        return self._run("generate_ids", groups, ids, outputs, progress=progress)

    @guarded
    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        decode_prompt_tokens: int = 0,
    ) -> Iterator[StreamChunk]:
        """Continue one prompt token by token.

        Leaving the loop early ends the request. Other calls may run between two tokens. A text
        that cannot be finished raises what ended it, behind the tokens there were.

        Parameters
        ----------
        prompt : str, list of int or dict
            As for `generate`.
        sampling_params : SamplingParams, optional
            With ``n=1``.
        decode_prompt_tokens : int
            As for `generate`.

        Returns
        -------
        iterator of StreamChunk
            One for each new token; the last has a ``finish_reason``.

        Raises
        ------
        ConfigError
            If the prompt or its parameters cannot be run; by the call itself, before any chunk.
        OutOfMemoryError, NumericError, or what a selector of yours raised
            From the iterator, as `generate` raises it for a single prompt.
        """
        decode_prompt_tokens = as_int("stream", "decode_prompt_tokens", decode_prompt_tokens, 0)
        found = self._reader("stream").read(prompt)
        if len(found) != 1:
            raise ConfigError(f"[stream] got {len(found)} prompts; allowed: 1; use generate")
        params = _per_prompt("stream", sampling_params, 1)[0]
        if params.n != 1:
            raise ConfigError(f"[stream] n is {params.n}; allowed: 1; use generate for more")
        codec = self._codec if self._has_text("stream", params) else None
        text, ids = found[0]
        sequence = self._sequence(ids, params, codec, decode_prompt_tokens=decode_prompt_tokens)
        return self._stream(sequence, ids if text is None else text)

    @guarded
    def chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, through the tokenizer's chat template.

        Parameters
        ----------
        messages : list of dict, or list of such lists
            Each dict with ``role`` and ``content``: a string, or a list of OpenAI's text parts.

        Raises
        ------
        ConfigError
            If there is no template, messages are malformed, or the template refuses them, breaks
            or exceeds 10 s, 512 MiB or 16 Mi characters; and as for `generate`.
        """
        codec = self._reader("chat").require_codec()
        prompts = [{"prompt_token_ids": ids} for ids in chat_prompts(codec, messages)]
        return self.generate(prompts, sampling_params, progress=progress)

    @guarded
    def score(self, pairs: list[tuple[Any, Any]]) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability and whether it is greedy.

        The log-probability is of the model's own distribution, as `CompletionOutput` says.

        The context but its last token is prefilled; that token and the continuation pass through
        decode steps, so that scores see the same attention as generated text. Never a sum over a
        part of the continuation: a pair that fails raises as in `generate`, with None in its place
        in ``outputs``.

        Parameters
        ----------
        pairs : list of tuples
            Strings or lists of token ids. Two strings are encoded as one, without EOS: spaces at
            the end of the context and a token that reaches into the continuation belong to the
            continuation. A context without a token is the tokenizer's BOS, else its EOS.

        Returns
        -------
        list of (float, bool)
            In the order of the pairs: the natural logarithm of the continuation's probability, and
            whether greedy decoding would have chosen each of its tokens.

        Raises
        ------
        ConfigError
            If `pairs` is no list of pairs, one has no tokens or does not fit max_model_len, or
            text comes without a tokenizer; then nothing is run.
        GenerationError, NumericError, OutOfMemoryError
            If pairs fail while they run, as in `generate`.

        Examples
        --------
        >>> llm.score([("The sky is", " blue")])  # doctest: +SKIP
        [(-1.25, True)]
        """
        pairs = items_of(pairs) or pairs  # a generator gives them only once
        encoded = self._reader("score").read_pairs(pairs)
        sequences = []
        for context, continuation in encoded:
            params = SamplingParams(max_tokens=len(continuation), ignore_eos=True)
            sequences.append(
                self._sequence(context, params, None, forced=continuation, decode_prompt_tokens=1)
            )

        def scores() -> list[Any]:
            return [
                (s.output.cumulative_logprob, all(s.greedy))
                if s.output.finish_reason == "length"
                else None
                for s in sequences
            ]

        groups = [[sequence] for sequence in sequences]
        return self._run("score", groups, [context for context, _ in pairs], scores)

    # ----------------------------------------------------------------------------- observation

    @property
    def stats(self) -> RunStats:
        """What the engine did since the last call began."""
        return RunStats(self._loop.run_stats())

    @property
    def memory(self) -> dict[str, dict[str, int]]:
        """Capacity and use of each memory tier, in bytes."""
        return dict(self._loop.engine.memory())

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
                write_chrome_trace(path, engine.stop_trace())
            except Exception as failure:
                error.add_note(f"[tracing] and no trace was written: {failure}")
            raise
        self._tracing = False
        write_chrome_trace(path, engine.stop_trace())

    @guarded
    def close(self) -> None:
        """Free what this object holds; calling it again does nothing.

        The weights go back to the system with the last LLM that shares them; the others work on.
        Requests that are running end, in other threads too: their next token raises ConfigError, as
        does every later call. What was read from the checkpoint (``path``, ``model_config``,
        ``tokenizer`` and so on) stays.
        """
        device = "cpu" if self._loaded.model is None else self._loaded.model.device
        self._loop.close()
        if self._loaded.model is None:
            return
        self._loaded.model = None
        _core.release_free_memory()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()

    def __enter__(self) -> LLM:
        _ = self._loop.engine  # refuses one that is closed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The constructor may have failed before there was anything to close.
        with suppress(Exception):
            self.close()

    def __reduce_ex__(self, _protocol: object) -> Any:
        raise ConfigError(
            "[LLM] an LLM owns threads and memory of this process and cannot be copied or pickled; "
            "LLM(llm) makes another one on the same weights; in another process make one from the "
            "same path"
        )

    def __repr__(self) -> str:
        config = self.model_config
        return (
            f"LLM({config['architecture']}, {config['num_layers']} layers of "
            f"{config['hidden_size']}, {config['num_heads']} heads on {config['num_kv_heads']} "
            f"key/value heads)"
        )

    # ---------------------------------------------------------------------------------- inside

    def _run(
        self,
        operation: str,
        groups: list[list[Sequence]],
        prompts: list[Any],
        outputs: Callable[[], list[T]],
        *,
        progress: bool = False,
    ) -> list[T]:
        """Run the sequences of every prompt to their end and return `outputs()`.

        Raises what the failed ones come to, or what interrupted the call; `outputs()` goes with it.
        """
        sequences = [sequence for group in groups for sequence in group]
        try:
            with (
                closing(self._loop.run(sequences)) as steps,
                ProgressBar(len(sequences), self._loop, progress) as bar,
            ):
                for done in steps:
                    bar.update(done, sequences)
            results = outputs()
        except BaseException as error:
            for index, group in enumerate(groups):
                if any(sequence.error is error for sequence in group):  # refused: nothing was run
                    name_prompt(error, operation, index, prompts[index])
            attach_outputs(error, outputs())
            raise
        failures = {
            index: next(s.error for s in group if s.error is not None)
            for index, group in enumerate(groups)
            if any(s.error is not None for s in group)
        }
        raise_failures(operation, prompts, failures, results)
        return results

    def _sequence(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        tokenizer: Any,
        index: int = 0,
        *,
        forced: list[int] | None = None,
        decode_prompt_tokens: int = 0,
    ) -> Sequence:
        """Return one text to be, with the engine's form of its parameters."""
        room = self._loop.engine.options.max_model_len - len(prompt_ids)
        number = next(self._request_numbers)  # at once: other threads make requests too
        seed = self._seed + number if params.seed is None else params.seed + index
        eos = () if params.ignore_eos else self.eos_token_ids
        options = sampling_options(
            params,
            max_tokens=max(room, 1) if params.max_tokens is None else params.max_tokens,
            seed=seed & _MAX_SEED,
            stop_ids=sorted({*eos, *params.extra_stop_ids}),
            valid_vocab=self._valid_vocab,
        )
        return Sequence(
            prompt_ids,
            params,
            tokenizer,
            index,
            options=options,
            forced=forced,
            decode_prompt_tokens=decode_prompt_tokens,
        )

    def _stream(self, sequence: Sequence, prompt: object) -> Iterator[StreamChunk]:
        start = time.perf_counter()
        first = 0.0
        peak = 0
        try:
            with closing(self._loop.stream(sequence)) as tokens:
                for index, new in enumerate(tokens):
                    peak = max(peak, self._loop.device_bytes())
                    now = time.perf_counter()
                    first = first or now
                    is_last = sequence.finished and index + 1 == len(sequence.pieces)
                    reason = sequence.output.finish_reason if is_last else new.finish_reason
                    yield StreamChunk(
                        text=new.text,
                        token_id=new.token_id,
                        index=index,
                        prompt_tps=len(sequence.prompt_ids) / max(first - start, 1e-9),
                        generation_tps=index / max(now - first, 1e-9) if index else 0.0,
                        peak_memory=peak,
                        finish_reason=reason,
                    )
        except BaseException as error:
            if error is sequence.error:
                name_prompt(error, "stream", 0, prompt)
            raise

    def _reader(self, operation: str) -> PromptReader:
        return PromptReader(self._codec, self.model_config["vocab_size"] - 1, operation)

    def _needs_text(self, operation: str, params: SamplingParams) -> bool:
        if params.stop_strings:
            self._reader(operation).require_codec("stop strings")
        return bool(params.stop_strings)

    def _has_text(self, operation: str, params: SamplingParams) -> bool:
        return self._needs_text(operation, params) or self.tokenizer is not None


LLM.__init__ = check_keywords(LLM.__init__, "LLM", homes=_HOMES)  # type: ignore[method-assign]


def _output(text: str | None, group: list[Sequence]) -> RequestOutput:
    return RequestOutput(
        request_id=group[0].request_id,
        prompt=text,
        prompt_token_ids=group[0].prompt_ids,
        outputs=[sequence.output for sequence in group],
        finished=all(s.output.finish_reason in ("stop", "length") for s in group),
        metrics=RequestMetrics.combined([sequence.metrics for sequence in group]),
    )


def _per_prompt(operation: str, params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, list | tuple) or not all(
        isinstance(p, SamplingParams) for p in params
    ):
        raise ConfigError(
            f"[{operation}] sampling_params is {brief(params)}; allowed: a SamplingParams, or a "
            "list with one for each prompt"
        )
    if len(params) != count:
        raise ConfigError(
            f"[{operation}] there are {len(params)} sampling_params for {count} prompts; allowed: "
            "one for all, or one for each"
        )
    return list(params)


def _load_codec(
    tokenizer: str | Path | None, revision: str | None, folder: Path | None
) -> Codec | None:
    """Return the codec of the named tokenizer, or of the one in the model's folder if any."""
    if tokenizer is None:
        return None if folder is None else load_codec(folder)
    codec = load_codec(tokenizer, revision)
    if codec is None:
        raise ConfigError(
            f"[LLM] tokenizer is {brief(str(tokenizer), 300)}, where there is none; allowed: a "
            "folder or hub id with one, an object with encode and decode, or None for the model's "
            "own"
        )
    return codec


def _free_device_bytes(device: str) -> int:
    """Return what a request's window may take on a GPU; 0 lets the engine look at host memory."""
    if not device.startswith("cuda"):
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.9 * free)  # the rest is for activations


def _resolve_device(device: object) -> str:
    name = str(device) if isinstance(device, str | torch.device) else brief(device)
    count = torch.cuda.device_count()
    if name == "auto":
        return "cuda:0" if count else "cpu"
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::([0-9]{1,9}))?", name)
    if not match:
        raise ConfigError(f"[LLM] device is {brief(name)}; allowed: auto, cpu, cuda:0")
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(
            f"[LLM] device is {name!r}, but torch {torch.__version__} sees {count} CUDA "
            "devices; allowed: auto, cpu"
            + (f", cuda:0 to cuda:{count - 1}" if count else "; a GPU needs a CUDA build of torch")
        )
    return f"cuda:{index}"
