# SPDX-License-Identifier: Apache-2.0
"""A model of lm-evaluation-harness that scores through decode: ``lm_eval --model hybridgen``.

Importing this module registers it; it needs the package lm_eval (0.4.9 or later). A log-likelihood
task otherwise runs one forward pass over prompt and answer, in which no cache method acts. Here the
context but its last token is prefilled, and the answer passes through decode steps, so that every
answer token is scored with the attention that generated text would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from .._checks import brief
from ..config import KVConfig
from ..errors import ConfigError
from ..llm import LLM
from ..sampling import SamplingParams

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(
        "hybridgen.integrations.lm_eval needs lm-evaluation-harness: pip install lm_eval"
    ) from error

OF_LLM = ("dtype", "device", "tokenizer", "revision", "max_model_len", "max_num_seqs", "seed")
OF_KV = ("device_tokens", "dram", "keys", "values")
MAX_NEW_TOKENS = 256
"""Where a task does not say how many."""


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
        self._evicted_bytes = 0
        self._warned = False
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
        if not requests:
            return []
        scores = self.llm.score([request.args for request in requests])
        self._saw(len(requests))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return each text's log-probability, in windows that fit the model."""
        found = []
        for request in requests:
            (text,) = request.args
            ids = self._tokenizer().encode(text, add_special_tokens=False)
            pairs = list(rolling_pairs(ids, self._prefix(), self._limit()))
            found.append(sum(logprob for logprob, _ in self.llm.score(pairs)) if pairs else 0.0)
        self._saw(len(requests))
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text that follows each context, up to its stop strings."""
        if not requests:
            return []
        outputs = self.llm.generate(
            [request.args[0] for request in requests],
            [sampling_params(request.args[1]) for request in requests],
        )
        self._saw(len(requests))
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

    @property
    def evicted_bytes(self) -> int:
        """Bytes of keys and values that went to host memory: 0 means that no method acted."""
        return self._evicted_bytes

    def _saw(self, count: int) -> None:
        """Add up what the last call moved, and say once if nothing left the device."""
        self._evicted_bytes += self.llm.stats.evicted_bytes
        if count and not self._evicted_bytes and not self._warned:
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
