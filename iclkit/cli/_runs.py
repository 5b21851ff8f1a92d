"""Runs as ``eval`` and ``demo`` make them: planned, their cost said, made with a bar each."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import task_file, tell_notes
from iclkit.cli._progress import run_bars
from iclkit.cli._tables import say
from iclkit.errors import DataError, NeedError, NothingAnswered, RunBusy, UsageError
from iclkit.secrets import redact

if TYPE_CHECKING:
    from iclkit.embed import Embedder
    from iclkit.eval import Bench, Grid, LeftOut, PlannedRun
    from iclkit.predictors import Tools
    from iclkit.records import CostEstimate, Run
    from iclkit.report import Board, Texts


def source_of(task: str, pool: Path | None = None, data: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Where a task and a pool are, for a later command in another folder, and the command that is running."""
    places = {"task": str(Path(task).resolve()) if Path(task).exists() else task}
    typed = click.get_current_context().find_root().obj.get("typed", ())
    places["command"] = redact(shlex.join(["iclkit", *typed]))
    described = task_file(task, data or {})
    if data or described.name:  # more than a name: where its rows are, and how they are read
        places["task_file"] = described.absolute().text()
    return places | ({"pool": str(pool.resolve())} if pool else {})


def read_runs(folders: Sequence[Path], *, whole: bool = False) -> tuple[list[Run], list[LeftOut], dict[str, str]]:
    """The runs in these folders, those that cannot be read, and the questions declared there, each at its first time.

    ``whole``: with the rows as they were recorded; else with what a board needs of them. Either way they are read when
    they are asked for. DataError when no run can be read.
    """
    from iclkit.eval import RunStore
    from iclkit.report import declared_questions, distinct_runs
    from iclkit.report import read_runs as read_stored

    stores = [RunStore(folder) for folder in folders]
    if whole:
        found = distinct_runs(replace(run, rows=rows) for store in stores for run, rows in store.each())
        lost = [problem for store in stores for problem in store.problems]
    else:
        found, lost = read_stored(stores)
    if not found:
        for one in lost[1:]:
            say(f"note: run {one.run} cannot be used: {one.reason}")
        raise DataError(f"no run in {', '.join(map(str, folders))} can be read; the first: {lost[0].reason}")
    return found, lost, declared_questions(stores)


def write_page(path: Path, board: Board, runs: Sequence[Run], texts: Texts, title: str = "") -> None:
    """Write the board as a page for a browser, and say so. UsageError when it cannot be written."""
    from iclkit.report import to_html

    page = to_html(board, runs, texts, title=title) if title else to_html(board, runs, texts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); give another file") from error
    say(f"wrote {path} ({len(page) / 1e6:.1f} MB); open it in a browser")


def note(text: str) -> None:
    """Say what the user should know."""
    say(f"note: {text}")


def plain_rules(bench: Bench, embedder: Embedder | None) -> tuple[str, ...]:
    """The predictors without an LM that cost next to nothing beside one: what a board shows unless told otherwise.

    They answer with labels; those that need an embedder are left out where nothing else needs it.
    """
    if not bench.task.labels:
        return ()
    return ("majority",) if embedder is None else ("majority", "knn-vote", "logreg")


def run_plain_rules(benches: Sequence[Bench], embedder: Embedder | None, out: Path | None) -> list[Run]:
    """The runs of ``plain_rules``. One that cannot be made is a note: nobody asked for it."""
    from iclkit.eval import Grid, plan
    from iclkit.predictors import Tools

    runs: list[Run] = []
    for bench in benches:
        for name in plain_rules(bench, embedder):
            try:
                runs += run_jobs(plan([bench], Tools(None, embedder), Grid(predictors=(name,))), out, "record")
            except (NothingAnswered, NeedError) as error:
                say(f"note: {bench.task.name}: no line of {name}: {error}")
    return runs


def estimate_cost(jobs: Sequence[PlannedRun]) -> CostEstimate:
    """What the runs would ask of their LM, with a bar while it is found out."""
    from iclkit.eval import dry_run

    total = sum(len(job.bench.queries) for job in jobs)
    with run_bars(total) as (start, step):
        start("planning", total)
        return dry_run(jobs, lambda done, _: step(done, ""))


def plan_with_estimate(
    benches: Sequence[Any],
    tools: Tools,
    grid: Grid,
    out: Path | None,
) -> list[PlannedRun]:
    """Plan the runs and say what they will cost."""
    from iclkit.eval import cost, plan

    jobs = plan(benches, tools, grid)
    price = cost(jobs, out)
    asked = price.cost
    if tools.lm is None:
        say(f"{price.runs} runs that ask no LM" + (f" ({price.finished} more are finished)" if price.finished else ""))
        return jobs
    there = f" ({price.finished} more are finished)" if price.finished else ""
    say(
        f"{tools.lm.name}: {price.runs} runs{there}, {asked.prompts:,} prompts with {asked.requests:,} answers to "
        f"score or write, about {asked.tokens_computed:,} prompt tokens; less where prompts share a beginning or the "
        "cache knows them"
    )
    for note in price.notes:
        say(f"note: {note}")
    if tools.lm.estimate(()).cost is not None and price.runs:
        exact = estimate_cost([job for job in jobs if out is None or not job.finished(out)])
        say(f"{tools.lm.name}: about {exact.cost or 0:.4g} at these prices, what the cache knows left out")
    return jobs


def run_jobs(
    jobs: Sequence[PlannedRun], out: Path | None, on_error: str = "stop", lost: list[NothingAnswered] | None = None
) -> list[Run]:
    """Make the runs, with a bar each: rate and time left for the run and for all.

    A run of which every query failed is put into ``lost``, where that is given, and does not end the others. Runs that
    another process is making come last: two commands with one folder share the work.
    """
    from iclkit.eval import cautions
    from iclkit.report import format_figure, without_rows

    runs = []
    lms = {id(job.tools.lm): job.tools.lm for job in jobs if job.tools.lm is not None}
    said = {at: lm.notes for at, lm in lms.items()}
    total = sum(len(job.bench.queries) for job in jobs)
    numbered = {id(job): f"{number}/{len(jobs)} {job.title}" for number, job in enumerate(jobs, 1)}
    todo, busy = deque(jobs), set[int]()

    def spent() -> str:
        cost = sum(lm.usage.cost for lm in lms.values())
        return f", spent {cost:.4g}" if cost else ""

    with run_bars(total) as (start, step):
        while todo:
            job = todo.popleft()
            title, begun = numbered[id(job)], time.monotonic()
            start(title, len(job.bench.queries))
            if id(job) in busy:
                say(f"{title}: waiting for the other process")
            try:
                run = job.run(out, lambda done, _: step(done, spent()), on_error, wait=id(job) in busy)
            except RunBusy:
                say(f"{title}: another process is making it; the others first")
                busy.add(id(job))
                todo.append(job)
                continue
            except NothingAnswered as error:
                if lost is None:
                    raise
                lost.append(error)
                say(f"{title}: {error}")
                continue
            runs.append(run if out is None else without_rows(run, out))
            if not sys.stderr.isatty():
                say(f"{title}: {format_figure(run)}, {time.monotonic() - begun:.1f} s{spent()}")
            for caution in cautions([run]):
                say(f"note: {job.title}: {caution}")
    for at, lm in lms.items():  # what was found out while they were asked
        tell_notes(lm, said[at])
    return runs
