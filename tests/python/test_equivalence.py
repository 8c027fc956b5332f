# SPDX-License-Identifier: Apache-2.0
"""The engine against transformers: logits, greedy tokens, and the settings that must be exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import conftest
import hybridgen as hg
from hybridgen import LLM, CpuConfig, KVConfig, SamplingParams, SchedulerConfig

ROOT = Path(__file__).resolve().parents[2]
CPU = CpuConfig(threads=1, device_threads=1)
TRAINED = [
    pytest.param(folder, id=folder.name)
    for folder in sorted((ROOT / "tests" / "models").glob("tiny-*"))
]

ODD_SHAPES = {
    "head-dim-80": {"head_dim": 80},
    "head-dim-256": {"head_dim": 256, "num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "one-layer": {"num_hidden_layers": 1},
    "llama3-tied": {"rope_parameters": conftest._LLAMA3_ROPE, "tie_word_embeddings": True},
}


def odd_model(name: str) -> Any:
    config = transformers.LlamaConfig(**{**conftest._ROTARY, **ODD_SHAPES[name]})
    torch.manual_seed(len(name))
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Keep transformers to one thread: OpenMP teams that spin beside the engine's cost minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Return folder and transformers model of a family of conftest or of an odd shape."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            model = odd_model(name) if name in ODD_SHAPES else conftest.make_model(name)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = folder, model
        return made[name]

    return get


def ids_of(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (length,), generator=generator).tolist()


def row_of(found: dict[int, float] | None, vocabulary: int) -> Any:
    assert found is not None
    row = torch.full((vocabulary,), float("nan"))
    for token, logprob in found.items():
        row[token] = logprob
    return row


def logprobs_at_every_position(llm: LLM, prompt: list[int], decoded: int) -> Any:
    """Return log-probabilities [tokens, vocabulary] of what follows each prompt token."""
    vocabulary = llm.model_config["vocab_size"]
    params = SamplingParams(max_tokens=1, logprobs=vocabulary, prompt_logprobs=vocabulary)
    output = llm.generate([prompt], params, decode_prompt_tokens=decoded)[0]
    assert output.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    rows = [*output.prompt_logprobs[1:], output.outputs[0].logprobs[0]]
    return torch.stack([row_of(found, vocabulary) for found in rows])


def logprobs_behind(llm: LLM, prompts: list[list[int]]) -> Any:
    """Return log-probabilities [prompts, vocabulary] of what follows each prompt."""
    vocabulary = llm.model_config["vocab_size"]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, logprobs=vocabulary))
    return torch.stack([row_of((o.outputs[0].logprobs or [None])[0], vocabulary) for o in outputs])


def worst(actual: Any, logits: Any) -> float:
    """Return the largest difference of log-probabilities relative to the largest logit."""
    expected = logits.log_softmax(-1)
    assert not actual.isnan().any()
    return float(((actual - expected).abs().amax(-1) / logits.abs().amax(-1)).max())


@pytest.mark.parametrize("name", [*conftest.CONFIGS, *ODD_SHAPES])
@torch.no_grad()
def test_logits_are_those_of_transformers_at_every_position(
    folders: Callable[[str], tuple[Path, Any]], name: str
) -> None:
    folder, model = folders(name)
    vocabulary = model.config.vocab_size
    ids = ids_of(60, vocabulary)
    logits = model(torch.tensor([ids])).logits[0]
    for options in (
        {"method": "full"},
        {
            "query": "exact",
            "kv": KVConfig(device_tokens=7),
            "scheduler": SchedulerConfig(k="all"),
        },
    ):
        with LLM(folder, dtype="float32", cpu=CPU, **options) as llm:
            # Decode: every position passes through a step of its own.
            decoded = logprobs_at_every_position(llm, ids, decoded=len(ids))
            assert (llm.stats.evicted_bytes > 0) == (options.get("method") != "full")
            assert worst(decoded, logits) < 1e-4
            # Prefill: all positions at once, and the last of prompts of every length.
            assert worst(logprobs_at_every_position(llm, ids, decoded=0), logits) < 1e-4
            prefilled = logprobs_behind(llm, [ids[:n] for n in range(1, len(ids) + 1)])
            assert worst(prefilled, logits) < 1e-4


@torch.no_grad()
def reference_tokens(model: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Return greedy tokens by transformers and the smallest gap between the best two logits."""
    out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
    tokens: list[int] = []
    gap = float("inf")
    while True:
        best = out.logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        gap = min(gap, float(best.values[0] - best.values[1]))
        if len(tokens) == count:
            return tokens, gap
        out = model(
            torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values, use_cache=True
        )


HYBRID: dict[str, Any] = {
    "kv": KVConfig(device_tokens=30),
    "scheduler": SchedulerConfig(k="all"),
}
EXACT_SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "exact": {"query": "exact", **HYBRID},
    "rescore": {"query": "rescore", **HYBRID},
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", TRAINED)
def test_256_greedy_tokens_of_the_trained_models(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [ids_of(n, model.config.vocab_size, seed=n) for n in (300, 40, 1)]
    expected = [reference_tokens(model, prompt, 256)[0] for prompt in prompts]
    for name, options in EXACT_SETTINGS.items():
        with LLM(folder, dtype="float32", cpu=CPU, **options) as llm:
            params = SamplingParams(max_tokens=256, ignore_eos=True)
            assert llm.generate_ids(prompts, params) == expected, name
            assert (llm.stats.evicted_bytes > 0) == (name != "full")


@pytest.mark.slow
def test_256_greedy_tokens_of_smollm2(smollm2: Path) -> None:
    folder = smollm2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = (ROOT / "LICENSE").read_text()
    prompt = tokenizer(text).input_ids[:400]
    expected, gap = reference_tokens(model, prompt, 256)
    # Identity of tokens is only meaningful where rounding cannot decide between two of them.
    assert gap > 1e-3
    del model
    for name, options in EXACT_SETTINGS.items():
        with LLM(folder, dtype="float32", cpu=CPU, **options) as llm:
            params = SamplingParams(max_tokens=256, ignore_eos=True)
            assert llm.generate_ids([prompt], params) == [expected], name
            assert (llm.stats.evicted_bytes > 0) == (name != "full")


def test_guessing_from_beyond_the_last_layer_is_exact(
    folders: Callable[[str], tuple[Path, Any]],
) -> None:
    folder, model = folders("llama")
    prompts = [ids_of(n, model.config.vocab_size, seed=n) for n in (50, 9)]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    tokens = {}
    few: dict[str, Any] = {"kv": KVConfig(device_tokens=4), "scheduler": SchedulerConfig(k="all")}
    for name, options in {
        "full": {"method": "full"},
        "never": {**few, "query": hg.QueryConfig(mode="speculative", first_layer=3)},
        "early": {**few, "query": hg.QueryConfig(mode="speculative", first_layer=1)},
    }.items():
        with LLM(folder, dtype="float32", cpu=CPU, **options) as llm:
            tokens[name] = llm.generate_ids(prompts, params)
            assert (llm.stats.evicted_bytes > 0) == (name != "full")
    assert tokens["never"] == tokens["full"]
    assert tokens["early"] != tokens["full"]
