"""``iclkit leaderboard``: rank recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iclkit.cli._runs import note, read_runs, write_page
from iclkit.cli._tables import say, show
from iclkit.cli._terminal import emit
from iclkit.errors import UsageError

if TYPE_CHECKING:
    from iclkit.records import Run
    from iclkit.report import Board, Texts


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUNS...")
@click.option("--baseline", metavar="NAME", help="What all others are compared with: a full name or that "
              "on the first compared axis (random for selectors, best-last for orders, none elsewhere).")  # fmt: skip
@click.option("--primary", multiple=True, metavar="'NAME[@K][ on TASK]'", help="A question declared beforehand: "
              "does this line differ from the baseline, over all tasks or on one. Tested first, at full strength; the "
              "rest is explored, with q-values. May repeat.  [default: those of iclkit eval --primary]")  # fmt: skip
@click.option("--correct", type=click.Choice(["task", "board", "fdr", "fdr-any"]), default="task", show_default=True,
              help="How p-values are corrected: Holm within a task or over the board, or false discovery rate (for "
              "positively dependent or any tests).")  # fmt: skip
@click.option("--compare", multiple=True, metavar="AXIS", help="Compare along this axis (task, lm, k, selector, order, "
              "calibrate, template or chat), with all others equal; may repeat. Usually selector, order and "
              "calibrate.")  # fmt: skip
@click.option("--task-name", "tasks", multiple=True, help="Only runs of the task of this name; may repeat.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--latex", is_flag=True, help="Print LaTeX tables.")
@click.option("--methods", "as_methods", is_flag=True, help="Print a paragraph for a paper: what was compared, and how "
              "it was tested.")  # fmt: skip
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also write the page: "
              "one file with tables, figures and every query, that works offline.")  # fmt: skip
@click.option("--title", default="", help="The page's title.")
@click.option("--harness", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Also write results "
              "and samples in lm-evaluation-harness's layout.")  # fmt: skip
def command(
    runs: tuple[Path, ...],
    baseline: str | None,
    primary: tuple[str, ...],
    correct: str,
    compare: tuple[str, ...],
    tasks: tuple[str, ...],
    markdown: bool,
    as_json: bool,
    as_csv: bool,
    latex: bool,
    as_methods: bool,
    html: Path | None,
    title: str,
    harness: Path | None,
) -> None:
    """Rank the runs in the folders RUNS, with intervals and tests against a baseline.

    A run that is damaged is named on stderr and left out; exit code 1 when there is no other.
    """
    from iclkit.report import (
        board_with_questions,
        methods,
        run_texts,
        to_csv,
        to_json,
        to_latex,
        to_markdown,
        usable_runs,
    )

    if markdown + as_json + as_csv + latex + as_methods > 1:
        raise UsageError("choose one of --markdown, --json, --csv, --latex, --methods")
    found, lost, declared = read_runs(runs)
    known = sorted({run.spec.task.name for run in found})
    for task in tasks:
        if task not in known:
            raise UsageError(f"no run of task {task!r} in {', '.join(map(str, runs))}; there are: {', '.join(known)}")
    kept = [r for r in found if not tasks or r.spec.task.name in tasks]
    board = board_with_questions(
        kept, baseline, left_out=lost, primary=primary, declared=declared, note=note, correction=correct,
        compare=compare,
    )  # fmt: skip
    for one in board.left_out:
        say(f"note: run {one.run} is left out: {one.reason}")
    if html or harness:
        kept = usable_runs(r for r in kept if r.id not in {one.run for one in board.left_out})[0]
        _write(board, kept, run_texts(runs, kept, note), html, title, harness)
    formats = ((markdown, to_markdown), (as_json, to_json), (as_csv, to_csv), (latex, to_latex), (as_methods, methods))
    for flag, render in formats:
        if flag:
            emit(render(board), nl=False)
            return
    show(board)


def _write(
    board: Board, runs: Sequence[Run], texts: Texts, html: Path | None, title: str, harness: Path | None
) -> None:
    from iclkit.report import write_harness

    if html:
        write_page(html, board, runs, texts, title)
    if harness:
        files = write_harness(runs, harness, texts, date=datetime.now())
        say(f"wrote {len(files)} files to {harness}")
