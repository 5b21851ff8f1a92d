"""``iclkit pool``: put examples in, look at them, take them out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from iclkit.cli._kit import (
    COLUMN_OPTIONS,
    EMBEDDER_SETTINGS,
    FILE_OPTIONS,
    POOL,
    TASK,
    WHERE,
    conditions,
    data_options,
    tell_cuts,
    tell_language,
    write_skipped,
)
from iclkit.cli._progress import bar
from iclkit.cli._tables import say
from iclkit.cli._terminal import console, echo, emit_json
from iclkit.errors import DataError, PoolError, UsageError
from iclkit.pool import EXACT_UP_TO, RECALL, Pool, as_place, discard, example_dict, is_there
from iclkit.records import Example
from iclkit.text import visible

SLOW_SHARE = 0.25
"""Share of the lists to be looked at from which on lists are no help."""
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Keep demonstrations in a pool: one SQLite file, or LanceDB tables where its name ends in .lance."""


@command.command()
@POOL
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--task-name", "task", default="", help="Name of the task that the examples belong to.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata for every example; may repeat.")
@click.option("--unlabeled", is_flag=True, help="Take rows without an output too: inputs that wait for a label.")
@data_options((*COLUMN_OPTIONS, *FILE_OPTIONS))
@JSON
def add(
    pool: Path,
    files: tuple[str, ...],
    task: str,
    meta: tuple[str, ...],
    unlabeled: bool,
    data: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Add the examples of FILEs to POOL, which is made when it is not there.

    JSONL, JSON, CSV, TSV and Parquet, also packed with gzip or zstd; - is standard input. Known layouts are recognized:
    chat messages, Alpaca, ShareGPT, SQuAD, MMLU, ARC and more. All or nothing: when one row of one file is wrong,
    nothing is added. Examples that are in the pool already are left as they are.
    """
    from iclkit.datasets import TaskFile, read_rows

    extra = conditions(meta, "--meta")
    described = TaskFile().with_options(**data)
    bad = described.source.on_bad_row
    columns = replace(described.column_map, unlabeled=unlabeled)
    readings = [read_rows(file, columns, described.file_options, task, bad) for file in files]

    def examples() -> Iterator[Example]:
        with bar("reading") as progress:
            for n, reading in enumerate(readings, start=1):
                for _, example in reading:
                    yield replace(example, meta={**example.meta, **extra}) if extra else example
                progress(n, len(files))

    there = is_there(as_place(pool))
    try:
        with Pool.open(pool) as store:
            report = store.add(examples(), keep_ids=False)
            total = len(store)
    except DataError:
        if not there:  # a pool that was made for rows that are none
            discard(as_place(pool))
        raise
    for file, reading in zip(files, readings, strict=True):
        for note in reading.notes:
            say(f"note: {file}: {note}")
    if skipped := [row for reading in readings for row in reading.skipped]:
        write_skipped(pool.stem, skipped)
    if as_json:
        print_json({"added": report.added, "known": report.known, "revived": report.revived, "examples": total})
        return
    again = f" ({report.revived} of them had been removed before)" if report.revived else ""
    known = f"; {report.known:,} were there already" if report.known else ""
    echo(f"added {report.added:,} examples{again}{known}; {as_place(pool)} holds {total:,}")


@command.command()
@POOL
@TASK
@WHERE
@click.option("-n", "--limit", type=click.IntRange(min=0), help="At most this many.  [default: 20; with --json: all]")
@JSON
def ls(pool: Path, task: str | None, where: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """List the examples of POOL, oldest first."""
    with Pool.open(pool, create=False, read_only=True) as store:
        view = store.view(task=task, where=conditions(where), labeled=None)
        most = limit if as_json or limit is not None else 20
        shown = view.examples_at(view.rows[:most])
    if as_json:
        print_json([example_dict(e) for e in shown])
        return
    if shown:
        rows = [(e.id[:12], e.task, e.output, e.text) for e in shown]
        print_table(("id", "task", "output", "input"), rows)
    echo(f"{len(shown):,} of {len(view):,} examples", err=True)


@command.command()
@POOL
@click.argument("example_id", metavar="ID")
@JSON
def show(pool: Path, example_id: str, as_json: bool) -> None:
    """Show one example whole. ID may be the beginning of an id."""
    with Pool.open(pool, create=False, read_only=True) as store:
        example = store.get(example_id)
        facts: dict[str, Any] = {
            **example_dict(example),
            "embedded": store.embedded(example.id),
            "keys": _keys(store, example.id),
        }
    if as_json:
        print_json(facts)
        return
    for transform, texts in facts.pop("keys").items():
        facts[f"keys by {transform}"] = "\n".join(texts)
    for key, value in facts.items():
        if value:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            echo(f"{key}: {text}" if "\n" not in text else f"{key}:\n  " + text.replace("\n", "\n  "))


def _keys(store: Pool, example_id: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for transform, _, text in store.stored_keys(example_id):
        found.setdefault(transform, []).append(text)
    return found


@command.command()
@POOL
@click.argument("ids", nargs=-1, metavar="[ID]...")
@TASK
@WHERE
@click.option("--set", "new", multiple=True, metavar="KEY=VALUE", help="Metadata to put there, a.b=VALUE inside a; may "
              "repeat.")  # fmt: skip
@click.option("--unset", multiple=True, metavar="KEY", help="Metadata to take out; may repeat.")
@JSON
def update(
    pool: Path,
    ids: tuple[str, ...],
    task: str | None,
    where: tuple[str, ...],
    new: tuple[str, ...],
    unset: tuple[str, ...],
    as_json: bool,
) -> None:
    """Change the metadata of examples of POOL, by ID or all with a task or metadata. Content and vectors stay."""
    if bool(ids) == bool(task is not None or where):
        raise UsageError("say which examples: either IDs, or --task-name and --where")
    if not new and not unset:
        raise UsageError("say what to change: --set KEY=VALUE or --unset KEY")
    with Pool.open(pool, create=False) as store:
        chosen = [store.get(i) for i in ids] if ids else store.view(task=task, where=conditions(where)).examples
        changed = store.annotate([e.id for e in chosen], conditions(new, "--set"), unset)
    if as_json:
        print_json({"matched": len(chosen), "changed": changed})
    else:
        echo(f"changed the metadata of {changed:,} of {len(chosen):,} examples")


@command.command()
@POOL
@click.argument("ids", nargs=-1, metavar="[ID]...")
@TASK
@WHERE
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@JSON
def rm(
    pool: Path, ids: tuple[str, ...], task: str | None, where: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Remove examples from POOL by ID, or all with a task or metadata."""
    if bool(ids) == bool(task is not None or where):
        raise UsageError("say what to remove: either IDs, or --task or --where")
    with Pool.open(pool, create=False) as store:
        gone = [store.get(i).id for i in ids] or list(store.view(task=task, where=conditions(where), labeled=None).ids)
        if not dry_run:
            store.remove(gone)
        left = len(store)
    if as_json:
        print_json({"removed": 0 if dry_run else len(gone), "ids": gone, "examples": left})
    else:
        echo(f"{'would remove' if dry_run else 'removed'} {len(gone):,} examples; {as_place(pool)} holds {left:,}")


@command.command()
@POOL
@click.option(
    "--near",
    type=float,
    is_flag=False,
    flag_value=0.8,
    metavar="OVERLAP",
    help="Near-duplicates too: inputs whose four-character pieces overlap by this much (0.8 when not said).",
)
@click.option("--dry-run", is_flag=True, help="Only show the groups.")
@JSON
def dedupe(pool: Path, near: float | None, dry_run: bool, as_json: bool) -> None:
    """Remove examples of POOL that say the same and have the same output; the oldest of each group stays."""
    with Pool.open(pool, create=False, read_only=dry_run) as store:
        view = store.view(labeled=None)
        report = store.dedupe(near=near, apply=not dry_run)
        told = () if as_json else {i for group in report.groups for i in group}
        texts = {e.id: e.text for e in view.each() if e.id in told} if told else {}
        left = len(store)
    if as_json:
        print_json({"removed": report.removed, "groups": report.groups, "examples": left})
        return
    rows = [("keep" if n == 0 else "drop", i[:12], texts[i]) for group in report.groups for n, i in enumerate(group)]
    if rows:
        print_table(("", "id", "input"), rows)
    many = sum(len(g) - 1 for g in report.groups)
    echo(f"{'would remove' if dry_run else 'removed'} {many:,} duplicates; {as_place(pool)} holds {left:,}")


@command.command()
@POOL
@JSON
def stats(pool: Path, as_json: bool) -> None:
    """Count what is in POOL: tasks, outputs, vectors."""
    with Pool.open(pool, create=False, read_only=True) as store:
        found = asdict(store.stats())
    if as_json:
        print_json(found)
        return
    indexes = found.pop("indexes")
    tables = {name: found.pop(name) for name in ("tasks", "outputs", "vectors")}
    rows = [(name, f"{value:,}") for name, value in found.items()]
    for name, counts in tables.items():
        first = [(f"{name}: {key or '(none)'}", f"{count:,}") for key, count in list(counts.items())[:12]]
        rows += first + ([(f"{name}: {len(counts) - 12:,} more", "")] if len(counts) > 12 else [])
    print_table(("what", "count"), rows, right=1)
    for name, index in indexes.items():
        echo(f"{name}: {index}")


@command.command()
@POOL
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="Catalogue name, hub id or "
              f"folder. {EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--kind", type=click.Choice(["auto", "ivf", "exact"]), default="auto", show_default=True,
              help=f"ivf: look at part of the pool; exact: at all, without an index; auto: ivf beyond {EXACT_UP_TO:,} "
              "examples.")  # fmt: skip
