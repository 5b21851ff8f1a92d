"""What a retriever is trained on: one pool of demonstrations, the tasks in it, and which rows serve as queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit.datasets import Task
from iclkit.errors import DataError
from iclkit.pool import Pool, PoolView
from iclkit.prompts import Template, infer_labels
from iclkit.records import Example, digest, fold_text
from iclkit.trainers._config import TrainConfig

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class TaskData:
    """One task's part in a training. All rows are rows of the corpus's view.

    ``rows``: demonstrations. ``queries``: rows that are training queries. ``held_out``: rows that are queries for early
    stopping. ``report``: examples that are queries of the report, test rows where the task has them; no training query
    is among either.
    """

    name: str
    template: Template
    labels: tuple[str, ...]
    instruction: str
    rows: IntArray
    queries: IntArray
    held_out: IntArray
    report: tuple[Example, ...]
    hash: str
    licence: str = ""
    """What the data set says of its license."""
    source: str = ""
    """Where the data set is from, as it says."""


@dataclass(frozen=True)
class TrainingData:
    """A view of all demonstrations, and the tasks in it."""

    view: PoolView
    tasks: tuple[TaskData, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        """The demonstrations, one per row."""
        return self.view.examples

    def inputs(self) -> list[str]:
        """Folded inputs, one per row: equal ones are the same question."""
        return [fold_text(e.text) for e in self.examples]

    def task_numbers(self) -> IntArray:
        """(n,) number of each row's task."""
        numbers = np.full(len(self.view), -1, dtype=np.int64)
        for n, task in enumerate(self.tasks):
            numbers[task.rows] = n
        return numbers

    @property
    def has_held_out(self) -> bool:
        """Whether some task has held-out queries, by which models can be evaluated."""
        return any(len(task.held_out) for task in self.tasks)


def corpus_of_tasks(
    tasks: Sequence[Task], config: TrainConfig, pool_file: Path | str = ":memory:", *, chat: bool = False
) -> TrainingData:
    """The train rows of some tasks in one pool; test rows (else train rows set apart) are for the report.

    ``chat``: prompts are chat turns, in the LM's own chat template.

    DataError when two tasks have one name, or a task has too few rows to learn from.
    """
    names = [t.name for t in tasks]
    if len({*names}) < len(names):
        raise DataError(f"two tasks are named {next(n for n in names if names.count(n) > 1)!r}; give each once")
    pool = Pool.open(pool_file)
    for task in tasks:
        pool.add(task.train)
    view, parts, taken = pool.view(), list[TaskData](), set[int]()
    for task in tasks:
        known = {*view.positions_of_ids(e.id for e in task.train)}
        rows = np.array(sorted(known - taken), dtype=np.int64)
        taken.update(rows.tolist())
        template = _shown(task.template, chat)
        parts.append(_task_data(task.name, template, task.labels, task.card.description, view, rows, config, task))
    return TrainingData(view, tuple(parts))


def corpus_of_pool(
    view: PoolView,
    config: TrainConfig,
    *,
    template: Template | None = None,
    instructions: Mapping[str, str] | None = None,
    chat: bool = False,
) -> TrainingData:
    """A pool's examples, by the task named in each. Outputs that come often enough are taken as labels."""
    by_task: dict[str, list[int]] = {}
    for row, example in enumerate(view.examples):
        by_task.setdefault(example.task, []).append(row)
    parts = []
    for name, numbers in by_task.items():
        labels = infer_labels(view.examples[r].output for r in numbers)
        instruction = (instructions or {}).get(name, "")
        rows = np.array(numbers, dtype=np.int64)
        shown = _shown(template or Template(), chat)
        parts.append(_task_data(name or "pool", shown, labels, instruction, view, rows, config, None))
    if not parts:
        raise DataError("the pool is empty; add examples with: iclkit pool add POOL FILE")
    return TrainingData(view, tuple(parts))


def _task_data(
    name: str,
    template: Template,
    labels: tuple[str, ...],
    instruction: str,
    view: PoolView,
    rows: IntArray,
    config: TrainConfig,
    task: Task | None,
) -> TaskData:
    """Draw the queries: by a hash of the data seed and content, so that a pool that grows keeps most of them."""
    order = sorted(rows.tolist(), key=lambda r: _draw(config.data_seed, view.examples[r]))
    seen, distinct = set[str](), list[int]()
    for row in order:
        folded = fold_text(view.examples[row].text)
        if folded not in seen:
            seen.add(folded)
            distinct.append(row)
    has_test = task is not None and bool(task.test)
    set_apart = config.held_out + (0 if has_test else config.report)
    wanted = config.queries or max(0, len(distinct) - set_apart)
    if len(distinct) < set_apart + 8:
        raise DataError(
            f"task {name!r} has {len(distinct)} different inputs; {set_apart} are set apart for evaluation, and at "
            f"least 8 more are needed to learn from; add examples, or lower held_out and report"
        )
    held_out, rest = distinct[: config.held_out], distinct[config.held_out :]
    report = _sample(task.test, config.report, config.data_seed) if task is not None and has_test else ()
    if not has_test:
        report, rest = tuple(view.examples[r] for r in rest[: config.report]), rest[config.report :]
    return TaskData(
        name,
        template,
        labels,
        " ".join(instruction.split()) or name,
        rows,
        np.array(rest[:wanted], dtype=np.int64),
        np.array(held_out, dtype=np.int64),
        report,
        task.hash if task is not None else digest([view.examples[r].id for r in rows.tolist()]),
        task.card.licence if task is not None else "",
        task.card.source if task is not None else "",
    )


def _shown(template: Template, chat: bool) -> Template:
    """The template that the LM is asked with; a system message is for chats alone."""
    return replace(template, chat=chat, system=template.system if chat else "")


def _sample(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """``count`` of the examples by a hash of seed and content, in their order, however the file is sorted."""
    drawn = sorted(range(len(examples)), key=lambda n: (_draw(seed, examples[n]), n))[:count]
    return tuple(examples[n] for n in sorted(drawn))


def _draw(seed: int, example: Example) -> str:
    return digest([seed, example.id], 8)
