# SPDX-License-Identifier: Apache-2.0
"""Train the tiny OPT, Llama and Qwen2 models of the tests, each in minutes on one CPU thread.

The models do one thing: look up values that they read up to 2,048 tokens ago (see
``hybridgen.evaluation.recall_tasks``). They are ordinary Hugging Face folders, small enough to be
committed, and useless without their far context, which is what tests of an offloaded KV cache need.

Helper losses guide the training and are gone from the saved model: head 0 of layer 0 looks at the
previous token and that layer's output predicts it, and head 0 of layers 2 and 3 is told where the
answer stands. Without them the models stay at guessing. For keys that are written again, layer 1
is also asked how often the key was written before.

Example
-------
``python scripts/train_tiny_models.py --family llama --out tests/models``
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from hybridgen._files import unwound_by_sigterm, write_whole
from hybridgen.evaluation.recall_tasks import (
    MAX_LENGTH,
    MAX_WRITES,
    NUM_SINKS,
    TASKS,
    RecallSequence,
    Sample,
    Vocabulary,
    exact_match,
    make_samples,
    make_sequence,
    vocabulary_words,
)

FAMILIES = ("llama", "opt", "qwen2")
STORED_DTYPES = {"llama": torch.float16, "opt": torch.float16, "qwen2": torch.bfloat16}

STAGES = (32, 64, 128, 256, 512, 1024, MAX_LENGTH)
"""Sequence lengths of the curriculum, in tokens."""

TOKENS_PER_STEP = 2048
RETRIEVAL_LAYERS = (2, 3)
LINK_LAYER = 1
"""The layer that notices that a key was written before."""

HIDDEN = 128
INIT_STD = 0.07
"""With 0.03 the copying of the value stays at guessing for thousands of steps."""

WINDOW_SHARE = 0.10


@dataclass(frozen=True)
class Recipe:
    """Everything about the optimisation that a command line may change.

    Parameters
    ----------
    seed : int
        Of the weights, the data and the position offsets.
    max_minutes : float
        The final decay is started so that training ends within this time.
    max_steps : int
        Upper bound on the number of steps, the decay included.
    device : str
        ``cpu`` or ``cuda``.
    advance_at : float
        Running accuracy on ``kv`` at which the sequences get longer.
    start : Path, optional
        Folder of an earlier run to continue, from sequences of ``start_length`` tokens.
    """

    seed: int = 0
    max_minutes: float = 20.0
    max_steps: int = 100_000
    device: str = "cpu"
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip: float = 1.0
    advance_at: float = 0.95
    updated_goal: float = 0.93
    patience_steps: int = 500
    decay_steps: int = 300
    far_share: float = 0.4
    updated_weight: int = 5
    start: Path | None = None
    start_length: int = STAGES[0]


@dataclass
class Watch:
    """What the attention function must note down or leave out during one forward pass.

    Parameters
    ----------
    rows : dict[int, torch.Tensor]
        Per layer, the query rows [B, R] whose attention is wanted.
    heads : dict[int, int]
        Per layer, the query head to look at.
    log_attention : dict[int, torch.Tensor]
        Per layer, the result: log of the attention of that head [B, R, T].
    window : float, optional
        If set, the last row sees the sinks and this share of the most recent tokens only.
    """

    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: dict[int, int] = field(default_factory=dict)
    log_attention: dict[int, torch.Tensor] = field(default_factory=dict)
    window: float | None = None


_watch = Watch()


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Make ``watch`` the one that attention layers report to."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield watch
    finally:
        _watch = before


def recall_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention over whole sequences that can report or restrict what rows look at.

    Registered with transformers as ``recall``, so that one forward pass serves all families.

    Parameters
    ----------
    query : torch.Tensor
        [B, H, T, D].
    key, value : torch.Tensor
        [B, G, T, D] with G dividing H.
    attention_mask : torch.Tensor, optional
        Must be None: there is no padding here.

    Returns
    -------
    tuple[torch.Tensor, None]
        Output [B, T, H, D].
    """
    if attention_mask is not None:
        raise ValueError("recall_attention takes unpadded sequences only: attention_mask is set")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    length = query.shape[2]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if layer in _watch.rows:
        rows, head = _watch.rows[layer], _watch.heads[layer]
        group = head * key.shape[1] // query.shape[1]
        index = rows[:, :, None].expand(-1, -1, query.shape[3])
        logits = query[:, head].gather(1, index) @ key[:, group].mT * scale
        future = torch.arange(length, device=rows.device) > rows[:, :, None]
        _watch.log_attention[layer] = logits.float().masked_fill(future, -math.inf).log_softmax(-1)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
    )
    if _watch.window is not None:
        recent = math.ceil(_watch.window * length)
        kept = torch.arange(length, device=query.device)
        kept = kept[(kept < NUM_SINKS) | (kept >= length - recent)]
        last = F.scaled_dot_product_attention(
            query[:, :, -1:], key[:, :, kept], value[:, :, kept], scale=scale, enable_gqa=grouped
        )
        out = torch.cat([out[:, :, :-1], last], dim=2)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("recall", recall_attention)