@click.option("--recall", default=RECALL, show_default=True, help="Share of the nearest examples to find.")
@click.option("--lists", type=int, help="Parts that the pool is sorted into.  [default: 4 times the root of its size]")
@click.option("--seed", default=0, show_default=True, help="Of the sorting and of the rows that recall is measured on.")
@JSON
def index(pool: Path, embedder: str, kind: str, recall: float, lists: int | None, seed: int, as_json: bool) -> None:
    """Build an approximate index of POOL, for pools so large that looking at every vector takes too long.

    Selectors that search by an embedder then look at part of the pool. How many of the nearest examples they find so is
    measured on examples of the pool itself, and stands on their selections and in the records of runs. What is not
    embedded yet is embedded; what is added later is sorted in. --kind exact removes the index.
    """
    from iclkit.embed import load_embedder

    with Pool.open(pool, create=False) as store, bar("embedding") as progress:
        model = load_embedder(embedder, few=True)
        tell_cuts(model)
        if kind == "exact" or (kind == "auto" and len(store) <= EXACT_UP_TO):
            gone, built = store.drop_index(model), None
        else:
            gone, built = False, store.build_index(model, recall=recall, lists=lists, seed=seed, progress=progress)
        total = len(store)
    if as_json:
        print_json({"index": asdict(built) if built else None, "removed": gone, "examples": total})
    elif built is None:
        now = "; the approximate index is gone" if gone else ""
        echo(f"search by {embedder} looks at all {total:,} examples of {as_place(pool)}{now}")
    else:
        echo(f"built: {built}")
        if built.probes_share > SLOW_SHARE:
            say(
                f"{built.probes_share:.0%} of the lists have to be looked at: these vectors have little structure, and "
                "exact search is about as fast (--kind exact)"
            )


