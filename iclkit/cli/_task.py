"""``iclkit task``: describe one's own data once, as a file with a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import LMOptions, data_options, lm_options, load_lm, load_task, task_file, write_skipped
from iclkit.cli._tables import say
from iclkit.cli._terminal import echo, emit_json
from iclkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from iclkit.datasets import Task

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Describe your own data once: file, columns, split, labels, metric, template."""


@command.command()
@click.argument("name", metavar="NAME")
@click.argument("file", metavar="FILE")
@data_options()
@click.option("--again", is_flag=True, help="Replace the task file that is there.")
@JSON
def new(name: str, file: str, data: Mapping[str, Any], again: bool, as_json: bool) -> None:
    """Write NAME.toml, the description of the task whose rows are in FILE, for use as NAME in every other command.

    FILE is a file of rows, a folder, a pool, hf:owner/name or a name of iclkit datasets ls. What is not said is found
    out from the rows, told in one line each, and written down, to be read and edited. So is the split: the same rows
    are test rows ever after.
    """
    from iclkit import datasets

    if file == "-":
        raise UsageError("a task file names the file that its rows are in; write standard input to one first")
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    if path.stem in datasets.BUNDLED or path.stem in datasets.catalogue():
        raise UsageError(f"{path.stem!r} is the name of a data set that comes with iclkit; choose another")
    if path.exists() and not again:
        raise UsageError(f"there is a {path} already; edit it, or replace it with --again")
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent} for {path}")
    described = task_file(file, {**data, "name": path.stem})
    found, task = datasets.record_task(described, lambda rows: write_skipped(path.stem, rows))
    for note in task.notes:
        say(f"note: {note}")
    found.write(path)
    if as_json:
        emit_json({"path": str(path), **_facts(task)}, indent=2)
        return
    labels = f", {len(task.labels)} labels" if task.labels else ""
    echo(f"{path}: {task.kind}{labels}, {len(task.train):,} train and {len(task.test):,} test rows, {task.metric}")
    say(f"try it: iclkit eval {name.removesuffix('.toml')} -s zero -s random -s knn")


@command.command()
@click.argument("name", metavar="TASK")
@data_options()
@JSON
def show(name: str, data: Mapping[str, Any], as_json: bool) -> None:
    """Show a task: its rows by split, labels, metric, template, and a demonstration as the LM reads it."""
    facts = _facts(load_task(name, data))
    if as_json:
        emit_json(facts, indent=2)
        return
    for key, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} ({v:,})" for k, v in value.items())
        if text := str(value):
            echo(f"{key}: " + (text if "\n" not in text else "\n" + indent(text, "    ")))


@command.command()
@click.argument("name", metavar="TASK")
@data_options()
@click.option("--lm", "lm_name", help="Whose context rows have to fit into.")
@lm_options
@JSON
def check(name: str, data: Mapping[str, Any], lm_name: str | None, lm_options: LMOptions, as_json: bool) -> None:
    """Look for what will hurt later: rows that are there twice, test rows among the train rows, labels that differ only
    in their spelling or are rare, rows that are too long, outputs that say nothing. Exit code 1 when there is any.
    """
    from iclkit.datasets import check_task

    task = load_task(name, data)
    findings = check_task(task, *(_reader(lm_name, lm_options) if lm_name else ()))
    if as_json:
        emit_json(
            [{"kind": f.kind, "count": f.count, "text": f.text, "rows": list(f.rows)} for f in findings], indent=2
        )
    for finding in () if as_json else findings:
        echo(f"{finding.kind}: {finding.text}")
    if findings:
        many = len(findings)
        raise DataError(f"task {task.name!r}: {many} thing{'s' if many > 1 else ''} to look at")
    say("nothing was found")


def _reader(lm_name: str, options: LMOptions) -> tuple[Any, int | None]:
    lm = load_lm(lm_name, options)
    return lm.count_tokens, lm.context_size


def _facts(task: Task) -> dict[str, Any]:
    from iclkit.datasets import SPLITS

    counts = {label: sum(e.output == label for e in task.train) for label in task.labels}
    template = task.template
    return {
        "name": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "rows": {split: len(task.split(split)) for split in SPLITS},
        "labels": counts,
        "template": "\n\n".join(part for part in (template.instruction, template.demo) if part),
        "example": template.render_demo(task.train[0]),
        "hash": task.hash,
    }
