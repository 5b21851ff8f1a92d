"""Files to examples. A reader gives everything or raises one DataError that names file, line, field and remedy."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from iclkit.datasets._task import Located
from iclkit.errors import DataError, UsageError
from iclkit.files import parse_json, path_kind, read_bytes, read_text, split_lines
from iclkit.pool import exported_example
from iclkit.records import Example, Fields, Json, Query, clean_text, unique_names
from iclkit.text import visible

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

_ANSWER_COLUMNS = {"answer", "completion", "gold", "intent", "label", "output", "response", "summary", "target"}
_SIDE_COLUMNS = {"id", "idx", "index", "meta", "task"}

Record = tuple[str, Mapping[str, Any]]
"""Where a row stands and what it holds."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns make an example. A dot reaches into a nested value: ``answers.text.0``.

    ``input``: one column gives a text, several give named fields (called like the last part of their path). Where
    neither ``input`` nor ``output`` is given they are the columns of those names, else those of a file that has but
    two columns, one of them called label, answer or the like. ``choices``: one list column, or one column per option.
    ``choice_keys``: a list column with the key of each option, where ``output`` holds a key. ``labels``: label ids, or
    texts, to names. ``meta``: columns to keep. ``skip``: outputs whose rows are left out.
    """

    input: tuple[str, ...] = ()
    output: str = ""
    choices: tuple[str, ...] = ()
    choice_keys: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    meta: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


def make_columns(
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    choices: str | Sequence[str] | None = None,
    choice_keys: str | None = None,
    label_names: Sequence[str] | Mapping[Any, str] | None = None,
    meta: Sequence[str] | None = None,
    skip: Sequence[object] = (),
) -> Columns:
    """Columns from the loose spellings of a call."""
    names = label_names if isinstance(label_names, Mapping) else dict(enumerate(label_names or ()))
    return Columns(
        input=_names(input),
        output=output or "",
        choices=_names(choices),
        choice_keys=choice_keys or "",
        labels={_key(k): clean_text(v) for k, v in names.items()},
        meta=tuple(meta or ()),
        skip=tuple(_key(s) for s in skip),
    )


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def read_examples(
    path: str | Path | Any,
    *,
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    task: str = "",
    format: str | None = None,
    choices: str | Sequence[str] | None = None,
    choice_keys: str | None = None,
    label_names: Sequence[str] | Mapping[Any, str] | None = None,
    meta: Sequence[str] | None = None,
    split: str | None = None,
) -> list[Example]:
    """All examples of a JSONL, JSON (array), CSV, TSV or Parquet file, of ``hf:owner/name[:config]``, of a folder
    written by Hugging Face ``save_to_disk`` (``split`` then says which split), or of a ``datasets.Dataset``.

    ``format`` defaults to what the file's ending says. Columns: see ``Columns``; a row's own ``id`` and a ``meta``
    object are kept in ``meta``, and ``task`` and ``choices`` are read where the file has them, so a pool's export reads
    back. Texts are spelled as ``records.clean_text`` spells them. DataError on the first thing that is wrong, with
    nothing returned; UsageError for an unknown format.
    """
    columns = make_columns(input, output, choices, choice_keys, label_names, meta)
    return [e for _, e in to_examples(records(path, format, split), columns, task)]


def records(source: str | Path | Any, format: str | None = None, split: str | None = None) -> list[Record]:
    """The rows of a file, hub set or saved folder, unmapped."""
    from iclkit.datasets import _hub  # the Hugging Face library is an extra

    if not isinstance(source, str | Path):
        rows = _hub.pick_split("dataset", source, split or "train") if isinstance(source, Mapping) else source
        return _hub.object_records(rows, "dataset")
    if str(source).startswith("hf:"):
        return _hub.hub_records(str(source), split)
    path = Path(source)
    kind = path_kind(path)
    if kind == "folder":
        return _hub.saved_records(path, split)
    if not kind:
        near = difflib.get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.6)
        raise DataError(f"no file {path}" + (f"; did you mean {path.with_name(near[0])}?" if near else ""))
    return list(_READERS[format_of(path, format)](path))


def read_queries(path: str | Path, format: str | None = None) -> list[Query]:
    """The queries of a file: rows with ``input`` (and ``id``, ``choices``) in the formats of ``read_examples``, or,
    where the name's ending says none of them, one query a line.

    An id that stands twice, or two queries of one text, get different ids. DataError as in ``read_examples``.
    """
    path = Path(path)
    if not format and path.suffix.lower() not in _SUFFIXES:
        return _apart([Query(line) for _, line in split_lines(read_text(path))])
    return _apart([_query(where, row) for where, row in records(path, format)])


def _query(where: str, row: Mapping[str, Any]) -> Query:
    if not isinstance(row.get("input"), str | Mapping):
        fields = ", ".join(map(str, row))
        raise DataError(f"{where}: no `input` that is a text or named texts; the row has: {fields[:60] or 'nothing'}")
    own = row.get("id")
    name = str(own) if isinstance(own, str | int) and not isinstance(own, bool) else ""
    with _at(where):
        return Query(_input(where, row, "input"), _choices(where, row, Columns()), id=name)


def _apart(queries: Sequence[Query]) -> list[Query]:
    return [replace(q, id=name) for q, name in zip(queries, unique_names(q.id for q in queries), strict=True)]


@contextmanager
def _at(where: str) -> Iterator[None]:
    """What a record refuses is named with its place."""
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir()]
    except (OSError, ValueError):
        return []


def format_of(path: Path, format: str | None = None) -> str:
    """The format asked for, else what the ending of the name says; UsageError when neither is known."""
    known = format or _SUFFIXES.get(path.suffix.lower(), "")
    if known not in FORMATS:
        raise UsageError(
            f"no reader for format {format!r}; use one of {', '.join(FORMATS)}"
            if format
            else f"{path} ends in none of {', '.join(_SUFFIXES)}; say the format ({', '.join(FORMATS)})"
        )
    return known


# --- file formats ---------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path) -> Iterator[Record]:
    return _json_lines(path, read_text(path))


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    if not text.strip():
        raise DataError(f"{path} is empty; a JSONL file has one JSON object per line")
    if "\r" in text.strip() and "\n" not in text:
        raise DataError(f"{path}: its lines end with carriage returns alone; convert it, e.g. tr '\\r' '\\n'")
    for number, line in split_lines(text):
        where = f"{path}, line {number}"
        try:
            record = parse_json(line.strip(), where, lone_surrogates=True)
        except DataError as error:
            raise DataError(f"{error}; every line holds one JSON object") from error
        yield where, _object(where, record)


def _read_json(path: Path) -> Iterator[Record]:
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty; a JSON file holds an array of objects")
    try:
        data = parse_json(text, str(path), lone_surrogates=True)
    except DataError:
        if text.lstrip()[0] != "{" or "\n" not in text.strip():
            raise
        yield from _json_lines(path, text)  # JSON lines under the name .json are common
        return
    if not isinstance(data, list):
        raise DataError(f"{path} holds {_kind(data)}; expected an array of objects, or one object per line (.jsonl)")
    if not data:
        raise DataError(f"{path} holds an empty array; expected an array of objects")
    for number, record in enumerate(data, 1):
        where = f"{path}, item {number}"
        yield where, _object(where, record)


def _object(where: str, record: object) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object with named fields, found {_kind(record)}")
    return record


def _read_table(path: Path, delimiter: str) -> list[Record]:
    text = read_text(path)
    # old Macs end lines with carriage returns alone; elsewhere one may stand in a cell
    lines = io.StringIO(text, newline="\n" if "\n" in text else "")
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses fields over 131,072 characters
    rows: list[Record] = []
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(reader, None)
        if not header:
            raise DataError(f"{path} is empty; its first line names the columns")
        if len(set(header)) < len(header):
            twice = next(c for c in header if header.count(c) > 1)
            raise DataError(f"{path}, line 1: the column {twice!r} is named twice; rename one")
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{path}, line {start}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} fields where the header names {len(header)} ({', '.join(header)}); "
                    f"quote a field that holds the delimiter or a line break"
                )
            rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {start}: {error}; a field that begins with a quote must end with one, a quote inside it is "
            f"doubled, and a field with a line break in it is quoted"
        ) from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise DataError(f"{path} has a header ({', '.join(header)}) and no rows")
    return rows


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        # what is no plain file (a pipe) cannot be searched, and is read as a whole
        source = path if path_kind(path) == "file" else pyarrow.BufferReader(read_bytes(path))
        file = pyarrow.parquet.ParquetFile(source)
        columns = file.schema_arrow.names
        if twice := [c for c, n in Counter(columns).items() if n > 1]:
            raise DataError(f"{path}: the column {twice[0]!r} is there twice; rename one")
        rows = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from error
    if not rows:
        raise DataError(f"{path} has no rows; columns: {', '.join(columns)}")
    names = _class_labels((file.schema_arrow.metadata or {}).get(b"huggingface", b""))
    yield from name_labels(((f"{path}, row {n}", row) for n, row in enumerate(rows, 1)), names)


def _class_labels(metadata: bytes) -> dict[str, list[str]]:
    """Label names per column from the schema metadata that Hugging Face ``datasets`` writes into Parquet.

    Metadata of another shape says nothing: label ids then stay numbers, which a reader refuses to take for texts.
    """
    try:
        found: Any = parse_json(metadata, "metadata")
    except DataError:
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return {
        column: feature["names"]
        for column, feature in (found.items() if isinstance(found, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and _are_texts(feature.get("names"))
    }


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class LabelId(int):
    """A label's number that knows the label's name, as Hugging Face sets store labels."""

    name: str


def name_labels(rows: Iterable[Record], names: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    """The rows with label ids that know their names; ids outside the list (-1: hidden) stay plain numbers."""
    ids: dict[str, list[LabelId]] = {}
    for column, labels in names.items():
        ids[column] = [LabelId(i) for i in range(len(labels))]
        for label, name in zip(ids[column], natural_names(labels), strict=True):
            label.name = name
    for where, row in rows:
        named = {
            c: known[row[c]] for c, known in ids.items() if isinstance(row.get(c), int) and 0 <= row[c] < len(known)
        }
        yield where, ({**row, **named} if named else row)


def natural_names(labels: Sequence[str]) -> list[str]:
    """Label names as words: underscores to spaces; left alone where two names would become one.

    >>> natural_names(["card_arrival", "atm support"])
    ['card arrival', 'atm support']
    """
    words = [" ".join(label.replace("_", " ").split()) or label for label in labels]
    return words if len(set(words)) == len(set(labels)) else list(labels)


_READERS: Mapping[str, Callable[[Path], Iterable[Record]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": partial(_read_table, delimiter=","),
    "tsv": partial(_read_table, delimiter="\t"),
    "parquet": _read_parquet,
}


# --- rows to examples -----------------------------------------------------------------------------------------------


def to_examples(rows: Iterable[Record], columns: Columns, task: str = "") -> list[Located]:
    """Each row as an example, with the place it came from. DataError on the first row that does not make one."""
    rows = list(rows)
    columns = _resolve_columns(columns, rows[0][1] if rows else {})
    return [(where, _example(where, row, columns, task)) for where, row in rows if not _skipped(row, columns)]


def _resolve_columns(columns: Columns, first: Mapping[str, Any]) -> Columns:
    """The columns with input and output named, from the first row's where the caller names neither."""
    if not columns.input and not columns.output and not {"input", "output"} & set(first):
        names = [c for c in first if c not in _SIDE_COLUMNS]
        answers = [c for c in names if c in _ANSWER_COLUMNS]
        if len(names) == 2 and len(answers) == 1:
            (question,) = set(names) - set(answers)
            return replace(columns, input=(question,), output=answers[0])
    return replace(columns, input=columns.input or ("input",), output=columns.output or "output")


