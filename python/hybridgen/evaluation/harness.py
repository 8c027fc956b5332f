# SPDX-License-Identifier: Apache-2.0
"""Run tasks with lm-evaluation-harness on an LLM: what came out, how sure, and where tokens were.

Needs the package lm_eval. Tasks of our own (`TASKS`) are generated and need no network; those of
the harness, and the paper's four, fetch their data from the Hub.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._checks import as_int
from ..errors import ConfigError
from ..integrations.lm_eval import HybridGenLM
from ..llm import LLM

TASKS = Path(__file__).parent / "tasks"
"""Folder of our tasks: YAML files in the harness's format."""
BOOTSTRAPS = 1000
"""Draws for the standard error of a metric that is no mean."""
TASK_OPTIONS = ("count", "seed", "tokens", "words")
"""Of our generated tasks."""
SEED = 1234
"""Of the choice of examples before a question."""
_OF_CHANCE = ("acc", "acc_norm", "score")
"""Metrics that guessing gives the chance of a document in."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One metric of a task.

    Parameters
    ----------
    task, metric : str
        Names; a filter of the task that is not "none" stands behind the metric's.
    value : float
        As the task has it, mostly a share.
    standard_error : float or None
        None where the harness has none for this metric.
    n : int
        Questions.
    shots : int
        Examples before each.
    chance : float or None
        What guessing gives, where it is known.
    tokens : float
        Prompt and answer, per request.
    offloaded_share, dropped_share : float
        Of these tokens, at the end of their requests: in host memory; given up for good.
    attended_offloaded_share : float
        Part of the offloaded tokens that entered the softmax, averaged over requests.
    """

    task: str
    metric: str
    value: float
    standard_error: float | None
    n: int
    shots: int
    chance: float | None
    tokens: float
    offloaded_share: float
    dropped_share: float
    attended_offloaded_share: float

    @property
    def at_chance(self) -> bool:
        """Whether the value is no more than two standard errors above guessing."""
        if self.chance is None:
            return False
        return self.value <= self.chance + 2 * (self.standard_error or 0.0)


@dataclass(frozen=True)
class Evaluation:
    """What all tasks came to.

    Parameters
    ----------
    model, method : str
        Names.
    results : list of TaskResult
        In the order of the tasks.
    """

    model: str
    method: str
    results: list[TaskResult]

    def to_json(self) -> str:
        """Return everything as JSON."""
        rows = [asdict(row) | {"at_chance": row.at_chance} for row in self.results]
        content = {"model": self.model, "method": self.method, "results": rows}
        return json.dumps(content, indent=2)

    def __str__(self) -> str:
        lines = [f"{self.model}, method {self.method}, scored through decode"]
        width = max((len(row.task) for row in self.results), default=4)
        lines.append(
            f"{'task':{width}}  {'metric':16}  {'value':>15}  {'n':>5}  {'shots':>5}  "
            f"{'chance':>6}  {'tokens':>6}  {'offloaded':>9}  {'attended':>8}  {'dropped':>7}"
        )
        for row in self.results:
            error = "n/a" if row.standard_error is None else f"{row.standard_error:.3f}"
            chance = "n/a" if row.chance is None else f"{row.chance:.3f}"
            lines.append(
                f"{row.task:{width}}  {row.metric:16}  {f'{row.value:.3f} ± {error}':>15}  "
                f"{row.n:5}  {row.shots:5}  {chance:>6}  {row.tokens:6.0f}  "
                f"{row.offloaded_share:9.1%}  {row.attended_offloaded_share:8.1%}  "
                f"{row.dropped_share:7.1%}"
            )
        low = dict.fromkeys(row.task for row in self.results if row.at_chance)
        if low:
            lines.append(
                f"no better than chance: {', '.join(low)}. If it is the same with --method full, "
                "this model is too small for the task, which then says nothing of a method"
            )
        return "\n".join(lines)


def task_names() -> list[str]:
    """Return the names of our tasks and of the sets of them."""
    return _manager(False, None, None).all_tasks


