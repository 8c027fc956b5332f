# SPDX-License-Identifier: Apache-2.0
"""What a generation returns: texts, tokens and what they cost."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import text_of


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


_KINDS = ("", "exact", "estimated")


def _combined_loss(parts: Sequence[RequestMetrics]) -> dict[str, Any]:
    """Return the fields of the lost mass over all steps of `parts` in which it is known."""
    known = [p for p in parts if p.lost_mass is not None]
    if not known:
        return {}
    steps = sum(p.lost_mass_steps for p in known)
    return {
        "lost_mass": sum((p.lost_mass or 0.0) * p.lost_mass_steps for p in known) / steps,
        "lost_mass_kind": max((p.lost_mass_kind or "" for p in known), key=_KINDS.index),
        "largest_lost_mass": max(p.largest_lost_mass or 0.0 for p in known),
        "lost_mass_steps": steps,
    }


@dataclass
class RequestMetrics:
    """What one prompt cost. Times are in seconds.

    Parameters
    ----------
    prompt_tokens, generated_tokens : int
        Lengths.
    ttft_s : float
        From the call until the first new token.
    prefill_s, decode_s : float
        Time in each phase, shared steps of a batch counted in full.
    decode_steps : int
        Steps it took part in, summed over its texts.
    k : int
        Offloaded tokens attended to per head in the last step; of its last layer where their number
        differs between layers.
    strategy : str
        "post" or "pre".
    offloaded_tokens, resident_tokens : int
        Where its tokens were at the end.
    dropped_tokens : int
        Tokens that the method gave up for good.
    scheduler_decisions : int
        Times that K and the strategy were reconsidered; 0 if they are fixed.
    last_decision : str
        "hold", "grow", "shrink", "to_pre" or "to_post"; empty if they are fixed.
    attended_offloaded_share : float
        Part of the offloaded tokens that entered the softmax, averaged over steps.
    lost_mass : float or None
        Softmax mass over resident and offloaded tokens, by the query of the softmax, that was not
        attended to: mean over layers, query heads and the `lost_mass_steps` decode steps in which
        it is known. None if it never is: where tokens were chosen before their logits, or dropped.
    lost_mass_kind : str or None
        "exact", or "estimated" where a guessed query or a scoring shadow ranked the tokens.
    largest_lost_mass : float or None
        Of these steps, each averaged over layers and query heads.
    lost_mass_steps : int
        Decode steps in which it is known.
    emulated : str or None
        On an emulated device, whose times these are.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0
    k: int = 0
    strategy: str = "post"
    offloaded_tokens: int = 0
    resident_tokens: int = 0
    dropped_tokens: int = 0
    scheduler_decisions: int = 0
    last_decision: str = ""
    attended_offloaded_share: float = 0.0
    lost_mass: float | None = None
    lost_mass_kind: str | None = None
    largest_lost_mass: float | None = None
    lost_mass_steps: int = 0
    emulated: str | None = None

    @classmethod
    def from_stats(cls, stats: Mapping[str, object]) -> RequestMetrics:
        """Build from the engine's statistics of a request; keys that are no fields are left out."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in stats.items() if name in names})  # type: ignore[arg-type]

    @classmethod
    def combined(cls, parts: Sequence[RequestMetrics]) -> RequestMetrics:
        """Sum up several samples of one prompt, which ran beside each other."""
        if len(parts) == 1:
            return parts[0]
        return dataclasses.replace(
            parts[0],
            generated_tokens=sum(p.generated_tokens for p in parts),
            ttft_s=min(p.ttft_s for p in parts),
            prefill_s=sum(p.prefill_s for p in parts),
            decode_s=max(p.decode_s for p in parts),
            decode_steps=sum(p.decode_steps for p in parts),
            **_combined_loss(parts),
        )

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second of prefill."""
        return _rate(self.prompt_tokens, self.prefill_s)

    @property
    def decode_tps(self) -> float:
        """Tokens per second of decode: one per step; the first comes from the prefill."""
        return _rate(self.decode_steps, self.decode_s)