def _skipped(row: Mapping[str, Any], columns: Columns) -> bool:
    return bool(columns.skip) and _key(row.get(columns.output)) in columns.skip


def _example(where: str, row: Mapping[str, Any], columns: Columns, task: str) -> Example:
    with _at(where):
        plain = replace(columns, meta=(), skip=()) == Columns(input=("input",), output="output")
        if plain and (exported := exported_example(row, task)):
            _check_encodes(where, "id", exported.id)
            if exported.id != row["id"]:  # not as it was written: it has to pass as any other row has
                _require_text(where, "input", exported.text)
                _require_text(where, "output", exported.output)
            return replace(exported, meta=_meta(where, exported.meta, row, columns))
        if len(columns.input) > 1:
            inputs = _fields(where, {_field_name(columns, c): _cell(where, row, c, "--input") for c in columns.input})
        else:
            inputs = _input(where, row, columns.input[0])
        options = _choices(where, row, columns)
        output = _answer(where, row, columns, options)
        own = row.get("task")
        example = Example(inputs, output, task or (own if isinstance(own, str) else ""), options)
        meta: dict[str, Any] = dict(row["meta"]) if isinstance(row.get("meta"), Mapping) else {}
        own_id = row.get("id")
        if isinstance(own_id, str | int) and not isinstance(own_id, bool) and str(own_id) != example.id:
            meta["id"] = str(own_id)
        return replace(example, meta=_meta(where, meta, row, columns))


