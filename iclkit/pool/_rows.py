"""Examples from what people have in memory: rows of a table, pairs, or examples."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iclkit.errors import DataError, UsageError
from iclkit.records import Example


def examples_of(
    data: object,
    *,
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    task: str = "",
    keep: Sequence[str] = (),
) -> list[Example]:
    """Examples from examples, from rows with columns, or from (input, output) pairs.

    ``data``: a list of these, a pandas or polars ``DataFrame``, a ``datasets.Dataset`` or a ``pyarrow.Table``.
    ``input`` and ``output`` name the columns, "input" and "output" where not said; several input columns make named
    fields. Columns named in ``keep`` become metadata; ``choices``, ``meta`` and ``task`` are read where they are.
    UsageError for what is none of it, DataError, with the row's number, for a value that is no text.

    >>> examples_of([{"text": "late parcel", "team": 3}], input="text", output="team")[0].output
    '3'
    """
    rows, names = _rows(data)
    return [_example(number, row, input, output, task, names, keep) for number, row in enumerate(rows, 1)]


def _rows(given: object) -> tuple[Iterable[Any], Mapping[str, Sequence[str]]]:
    """The rows, and the names of the classes that columns hold as numbers."""
    data: Any = given
    if _is(data, "pandas", "DataFrame"):
        return data.to_dict("records"), {}
    if _is(data, "polars", "DataFrame"):
        return data.iter_rows(named=True), {}
    if _is(data, "pyarrow", "Table"):
        return data.to_pylist(), {}
    if _is(data, "datasets", "Dataset"):
        features = data.features
        return data, {c: f.names for c, f in features.items() if _is(f, "datasets", "ClassLabel")}
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        what = f"the text {data!r:.60}" if isinstance(data, str) else type(data).__name__
        raise UsageError(
            "a pool is made of a list of examples, rows or (input, output) pairs, a DataFrame, a datasets.Dataset or "
            f"a pyarrow.Table, not of {what}; a file is read with iclkit.datasets.read_examples"
        )
    return data, {}


def _is(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of a library that is loaded; a library that is not has made no value."""
    loaded = sys.modules.get(module)
    return loaded is not None and name in vars(loaded) and isinstance(value, vars(loaded)[name])


def _example(
    number: int,
    row: Any,
    input_: str | Sequence[str] | None,
    output: str | None,
    task: str,
    names: Mapping[str, Sequence[str]],
    keep: Sequence[str],
) -> Example:
    if isinstance(row, Example):
        return row
    if isinstance(row, tuple | list) and len(row) == 2 and not isinstance(row[0], tuple | list):
        row = {"input": row[0], "output": row[1]}
    if not isinstance(row, Mapping):
        raise UsageError(
            f"row {number} is of type {type(row).__name__}; expected an Example, a mapping with columns or an "
            "(input, output) pair"
        )
    where = f"row {number}"
    several = isinstance(input_, Sequence) and not isinstance(input_, str)
    if several:
        value: Any = {column: _text(where, column, _cell(where, row, column), names) for column in input_ or ()}
    else:
        column = str(input_ or "input")
        given = _cell(where, row, column)
        fields = isinstance(given, Mapping)
        value = dict(given) if fields else _text(where, column, given, names)
    answer = output or "output"
    choices, meta = row.get("choices"), row.get("meta")
    return Example(
        value,
        _text(where, answer, _cell(where, row, answer), names),
        str(row.get("task") or task),
        tuple(choices) if isinstance(choices, list | tuple) else (),
        {**(meta if isinstance(meta, Mapping) else {}), **{c: _cell(where, row, c, "keep=…") for c in keep}},
    )


def _cell(where: str, row: Mapping[str, Any], column: str, remedy: str = "input=…, output=…") -> Any:
    if column not in row:
        have = ", ".join(map(str, row)) or "none"
        raise DataError(f"{where} has no column {column!r}, it has: {have}; say which: {remedy}")
    return row[column]


def _text(where: str, column: str, value: Any, names: Mapping[str, Sequence[str]]) -> str:
    if column in names and isinstance(value, int):
        return names[column][value]
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where}: column {column!r} is empty; take the row out or fill it in")
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"{where}: column {column!r} holds a {type(value).__name__}, which is no text") from error
