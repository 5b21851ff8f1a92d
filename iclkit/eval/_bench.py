"""A task made ready to be judged: queries, what must not be shown to them, right answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from iclkit.augment import generated
from iclkit.datasets import Task, find_leaks, sample_rows
from iclkit.errors import DataError, LeakError, UsageError
from iclkit.models import home
from iclkit.pool import Pool, PoolView
from iclkit.predictors import TaskContext, leave_one_out
from iclkit.records import Example, Json, Query, digest, unique_names

ON_LEAK = ("exclude", "stop", "ignore")


@dataclass(frozen=True)
class Bench:
    """A task made ready to be judged: its pool, the queries with what must not be shown to them, the right answers.

    ``leaks`` is what the firewall found: counts by kind, and what was done about it. ``drawn`` tells other queries than
    the first of the test rows, as a part of a run's identity: ``{"sample": seed}``, or ``{"rows": hash}``. A query, its
    right answer and its place are one row, by position; ids of queries are unique (the second of one id ends in
    ``#2``), so that what is kept by id is kept by row.
    """

    task: Task
    view: PoolView
    queries: tuple[Query, ...]
    golds: tuple[str, ...]
    on_leak: str = "exclude"
    leaks: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    """Where ``task`` and ``pool`` were read from, for a later command; not part of a run's identity."""
    drawn: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[str, ...] = field(default=(), repr=False)
    """Where each query was read, as far as known; for messages."""
    conditions: Mapping[str, Json] = field(default_factory=dict)
    """What was done to task or pool, by name (``noise``: 0.2): a part of the identity; boards compare along it."""
    meta: tuple[Mapping[str, Json], ...] = field(default=(), repr=False)
    """Metadata of each query, as far as known; for reports."""

    def __post_init__(self) -> None:
        names = unique_names(q.id for q in self.queries)
        if any(q.id != name for q, name in zip(self.queries, names, strict=True)):
            queries = tuple(replace(q, id=name) for q, name in zip(self.queries, names, strict=True))
            object.__setattr__(self, "queries", queries)
        if len(self.queries) != len(self.golds):
            raise DataError(f"{len(self.queries)} queries and {len(self.golds)} right answers; give one for each")

    @cached_property
    def context(self) -> TaskContext:
        """What a predictor may know of it."""
        task, view = self.task, self.view
        shown = (*view.examples, *task.train) if self.writes else ()
        return TaskContext(
            name=task.name,
            kind=task.kind,
            labels=task.labels,
            template=task.template,
            view=view,
            answers=frozenset((*task.labels, *(c for q in self.queries for c in q.choices))),
            outputs=tuple(dict.fromkeys(e.output for e in shown)),
            answer_tokens=task.max_answer_tokens,
        )

    @property
    def writes(self) -> bool:
        """Whether answers are written, and not chosen among labels or choices."""
        return not self.task.labels and self.task.kind != "multiple_choice"


def task_pool(task: Task) -> Pool:
    """The pool of a task's train rows, kept under ``home()/pools`` so that its vectors are computed once."""
    folder = home() / "pools"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot keep pools in {folder} ({error.strerror}); set ICLKIT_HOME to a writable folder"
        ) from error
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in task.name)
    pool = Pool.open(folder / f"{safe}-{digest([e.id for e in task.train], 6)}.db")
    if len(pool) == 0:
        pool.add(task.train)
    return pool


def make_bench(
    task: Task,
    pool: Pool | PoolView | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    first: int | None = None,
    on_leak: str = "exclude",
) -> Bench:
    """A task's test rows against a pool (None: the task's own, kept with its vectors).

    ``limit``: so many test rows, drawn by ``seed`` and in their old order, as ``load_task`` draws them; a smaller
    limit's rows are among a larger one's. ``first``: the first rows of the file instead, whatever its order. Pool
    examples whose input is that of a test row, exactly, normalized or nearly, are leaks: ``exclude`` keeps each from
    the query it gives away, ``stop`` raises LeakError, ``ignore`` leaves them to be shown. DataError for an empty pool,
    and for test rows that a model wrote (see ``iclkit.augment``); UsageError for a limit below 1, for both limits
    together, or for an unknown policy.
    """
    if on_leak not in ON_LEAK:
        raise UsageError(f"on_leak is {on_leak!r}; choose from {', '.join(ON_LEAK)}")
    if limit is not None and first is not None:
        raise UsageError(f"limit is {limit} and first is {first}; give one of them")
    for name, count in (("limit", limit), ("first", first)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}; it must be at least 1")
    pool = task_pool(task) if pool is None else pool
    view = pool.view() if isinstance(pool, Pool) else pool
    if not len(view):
        raise DataError(f"the pool for task {task.name!r} is empty; add examples with: iclkit pool add POOL FILE")
    rows = sample_rows(
        [*zip(task.queries("test"), task.test, task.places_of(task.test), strict=True)][:first], limit, seed=seed
    )
    queries, examples = [q for q, _, _ in rows], [e for _, e, _ in rows]
    if made := generated(examples):
        raise DataError(
            f"{len(made)} of {len(rows)} test rows of {task.name!r} were written by a model "
            f"(meta.generated: {made[0].meta['generated']}): agreeing with it is not being right; take them out of the "
            f"test rows, or take `generated` out of their meta if people have checked them"
        )
    leaks = find_leaks(view.examples, queries)
    kinds = Counter(leak.kind for leak in leaks)
    facts = {"policy": on_leak, "pairs": dict(kinds), "queries": len({leak.test_id for leak in leaks})}
    if leaks and on_leak == "stop":
        found = leaks[0]
        raise LeakError(
            f"{facts['queries']} of {len(queries)} test rows of {task.name!r} stand in the pool, e.g. row "
            f"{found.test_id} as example {found.example_id} ({found.kind}); remove them with iclkit pool rm, "
            f"or use --on-leak exclude"
        )
    hidden: dict[str, set[str]] = {}
    for leak in leaks if on_leak == "exclude" else ():
        hidden.setdefault(leak.test_id, set()).add(leak.example_id)
    return Bench(
        task,
        view,
        tuple(replace(q, exclude=q.exclude | frozenset(hidden.get(q.id, ()))) for q in queries),
        tuple(e.output for e in examples),
        on_leak,
        facts,
        drawn={"sample": seed} if len(rows) < len(task.test) and first is None else {},
        places=tuple(place for _, _, place in rows),
        meta=tuple(e.meta for _, e, _ in rows),
    )


def pool_bench(bench: Bench, examples: Sequence[Example]) -> Bench:
    """The same task and pool with examples as queries, each kept from seeing itself and its doubles."""
    queries, golds = leave_one_out(bench.view, examples), tuple(e.output for e in examples)
    drawn = {"rows": digest([q.id for q in queries], 8)}
    return replace(bench, queries=queries, golds=golds, leaks={}, drawn=drawn, places=(), meta=())
