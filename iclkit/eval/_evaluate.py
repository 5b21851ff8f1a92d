"""One task and one predictor: a Run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

from iclkit import __version__
from iclkit.datasets import Task
from iclkit.embed import EmbedderLike, Reranker
from iclkit.errors import DataError, NothingAnswered, UsageError
from iclkit.eval._bench import Bench, make_bench
from iclkit.eval._judge import Judge, prediction_of
from iclkit.eval._metrics import METRICS
from iclkit.eval._runs import RunStore, batches
from iclkit.lm import MinimalLM
from iclkit.pool import Pool, PoolView
from iclkit.predictors import CUT, NO_ANSWER, Predictor, Settings, Tools, make_predictor
from iclkit.prompts import Template
from iclkit.records import Example, Json, PoolPart, Progress, Query, Row, Run, RunSpec, Spec, TaskPart
from iclkit.selectors import Selector

ON_ERROR = ("record", "stop")
MANY_CUT = 0.05  # share of answers that end by length from which a figure may say more of the limit than of the LM


class SettingFields(TypedDict, total=False):
    """The fields of ``Settings``, as ``evaluate_task`` takes them."""

    k: int
    seed: int
    order: str
    budget: int | None
    normalize: str
    calibrate: str
    prior: Mapping[str, float] | None
    answer_tokens: int | None
    stop: Sequence[str] | None


def evaluate_task(
    task: Task | Bench,
    predictor: str | Spec | Selector,
    lm: MinimalLM | str | None = None,
    *,
    pool: Pool | PoolView | None = None,
    embedder: EmbedderLike | str | None = None,
    reranker: Reranker | str | None = None,
    template: Template | None = None,
    limit: int | None = None,
    on_leak: str = "exclude",
    on_error: str = "record",
    out: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Unpack[SettingFields],
) -> Run:
    """``evaluate`` in short: the bench, the tools and the predictor are made of what is given. Models may be named.

    ``predictor`` as in ``make_predictor``: a selector to prompt the LM with, or the name of another predictor. A
    ``Bench`` in place of the task brings pool, limit and leaks along. ``settings`` are those of ``Settings`` (k, seed,
    order, ...); ``limit`` and ``on_leak`` as in ``make_bench``. Errors: those of ``make_bench``, ``make_predictor`` and
    ``evaluate``.
    """
    check_on_error(on_error)
    bench = task if isinstance(task, Bench) else make_bench(task, pool, limit=limit, on_leak=on_leak)
    made = make_predictor(predictor, Tools(lm, embedder, reranker), Settings(**settings), template)
    return evaluate(bench, made, out=out, on_error=on_error, progress=progress)


def evaluate(
    bench: Bench,
    predictor: Predictor,
    *,
    out: str | Path | None = None,
    on_error: str = "record",
    progress: Progress | None = None,
    wait: bool = True,
) -> Run:
    """Predict and judge for every query of a bench.

    With ``out`` the run is kept in ``out/<run id>``: the same call again resumes it, or returns it at once when it is
    finished. A query that cannot be answered or judged (it does not fit the LM's context, a server refuses it, the
    metric raises) becomes a row with a ``failure``, and the run goes on; the same call again asks for those rows alone.
    With ``on_error`` "stop" the first of them is raised as a DataError.

    Several processes may share ``out``: of one run they make it once. One that finds another at work on it waits, and
    returns what that one made; with ``wait`` False it is RunBusy.

    Errors: NeedError and UsageError for what the predictor lacks; NothingAnswered when every query failed.
    """
    check_on_error(on_error)
    work = _Work(bench, predictor.fit(bench.context), on_error, progress)
    total, spec = len(bench.queries), run_spec(bench, predictor)
    if out is None:
        rows = work.finished([row for part in batches(total) for row in work.rows(part)])
        _must_have_answers(rows)
        return Run(spec, tuple(rows), dict(predictor.usage), _made() | work.facts(rows) | {"done": True})
    asked = [(q.id, gold) for q, gold in zip(bench.queries, bench.golds, strict=True)]
    with RunStore(out).open(spec, asked, wait=wait) as folder:
        again = [at for at, row in enumerate(folder.rows) if row.failure]
        if not folder.done or again:
            before, made = dict(folder.usage), _made(folder.facts if folder.rows else {})

            def save(*, done: bool) -> None:
                folder.usage = before | {k: before.get(k, 0) + value for k, value in predictor.usage.items()}
                folder.facts = made | work.facts(folder.rows if done else ())
                folder.save(done=done, texts=work.texts(folder.rows) if done else (), meta=work.meta())

            if not folder.done:  # a finished run with failed rows stays finished until they are asked again
                save(done=False)
            if folder.rows:
                work.step(len(folder.rows))
            for part in folder.todo:
                try:
                    folder.append(work.rows(part))
                finally:  # what was spent on rows that did not come to an end, too
                    save(done=False)
            rows = list(folder.rows)
            for part in batches(len(again)) if again else ():
                failed = again[part.start : part.stop]
                for at, row in zip(failed, work.rows(failed, steps=False), strict=True):
                    rows[at] = row
            rows = work.finished(rows)
            if rows != folder.rows:
                folder.rewrite(rows)
            _must_have_answers(rows)
            save(done=True)
        else:
            work.step(total)
        return Run(spec, tuple(folder.rows), folder.usage, folder.facts | {"done": True})


def _made(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """By which version and when; of a run that goes on, the version that began it."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"iclkit": (before or {}).get("iclkit", __version__), "date": date}


