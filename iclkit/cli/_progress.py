"""Progress on stderr, where it is a terminal: one kind of bar for a step, for runs, for trainings and for downloads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iclkit.cli._terminal import console
from iclkit.records import Progress

if TYPE_CHECKING:
    import rich.progress

SECONDS_BETWEEN_LINES = 30
"""How often a training reports where no bar can be drawn."""


def _bars(*columns: Any, transient: bool = False, enabled: bool = True) -> rich.progress.Progress:
    """A title, a bar, the given columns, and the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console(err=True),
        transient=transient,
        disable=not (enabled and sys.stderr.isatty()),
    )


def _counts() -> tuple[Any, Any]:
    from rich.progress import MofNCompleteColumn, TextColumn

    return MofNCompleteColumn(), TextColumn("{task.fields[rate]}")


def _rate(task: rich.progress.Task) -> str:
    return f"{task.speed:,.0f}/s" if task.speed and task.speed >= 10 else f"{task.speed:.1f}/s" if task.speed else ""


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar for one step, from its first report on; it goes when the step is done."""
    with _bars(*_counts(), transient=True) as drawn:
        tasks: list[rich.progress.TaskID] = []

        def report(done: int, total: int) -> None:
            if not tasks:
                tasks.append(drawn.add_task(title, total=total, rate=""))
            drawn.update(tasks[0], completed=done, total=total, rate=_rate(drawn.tasks[0]))

        yield report


@contextmanager
def run_bars(total: int) -> Iterator[tuple[Callable[[str, int], None], Callable[[int, str], None]]]:
    """Two bars, of the run under way and of all runs: functions that begin a run and report how far it is.

    What is reported beside the number of queries stands behind the rate of all.
    """
    with _bars(*_counts()) as drawn:
        whole = drawn.add_task("all runs", total=total, rate="")
        this = drawn.add_task("", total=1, rate="")
        before, now = 0, 0  # queries of earlier runs, and of this one

        def start(title: str, queries: int) -> None:
            nonlocal before, now
            before, now = before + now, 0
            drawn.reset(this, description=title, total=queries, rate="")

        def step(done: int, more: str) -> None:
            nonlocal now
            now = done
            drawn.update(this, completed=done)
            drawn.update(whole, completed=before + done)
            for task in drawn.tasks:
                drawn.update(task.id, rate=_rate(task) + (more if task.id == whole else ""))

        yield start, step


@contextmanager
def step_bars(say: Callable[[str], None], *, enabled: bool = True) -> Iterator[Callable[[str], Progress]]:
    """A bar for each step of a long command; where no bar can be drawn, lines through ``say`` now and then."""
    shown = sys.stderr.isatty() and enabled
    with _bars(*_counts(), enabled=enabled) as drawn:

        def begin(title: str) -> Progress:
            task, start, last = drawn.add_task(title, total=None, rate=""), time.monotonic(), 0.0

            def report(done: int, total: int) -> None:
                nonlocal last
                drawn.update(task, completed=done, total=total)
                now = time.monotonic()
                if not shown and (done == total or now - last > SECONDS_BETWEEN_LINES):
                    last = now
                    left = (now - start) / max(1, done) * (total - done)
                    say(f"{title}: {done} of {total}, {now - start:,.0f} s" + (f", {left:,.0f} s left" if left else ""))

            return report

        yield begin


@contextmanager
def download_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar for each file, with size and speed, for ``models.pull`` and ``models.resolve``."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _bars(DownloadColumn(), TransferSpeedColumn()) as drawn:
        tasks: dict[str, rich.progress.TaskID] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = drawn.add_task(what)
            drawn.update(tasks[what], completed=done, total=total or None)

        yield report