def _field_name(columns: Columns, column: str) -> str:
    """What a column is called as a field: the last part of its path, or all of it where two end alike."""
    ends = [c.rpartition(".")[2] for c in columns.input]
    end = column.rpartition(".")[2]
    return end if ends.count(end) == 1 else column


def _fields(where: str, cells: Mapping[str, object], column: str = "") -> Fields:
    fields = {str(k): _plain_text(where, f"{column}{k}", v) for k, v in cells.items()}
    for name in fields:
        _check_encodes(where, f"{column}{name}", name)
    if not any(map(visible, fields.values())):
        what = f"field {column[:-1]!r} has no text in it" if column else f"the fields {', '.join(fields)} are all empty"
        raise DataError(f"{where}: {what}; remove the row or fill one in")
    return fields


def _input(where: str, row: Mapping[str, Any], column: str) -> Fields:
    value = _cell(where, row, column, "--input")
    if not isinstance(value, Mapping):
        return _require_text(where, column, _text(where, row, column, "--input"))
    return _fields(where, value, f"{column}.")


def _answer(where: str, row: Mapping[str, Any], columns: Columns, options: tuple[str, ...]) -> str:
    column = columns.output
    value = _cell(where, row, column, "--output")
    value = clean_text(value) if isinstance(value, str) else value
    if options and columns.choice_keys:
        keys = [_key(k) for k in _cell(where, row, columns.choice_keys, "choice_keys")]
        if _key(value) not in keys[: len(options)]:
            raise DataError(f"{where}: field {column!r} is {_show(value)}, none of the choice keys {', '.join(keys)}")
        return options[keys.index(_key(value))]
    if options and (isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and value not in options)):
        # thousands of digits are no number to Python, and no choice either
        number = int(value) if isinstance(value, int) or len(value) < 10 else -1
        if not 0 <= number < len(options):
            raise DataError(f"{where}: field {column!r} is {_show(value)}, and there are {len(options)} choices from 0")
        return options[number]
    if columns.labels:
        if isinstance(value, str) and value in columns.labels.values():
            return value
        if _key(value) not in columns.labels:
            known = ", ".join(f"{k} ({v})" for k, v in list(columns.labels.items())[:20])
            raise DataError(f"{where}: field {column!r} is {_show(value)}, not a known label; known: {known}")
        return columns.labels[_key(value)]
    return _require_text(where, column, _text(where, row, column, "--output"))


