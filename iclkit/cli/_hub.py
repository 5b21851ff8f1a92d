"""``iclkit hub``: retrievers and kept selectors on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from iclkit.cli._progress import download_bar
from iclkit.cli._runs import read_runs
from iclkit.cli._tables import say
from iclkit.cli._terminal import echo


@click.group()
def command() -> None:
    """Publish and fetch retrievers and kept selectors on the Hugging Face hub."""


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--license", required=True, help="An identifier of the hub's, such as apache-2.0.")
@click.option("--public", is_flag=True, help="Let everybody see it; a repository is made private otherwise.")
@click.option("--base-model", default="", metavar="ID", help="On the hub, where the folder does not say.")
@click.option("--dataset", "datasets", multiple=True, metavar="ID", help="On the hub: what it was made of; may repeat.")
@click.option("--runs", multiple=True, type=click.Path(path_type=Path), help="Recorded runs of this selector, whose "
              "figures go into the card; may repeat.")  # fmt: skip
@click.option("--embedder", default="", metavar="ID", help="On the hub: a selector's, fitted with a folder here.")
@click.option("--message", default="", help="Of the commit.")
def push(
    folder: Path,
    repo: str,
    license: str,
    public: bool,
    base_model: str,
    datasets: tuple[str, ...],
    runs: tuple[Path, ...],
    embedder: str,
    message: str,
) -> None:
    """Publish the trained retriever or the kept selector in FOLDER, with a card.

    Of a selector, the examples that it can show are published.
    """
    from iclkit.integrations import hub

    found = read_runs(runs)[0] if runs else []
    pushed = hub.push(
        folder, repo, license=license, private=not public, base_model=base_model, datasets=datasets, runs=found,
        embedder=embedder, message=message,
    )  # fmt: skip
    echo(pushed.name)


@command.command()
@click.argument("repo", metavar="OWNER/NAME[@REVISION]")
@click.argument("folder", type=click.Path(path_type=Path))
def pull(repo: str, folder: Path) -> None:
    """Fetch a kept selector into FOLDER, a new one."""
    from iclkit.integrations import hub

    with download_bar() as progress:
        hub.pull(repo, folder, progress=progress)
    echo(str(folder))
    say(f"ask it with: iclkit select {folder} QUERY")
