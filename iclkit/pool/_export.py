"""Examples to files, and back from the rows of such files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from iclkit.errors import DataError, UnknownName
from iclkit.files import parse_json, part_of, path_kind
from iclkit.records import Example, Fields

COLUMNS = ("id", "input", "output", "task", "choices", "meta")
_CONTENT_ID = re.compile("[0-9a-f]{32}")


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


def exported_example(row: Mapping[str, Any], task: str = "") -> Example | None:
    """The example that a row of an export holds, equal to the one that was exported; None for a row of another kind.

    A row is one of an export when it has all its columns: as JSON has them, or each a text, as tables have them.
    ``task`` replaces the row's own. An id that was chosen stays; one of content is made anew, so that a row that was
    edited is another example. DataError for texts with halves of characters.
    """
    if any(c not in row for c in COLUMNS):
        return None
    id_, input_, output, own_task, choices, meta = (row[c] for c in COLUMNS)
    if isinstance(choices, str) and isinstance(meta, str) and isinstance(input_, str):
        input_, choices, meta = _input_of(input_), _json_or_none(choices), _json_or_none(meta)
    if not isinstance(choices, list) or not isinstance(meta, dict):
        return None
    texts = [id_, output, own_task, *choices, *(input_.values() if isinstance(input_, Mapping) else [input_])]
    if not all(isinstance(text, str) for text in texts):
        return None
    made = Example(input_, output, task or own_task, tuple(choices), meta)
    return made if not id_ or _CONTENT_ID.fullmatch(id_) else replace(made, id=id_)


def _input_cell(value: Fields) -> str:
    """An input as a cell: fields as a JSON object, a text as it is, or as a JSON string if it would be read as JSON."""
    if isinstance(value, str) and _input_of(value) == value:
        return value
    return json.dumps(value if isinstance(value, str) else dict(value), ensure_ascii=False)


def _input_of(cell: str) -> Fields:
    """Inverse of ``_input_cell``."""
    found = _json_or_none(cell) if cell[:1] in ('"', "{") else None
    if isinstance(found, str) or (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        return found
    return cell


def _json_or_none(cell: str) -> Any:
    try:
        return parse_json(cell, "cell")
    except DataError:
        return None


def write_examples(examples: Iterable[Example], path: Path, format: str | None = None) -> int:
    """See ``Pool.export``."""
    kind = format or path.suffix.lstrip(".").lower()
    if kind not in WRITERS:
        raise UnknownName("export format", kind, WRITERS, "Give it with --format, or as the file's suffix.")
    count = itertools.count()
    try:
        with write_whole(path) as file:
            WRITERS[kind]((example for example, _ in zip(examples, count, strict=False)), file)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    return next(count)


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at ``path`` when the block ends well, and not at all otherwise. OSError as it comes."""
    if path_kind(path) == "stream":  # a pipe or a device, e.g. /dev/stdout: nothing can take its place
        with path.open("wb") as file:
            yield file
        return
    unfinished = part_of(path)
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _jsonl(examples: Iterable[Example], file: IO[bytes]) -> None:
    for example in examples:
        file.write(json.dumps(example_dict(example), ensure_ascii=False).encode() + b"\n")


def _flat(example: Example) -> dict[str, str]:
    cells = {
        k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in example_dict(example).items()
    }
    return {**cells, "input": _input_cell(example.input)}


def _csv(examples: Iterable[Example], file: IO[bytes]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(map(_flat, examples))
    text.detach()


def _parquet(examples: Iterable[Example], file: IO[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(c, pyarrow.string()) for c in COLUMNS])
    rows = map(_flat, examples)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while part := [*itertools.islice(rows, _AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(part, schema))


_AT_ONCE = 10_000  # rows of a Parquet file that are held
WRITERS: Mapping[str, Callable[[Iterable[Example], IO[bytes]], None]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
