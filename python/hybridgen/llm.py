# SPDX-License-Identifier: Apache-2.0
"""The front door: make an engine of a model; generate, stream, chat, score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from ._checks import MAX_INT64, as_bool, as_int, checked_keywords, items_of
from ._lifetime import guarded
from .chat import Messages, chat_prompts
from .config import (
    CpuConfig,
    KVConfig,
    MethodOptions,
    QueryConfig,
    SchedulerConfig,
    WeightConfig,
)
from .engine_handle import EngineHandle
from .engine_options import EngineSetup
from .engine_steps import EngineSteps
from .errors import ConfigError
from .failures import reported
from .generation import EngineLoop, claim_clock
from .model import Model
from .outputs import RequestOutput, ScoreOutput, StreamChunk
from .progress import ProgressBar
from .prompts import Encoded, Prompt
from .request import Params, Request, outputs_of
from .sampling import SamplingParams
from .stream_chunks import stream_chunks

T = TypeVar("T")

_ELSEWHERE = {
    "device_tokens": "write kv=KVConfig(device_tokens=...)",
    "dram": "write kv=KVConfig(dram=...)",
    "k": "write method=hybridgen.methods.HybridGen(k=...)",
    "strategy": "write method=hybridgen.methods.HybridGen(strategy=...)",
    "scoring": "write method=hybridgen.methods.HybridGen(scoring=...)",
    "column_share": "write method=hybridgen.methods.HybridGen(column_share=...)",
    "threads": "write cpu=CpuConfig(threads=...)",
    "device_threads": "write cpu=CpuConfig(device_threads=...)",
    "numa": "write cpu=CpuConfig(numa=...)",
    "isa": "write cpu=CpuConfig(isa=...)",
    "max_tokens": "write SamplingParams(max_tokens=...) and pass that to generate",
    "temperature": "write SamplingParams(temperature=...) and pass that to generate",
}


class LLM(EngineSteps):
    """A model ready to generate, with the older part of its KV cache in host memory.

    Parameters
    ----------
    model : str, Path, dict, Model or LLM
        What `Model` loads. A Model or another LLM shares its weights and tokenizer: the way to
        compare methods on one model. Each is closed for itself, and the weights go with the last.
    tokenizer, revision, dtype, device, load_format, gguf_file, weights
        As for `Model`; of one that is loaded already only the tokenizer can be another.
    max_model_len : int, optional
        Prompt and new tokens of a request at most, of a score context and continuation; by default
        the model's own limit. More than that with ``positions="shift"`` or ``"clamp"`` of
        streaming_llm or h2o, which stream on without end.
    max_num_seqs : int
        Requests that run at the same time at most; others wait.
    max_num_batched_tokens : int
        Prompt tokens that pass through the model together at most.
    micro_batch : int
        Requests of a decode step that pass through a layer together at most.
    seed : int
        Of samples without a seed of their own, and of dummy weights.
    method : str or object, optional
        A name from ``hybridgen.methods.names()``, or that method's options, such as
        ``hybridgen.methods.H2O(heavy=0.1)``; by default "hybridgen".
    method_config : dict or object, optional
        Options of a method that is given by name.
    kv : KVConfig, optional
        Where keys and values live.
    query, selector, pre_selector, scheduler : optional
        Options of hybridgen, as `hybridgen.methods.HybridGen` has them; of these compositions read
        ``scheduler``.
    cpu : CpuConfig, optional
        Threads, memory node and instruction set.
    device_bytes : int or str
        Memory of the device for what requests have there at most: bytes, or text such as "8GiB". By
        default nearly all that a GPU has free; on a CPU 45 % of what the host has.

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

    @guarded
    @checked_keywords("LLM", _ELSEWHERE)
    def __init__(
        self,
        model: str | Path | dict[str, Any] | Model | LLM,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 1024,
        micro_batch: int = 16,
        seed: int = 0,
        load_format: str = "auto",
        gguf_file: str | None = None,
        weights: WeightConfig | None = None,
        method: str | MethodOptions | None = None,
        method_config: MethodOptions | Mapping[str, Any] | None = None,
        kv: KVConfig | None = None,
        query: str | QueryConfig | None = None,
        selector: str | None = None,
        pre_selector: str | None = None,
        scheduler: SchedulerConfig | None = None,
        cpu: CpuConfig | None = None,
        device_bytes: int | str = "auto",
    ) -> None:
        as_int("LLM", "seed", seed, 0, MAX_INT64)
        setup = EngineSetup(
            method=method,
            method_config=method_config,
            kv=kv,
            query=query,
            selector=selector,
            pre_selector=pre_selector,
            scheduler=scheduler,
            cpu=cpu,
            device_bytes=device_bytes,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            micro_batch=micro_batch,
        )
        loading: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "load_format": load_format,
            "gguf_file": gguf_file,
            "weights": weights,
        }
        source = model.open_model if isinstance(model, EngineHandle) else model
        if isinstance(source, Model):
            opened = source._share(tokenizer=tokenizer, revision=revision, **loading)
        else:
            opened = Model._opened_by("LLM", source, tokenizer, revision, seed=seed, **loading)
        super().__init__(opened, EngineLoop(setup.engine(opened)), seed)
        self._cpu = setup.cpu
        if opened.machine_profile is not None:
            try:
                claim_clock(opened.engine_device, opened.device, self._loop)
                warnings.warn(
                    f"{opened.emulated}: nothing is computed, so text, token ids and "
                    "log-probabilities are withheld (None); every text runs to max_tokens",
                    stacklevel=4,  # of who calls LLM, behind two decorators
                )
            except BaseException:  # a warning may be an error, which keeps what it came from
                self.close()
                raise

    @classmethod
    def from_pretrained(cls, model: str | Path | dict[str, Any], **options: Any) -> LLM:
        """Do the same as ``LLM(model, **options)``, under the name that transformers has."""
        return cls(model, **options)

    def __enter__(self) -> LLM:
        _ = self._loop.engine  # refuses one that is closed
        return self

    # ------------------------------------------------------------------------------ generation

    @guarded
    def generate(
        self,
        prompts: Any,
        sampling_params: Params = None,
        *,
        use_tqdm: bool = False,
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
        use_tqdm, progress : bool
            Either shows a progress bar.
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
            Results so far, finished or not, are in its ``outputs``.
        """
        reader = self.model._reader("generate")
        requests = self._maker.make_all(
            "generate",
            reader.read(prompts),
            sampling_params,
            decode_prompt_tokens=decode_prompt_tokens,
        )

        return self._run("generate", requests, outputs_of(requests), progress=use_tqdm or progress)

    @guarded
    def generate_ids(
        self,
        prompts: list[list[int]],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = False,
        progress: bool = False,
        decode_prompt_tokens: int = 0,
    ) -> list[list[int]]:
        """Continue token ids; returns the new ids only, one list per prompt, in order.

        No text is made unless stop strings ask for it. An ending token is part of the result.
        Raises as `generate`; ``outputs`` are then such lists.
        """
        self.model._require_results("generate_ids")
        read = self.model._reader("generate_ids").read(prompts)
        requests = self._maker.make_all(
            "generate_ids",
            [(None, ids) for _, ids in read],
            sampling_params,
            makes_text=False,
            decode_prompt_tokens=decode_prompt_tokens,
        )
        for request in requests:
            if len(request.sequences) != 1:
                raise ConfigError(
                    f"[generate_ids] n is {len(request.sequences)}; allowed: 1; use generate for "
                    "more"
                )

        def outputs() -> list[list[int]]:
            return [request.sequences[0].output.token_ids for request in requests]

        return self._run("generate_ids", requests, outputs, progress=use_tqdm or progress)

    @guarded
    def stream(
        self,
        prompt: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        decode_prompt_tokens: int = 0,
    ) -> Iterator[StreamChunk]:
        """Continue one prompt or several token by token.

        Leaving the loop early ends the requests. Other calls may run between two tokens. A text
        that cannot be finished raises what ended it, behind all tokens there were.

        Parameters
        ----------
        prompt, sampling_params, decode_prompt_tokens
            As for `generate`. With several prompts, or ``n`` above 1, ``prompt_index`` and
            ``output_index`` of a chunk say which text it belongs to.

        Returns
        -------
        iterator of StreamChunk
            One for each new token; the last of a text has a ``finish_reason``.

        Raises
        ------
        ConfigError
            If a prompt or its parameters cannot be run: by the call itself, before any chunk, but
            what only the engine knows, such as that a prompt is too long, by the first chunk.
        GenerationError, OutOfMemoryError, NumericError, or what a selector of yours raised
            From the iterator, as `generate` raises it.
        """
        reader = self.model._reader("stream")
        requests = self._maker.make_all(
            "stream",
            reader.read(prompt),
            sampling_params,
            decode_prompt_tokens=decode_prompt_tokens,
        )
        return stream_chunks("stream", requests, self._loop)

    @overload
    def chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        *,
        stream: Literal[False] = False,
        use_tqdm: bool = False,
        progress: bool = False,
    ) -> list[RequestOutput]: ...
    @overload
    def chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        *,
        stream: Literal[True],
        use_tqdm: bool = False,
        progress: bool = False,
    ) -> Iterator[StreamChunk]: ...
    @guarded
    def chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        *,
        stream: bool = False,
        use_tqdm: bool = False,
        progress: bool = False,
    ) -> list[RequestOutput] | Iterator[StreamChunk]:
        """Answer one conversation or several, through the tokenizer's chat template.

        Parameters
        ----------
        messages : list of dict, or list of such lists
            Each dict with ``role`` and ``content``: a string, or a list of OpenAI's text parts.
        stream : bool
            Return an iterator over the answers' tokens, as `stream` does.
        sampling_params, use_tqdm, progress
            As for `generate`.

        Raises
        ------
        ConfigError
            If there is no template, messages are malformed, or the template refuses them, breaks
            or exceeds 10 s, 512 MiB or 16 Mi characters; and as for `generate`.
        """
        codec = self.model._reader("chat").require_codec()
        prompts: list[Encoded] = [(None, ids) for ids in chat_prompts(codec, messages)]
        requests = self._maker.make_all("chat", prompts, sampling_params)
        if as_bool("chat", "stream", stream):
            return stream_chunks("chat", requests, self._loop)
        return self._run("chat", requests, outputs_of(requests), progress=use_tqdm or progress)

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
        return self._score("score", pairs, lambda found: (found.logprob, found.greedy))

    @guarded
    def score_outputs(self, pairs: list[tuple[Any, Any]]) -> list[ScoreOutput]:
        """Do the same as `score`, and return with each score what the engine says of its request.

        Parameters
        ----------
        pairs : list of tuples
            As for `score`, which also says what is raised.

        Returns
        -------
        list of ScoreOutput
            In the order of the pairs.

        Examples
        --------
        >>> (found,) = llm.score_outputs([("The sky is", " blue")])  # doctest: +SKIP
        >>> found.logprob, found.metrics.offloaded_tokens  # doctest: +SKIP
        (-1.25, 0)
        """
        return self._score("score_outputs", pairs, lambda found: found)

    # ---------------------------------------------------------------------------------- inside

    def _score(self, operation: str, pairs: Any, shape: Callable[[ScoreOutput], T]) -> list[T]:
        """Pass continuations through decode steps; return each score in a shape."""
        self.model._require_results(operation)
        pairs = items_of(pairs) or pairs  # a generator gives them only once
        requests = [
            self._maker.make(
                operation,
                (None, context),
                SamplingParams(max_tokens=len(continuation), ignore_eos=True),
                makes_text=False,
                forced=continuation,
                decode_prompt_tokens=1,
            )
            for context, continuation in self.model._reader(operation).read_pairs(pairs)
        ]

        def score_of(request: Request) -> Any:
            text, found = request.sequences[0], request.output()
            if text.output.finish_reason != "length":
                return None
            return shape(
                ScoreOutput(text.output.cumulative_logprob, all(text.greedy), found.metrics)
            )

        return self._run(operation, requests, lambda: [score_of(request) for request in requests])

    def _run(
        self,
        operation: str,
        requests: list[Request],
        outputs: Callable[[], list[T]],
        *,
        progress: bool = False,
    ) -> list[T]:
        """Run requests to their end and return `outputs()`; raises as `reported` says."""
        sequences = [sequence for request in requests for sequence in request.sequences]
        with (
            reported(operation, requests, outputs),
            closing(self._loop.run(sequences)) as steps,
            ProgressBar(len(sequences), self._loop, progress) as bar,
        ):
            for fresh in steps:
                bar.update(fresh)
        return outputs()