@command.command()
@POOL
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="Catalogue name, hub id or "
              f"folder. {EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "auto"]), help="The same as ,dtype=.  [default: fp32]")
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU; torch decides when not said.")
@click.option("--engine", metavar="ray[:HOST:PORT]", help="Share the work on a Ray cluster.")
@click.option("--workers", type=click.IntRange(1), help="Of the engine.  [default: one for each core of the cluster]")
@JSON
def embed(
    pool: Path, embedder: str, dtype: Any, threads: int | None, engine: str | None, workers: int | None, as_json: bool
) -> None:
    """Embed the texts of POOL that have no vector yet. A run that was interrupted goes on where it was."""
    from iclkit.embed import embedding_engine, load_embedder

    if workers and not engine:
        raise UsageError("--workers is the number of workers of an engine; give --engine ray as well")
    with Pool.open(pool, create=False) as store, bar("embedding") as progress:
        model = load_embedder(embedder, dtype=dtype, threads=threads, few=True)  # perhaps nothing is missing
        tell_cuts(model)
        tell_language(store.view(labeled=None).examples, embedder)
        shared = embedding_engine(engine, model, model.name, workers=workers, threads=threads) if engine else None
        made, total = store.embed(model, progress, engine=shared), len(store)
        indexed = store.view().approximate(model)
        if shared:
            shared.close()
            for note in shared.notes:
                say(f"note: {note}")
    if as_json:
        print_json({"embedded": made, "examples": total, "dim": model.dim, "fingerprint": model.fingerprint})
    else:
        echo(f"embedded {made:,} texts; all {total:,} examples of {as_place(pool)} have vectors of {embedder}")
        if total > EXACT_UP_TO and indexed is None:
            say(f"search looks at all {total:,}; to look at part: iclkit pool index {pool} --embedder {embedder}")


