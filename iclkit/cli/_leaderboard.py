"""``iclkit leaderboard``: rank recorded runs."""

from __future__ import annotations

from pathlib import Path

import click

from iclkit.errors import UsageError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUNS...")
@click.option("--baseline", default="random", show_default=True, help="The selector that all others are compared with.")
@click.option("--task", "tasks", multiple=True, help="Only this task; may repeat.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--latex", is_flag=True, help="Print LaTeX tables.")
def command(
    runs: tuple[Path, ...],
    baseline: str,
    tasks: tuple[str, ...],
    markdown: bool,
    as_json: bool,
    as_csv: bool,
    latex: bool,
) -> None:
    """Rank the runs in the folders RUNS, with intervals and tests against a baseline."""
    from iclkit.cli._board import show
    from iclkit.eval import load_runs
    from iclkit.report import leaderboard, to_csv, to_json, to_latex, to_markdown

    if markdown + as_json + as_csv + latex > 1:
        raise UsageError("choose one of --markdown, --json, --csv, --latex")
    found = {run.id: run for folder in runs for run in load_runs(folder)}
    known = sorted({run.spec["task"]["name"] for run in found.values()})
    for task in tasks:
        if task not in known:
            raise UsageError(f"no run of task {task!r} in {', '.join(map(str, runs))}; there are: {', '.join(known)}")
    board = leaderboard([r for r in found.values() if not tasks or r.spec["task"]["name"] in tasks], baseline)
    for flag, render in ((markdown, to_markdown), (as_json, to_json), (as_csv, to_csv), (latex, to_latex)):
        if flag:
            click.echo(render(board), nl=False)
            return
    show(board)
