# SPDX-License-Identifier: Apache-2.0
"""What ``/metrics`` says, in the form that Prometheus reads.

Every text that was begun has ended for one reason, or is running:
``texts_begun_total == sum(texts_ended_total) + texts_running``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..sequence import Sequence

CONTENT_TYPE = CONTENT_TYPE_LATEST
_TTFT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counts of one server; several in one process do not share any."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._http = Counter(
            "hybridgen_http_requests",
            "HTTP requests that were answered; status 499: the client had left.",
            ["path", "status"],
            registry=registry,
        )
        self._begun = Counter(
            "hybridgen_texts_begun", "Texts that were asked for.", registry=registry
        )
        self._ended = Counter(
            "hybridgen_texts_ended",
            "Texts that ended: stop, length, abort (nobody waited), error, refused.",
            ["reason"],
            registry=registry,
        )
        for reason in ("stop", "length", "abort", "error", "refused"):
            self._ended.labels(reason)
        self._running = Gauge(
            "hybridgen_texts_running", "Texts that run or wait.", registry=registry
        )
        self._prompt_tokens = Counter(
            "hybridgen_prompt_tokens", "Prompt tokens of texts that ended.", registry=registry
        )
        self._new_tokens = Counter(
            "hybridgen_generated_tokens", "New tokens of texts that ended.", registry=registry
        )
        self._ttft = Histogram(
            "hybridgen_time_to_first_token_seconds",
            "From when the engine took a text to its first token.",
            buckets=_TTFT_S,
            registry=registry,
        )
        self._per_token = Histogram(
            "hybridgen_time_per_output_token_seconds",
            "Time of a text's decode steps over their number.",
            buckets=_TOKEN_S,
            registry=registry,
        )
        self._used = Gauge(
            "hybridgen_memory_used_bytes",
            "What running texts have reserved of a memory tier.",
            ["tier"],
            registry=registry,
        )
        self._capacity = Gauge(
            "hybridgen_memory_capacity_bytes", "Of a memory tier.", ["tier"], registry=registry
        )

    def answer(self, path: str, status: int) -> None:
        """Count an HTTP request."""
        self._http.labels(path, str(status)).inc()

    def begin(self, texts: int) -> None:
        """Count texts that were asked for."""
        self._begun.inc(texts)
        self._running.inc(texts)

    def refuse(self, texts: int) -> None:
        """Count texts that were begun and the engine refuses."""
        self._ended.labels("refused").inc(texts)
        self._running.dec(texts)

    def end(self, sequence: Sequence) -> None:
        """Count a text that ended."""
        self._ended.labels(sequence.output.finish_reason or "abort").inc()
        self._running.dec()
        metrics = sequence.metrics
        self._prompt_tokens.inc(metrics.prompt_tokens)
        self._new_tokens.inc(len(sequence.pieces))
        if sequence.pieces:
            self._ttft.observe(metrics.ttft_s)
        if metrics.decode_steps:
            self._per_token.observe(metrics.decode_s / metrics.decode_steps)

    def text(self, memory: Mapping[str, Mapping[str, Any]] | None) -> bytes:
        """Return the document; `memory` is what the engine says of its tiers, if it does."""
        for tier, state in (memory or {}).items():
            self._used.labels(tier).set(state["used"])
            self._capacity.labels(tier).set(state["capacity"])
        return generate_latest(self._registry)