def check_on_error(on_error: str) -> None:
    """UsageError for what is no policy."""
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error is {on_error!r}; choose from {', '.join(ON_ERROR)}")


def run_spec(bench: Bench, predictor: Predictor) -> RunSpec:
    """Everything that determines a run's rows, of a predictor that was fitted to the bench."""
    task = bench.task
    return RunSpec(
        TaskPart(task.name, task.hash, task.kind, task.metric, task.labels, len(bench.queries), **bench.drawn),
        PoolPart(bench.view.hash, len(bench.view)),
        predictor.spec,
        predictor.parts,
        bench.conditions,
        bench.on_leak,
    )


class _Work:
    """The rows of a run, a batch of queries at a time."""

    def __init__(self, bench: Bench, predictor: Predictor, on_error: str, progress: Progress | None) -> None:
        self.bench, self.predictor, self.on_error, self.progress = bench, predictor, on_error, progress
        calibrated = run_spec(bench, predictor).calibrate != "none"
        self.judge = Judge(METRICS.get(bench.task.metric), calibrated)
        self.places = bench.places or ("",) * len(bench.queries)
        self._done = 0

    def rows(self, part: Sequence[int], *, steps: bool = True) -> list[Row]:
        """The rows of the queries at these positions, as ``finished`` wants them; ``steps``: count them as done."""
        predictions = self.predictor.predict([self.bench.queries[at] for at in part])
        golds, places = self.bench.golds, self.places
        rows = [self.judge.row(p, golds[at], places[at]) for p, at in zip(predictions, part, strict=True)]
        if steps:
            self.step(len(part))
        return self._checked(rows)

    def finished(self, rows: list[Row]) -> list[Row]:
        """All rows of the run, where the predictor looks at all of them. May be called on its result."""
        if not self.predictor.finishes:
            return rows
        before = [prediction_of(row) for row in rows]
        after = self.predictor.finish(before)
        return self._checked(
            [
                row if new is old else self.judge.again(row, new, place)
                for row, old, new, place in zip(rows, before, after, self.places, strict=True)
            ]
        )

    def facts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What a reader of the run should know; counts of what stands in its rows, once they are all there."""
        facts: dict[str, Any] = {"leaks": self.bench.leaks, **self.predictor.facts, "source": self.bench.source}
        return facts | (_counts(rows) if rows else {})

    def texts(self, rows: Sequence[Row]) -> list[Query | Example]:
        """Queries and shown examples, for the reports."""
        shown = dict.fromkeys(example_id for row in rows for example_id in row.shown)
        return [*self.bench.queries, *self.bench.view.examples_of(shown)]

    def meta(self) -> dict[str, Mapping[str, Json]]:
        """What is known of queries beside their inputs, for the reports."""
        return {q.id: meta for q, meta in zip(self.bench.queries, self.bench.meta, strict=False) if meta}

    def step(self, count: int) -> None:
        """Count queries as done."""
        self._done += count
        if self.progress:
            self.progress(self._done, len(self.bench.queries))

    def _checked(self, rows: list[Row]) -> list[Row]:
        if self.on_error == "stop" and (failure := next((row.failure for row in rows if row.failure), "")):
            raise DataError(failure)
        return rows


def _must_have_answers(rows: Sequence[Row]) -> None:
    """NothingAnswered, with the reason of the first, when every row failed."""
    if rows and all(row.failure for row in rows):
        raise NothingAnswered(f"none of {len(rows)} queries could be answered and judged: {rows[0].failure}")


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """What a reader of the run should know, counted over its rows."""
    ours = (NO_ANSWER, CUT)
    notes = [[n for n in row.notes if not n.startswith(ours)] for row in rows]
    counts = {
        "short": sum(map(bool, notes)),
        "dropped": sum(len(row.dropped) for row in rows),
        "note": next((n for own in notes for n in own), ""),
    }
    failed = [row.failure for row in rows if row.failure]
    more = {
        "no answer": sum(NO_ANSWER in row.notes for row in rows),
        "cut": sum(any(n.startswith(CUT) for n in row.notes) for row in rows),
        "failed": len(failed),
        "failure": failed[0] if failed else "",
    }
    return counts | {name: value for name, value in more.items() if value}


def cautions(runs: Sequence[Run]) -> list[str]:
    """What else a reader of the runs' figure must know, in sentences; empty for most runs."""

    def count(name: str) -> int:
        return sum(run.facts.get(name, 0) for run in runs)

    total, said = sum(run.spec.task.queries for run in runs), list[str]()
    if failed := count("failed"):
        reason = next(run.facts["failure"] for run in runs if run.facts.get("failed"))
        said.append(
            f"{failed} of {total} queries failed, the first with: {reason} (the same command asks for them again)"
        )
    if silent := count("no answer"):
        said.append(f"{silent} of {total} queries got no answer, which counts as wrong")
    if (cut := count("cut")) > MANY_CUT * total:
        bound = max(run.spec.answer_tokens or 0 for run in runs)
        said.append(
            f"{cut} of {total} answers ended by length, after {bound} tokens: give them more with --answer-tokens, or "
            f"an end with --stop"
        )
    return said