@command.command()
@POOL
@click.argument("sheet", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the sheet to "
              "fill in: a CSV.")  # fmt: skip
@click.option("-n", "--count", default=50, show_default=True, type=click.IntRange(1), help="How many inputs.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="Tells which are alike; none: the "
              f"oldest first. {EMBEDDER_SETTINGS}.")  # fmt: skip
@JSON
def label(pool: Path, sheet: Path | None, write: Path | None, count: int, embedder: str, as_json: bool) -> None:
    """Label the inputs of POOL that wait for it: write a sheet, fill in its column output, and give it back as SHEET.

    The inputs most worth a label come first (vote-k: many others are near to them, and none that has one). Rows of the
    sheet that are still empty are left for another time. All or nothing.
    """
    if bool(sheet) == bool(write):
        raise UsageError("give a SHEET that is filled in, or --write FILE for one to fill in")
    if write:
        _write_sheet(pool, write, count, embedder, as_json)
        return
    assert sheet is not None
    given = _sheet_labels(sheet)
    with Pool.open(pool, create=False) as store:
        done = store.label(given)
        left = len(store.view(labeled=None).unlabeled)
    if as_json:
        print_json({"labeled": done, "unlabeled": left})
    else:
        echo(f"labeled {done:,} inputs; {left:,} of {as_place(pool)} wait for a label")


_SHEET = ("id", "output", "input", "choices")


def _write_sheet(pool: Path, path: Path, count: int, embedder: str, as_json: bool) -> None:
    import csv
    import io

    from iclkit.cli._kit import load_embedder
    from iclkit.files import replace_file
    from iclkit.selectors import worth_labeling

    if path.exists():
        raise UsageError(f"there is a {path} already; give it back with: iclkit pool label {pool} {path}")
    with Pool.open(pool, create=False) as store:
        view = store.view(labeled=None)
        waiting = [e for e in view.examples if not e.output][:count]
        if not waiting:
            raise DataError(
                f"no input of {as_place(pool)} waits for a label; add some: iclkit pool add {pool} FILE --unlabeled"
            )
        if embedder != "none":
            model = load_embedder(embedder)
            with bar("embedding") as progress:
                store.embed(model, progress)
            waiting = worth_labeling(store.view(labeled=None), model, count)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(_SHEET)
    for example in waiting:
        table.writerow([example.id, "", example.text, " | ".join(example.choices)])
    try:
        replace_file(path, text.getvalue())
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror})") from error
    if as_json:
        print_json({"path": str(path), "inputs": len(waiting)})
    else:
        echo(f"wrote {len(waiting):,} inputs to {path}")
        say(f"fill in its column output, then: iclkit pool label {pool} {path}")


