"""``iclkit keys``: what skill-knn searches by: export it, and begin the annotations that an LM imitates."""

from __future__ import annotations

import json
from pathlib import Path

import click

from iclkit.cli._kit import EMBEDDER_SETTINGS, POOL, TASK, WHERE, conditions, load_embedder, open_pool
from iclkit.cli._tables import say
from iclkit.cli._terminal import emit
from iclkit.errors import DataError, UsageError


@click.group()
def command() -> None:
    """Key texts that an LM wrote about a pool's inputs (skill-knn): export, annotate."""


@command.command()
@POOL
@click.option("--by", help="Who wrote them, where several did: as `iclkit pool show` names it.")
@TASK
@WHERE
def export(pool: Path, by: str | None, task: str | None, where: tuple[str, ...]) -> None:
    """Print the keys of POOL's examples as JSONL, to be read, edited and used: -s skill-knn,keys=FILE."""
    with open_pool(pool) as store:
        view = store.view(task=task, where=conditions(where) or None)
        writers = sorted({writer for _, written in view.stored_keys() for writer, _, _ in written})
        if by is not None and by not in writers:
            known = f"those by {', '.join(writers)}" if writers else "none"
            raise UsageError(f"no keys by {by!r}; there are {known}")
        if by is None and len(writers) > 1:
            raise UsageError(f"keys were written by {', '.join(writers)}; choose one with --by")
        if not writers:
            raise DataError(
                f"{pool} has no keys; they are written when skill-knn is used, e.g. by iclkit eval or select"
            )
        for example, written in view.stored_keys():
            # the oldest come first
            newest = {number: (writer, text) for writer, number, text in written if by in (None, writer)}
            for number, (writer, text) in newest.items():
                row = {"id": example.id, "number": number, "key": text, "input": example.text, "by": writer}
                emit(json.dumps(row, ensure_ascii=False))


@command.command()
@POOL
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The TOML file to write.")
@click.option("--count", "-n", type=click.IntRange(1), default=16, show_default=True, help="How many inputs.")
@click.option("--style", default="parsing", show_default=True, help="Whose instruction and stem to begin with.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="To tell inputs apart. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the clusters.")
@TASK
@WHERE
def annotate(
    pool: Path,
    out: Path,
    count: int,
    style: str,
    embedder: str,
    seed: int,
    task: str | None,
    where: tuple[str, ...],
) -> None:
    """Write a file with diverse inputs of POOL to annotate, for -s skill-knn,style=FILE."""
    from iclkit.files import replace_file
    from iclkit.selectors import annotation_file

    if out.exists():
        raise DataError(f"{out} is there already; give another --out, or move it away")
    with open_pool(pool) as store:
        view = store.view(task=task, where=conditions(where) or None)
        text = annotation_file(view, load_embedder(embedder), style, count, seed)
    try:
        replace_file(out, text)
    except OSError as error:
        raise DataError(f"cannot write {out} ({error.strerror})") from error
    inputs = text.count("[[pairs]]\n")
    say(f"{out}: {inputs} inputs; write the rewriting of each, then use -s skill-knn,style={out}")