@dataclass
class CompletionOutput:
    """One generated text.

    On an emulated device with the times of a profile nothing is computed: ``text``, ``token_ids``
    and ``cumulative_logprob`` are then None; ``metrics.generated_tokens`` counts the tokens.

    Parameters
    ----------
    index : int
        Number among the ``n`` texts of a prompt.
    text : str
        Without the ending token and stop string; empty without a tokenizer.
    token_ids : list of int
        All new tokens, an ending token included.
    cumulative_logprob : float
        Sum over the new tokens of what the model itself gives them: the softmax of its logits as
        they are, before temperature, penalty, top-k, top-p and min-p choose among them. At any
        other setting than temperature 1 alone this is not the distribution that was sampled.
    logprobs : list of dict, optional
        Per new token, token id to log-probability, of the same softmax; only if asked for.
    finish_reason : str or None
        "stop" (the model's ending token, or one of `stop`), "length" (as many tokens as were asked
        for or fit), "abort" (the call was left early), "error" (it failed; the call raised why), or
        None while unfinished.
    stop_reason : int, str or None
        The stop string or extra stop token that ended the text; None for the model's own.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, float]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


def withheld(output: CompletionOutput) -> CompletionOutput:
    """Return what there is of a text that nothing was computed for: why it ended."""
    nothing: Any = None
    return CompletionOutput(output.index, nothing, nothing, nothing, None, output.finish_reason)


@dataclass
class RequestOutput:
    """All texts of one prompt; the shortcuts refer to the first of them.

    Parameters
    ----------
    request_id : int or str
        Unique within an engine; that of `LLM.add_request` as it was given.
    prompt : str or None
        None if the prompt was given as tokens.
    prompt_token_ids : list of int
        What the model saw.
    outputs : list of CompletionOutput
        ``SamplingParams.n`` of them.
    finished : bool
        Whether no more will come of it; of a call that raised (its ``outputs``) whether it ran to
        its end.
    metrics : RequestMetrics
        What it cost.
    prompt_logprobs : list, optional
        Per prompt token, token id to log-probability: its own, and the likeliest in its place; None
        for the first. Only if asked for, and once the first new token is there.
    error : BaseException or None
        What kept it from being finished; from `LLM.step`, where other calls raise it.
    """

    request_id: int | str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, float] | None] | None = None
    error: BaseException | None = None

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """New tokens of the first output."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        """Why the first output ended."""
        return self.outputs[0].finish_reason

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts and lists, ready for JSON; the error as its words."""
        words = None if self.error is None else text_of(self.error)
        return dataclasses.asdict(dataclasses.replace(self, error=None)) | {"error": words}


@dataclass
class ScoreOutput:
    """What a continuation's score is, and what the engine did with its context.

    Parameters
    ----------
    logprob : float
        Natural logarithm of the continuation's probability, as `CompletionOutput` has it.
    greedy : bool
        Whether greedy decoding would have chosen each of its tokens.
    metrics : RequestMetrics
        Where its tokens were, and what it cost.
    """

    logprob: float
    greedy: bool
    metrics: RequestMetrics


@dataclass
class StreamChunk:
    """One step of a stream: a new token and the text that it completed.

    Parameters
    ----------
    text : str
        May be empty: bytes of an unfinished character and possible stop strings are held back.
        None where `CompletionOutput.text` is.
    token_id : int
        The new token; None likewise.
    index : int
        Its number in its text, from 0.
    prompt_tps, generation_tps : float
        Tokens per second so far.
    peak_memory : int
        Most bytes the device's part of the cache has held so far.
    finish_reason : str or None
        Set in the last chunk of a text.
    prompt_index : int
        Which of the prompts it continues.
    output_index : int
        Which of the ``n`` texts of that prompt.
    """

    text: str
    token_id: int
    index: int
    prompt_tps: float
    generation_tps: float
    peak_memory: int
    finish_reason: str | None = None
    prompt_index: int = 0
    output_index: int = 0


_LEVELS = ("weight_device_bytes", "weight_host_bytes", "weight_disk_bytes")
"""Statistics that say how much there is, not how much came in a time."""


