"""Files to examples. A reader gives everything or raises one DataError that names file, line, field and remedy."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from iclkit.datasets._task import Located
from iclkit.errors import DataError, UsageError
from iclkit.records import Example, Fields, Json, clean_text
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
    if path.is_dir():
        return _hub.saved_records(path, split)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.6)
        raise DataError(f"no file {path}" + (f"; did you mean {path.with_name(near[0])}?" if near else ""))
    return list(_READERS[format_of(path, format)](path))


def _names_in(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


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


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, split at newlines only: other separators of Unicode may stand inside a JSON text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    marks = (b"\xff\xfe", b"\xfe\xff")
    likely = "UTF-16" if error.object[:2] in marks else "CP1252"
    return DataError(
        f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x} at byte {error.start + 1}); "
        f"convert the file, e.g. iconv -f {likely} -t UTF-8"
    )


def _read_jsonl(path: Path) -> Iterator[Record]:
    empty = True
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        empty = False
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not JSON ({error.msg} at column {error.colno}); every line holds one JSON object"
            ) from error
        except RecursionError as error:
            raise DataError(f"{where}: JSON nested too deeply; every line holds one flat JSON object") from error
        yield where, _object(where, record)
    if empty:
        raise DataError(f"{path} is empty; a JSONL file has one JSON object per line")


def _read_json(path: Path) -> Iterator[Record]:
    text = "".join(line for _, line in _text_lines(path))
    if not text.strip():
        raise DataError(f"{path} is empty; a JSON file holds an array of objects")
    if text.lstrip()[0] == "{" and "\n" in text.strip():  # JSON lines under the name .json are common
        try:
            json.loads(text)
        except json.JSONDecodeError:
            yield from _read_jsonl(path)
            return
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
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
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses fields over 131,072 characters
    rows: list[Record] = []
    lines = (line for _, line in _text_lines(path))
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
            f"{path}, line {start}: {error}; a field that begins with a quote must end with one, "
            f"and a quote inside it is doubled"
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
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from error
    if not table.num_rows:
        raise DataError(f"{path} has no rows; columns: {', '.join(table.column_names)}")
    names = _class_labels((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    yield from name_labels(((f"{path}, row {n}", row) for n, row in enumerate(table.to_pylist(), 1)), names)


def _class_labels(metadata: bytes) -> dict[str, list[str]]:
    """Label names per column from the schema metadata that Hugging Face ``datasets`` writes into Parquet."""
    features = json.loads(metadata).get("info", {}).get("features", {})
    return {c: f["names"] for c, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}


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
    columns = _settled(columns, rows[0][1] if rows else {})
    return [(where, _example(where, row, columns, task)) for where, row in rows if not _skipped(row, columns)]


def _settled(columns: Columns, first: Mapping[str, Any]) -> Columns:
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
    if len(columns.input) > 1:
        fields = {c.rpartition(".")[2]: _text(where, row, c, "--input") for c in columns.input}
        if not any(map(visible, fields.values())):
            raise DataError(f"{where}: the fields {', '.join(fields)} are all empty; remove the row or fill one in")
        inputs: Fields = fields
    else:
        inputs = _input(where, row, columns.input[0])
    options = _choices(where, row, columns)
    output = _answer(where, row, columns, options)
    own = row.get("task")
    example = Example(inputs, output, task or (own if isinstance(own, str) else ""), options)
    kept = _meta(where, row, columns, example.id)
    return Example(inputs, output, example.task, options, kept, example.id) if kept else example


def _input(where: str, row: Mapping[str, Any], column: str) -> Fields:
    value = _cell(where, row, column, "--input")
    if not isinstance(value, Mapping):
        return _filled(where, column, _text(where, row, column, "--input"))
    fields = {str(k): _plain_text(where, f"{column}.{k}", v) for k, v in value.items()}
    if not any(map(visible, fields.values())):
        raise DataError(f"{where}: field {column!r} has no text in it; remove the row or fill one in")
    return fields


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
    return _filled(where, column, _text(where, row, column, "--output"))


def _choices(where: str, row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    if len(columns.choices) > 1:
        return tuple(_filled(where, c, _text(where, row, c, "choices")) for c in columns.choices)
    column = columns.choices[0] if columns.choices else "choices"
    if not columns.choices and not row.get("choices"):
        return ()
    value = _cell(where, row, column, "choices")
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {column!r} is {_kind(value)}; choices are a list of texts")
    return tuple(_filled(where, column, _plain_text(where, column, v)) for v in value)


def _meta(where: str, row: Mapping[str, Any], columns: Columns, example_id: str) -> dict[str, Json]:
    own = row.get("meta")
    kept: dict[str, Json] = dict(own) if isinstance(own, Mapping) else {}
    identity = row.get("id")
    if isinstance(identity, str | int) and not isinstance(identity, bool) and str(identity) != example_id:
        kept["id"] = str(identity)
    for column in columns.meta:
        kept[column] = _plain_json(where, column, _cell(where, row, column, "--meta"))
    return kept


def _plain_json(where: str, column: str, value: object) -> Json:
    if isinstance(value, LabelId):
        return value.name
    try:
        plain: Json = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: field {column!r} is {_kind(value)}, which JSON cannot hold; leave it out") from error
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
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {column!r} holds half a surrogate pair at character {error.start}; "
            f"write the file anew as UTF-8"
        ) from error
    return clean_text(value)


def _filled(where: str, column: str, text: str) -> str:
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