def make_config(family: str, vocab_size: int) -> PreTrainedConfig:
    """Return the configuration of a tiny model: 4 layers, 4 heads of 32, hidden 128."""
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "opt":
        return OPTConfig(
            vocab_size=vocab_size,
            hidden_size=HIDDEN,
            word_embed_proj_dim=HIDDEN,
            ffn_dim=2 * HIDDEN,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            dropout=0.0,
            tie_word_embeddings=False,
            **tokens,
        )
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": False,
    }
    if family == "llama":
        return LlamaConfig(num_key_value_heads=1, head_dim=HIDDEN // 4, **shape, **tokens)
    if family == "qwen2":
        return Qwen2Config(num_key_value_heads=2, **shape, **tokens)
    raise ValueError(f"unknown family {family!r}; the families are {', '.join(FAMILIES)}")


def make_model(family: str, vocab_size: int, seed: int) -> PreTrainedModel:
    """Build a freshly initialised model.

    All embeddings share one vector, which gives attention a direction that is there at every
    position: positional patterns (such as "the token before") need one. The OPT position table
    starts as sinusoids, because one that starts as noise is not learned in time.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        make_config(family, vocab_size), attn_implementation="recall", dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, INIT_STD)
        table = model.get_input_embeddings().weight
        table += 0.5 * INIT_STD * torch.randn(HIDDEN)
        model.get_output_embeddings().weight.copy_(table)
        if family == "opt":
            positions = model.model.decoder.embed_positions.weight
            positions.copy_(sinusoids(positions.shape[0]) * 2 * table.square().mean().sqrt())
    return model


def sinusoids(num_positions: int, fastest: float = 2.5, slowest: float = 1e-3) -> torch.Tensor:
    """Return a sinusoidal position table [num_positions, HIDDEN] of root mean square 1.

    Frequencies run from fastest to slowest in radians per token. Up to 1, as usual, neighbours
    look so alike that finding the token before takes twice as long to learn.
    """
    steps = torch.arange(HIDDEN // 2) / (HIDDEN // 2 - 1)
    angles = torch.arange(num_positions)[:, None] * fastest * (slowest / fastest) ** steps
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def make_tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, words being separated by spaces."""
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<pad>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Batch:
    """Sequences of one length and one task, with B sequences, T tokens, R queries, W records.

    Parameters
    ----------
    ids : torch.Tensor
        [B, T].
    rows, answers : torch.Tensor
        [B, R].
    valid : torch.Tensor
        [B, R, T]: positions that hold the answer right after the key. A query asked twice has
        two: the record and the answer given the first time.
    writes, counts : torch.Tensor
        [B, W]: positions of the records' values and how often the key was written up to there.
    links : torch.Tensor
        [B, W, T]: earlier writes to the same key, or position 0 if there is none.
    """

    task: str
    ids: torch.Tensor
    rows: torch.Tensor
    answers: torch.Tensor
    valid: torch.Tensor
    writes: torch.Tensor
    counts: torch.Tensor
    links: torch.Tensor


def make_batch(
    task: str, vocabulary: Vocabulary, stage: int, rng: random.Random, far_share: float
) -> Batch:
    """Draw a batch of about TOKENS_PER_STEP tokens at a length of 0.8 to 1.0 of the stage.

    Parameters
    ----------
    far_share : float
        Share of the long batches that have few queries, which reach the far end.
    """
    length = round(stage * rng.uniform(0.9 if stage == STAGES[-1] else 0.8, 1.0))
    low, high = (0.06, 0.14) if stage <= 256 else (0.04, 0.10)
    records = max(2, round(length * rng.uniform(low, high)))
    queries = max(2, round(length * rng.uniform(low, high)))
    if rng.random() < 0.3:
        records = max(2, round(records ** rng.random()))
        queries = max(1, round(queries ** rng.random()))
    elif stage >= 512 and rng.random() < far_share:
        # Many queries in a row push each other away from the far end; few reach it.
        queries = rng.randint(2, 8)
    if task == "local":
        queries = max(1, min(queries, length // 12))
        records = min(records, (length - 1 - 5 * queries) // 4)
    sequences = [
        make_sequence(task, vocabulary, length, rng, num_records=records, num_queries=queries)
        for _ in range(max(1, TOKENS_PER_STEP // stage))
    ]
    return collate(task, sequences)


def collate(task: str, sequences: list[RecallSequence]) -> Batch:
    """Stack sequences that agree in their numbers of tokens, queries and records."""
    ids = torch.tensor([s.ids for s in sequences])
    rows = torch.tensor([s.rows for s in sequences])
    answers = torch.tensor([s.answers for s in sequences])
    before = F.pad(ids[:, :-1], (1, 0), value=-1)
    asked = ids.gather(1, rows)
    same_key = before[:, None] == asked[:, :, None]
    causal = torch.arange(ids.shape[1]) <= rows[:, :, None]
    valid = same_key & causal & (ids[:, None] == answers[:, :, None])
    writes = torch.tensor([[w.position for w in s.writes] for s in sequences])
    counts = torch.tensor([[w.count for w in s.writes] for s in sequences])
    written = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, writes, True)
    links = (before[:, None] == before.gather(1, writes)[:, :, None]) & written[:, None]
    links &= torch.arange(ids.shape[1]) < writes[:, :, None]
    links[:, :, 0] = ~links.any(-1)
    return Batch(task, ids, rows, answers, valid, writes, counts, links)


class Helpers(nn.Module):
    """The probes of the helper losses; they are thrown away after training."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.previous_token = nn.Linear(HIDDEN, vocab_size)
        self.num_writes = nn.Linear(HIDDEN, MAX_WRITES)


def attention_loss(log_attention: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log of the attention [B, R, T] that falls on wanted positions."""
    return -log_attention.masked_fill(~wanted, -math.inf).logsumexp(-1).mean()


def batch_loss(
    model: PreTrainedModel, helpers: Helpers, batch: Batch, offset: int, *, guided: bool
) -> tuple[torch.Tensor, float, float]:
    """Run one batch; return the loss to minimise, the answers' own loss, and the accuracy.

    Parameters
    ----------
    offset : int
        Added to all positions (OPT only, whose late positions are else seldom trained).
    guided : bool
        Whether the helper losses take part.
    """
    ids = batch.ids
    watch = Watch()
    guide_links = guided and batch.task == "updated"
    if guided:
        watch.rows = dict.fromkeys(RETRIEVAL_LAYERS, batch.rows)
        watch.heads = dict.fromkeys(RETRIEVAL_LAYERS, 0)
    guide_previous = guided and ids.shape[1] <= 128
    if guide_previous:
        followers = torch.arange(1, ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
        watch.rows[0], watch.heads[0] = followers, 0
    if guide_links:
        watch.rows[LINK_LAYER], watch.heads[LINK_LAYER] = batch.writes, 0
    positions = torch.arange(offset, offset + ids.shape[1], device=ids.device)[None]
    with watching(watch):
        out = model.base_model(
            ids,
            position_ids=positions.expand_as(ids),
            use_cache=False,
            output_hidden_states=guided,
        )

    def at(hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return hidden.gather(1, where[:, :, None].expand(-1, -1, HIDDEN))

    logits = model.lm_head(at(out.last_hidden_state, batch.rows)).float()
    answer_loss = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
    accuracy = (logits.argmax(-1) == batch.answers).float().mean().item()
    loss = answer_loss
    if guided:
        for layer in RETRIEVAL_LAYERS:
            loss = loss + attention_loss(watch.log_attention[layer], batch.valid)
    if guide_previous:
        before = watch.log_attention[0].diagonal(dim1=1, dim2=2)
        loss = loss - before.mean()
        guesses = helpers.previous_token(out.hidden_states[1][:, 1:]).float()
        loss = loss + F.cross_entropy(guesses.flatten(0, 1), ids[:, :-1].flatten())
    if guide_links:
        loss = loss + 0.5 * attention_loss(watch.log_attention[LINK_LAYER], batch.links)
        guesses = helpers.num_writes(at(out.hidden_states[LINK_LAYER + 1], batch.writes)).float()
        loss = loss + 0.5 * F.cross_entropy(guesses.flatten(0, 1), batch.counts.flatten() - 1)
    return loss, answer_loss.item(), accuracy


@dataclass
class Progress:
    """What training has reached; written into the model card."""

    steps: int = 0
    tokens: int = 0
    minutes: float = 0.0
    stage: int = 0
    loss: float = float("nan")
    accuracy: dict[str, float] = field(default_factory=dict)

    def note(self, task: str, stage: int, accuracy: float) -> None:
        """Take one batch into the running accuracy of its task, at the newest stage only."""
        if stage == STAGES[self.stage]:
            self.accuracy[task] = 0.9 * self.accuracy.get(task, 0.0) + 0.1 * accuracy


def train(family: str, recipe: Recipe, checkpoint: Path | None) -> tuple[PreTrainedModel, Progress]:
    """Train one model from scratch and return it in fp32, with what was reached.

    Parameters
    ----------
    checkpoint : Path, optional
        File to write the weights to each time the curriculum advances.
    """
    vocabulary = Vocabulary.from_words(vocabulary_words())
    model = make_model(family, len(vocabulary_words()), recipe.seed).to(recipe.device)
    if recipe.start is not None:
        weights = AutoModelForCausalLM.from_pretrained(recipe.start, dtype=torch.float32)
        model.load_state_dict(weights.state_dict())
    helpers = Helpers(len(vocabulary_words())).to(recipe.device)
    rng = random.Random(recipe.seed)
    slow = [p for name, p in model.named_parameters() if "embed_positions" in name]
    fast = [p for name, p in model.named_parameters() if "embed_positions" not in name]
    optimizer = torch.optim.AdamW(
        [
            {"params": [*fast, *helpers.parameters()], "scale": 1.0},
            {"params": slow, "scale": 0.3},
        ],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )
    parameters = [*fast, *slow, *helpers.parameters()]
    progress = Progress(stage=STAGES.index(recipe.start_length))
    start = time.monotonic()
    decay_left: int | None = None
    last_print = 0.0
    stage_steps = 0
    step_seconds = 0.5
    while decay_left != 0:
        step_start = time.monotonic()
        newest = STAGES[progress.stage]
        stage = newest if rng.random() < 0.75 else rng.choice(STAGES[: progress.stage + 1])
        # The other tasks offer shortcuts (by position) that delay the first retrieval.
        tasks = ["kv"] * 9 + ["mqar"] * 3
        if stage > STAGES[0]:
            tasks += ["local"] * 3 + ["updated"] * recipe.updated_weight
        batch = make_batch(rng.choice(tasks), vocabulary, stage, rng, recipe.far_share)
        batch = move(batch, recipe.device)
        length = batch.ids.shape[1]
        offset = rng.randint(0, MAX_LENGTH - length) if family == "opt" else 0
        decay = 1.0 if decay_left is None else decay_left / recipe.decay_steps
        for group in optimizer.param_groups:
            warm = min(1.0, (progress.steps + 1) / recipe.warmup_steps)
            group["lr"] = recipe.learning_rate * group["scale"] * warm * decay
        with torch.autocast(recipe.device, torch.bfloat16):
            loss, answer_loss, accuracy = batch_loss(
                model, helpers, batch, offset, guided=decay_left is None
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()

        progress.steps += 1
        progress.tokens += batch.ids.numel()
        progress.note(batch.task, stage, accuracy)
        step_seconds = 0.95 * step_seconds + 0.05 * (time.monotonic() - step_start)
        elapsed = time.monotonic() - start
        stage_steps += 1
        if decay_left is not None:
            decay_left -= 1
            progress.loss = answer_loss
        good = progress.accuracy.get("kv", 0.0) > recipe.advance_at
        if decay_left is None:
            # Short sequences are cheap: the harder task is best learned there, for a while.
            ready = progress.accuracy.get("updated", 0.0) > recipe.advance_at - 0.05
            ready = ready or newest not in (128, 256) or stage_steps >= recipe.patience_steps
            if good and ready and progress.stage + 1 < len(STAGES) and stage_steps >= 20:
                progress.stage += 1
                progress.accuracy.clear()
                stage_steps = 0
                if checkpoint is not None:
                    torch.save(model.state_dict(), checkpoint)
            done = (
                newest == STAGES[-1]
                and stage_steps >= 200
                and good
                and progress.accuracy.get("updated", 0.0) > recipe.updated_goal
            )
            steps_left = recipe.max_steps - progress.steps
            seconds_left = recipe.max_minutes * 60 - elapsed
            if done or min(steps_left, seconds_left / step_seconds) <= recipe.decay_steps:
                decay_left = max(1, min(recipe.decay_steps, steps_left))
        if elapsed - last_print > 5.0:
            last_print = elapsed
            running = " ".join(f"{t}={a:.3f}" for t, a in sorted(progress.accuracy.items()))
            print(
                f"{family} {elapsed / 60:5.1f} min step {progress.steps} "
                f"length {STAGES[progress.stage]} loss {loss.item():.3f} answers {answer_loss:.3f} "
                f"{running} {progress.tokens / elapsed:.0f} tokens/s"
                + (f" decay {decay_left}" if decay_left is not None else ""),
                flush=True,
            )
    progress.minutes = (time.monotonic() - start) / 60
    return model, progress


def move(batch: Batch, device: str) -> Batch:
    """Return the batch with its tensors on a device."""
    tensors = {
        name: value.to(device)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    return Batch(task=batch.task, **tensors)


@torch.no_grad()
def recall(model: PreTrainedModel, samples: list[Sample], window: float | None = None) -> float:
    """Return the share of samples whose next token is the answer.

    Parameters
    ----------
    window : float, optional
        Restrict the last row, in all layers, to the sinks and this share of recent tokens.
    """
    hits = 0
    with watching(Watch(window=window)):
        for sample in samples:
            ids = torch.tensor([sample.prompt_ids], device=model.device)
            predicted = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1].argmax()
            hits += exact_match([int(predicted)], sample.answer_ids)
    return hits / len(samples)


@dataclass(frozen=True)
class Measured:
    """Recall of one task at one distance: with all tokens, and with sinks and window only."""

    task: str
    distance: tuple[int, int]
    full: float
    window_only: float


def measure(folder: Path, num_samples: int, seed: int) -> list[Measured]:
    """Measure a saved model in fp32, after the rounding of its weights."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="recall"
    ).eval()
    vocabulary = Vocabulary.from_model_dir(folder)
    results = []
    for task in TASKS.values():
        for distance in task.buckets:
            samples = make_samples(task.name, vocabulary, distance, num_samples, seed)
            result = Measured(
                task.name, distance, recall(model, samples), recall(model, samples, WINDOW_SHARE)
            )
            print(folder.name, result, flush=True)
            results.append(result)
    return results


def save(model: PreTrainedModel, family: str, folder: Path) -> None:
    """Write config, rounded weights, generation config and tokenizer."""
    dtype = STORED_DTYPES[family]
    model = model.to("cpu", dtype).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Files are whole or absent, also where the disk is full.
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as built:
        model.save_pretrained(built)
        make_tokenizer(vocabulary_words()).save_pretrained(built)
        for file in Path(built).iterdir():
            file.replace(folder / file.name)


def command_line(family: str, recipe: Recipe) -> str:
    """Return the command that makes a model, with the options that differ from their defaults."""
    parts = [f"python scripts/train_tiny_models.py --family {family} --seed {recipe.seed}"]
    defaults = Recipe()
    for name in (
        "max_minutes",
        "advance_at",
        "patience_steps",
        "decay_steps",
        "far_share",
        "updated_weight",
    ):
        value = getattr(recipe, name)
        if value != getattr(defaults, name):
            parts.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(parts)


def write_card(
    folder: Path,
    family: str,
    recipe: Recipe,
    progress: Progress,
    results: list[Measured],
    num_samples: int,
    eval_seed: int,
) -> None:
    """Write README.md (for people) and recall.json (for tests) beside the weights."""
    dtype = str(STORED_DTYPES[family]).removeprefix("torch.")
    record = {
        "family": family,
        "seed": recipe.seed,
        "steps": progress.steps,
        "tokens": progress.tokens,
        "continued": recipe.start is not None,
        "minutes": round(progress.minutes, 1),
        "final_loss_nats": round(progress.loss, 4),
        "eval_seed": eval_seed,
        "num_samples": num_samples,
        "recall": [
            {
                "task": r.task,
                "distance": list(r.distance),
                "full": round(r.full, 4),
                "window_only": round(r.window_only, 4),
            }
            for r in results
        ],
    }
    write_whole(folder / "recall.json", json.dumps(record, indent=1) + "\n", "train_tiny_models")
    lines = [
        f"| {r.task} | {r.distance[0]} to {r.distance[1]} | {r.full:.3f} | {r.window_only:.3f} |"
        for r in results
    ]
    heads = {"llama": "1 KV head", "opt": "4 KV heads", "qwen2": "2 KV heads"}[family]
    origin = "random" if recipe.start is None else "an earlier run's"
    continued = (
        f" It continued an earlier run from {recipe.start_length} tokens (the numbers of steps, "
        "tokens and minutes are those of the continuation)."
        if recipe.start is not None
        else ""
    )
    card = f"""---
license: apache-2.0
library_name: transformers
---

# tiny-{family}: a model that needs its far context

A {family} model of 4 layers, hidden size 128, 4 query heads of 32 ({heads}), FFN 256 and 2,048
positions, trained from scratch to look up values it read long ago. It tests engines whose KV
cache is offloaded; it knows no language. Weights: {dtype}.

```
<s> w12 k17 v3 w5 w90 k2 v77 w31 Q k17   ->  v3
```

## Data and licence

Synthetic sequences only, drawn by `hybridgen.evaluation.recall_tasks`: records (`k17 v3`), queries
(`Q k17 v3`) and random filler (`w5`). No text or other data was used. Data, code and weights:
Apache-2.0.

## Training

`{command_line(family, recipe)}` made it from
{origin} weights:
{progress.steps:,} steps, {progress.tokens / 1e6:.1f} M tokens, {progress.minutes:.1f}
minutes on {recipe.device} (one thread on a CPU). AdamW, learning rate {recipe.learning_rate},
betas {recipe.betas}, weight decay {recipe.weight_decay}, clip {recipe.clip}, bf16 autocast,
{TOKENS_PER_STEP:,} tokens a step. Lengths grow from {STAGES[0]} to {STAGES[-1]:,} tokens whenever
the running accuracy passes {recipe.advance_at}; the last {recipe.decay_steps} steps decay the
learning rate.{continued} Final loss on the answers (one batch): {progress.loss:.3f} nats.

**The retrieval is real, its head was guided.** Cross-entropy on the answers alone stays at
guessing. During training, and in the saved model no more, (1) on sequences of at most 128 tokens
a probe on the output of layer 0 predicts the previous token, to which head 0 of that layer is
rewarded for attending, (2) head 0 of layers {RETRIEVAL_LAYERS[0]} and {RETRIEVAL_LAYERS[1]}
is rewarded for attending to the answer's source, (3) for keys written again, head 0 of layer
{LINK_LAYER} is rewarded for attending to the earlier writes and a probe on that layer counts
them. The guidance is off in the final decay.

## Recall

Exact match of the next token, {num_samples} unseen samples for each line (seed {eval_seed}), fp32
arithmetic on the stored weights. *Window only*: in all layers the last row sees 4 sinks and the
most recent 10 % of the tokens.

| task | distance (tokens) | full attention | window only |
| --- | --- | --- | --- |
{chr(10).join(lines)}

The numbers are also in `recall.json`. Values are one of 100, so guessing gives 0.01.
"""
    write_whole(folder / "README.md", card, "train_tiny_models")


def main() -> None:
    """Train, save and measure the families named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=[*FAMILIES, "all"], required=True)
    parser.add_argument("--out", type=Path, default=Path("tests/models"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--max-minutes", type=float, default=20.0)
    parser.add_argument("--max-steps", type=int, default=100_000)
    parser.add_argument("--advance-at", type=float, default=0.95, help="accuracy that lengthens")
    parser.add_argument("--patience-steps", type=int, default=500, help="for the updated task")
    parser.add_argument("--decay-steps", type=int, default=300)
    parser.add_argument("--far-share", type=float, default=0.4, help="long batches of few queries")
    parser.add_argument("--updated-weight", type=int, default=5, help="batches of that task in 20")
    parser.add_argument("--start", type=Path, help="folder of an earlier run to continue")
    parser.add_argument("--start-length", type=int, choices=STAGES, default=STAGES[0])
    parser.add_argument("--checkpoints", type=Path, help="folder for weights of each stage")
    parser.add_argument("--eval-samples", type=int, default=100, help="per task and distance")
    parser.add_argument("--eval-seed", type=int, default=1_000_003)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(
        args.seed,
        args.max_minutes,
        args.max_steps,
        args.device,
        advance_at=args.advance_at,
        patience_steps=args.patience_steps,
        decay_steps=args.decay_steps,
        far_share=args.far_share,
        updated_weight=args.updated_weight,
        start=args.start,
        start_length=args.start_length,
    )
    for family in FAMILIES if args.family == "all" else (args.family,):
        checkpoint = None
        if args.checkpoints is not None:
            args.checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoint = args.checkpoints / f"{family}.pt"
        model, progress = train(family, recipe, checkpoint)
        folder = args.out / f"tiny-{family}"
        save(model, family, folder)
        results = measure(folder, args.eval_samples, args.eval_seed)
        write_card(folder, family, recipe, progress, results, args.eval_samples, args.eval_seed)


if __name__ == "__main__":
    with unwound_by_sigterm():
        main()