def _choices(where: str, row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    if len(columns.choices) > 1:
        return tuple(_require_text(where, c, _text(where, row, c, "choices")) for c in columns.choices)
    column = columns.choices[0] if columns.choices else "choices"
    if not columns.choices and not row.get("choices"):
        return ()
    value = _cell(where, row, column, "choices")
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {column!r} is {_kind(value)}; choices are a list of texts")
    return tuple(_require_text(where, column, _plain_text(where, column, v)) for v in value)


def _meta(where: str, own: Mapping[str, Any], row: Mapping[str, Any], columns: Columns) -> dict[str, Json]:
    """A row's own metadata and the columns to keep."""
    meta = {key: _plain_json(where, f"meta.{key}", value) for key, value in own.items()}
    meta |= {c: _plain_json(where, c, _cell(where, row, c, "--meta")) for c in columns.meta}
    for key in meta:
        _check_encodes(where, "meta", key)
    return meta


def _plain_json(where: str, column: str, value: object) -> Json:
    if isinstance(value, LabelId):
        return value.name
    if isinstance(value, str):
        _check_encodes(where, column, value)
        return value
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = "not a number or infinite" if "Out of range float" in str(error) else _kind(value)
        raise DataError(f"{where}: field {column!r} is {kind}, which JSON cannot hold; leave it out") from error
    plain: Json = parse_json(text, f"{where}: field {column!a}")
    return plain


def _cell(where: str, row: Mapping[str, Any], column: str, flag: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            near = difflib.get_close_matches(column, [str(c) for c in row], n=1, cutoff=0.6)
            raise DataError(
                f"{where}: no field {column!r}; the row has: {', '.join(map(str, row)) or 'none'}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" Name the field with {flag} (iclkit pool add) or {flag[2:]}= (load_task), or rename it"
            )
    return value


def _text(where: str, row: Mapping[str, Any], column: str, flag: str) -> str:
    return _plain_text(where, column, _cell(where, row, column, flag))


def _plain_text(where: str, column: str, value: object) -> str:
    if isinstance(value, LabelId):
        return value.name
    if not isinstance(value, str):
        remedy = (
            "write it in quotes, or give the names of the labels" if isinstance(value, int | float) else "give text"
        )
        raise DataError(f"{where}: field {column!r} is {_show(value)}, {_kind(value)}, not a text; {remedy}")
    _check_encodes(where, column, value)
    return clean_text(value)


def _check_encodes(where: str, column: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {column!a} holds half a surrogate pair at character {error.start}; "
            f"write the file anew as UTF-8"
        ) from error


def _require_text(where: str, column: str, text: str) -> str:
    if not visible(text):
        raise DataError(f"{where}: field {column!r} is empty; remove the row or fill it in")
    return text


def _key(value: object) -> str:
    """One spelling for label ids and keys: 1, "1" and 1.0 are the same; true is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return clean_text(str(value))


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    if value is None:
        return "nothing (null)"
    kinds: dict[type, str] = {bool: "a truth value", int: "a number", float: "a number", str: "a text"}
    return kinds.get(
        type(value),
        "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__,
    )
