# SPDX-License-Identifier: Apache-2.0
"""A model of lm-evaluation-harness that scores through decode: ``lm_eval --model hybridgen``.

Importing this module registers it; it needs the package lm_eval (0.4.13 or later). A log-likelihood
task otherwise runs one forward pass over prompt and answer, in which no cache method acts. Here the
context but its last token is prefilled, and the answer passes through decode steps, so that every
answer token is scored with the attention that generated text would have. Of generated answers the
prompt's last token passes through a decode step, so that their first token is no exception.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .._checks import brief
from ..config import KVConfig
from ..errors import ConfigError
from ..llm import LLM
from ..outputs import RequestMetrics
from ..sampling import SamplingParams

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(
        "hybridgen.integrations.lm_eval needs lm-evaluation-harness: pip install 'hybridgen[eval]'"
    ) from error

OF_LLM = (
    "dtype",
    "device",
    "tokenizer",
    "revision",
    "gguf_file",
    "max_model_len",
    "max_num_seqs",
    "seed",
)
OF_KV = ("device_tokens", "dram", "keys", "values")
MAX_NEW_TOKENS = 256
"""Where a task does not say how many."""


@dataclass
class Tally:
    """What the engine reported of a task's requests, added up.

    Parameters
    ----------
    requests : int
        How many; a text that is scored in windows has several.
    tokens, offloaded, dropped : int
        Of contexts and answers, at the end of their requests: all, those in host memory, those that
        the method gave up for good.
    attended : float
        Sum over requests of the part of the offloaded tokens that entered the softmax.
    """

    requests: int = 0
    tokens: int = 0
    offloaded: int = 0
    dropped: int = 0
    attended: float = 0.0

    def add(self, metrics: RequestMetrics) -> None:
        """Count one more request."""
        self.requests += 1
        self.tokens += metrics.resident_tokens + metrics.offloaded_tokens + metrics.dropped_tokens
        self.offloaded += metrics.offloaded_tokens
        self.dropped += metrics.dropped_tokens
        self.attended += metrics.attended_offloaded_share


@register_model("hybridgen")
class HybridGenLM(LM):
    """An LLM as lm-evaluation-harness sees it.

    Parameters
    ----------
    pretrained : str, Path or LLM
        What `LLM` loads, or an LLM that is there already.
    method : str
        A name from ``hybridgen.methods.names()``.
    batch_size : int or str, optional
        Requests that run together; "auto" is the engine's default.
    max_batch_size : int, optional
        Taken for the harness's sake, not used: the engine admits what fits.
    **options
        Of `LLM` (``OF_LLM``), of `KVConfig` (``OF_KV``), and else of the method, such as ``k=64``.

    Raises
    ------
    ConfigError
        As `LLM`.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        method: str = "hybridgen",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._warned = False
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        """By the name of a task, of all requests so far."""
        if isinstance(pretrained, LLM):
            if options or method != "hybridgen":
                raise ConfigError(
                    "[lm_eval] pretrained is an LLM with options of its own; allowed beside it: "
                    f"none, not {brief(options or method)}"
                )
            self.llm = pretrained
            return
        # The harness passes what its own command line has, None where that says nothing.
        given = {name: value for name, value in options.items() if value is not None}
        of_llm = {name: given.pop(name) for name in OF_LLM if name in given}
        of_kv = {name: given.pop(name) for name in OF_KV if name in given}
        if str(batch_size).isdecimal():
            of_llm.setdefault("max_num_seqs", int(str(batch_size)))
        self.llm = LLM(
            pretrained,
            method=method,
            method_config=given or None,
            kv=KVConfig(**of_kv) if of_kv else None,
            **of_llm,
        )

    # ------------------------------------------------------------------------------------ requests

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return log-probability and greediness of each (context, continuation)."""
        found = self.llm.score_outputs([request.args for request in requests])
        self._count(requests, [score.metrics for score in found])
        return [(score.logprob, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return each text's log-probability, in windows that fit the model."""
        sums = []
        for request in requests:
            (text,) = request.args
            ids = self._tokenizer().encode(text, add_special_tokens=False)
            pairs = list(rolling_pairs(ids, self._prefix(), self._limit()))
            found = self.llm.score_outputs(pairs)
            self._count([request] * len(found), [score.metrics for score in found])
            sums.append(sum((score.logprob for score in found), 0.0))
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text that follows each context, up to its stop strings."""
        outputs = self.llm.generate(
            [request.args[0] for request in requests],
            [sampling_params(request.args[1]) for request in requests],
            decode_prompt_tokens=1,
        )
        self._count(requests, [output.metrics for output in outputs])
        return [output.text for output in outputs]

    # ---------------------------------------------------------------------------------------- chat

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages as the model's template writes them."""
        text = self._tokenizer().apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for the harness's caches."""
        return str(self._tokenizer().name_or_path).replace("/", "__")

    # -------------------------------------------------------------------------------------- inside

    def _count(self, requests: Sequence[Any], metrics: Sequence[RequestMetrics]) -> None:
        """Add up what the engine says of requests, and say once if nothing left the device."""
        for request, each in zip(requests, metrics, strict=True):
            self.tallies[request.task_name or ""].add(each)
        left = any(tally.offloaded or tally.dropped for tally in self.tallies.values())
        if requests and not left and not self._warned:
            self._warned = True
            warnings.warn(
                "no token left the device so far: these scores are full attention's. Pass "
                "device_tokens=..., smaller than the prompts",
                UserWarning,
                stacklevel=3,
            )

    def _tokenizer(self) -> Any:
        tokenizer = self.llm.tokenizer
        if tokenizer is None:
            raise ConfigError("[lm_eval] the model has no tokenizer; pass tokenizer=...")
        return tokenizer

    def _limit(self) -> int:
        """Return how many tokens a context and its continuation may have."""
        limit = self.llm.engine_options.max_model_len
        return int(limit or self.llm.model_config["max_positions"])

    def _prefix(self) -> int:
        tokenizer = self._tokenizer()
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ConfigError("[lm_eval] the tokenizer has neither BOS nor EOS; pass another one")


def rolling_pairs(
    ids: Sequence[int], prefix: int, limit: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield contexts and continuations that predict each id once, ``limit`` tokens at most.

    The first context is ``prefix`` alone; the last one is as long as the limit allows.
    """
    everything = [prefix, *ids]
    for begin in range(1, len(everything), limit - 1):
        end = min(begin + limit - 1, len(everything))
        yield everything[max(0, end - limit) : begin], everything[begin:end]


def sampling_params(arguments: dict[str, Any]) -> SamplingParams:
    """Return a task's generation arguments as ours; greedy unless it asks for sampling."""
    until = arguments.get("until") or []
    sampled = bool(arguments.get("do_sample")) or (arguments.get("temperature") or 0.0) > 0
    options: dict[str, Any] = {
        "max_tokens": int(arguments.get("max_gen_toks") or MAX_NEW_TOKENS),
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
        "temperature": float(arguments.get("temperature") or 1.0) if sampled else 0.0,
    }
    for name in ("top_p", "top_k"):
        if sampled and arguments.get(name) is not None:
            options[name] = arguments[name]
    return SamplingParams(**options)
