"""``iclkit runs``: recorded runs, handed to an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from iclkit.cli._progress import bar
from iclkit.cli._runs import note, read_runs
from iclkit.cli._tables import say
from iclkit.cli._terminal import echo, emit_json

if TYPE_CHECKING:
    from iclkit.records import Run

_NEXT = {
    "mlflow": "look at them with: mlflow ui{at}   (of the package mlflow)",
    "wandb": "they wait in {place}; send them with: wandb sync {place}/offline-run-*",
    "trackio": "look at them with: trackio show --project {project}",
}


def _place(run: Run) -> tuple[str, str, int, int, str]:
    spec = run.spec
    return spec.task.name, str(run.facts.get("selector") or spec.selector), spec.k, spec.seed, run.id


@click.group()
def command() -> None:
    """Hand recorded runs to other tools."""


@command.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUNS...")
@click.option("--to", required=True, type=click.Choice(["mlflow", "wandb", "trackio"]), help="The tracker; each needs "
              "the extra of its name.")  # fmt: skip
@click.option("--project", default="iclkit", show_default=True, help="MLflow's experiment, or the others' project.")
@click.option("--at", default="", metavar="PLACE", help="MLflow's tracking URI, or the folder in which wandb/ stands.  "
              "[default: as the tool has it]")  # fmt: skip
@click.option("--selector", type=click.Path(path_type=Path), metavar="FOLDER", help="A kept selector, to go along with "
              "the board.")  # fmt: skip
@click.option("--baseline", metavar="NAME", help="What all others on the board are compared with.")
@click.option("--online", is_flag=True, help="Let runs leave this machine: to an MLflow server, or with wandb sync.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    runs: tuple[Path, ...],
    to: str,
    project: str,
    at: str,
    selector: Path | None,
    baseline: str | None,
    online: bool,
    as_json: bool,
) -> None:
    """Write the runs in the folders RUNS, and their board, to an experiment tracker.

    Every run is an entry with its settings, figures, cost and rows. What is there is not written again.
    """
    from iclkit.integrations.tracking import export_runs
    from iclkit.report import board_with_questions, run_texts

    found, lost, declared = read_runs(runs, whole=True)
    board = board_with_questions(found, baseline, left_out=lost, primary=(), declared=declared, note=note)
    for one in board.left_out:
        note(f"run {one.run} is left out: {one.reason}")
    usable = [run for run in found if run.id not in {one.run for one in board.left_out}]
    usable.sort(key=_place)  # not by their dates, which are alike where runs take less than a second
    if unfinished := sum(not run.facts.get("done", True) for run in usable):
        note(f"{unfinished} unfinished runs are left out")
    with bar(f"exporting to {to}") as progress:
        exported = export_runs(
            usable, to, project=project, at=at, texts=run_texts(runs, usable, note), board=board, selector=selector,
            online=online, progress=progress,
        )  # fmt: skip
    if as_json:
        emit_json([{"id": entry.id, "name": entry.name, "new": entry.new} for entry in exported], indent=2)
    else:
        for entry in exported:
            echo(f"{'new' if entry.new else 'there'}\t{entry.id}\t{entry.name}")
    new = sum(entry.new for entry in exported)
    where = f" --backend-store-uri {at}" if at else ""
    if not (online and to == "wandb"):
        told = _NEXT[to].format(at=where, place=Path(at or ".") / "wandb", project=project)
        say(f"{new} written, {len(exported) - new} were there; {told}")