def load_tasks(
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    task_options: Mapping[str, Any] | None = None,
    include_path: str | Path | None = None,
) -> dict[str, Any]:
    """Find tasks and get their data, before any model is needed.

    Parameters
    ----------
    tasks : list of str
        Names of ours (`task_names`), of lm-evaluation-harness, or paths of YAML files.
    num_fewshot : int, optional
        Examples before each question, other than the task says; those that allow none have none.
    task_options : dict, optional
        Of generated tasks: ``count``, ``seed``, and ``tokens`` (recall) or ``words`` (text).
    include_path : str or Path, optional
        Folder with more tasks.

    Returns
    -------
    dict
        For `evaluate`: the harness's tasks.

    Raises
    ------
    ConfigError
        For a name that nobody knows, and for options that its documents do not allow.
    OSError
        If the data of a task cannot be fetched.
    """
    if num_fewshot is not None:
        as_int("eval", "num_fewshot", num_fewshot, 0)
    manager = _manager(False, include_path, task_options)
    are_ours = include_path is None and set(tasks) <= set(manager.all_tasks)
    if are_ours and (unread := set(task_options or {}) - set(TASK_OPTIONS)):
        raise ConfigError(
            f"[eval] task_options has {min(unread)!r}; allowed: {', '.join(TASK_OPTIONS)}"
        )
    if not _known(manager, tasks):  # the harness's own take seconds to list
        manager = _manager(True, include_path, task_options)
    for name in tasks:
        if not _known(manager, [name]):
            raise ConfigError(
                f"[eval] tasks has {name!r}; allowed: {', '.join(task_names())}, a name that "
                "lm-evaluation-harness knows, or a YAML file of a task"
            )
    # It advises options of its own command line.
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)
    try:
        loaded: dict[str, Any] = manager.load(list(dict.fromkeys(tasks)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[eval] {', '.join(tasks)} cannot be made: {error}") from error
    for task in loaded["tasks"].values():
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(SEED)
    return loaded


def evaluate(llm: LLM, tasks: Mapping[str, Any], *, limit: int | None = None) -> Evaluation:
    """Run tasks.

    Parameters
    ----------
    llm : LLM
        With the method that is to be judged.
    tasks : dict
        From `load_tasks`.
    limit : int, optional
        Questions of each task at most.

    Raises
    ------
    ConfigError, GenerationError, OutOfMemoryError
        As `LLM.score` and `LLM.generate`.
    """
    from lm_eval.evaluator import evaluate as run_harness

    if limit is not None:
        as_int("eval", "limit", limit, 1)
    model = HybridGenLM(llm)
    found = run_harness(model, dict(tasks), limit=limit, bootstrap_iters=BOOTSTRAPS)
    results = [
        row for name in tasks["tasks"] for row in _results_of(name, found, model.tallies[name])
    ]
    return Evaluation(str(llm.path or "model"), llm.engine_options.method, results)


def _manager(defaults: bool, include: str | Path | None, options: Any) -> Any:
    from lm_eval.tasks import TaskManager

    folders = [str(TASKS), *([] if include is None else [str(include)])]
    metadata = dict(options or {})
    return TaskManager(include_path=folders, include_defaults=defaults, metadata=metadata)


def _known(manager: Any, tasks: Sequence[str]) -> bool:
    known = set(manager.all_tasks)
    return all(name in known or Path(name).is_file() for name in tasks)


def _results_of(name: str, found: Mapping[str, Any], tally: Any) -> list[TaskResult]:
    """Return the metrics of a task, each with what the engine counted."""
    values = found["results"][name]
    chance = _chance_of(found["samples"][name])
    rows = []
    for key, value in values.items():
        metric, comma, by = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{by}")
        rows.append(
            TaskResult(
                task=name,
                metric=metric if by == "none" else f"{metric} ({by})",
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                n=found["n-samples"][name]["effective"],
                shots=found["n-shot"][name],
                chance=chance if metric in _OF_CHANCE else None,
                tokens=tally.tokens / tally.requests,
                offloaded_share=tally.offloaded / tally.tokens,
                dropped_share=tally.dropped / tally.tokens,
                attended_offloaded_share=tally.attended / tally.requests,
            )
        )
    return rows


def _chance_of(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Return what guessing gives: as documents say, or one of the answers that are to choose."""
    shares = []
    for sample in samples:
        if "chance" in sample["doc"]:
            shares.append(float(sample["doc"]["chance"]))
        elif "acc" in sample["metrics"] and len(sample["arguments"]) > 1:
            shares.append(1 / len(sample["arguments"]))
        else:
            return None
    return sum(shares) / len(shares) if shares else None
