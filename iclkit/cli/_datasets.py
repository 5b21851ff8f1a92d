"""``iclkit datasets``: what can be evaluated by name, what a task looks like, and fetching one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from textwrap import indent
from typing import Any

import click

from iclkit import datasets
from iclkit.cli._terminal import console, echo, emit_json
from iclkit.datasets import SPLITS, Card, Entry, Task
from iclkit.errors import DataError


@click.group()
def command() -> None:
    """List, show and fetch data sets."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(as_json: bool) -> None:
    """List the data sets that have a name and which are on this machine. Uses no network."""
    rows = [_row(card, name, "bundled") for name, card in datasets.bundled_cards().items()]
    for name, entry in datasets.catalogue().items():
        rows.append(_row(entry, name, "here" if datasets.is_pulled(name) else "on the hub"))
    if as_json:
        emit_json(rows, indent=2)
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "here", "kind", "what"):
        table.add_column(column, no_wrap=column != "what")
    for row in rows:
        table.add_row(row["name"], row["state"], row["kind"].replace("_", " "), row["description"])
    console().print(table)
    echo(
        "a folder with train.jsonl and test.jsonl, or hf:owner/name, is a task too; "
        "fetch with: iclkit datasets pull NAME",
        err=True,
    )


@command.command()
@click.argument("name", metavar="TASK")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Show a task: its splits, labels, prompt, metric, licence and citation.

    TASK is a name of `iclkit datasets ls`, a folder, or hf:owner/name. Of a catalogue set that is not on this machine
    the catalogue's card is shown.
    """
    entry = datasets.catalogue().get(name)
    facts = _entry_facts(entry) if entry and not datasets.is_pulled(name) else _task_facts(datasets.load_task(name))
    if as_json:
        emit_json(facts, indent=2)
        return
    for key, value in facts.items():
        if text := _plain(value):
            echo(f"{key}: " + (text if "\n" not in text else "\n" + indent(text, "    ")))


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--again", is_flag=True, help="Fetch sets that are here already, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pull(names: tuple[str, ...], again: bool, as_json: bool) -> None:
    """Fetch data sets of the catalogue from the Hugging Face hub (needs the extra iclkit[datasets])."""

    for name in names:
        if name in datasets.BUNDLED:
            raise DataError(f"{name!r} is bundled; there is nothing to fetch")
        datasets.entry(name)  # all names are known before the first download starts
    done = []
    for name in names:
        with console(err=True).status(f"fetching {name} from the Hugging Face hub"):
            folder = datasets.pull(name, again=again)
        done.append({"name": name, "path": str(folder)})
        if not as_json:
            echo(f"{name}\t{folder}")
    if as_json:
        emit_json(done, indent=2)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} ({v:,})" if isinstance(v, int) else f"{k} ({v})" for k, v in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _row(card: Card | Entry, name: str, state: str) -> dict[str, str]:
    return {
        "name": name,
        "kind": card.kind,
        "metric": card.metric,
        "state": state,
        "licence": card.licence,
        "description": card.description,
    }


def _entry_facts(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "description": entry.description,
        "here": f"no; fetch it with: iclkit datasets pull {entry.name}",
        "source": entry.source,
        "homepage": entry.homepage,
        "kind": entry.kind,
        "metric": entry.metric,
        "splits": dict(entry.splits),
        "labels": list(entry.labels.values()),
        "prompt": entry.template,
        "licence": entry.licence,
        "citation": entry.citation,
        "notes": entry.notes,
    }


def _task_facts(task: Task) -> dict[str, Any]:
    counts = Counter(e.output for e in task.train)
    return {
        "name": task.name,
        "description": task.card.description,
        "source": task.card.source,
        "homepage": task.card.homepage,
        "kind": task.kind,
        "metric": task.metric,
        "splits": {split: len(task.split(split)) for split in SPLITS},
        "labels": {label: counts[label] for label in task.labels},
        "prompt": "\n".join([*([task.template.instruction] if task.template.instruction else []), task.template.demo]),
        "example": task.template.render_demo(task.train[0]),
        "licence": task.card.licence,
        "citation": task.card.citation,
        "hash": task.hash,
    }
