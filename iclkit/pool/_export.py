"""Examples to files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iclkit.errors import DataError, UnknownName
from iclkit.records import Example


def example_dict(example: Example) -> dict[str, Any]:
    """An example as one JSON object."""
    e = example
    whole = e.input if isinstance(e.input, str) else dict(e.input)
    return {
        "id": e.id,
        "input": whole,
        "output": e.output,
        "task": e.task,
        "choices": [*e.choices],
        "meta": dict(e.meta),
    }


def write_examples(examples: Sequence[Example], path: Path, format: str | None = None) -> int:
    """See ``Pool.export``."""
    kind = format or path.suffix.lstrip(".").lower()
    if kind not in WRITERS:
        raise UnknownName("export format", kind, WRITERS, "Give it with --format, or as the file's suffix.")
    try:
        with write_whole(path) as file:
            WRITERS[kind](examples, file)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    return len(examples)


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at ``path`` when the block ends well, and not at all otherwise. OSError as it comes."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _jsonl(examples: Sequence[Example], file: IO[bytes]) -> None:
    for example in examples:
        file.write(json.dumps(example_dict(example), ensure_ascii=False).encode() + b"\n")


def _flat(example: Example) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in example_dict(example).items()}


COLUMNS = ("id", "input", "output", "task", "choices", "meta")


def _csv(examples: Sequence[Example], file: IO[bytes]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(map(_flat, examples))
    text.detach()


def _parquet(examples: Sequence[Example], file: IO[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [_flat(e) for e in examples]
    table = pyarrow.table({c: pyarrow.array([r[c] for r in rows], pyarrow.string()) for c in COLUMNS})
    pyarrow.parquet.write_table(table, file)


WRITERS: Mapping[str, Callable[[Sequence[Example], IO[bytes]], None]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