class RunStats(Mapping[str, Any]):
    """What the engine did since the last call began; keys are attributes too.

    Examples
    --------
    >>> stats = RunStats({"decode_tokens": 20, "decode_s": 0.5})
    >>> stats.decode_tokens, stats.decode_tps
    (20, 40.0)
    """

    def __init__(self, values: Mapping[str, Any], emulated: str | None = None) -> None:
        self._emulated = {} if emulated is None else {"emulated": emulated}
        self._values = self._emulated | _with_rates(values)

    def fill(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Become what was done between two readings of the engine's sums."""
        done = {
            name: value if name in _LEVELS else value - before.get(name, 0)
            for name, value in after.items()
        }
        host_s = done.get("t_cpu_s", 0.0) + done.get("t_link_s", 0.0)
        waited = done.get("t_wait_s", 0.0) / host_s if host_s > 0 else 0.0
        done["hidden_share"] = max(0.0, 1.0 - waited)  # a ratio: not the difference of two
        for place in ("disk", "weight"):
            came_s = done.get(f"{place}_read_s", 0.0) + done.get(f"{place}_copy_s", 0.0)
            waited_s = done.get(f"{place}_wait_s", 0.0) + done.get(f"{place}_copy_wait_s", 0.0)
            waited = waited_s / came_s if came_s > 0 else 0.0
            done[f"{place}_hidden_share"] = max(0.0, 1.0 - waited)
        self._values = self._emulated | _with_rates(done)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        # Pickle and copy look for special names before __init__ has run.
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"RunStats has no {name!r}; it has {', '.join(self._names())}")
        return self._values[name]

    def _names(self) -> list[str]:
        return sorted(self.__dict__.get("_values", {}))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._names()]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return dict(self._values)

    def to_pandas(self) -> Any:
        """Return a table with one row; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("RunStats.to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame([self._values])

    def summary(self) -> str:
        """Return a few lines for people: speed, overlap, bytes moved."""
        get = self._values.get
        lines = [*self._emulated.values()]
        lines += [
            f"requests        {get('requests', 0)}",
            f"prefill         {get('prompt_tokens', 0)} tokens in {get('prefill_s', 0.0):.3f} s "
            f"({self._values['prefill_tps']:.1f} tok/s)",
            f"decode          {get('decode_tokens', 0)} tokens in {get('decode_s', 0.0):.3f} s "
            f"({self._values['decode_tps']:.1f} tok/s, {get('decode_steps', 0)} steps)",
            f"stages          device {get('t_device_s', 0.0):.3f} s, host "
            f"{get('t_cpu_s', 0.0):.3f} s, link {get('t_link_s', 0.0):.3f} s, waited "
            f"{get('t_wait_s', 0.0):.3f} s",
            f"hidden          {100 * (get('hidden_share') or 0.0):.1f} % of host and link time",
            f"moved           {_bytes(get('h2d_bytes', 0))} to the device, "
            f"{_bytes(get('d2h_bytes', 0))} to the host",
            f"read by host    {_bytes(get('host_key_bytes_read', 0))} of keys, "
            f"{_bytes(get('host_value_bytes_read', 0))} of values",
        ]
        if get("disk_bytes_read", 0) or get("disk_bytes_written", 0):
            lines.append(
                f"disk            {_bytes(get('disk_bytes_read', 0))} read, "
                f"{_bytes(get('disk_bytes_written', 0))} written, waited "
                f"{get('disk_wait_s', 0.0):.3f} s for reads "
                f"({100 * get('disk_hidden_share', 1.0):.1f} % hidden)"
            )
        if get("weight_bytes_read", 0) or get("weight_bytes_copied", 0):
            lines.append(
                f"weights         {_bytes(get('weight_bytes_copied', 0))} from host memory, "
                f"{_bytes(get('weight_bytes_read', 0))} from disk, waited "
                f"{get('weight_wait_s', 0.0):.3f} s for the disk, "
                f"{get('weight_copy_wait_s', 0.0):.3f} s for copies "
                f"({100 * get('weight_hidden_share', 1.0):.1f} % hidden)"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"RunStats\n{self.summary()}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(_shown(value))}</td></tr>"
            for name, value in self._values.items()
        )
        return f"<table>{rows}</table>"


def _with_rates(values: Mapping[str, Any]) -> dict[str, Any]:
    rates = {
        "prefill_tps": ("prompt_tokens", "prefill_s"),
        "decode_tps": ("decode_tokens", "decode_s"),
    }
    found = dict(values)
    for name, (count, seconds) in rates.items():
        found.setdefault(name, _rate(found.get(count, 0), found.get(seconds, 0.0)))
    return found


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