def _sheet_labels(sheet: Path) -> dict[str, str]:
    """The outputs that a sheet gives, by id; rows that are still empty are left out."""
    from iclkit.datasets import open_rows

    given: dict[str, str] = {}
    for where, row in open_rows(sheet).records:
        if isinstance(row, DataError):
            raise row
        if missing := [name for name in ("id", "output") if name not in row]:
            raise DataError(
                f"{where}: no column {missing[0]!r}; a sheet is what --write made, its column output filled in"
            )
        if visible(output := str(row["output"] or "")):
            given[str(row["id"])] = output
    return given


@command.command()
@POOL
@JSON
def check(pool: Path, as_json: bool) -> None:
    """Look for damage and contradictions in POOL; exit code 1 when there are any."""
    with Pool.open(pool, create=False, read_only=True) as store:
        problems = store.check()
    if as_json:
        print_json(problems)
    else:
        for problem in problems:
            echo(problem)
    if problems:
        raise PoolError(f"{pool} has {len(problems):,} problem{'s' if len(problems) > 1 else ''}")
    echo("no problems", err=True)


@command.command()
@POOL
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--format", "format_", help="jsonl, csv or parquet; by default what FILE's name says.")
@JSON
def export(pool: Path, file: Path, format_: str | None, as_json: bool) -> None:
    """Write the examples of POOL to FILE (JSONL, CSV or Parquet), or as JSONL to stdout when FILE is "-"."""
    with Pool.open(pool, create=False, read_only=True) as store:
        if str(file) == "-":
            if format_ not in (None, "jsonl"):
                raise UsageError(f"only jsonl goes to stdout; give a file for {format_}")
            for example in store:
                emit_json(example_dict(example))
            return
        if file.is_dir():
            raise DataError(f"{file} is a folder; give a file, e.g. {file / 'demos.jsonl'}")
        count = store.export(file, format_)
    if as_json:
        print_json({"examples": count, "path": str(file)})
    else:
        echo(f"wrote {count:,} examples to {file}")


@command.command()
@POOL
@JSON
def compact(pool: Path, as_json: bool) -> None:
    """Give back the room of what was removed from POOL; in LanceDB its content stays for a week otherwise."""
    with Pool.open(pool, create=False) as store:
        before = store.stats().size
        store.compact()
        after = store.stats().size
    if as_json:
        print_json({"before": before, "after": after})
    else:
        echo(f"{as_place(pool)} takes {after / 1e6:,.1f} MB; before: {before / 1e6:,.1f}")


@command.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FROM")
@click.argument("target", type=click.Path(path_type=Path), metavar="TO")
@JSON
def migrate(source: Path, target: Path, as_json: bool) -> None:
    """Write all that pool FROM holds to a new pool TO: from a file to LanceDB, or back.

    A name that ends in .lance, or a URI such as s3://bucket/demos.lance, is in LanceDB. Ids, order, metadata, what was
    removed, vectors and keys are kept, so selections and runs stay the same; FROM stays too. A call that was killed
    leaves no pool TO and is begun again.
    """
    from iclkit.pool import migrate

    report = migrate(source, target)
    if as_json:
        print_json(asdict(report))
        return
    vectors = "".join(f", {count:,} vectors of {name}" for name, count in report.vectors.items())
    keys = f", {report.keys:,} keys" if report.keys else ""
    echo(f"{as_place(target)} holds {report.examples:,} examples{vectors}{keys}; {as_place(source)} is as it was")


def print_json(value: object) -> None:
    """JSON on stdout."""
    emit_json(value, indent=2)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: int | None = None) -> None:
    """A table on stdout; one line per row, whatever the cells hold."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    if right is not None:
        table.columns[right].justify = "right"
    for row in rows:
        cells = (" ".join(c.split()) for c in row)
        table.add_row(*(Text(c, overflow="ellipsis", no_wrap=True) for c in cells))
    console(piped_width=120).print(table)
