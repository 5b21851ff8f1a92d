"""Rows to examples. A reader gives everything or raises one DataError that names file, line, field and remedy; where it
is told to, it leaves bad rows out and says which."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from iclkit.datasets import _layouts
from iclkit.datasets._formats import (
    STDIN,
    FileOptions,
    LabelId,
    NoLabel,
    Record,
    Rows,
    kind_of,
    known_suffix,
    open_rows,
)
from iclkit.datasets._layouts import (
    ANSWERS,
    GROUNDS,
    OTHER_ANSWERS,
    OTHER_QUESTIONS,
    PAIRS,
    QUESTIONS,
    SIDE,
    Found,
    plain_name,
)
from iclkit.datasets._task import Located
from iclkit.errors import DataError, UsageError
from iclkit.files import parse_json, path_kind, read_text, split_lines
from iclkit.pool import exported_example
from iclkit.records import Example, Fields, Json, Query, clean_text, unique_names
from iclkit.text import visible

ON_BAD_ROW = ("stop", "skip")
_FROM_ONE = re.compile(r"(?<!\d)1$")
_FIRST = 200
"""So many rows are looked at to find out how the rest are read."""
_ENOUGH = 5
"""Rows that it takes to believe that options are numbered from 1; with fewer, a number beyond the last is a mistake."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns make an example. A dot reaches into a nested value: ``answers.text.0``.

    ``input``: one column gives a text, several give named fields (called like the last part of their path). What is not
    named is found out from the first rows: a layout that is known (``iclkit.datasets.LAYOUTS``), columns called input
    and output, or the one column that is called like a question and the one called like an answer. ``choices``: one
    list column, or one column per option; the output may then be the option, its letter or its number.
    ``choice_keys``: a list column with the key of each option, where ``output`` holds a key. ``labels``: label ids, or
    texts, to names; without names, numbers and truth values are labels as they are written. ``null``: the label of rows
    whose output is null. ``meta``: columns to keep. ``skip``: outputs whose rows are left out. ``unlabeled``: an
    output may be missing.
    """

    input: tuple[str, ...] = ()
    output: str = ""
    choices: tuple[str, ...] = ()
    choice_keys: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    meta: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    null: str = ""
    unlabeled: bool = False


def make_columns(
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    choices: str | Sequence[str] | None = None,
    choice_keys: str | None = None,
    label_names: Sequence[str] | Mapping[Any, str] | None = None,
    meta: Sequence[str] | None = None,
    skip: Sequence[object] = (),
    null: str = "",
    unlabeled: bool = False,
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
        null=clean_text(null),
        unlabeled=unlabeled,
    )


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out: where it stands, why, and what it holds as far as it could be read."""

    where: str
    reason: str
    row: Mapping[str, Any] | None = None


class Reading:
    """The examples of some rows with their places, one after another, to be gone through once.

    ``notes``, which are whole from the start: what was inferred, and what is left out, with the flag that changes it.
    ``skipped`` grows while the rows are read, with ``on_bad_row="skip"``. ``also``: columns that are kept as metadata
    where a row has them. ``like``: the columns of the split before, which are those of this one where its rows have
    that input and the user names none. ``may_skip``: whether the user could have bad rows left out. ``kinds`` counts
    what the outputs were in the file: text, number, list, object. ``layout``, ``metric``, ``kind``, ``delimiter``,
    ``places``: what was recognized, and what it suggests.
    """

    def __init__(
        self,
        rows: Rows | Iterable[Record],
        columns: Columns,
        task: str = "",
        on_bad_row: str = "stop",
        also: Sequence[str] = (),
        *,
        may_skip: bool = True,
        like: Columns | None = None,
    ) -> None:
        if on_bad_row not in ON_BAD_ROW:
            raise UsageError(f"on_bad_row is {on_bad_row!r}; choose from {', '.join(ON_BAD_ROW)}")
        found = rows if isinstance(rows, Rows) else Rows(iter(rows))
        first = [*itertools.islice(found.records, _FIRST)]
        self._rows = itertools.chain(first, found.records)
        self._may_skip = may_skip
        self._task, self._skip, self._also = task, on_bad_row == "skip", also
        self.skipped: list[Skipped] = []
        self.kinds: Counter[str] = Counter()
        self.layout, self.metric, self.kind, self.delimiter, self.places = "", "", "", found.delimiter, found.places
        good = [(where, row) for where, row in first if not isinstance(row, DataError)]
        if like is not None and columns.input == () and columns.output == "" and good and _fits(like, good[0][1]):
            columns = like
        self._plan, notes = self._planned(columns, [row for _, row in good], good[0][0] if good else "")
        self.notes = (*found.notes, *notes)

    def _planned(self, columns: Columns, first: Sequence[Mapping[str, Any]], where: str) -> tuple[_Plan, list[str]]:
        if not first:
            return _Plan(_resolved(columns, {})), []
        if columns.unlabeled and columns.output and not any(columns.output.partition(".")[0] in row for row in first):
            _cell(where, first[0], columns.output, "--output")  # an output may be missing, a wrong name is a mistake
        own = not columns.input and not columns.output and _ours(first[0])
        named = columns.input or columns.output or columns.choices or columns.choice_keys
        known = None
        if not own and not named:
            with _at(where):
                known = _layouts.recognize(first)
        if known is None:
            resolved = _resolved(columns, first[0])
            plain = replace(resolved, meta=(), skip=(), unlabeled=False) == Columns(("input",), "output")
            plan = _Plan(resolved, exported=plain and not columns.input and not columns.output)
            guessed = not own and (resolved.input, resolved.output) != (columns.input, columns.output)
            usual = (resolved.input, resolved.output) == (("input",), "output")
            inputs = ", ".join(resolved.input)
            said = [f"input {inputs}; output {resolved.output or 'none'} (--input, --output)"] * (guessed and not usual)
        else:
            self.layout, found = known
            self.metric, self.kind = found.metric, found.kind
            plan, said = _Plan.of(found, columns), [found.said]
        plan = plan.with_answers(first)
        return plan, [*said, *plan.notes, *_hidden_labels(plan, first), *_unused(plan, first)]

    @property
    def columns(self) -> Columns | None:
        """The columns that were named or found out; None where a layout reads the rows in its own way."""
        return None if self._plan.rewrite else self._plan.columns

    def __iter__(self) -> Iterator[Located]:
        for where, row in self._rows:
            try:
                if isinstance(row, DataError):
                    raise row
                if self._plan.columns.skip and _key(row.get(self._plan.columns.output)) in self._plan.columns.skip:
                    continue
                example, kind = self._plan.example(where, row, self._task)
            except DataError as error:
                if not self._skip:
                    raise _with_remedy(error) if self._may_skip else error from None
                self.skipped.append(Skipped(where, str(error), None if isinstance(row, DataError) else row))
                continue
            self.kinds[kind] += 1
            if more := {name: str(row[name]) for name in self._also if row.get(name) is not None}:
                example = replace(example, meta={**more, **example.meta})
            yield where, example

    def located(self) -> list[Located]:
        """All of them, with the same fields in every row: a chat's first turns have no context, later ones do."""
        rows = [*self]
        fields = [e.input if isinstance(e.input, Mapping) else ("input",) for _, e in rows]
        # those of the rows that have several first, which is the order of a prompt
        names = dict.fromkeys(name for each in sorted(fields, key=lambda f: isinstance(f, tuple)) for name in each)
        if self._plan.rewrite is None or all(isinstance(each, tuple) for each in fields):
            return rows
        return [(where, e if isinstance(e.input, Mapping) and len(e.input) == len(names) else _filled(e, names))
                for where, e in rows]  # fmt: skip


def _filled(example: Example, names: Iterable[str]) -> Example:
    given = {"input": example.input} if isinstance(example.input, str) else example.input
    return replace(example, input={name: given.get(name, "") for name in names}, id="")


def _with_remedy(error: DataError) -> DataError:
    return error if "--on-bad-row" in str(error) else DataError(f"{error} (--on-bad-row skip leaves such rows out)")


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
    rows: str = "",
    delimiter: str = "",
    encoding: str = "",
    on_bad_row: str = "stop",
) -> list[Example]:
    """All examples of a JSONL, JSON, CSV, TSV or Parquet file, of ``hf:owner/name[:config]``, of a folder written by
    Hugging Face ``save_to_disk`` (``split`` then says which split), or of a ``datasets.Dataset``.

    ``format`` defaults to what the file's ending says; gzip and Zstandard are unpacked. ``rows``, ``delimiter``,
    ``encoding``: see ``FileOptions``. Columns: see ``Columns``; a row's own ``id`` and a ``meta`` object are kept in
    ``meta``, and ``task`` and ``choices`` are read where the file has them, so a pool's export reads back. Texts are
    spelled as ``records.clean_text`` spells them. DataError on the first thing that is wrong, with nothing returned
    (``on_bad_row="skip"`` leaves such rows out); UsageError for an unknown format.
    """
    columns = make_columns(input, output, choices, choice_keys, label_names, meta)
    options = FileOptions(format or "", rows, delimiter, encoding)
    return [e for _, e in read_rows(path, columns, options, task, on_bad_row, split).located()]


def read_rows(
    source: str | Path | Any,
    columns: Columns,
    options: FileOptions | None = None,
    task: str = "",
    on_bad_row: str = "stop",
    split: str | None = None,
    also: Sequence[str] = (),
    like: Columns | None = None,
) -> Reading:
    """The rows of a file, of standard input (``-``), of a hub set or of a saved folder, as examples, one at a time."""
    from iclkit.datasets import _hub  # the Hugging Face library is an extra

    found: Rows | Iterable[Record]
    if not isinstance(source, str | Path):
        rows = _hub.pick_split("dataset", source, split or "train") if isinstance(source, Mapping) else source
        found = _hub.object_records(rows, "dataset")
    elif str(source).startswith("hf:"):
        found = _hub.hub_records(str(source), split)
    elif str(source) != STDIN and path_kind(Path(source)) == "folder":
        found = _hub.saved_records(Path(source), split)
    else:
        found = open_rows(Path(source), options, [*columns.input, columns.output] if columns.output else columns.input)
    return Reading(found, columns, task, on_bad_row, also, like=like)


def read_queries(
    path: str | Path,
    format: str | None = None,
    *,
    input: str | Sequence[str] | None = None,
    choices: str | Sequence[str] | None = None,
    options: FileOptions | None = None,
) -> list[Query]:
    """The queries of a file: rows in the formats and layouts of ``read_examples``, whose outputs are not looked at; or,
    where the name's ending says no format, one query a line.

    ``input``, ``choices``: columns, as there. An id that stands twice, or two queries of one text, get different ids.
    DataError as in ``read_examples``.
    """
    path = Path(path)
    options = replace(options or FileOptions(), format=format) if format else options or FileOptions()
    if not options.format and (str(path) == STDIN or not known_suffix(path)):
        return _apart([Query(line) for _, line in split_lines(read_text(path, stdin=True))])
    columns = make_columns(input, choices=choices, unlabeled=True)
    found = []
    for where, example in Reading(open_rows(path, options, columns.input), columns, may_skip=False):
        own = example.meta.get("id")
        with _at(where):
            found.append(Query(example.input, example.choices, id=own if isinstance(own, str) else ""))
    return _apart(found)


def _apart(queries: Sequence[Query]) -> list[Query]:
    return [replace(q, id=name) for q, name in zip(queries, unique_names(q.id for q in queries), strict=True)]


@contextmanager
def _at(where: str) -> Iterator[None]:
    """What a record or a layout refuses is named with its place."""
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from error


def to_examples(rows: Iterable[Record], columns: Columns, task: str = "") -> list[Located]:
    """Each row as an example, with the place it came from. DataError on the first row that does not make one."""
    return Reading(rows, columns, task).located()


# --- which columns --------------------------------------------------------------------------------------------------


def _fits(columns: Columns, row: Mapping[str, Any]) -> bool:
    """Whether a row has the input of these columns, and their output or none at all; a row of our own says itself."""
    if _ours(row):
        return False
    has_output = columns.output.partition(".")[0] in row or not any(plain_name(name) in ANSWERS for name in row)
    return bool(columns.input) and has_output and all(name.partition(".")[0] in row for name in columns.input)


def _ours(first: Mapping[str, Any]) -> bool:
    """A row as iclkit writes it, or a user by the manual: nothing is to be inferred."""
    return {"input", "output"} <= set(first) and "instruction" not in first


def _resolved(columns: Columns, first: Mapping[str, Any]) -> Columns:
    """The columns with input and output named, from the first row's where the caller does not name them.

    How a name is written does not count: ``Text`` is a text, too.
    """
    names = [c for c in first if plain_name(c) not in SIDE]
    taken = {*columns.choices, columns.choice_keys, *columns.meta}
    free = [c for c in names if c not in taken and c not in columns.input]
    answers = _one_of(free, ANSWERS, OTHER_ANSWERS)
    pair = next((found for p in PAIRS if len(found := _called(free, p)) == 2), ())
    output = columns.output or ("output" if "output" in first else answers[0] if len(answers) == 1 else "")
    others = [c for c in names if plain_name(c) not in QUESTIONS and c not in taken]
    if not output and not answers and not columns.unlabeled:
        # beside one column that is the question, or two that belong together, the other one is the answer
        if len(names) == 2 and len(others) == 1:
            output = others[0]
        elif pair and len(free) == 3:
            (other,) = (c for c in free if c not in pair)
            output = other if isinstance(first[other], str | int | float) else ""
    if {"label", "label_text"} == {*map(plain_name, answers)} and not columns.output:
        number, output = sorted(answers, key=len)  # SetFit's sets: a label's number, and its name
        taken |= {number}
    inputs = columns.input or (("input",) if "input" in first else ())
    if not inputs and (output or columns.unlabeled):
        left = [c for c in names if c != output and c not in taken and c not in answers]
        like = _one_of(left, QUESTIONS, OTHER_QUESTIONS)
        about = [c for c in left if plain_name(c) in GROUNDS and isinstance(first[c], str)]
        asked = [c for c in like if c not in about] or like
        asked = [c for c in left if c in {*asked, *about}] if len(asked) == 1 else left if len(left) == 1 else []
        inputs = (pair if {*pair} <= {*left} else ()) or tuple(asked)
    if columns.input and not output and not columns.unlabeled:
        left = [c for c in names if c not in taken and c not in columns.input]
        output = left[0] if len(left) == 1 and not answers else ""
    return replace(columns, input=inputs or ("input",), output=output or ("" if columns.unlabeled else "output"))


def _one_of(columns: Sequence[str], names: set[str], others: set[str]) -> list[str]:
    """The columns of such a name; of the other names where none is; as an answer, what is said to be (``is_spam``)."""
    found = [c for c in columns if plain_name(c) in names] or [c for c in columns if plain_name(c) in others]
    return found or [c for c in columns if names is ANSWERS and plain_name(c).startswith("is_")]


def _called(columns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The columns of these names, however they are written, in the order of the names."""
    by_name = {plain_name(c): c for c in columns}
    return tuple(by_name[name] for name in names if name in by_name)


def _hidden_labels(plan: _Plan, first: Sequence[Mapping[str, Any]]) -> list[str]:
    """A word on the number -1 beside label numbers from 0, which many sets have where there is no label."""
    column, labels = plan.columns.output, plan.columns.labels
    seen = {_key(row[column]) for row in first if column in row and not labels and not plan.rewrite}
    if not {"-1", "0"} <= seen or not all(key.removeprefix("-").isdecimal() for key in seen):
        return []
    return [f"{column} -1 is taken as a label; if it means that there is none, --label-names 0=...,1=... names those "
            "that there are, and --on-bad-row skip leaves the other rows out"]  # fmt: skip


def _unused(plan: _Plan, first: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that nothing is made of, in one line."""
    used = {n.partition(".")[0] for n in plan.used} | plan.used | SIDE | {"choices"}
    rest = [*dict.fromkeys(name for row in first for name in row if name not in used)]
    if not rest or plan.exported:
        rest = [name for name in rest if name not in ("id", "input", "output", "task", "choices", "meta")]
    if not rest:
        return []
    shown = ", ".join(map(str, rest[:12])) + (f" and {len(rest) - 12} more" if len(rest) > 12 else "")
    return [f"left out: {'column' if len(rest) == 1 else 'columns'} {shown} (--keep {rest[0]} keeps it as metadata)"]


# --- one row --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """How every row of a file becomes an example. ``answers``: how the outputs name their option: text, letter, or a
    number from 0 or from 1."""

    columns: Columns
    rewrite: Any = None
    uses: frozenset[str] = frozenset()
    exported: bool = False
    answers: str = "text"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Found, columns: Columns) -> _Plan:
        if found.rewrite:
            return cls(replace(columns, input=("input",), output="output"), found.rewrite, found.uses)
        return cls(
            replace(
                columns,
                input=found.input,
                output=found.output,
                choices=found.choices,
                choice_keys=found.choice_keys,
                meta=tuple(dict.fromkeys((*found.meta, *columns.meta))),
            )
        )

    @property
    def used(self) -> set[str]:
        c = self.columns
        return {*self.uses, *c.meta, *((*c.input, c.output, *c.choices, c.choice_keys) if not self.rewrite else ())}

    def with_answers(self, first: Sequence[Mapping[str, Any]]) -> _Plan:
        """The plan with what the outputs of the first rows have in common; rows with their own keys need none."""
        if self.rewrite or self.columns.choice_keys or self.columns.labels:
            return self
        seen: list[tuple[Any, tuple[str, ...]]] = []
        for row in first:
            try:
                options = _choices("", row, self.columns)
                if options:
                    value = _cell("", row, self.columns.output, "--output")
                    seen.append((clean_text(value) if isinstance(value, str) else value, options))
            except DataError:
                continue  # it is named when its turn comes
        how = _how_answered(seen, bool(_FROM_ONE.search(self.columns.choices[0])) if self.columns.choices else False)
        numbered = how == "zero" and any(_is_number(value) and value not in options for value, options in seen)
        said = {
            "letter": "answers are letters of options", "one": "answers are numbers of options, from 1",
            "zero": "answers are numbers of options, from 0" if numbered else "",
        }.get(how)  # fmt: skip
        return replace(self, answers=how, notes=(said,) if said else ())

    def example(self, where: str, row: Mapping[str, Any], task: str) -> tuple[Example, str]:
        """The example of a row, and what its output was: text, number, list or object."""
        columns = self.columns
        with _at(where):
            if self.exported and (exported := exported_example(row, task)):
                _check_encodes(where, "id", exported.id)
                if exported.id != row["id"]:  # not as it was written: it has to pass as any other row has
                    _require_text(where, "input", exported.text)
                    _require_text(where, "output", exported.output)
                return replace(exported, meta=_meta(where, exported.meta, row, columns)), "text"
            made = self._rewritten(row) if self.rewrite else {}
            cells = {**row, **made}
            own_meta = [m for m in (row.get("meta"), made.get("meta")) if isinstance(m, Mapping)]
            if len(columns.input) > 1:
                given = {_field_name(columns, c): _cell(where, cells, c, "--input") for c in columns.input}
                inputs = _fields(where, given)
            else:
                inputs = _input(where, cells, columns.input[0])
            options = _choices(where, cells, columns)
            output, kind = self._answer(where, cells, options)
            own = row.get("task")
            example = Example(inputs, output, task or (own if isinstance(own, str) else ""), options)
            meta: dict[str, Any] = {key: value for part in own_meta for key, value in part.items()}
            own_id = row.get("id")
            if isinstance(own_id, str | int) and not isinstance(own_id, bool) and str(own_id) != example.id:
                meta["id"] = str(own_id)
            return replace(example, meta=_meta(where, meta, row, columns)), kind

    def _rewritten(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            made: Mapping[str, Any] = self.rewrite(row)
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # the layout was recognized by the first rows, and this one has other kinds of values in its columns
            raise DataError("the row is not laid out as the first rows of the file are") from error
        return made

    def _answer(self, where: str, row: Mapping[str, Any], options: tuple[str, ...]) -> tuple[str, str]:
        columns, column = self.columns, self.columns.output
        missing = columns.unlabeled and (not column or column not in row)
        value = None if missing else _cell(where, row, column, "--output")
        value = clean_text(value) if isinstance(value, str) else value
        empty = value is None or isinstance(value, NoLabel)
        if columns.unlabeled and (empty or value == ""):
            return "", "none"
        if empty:
            if columns.null:
                return columns.null, "text"
            shown = "None, nothing (null), not a text" if value is None else "-1, which stands for no label"
            raise DataError(
                f"{where}: field {column!r} is {shown}; --null-label NAME makes a label of it, --on-bad-row skip "
                f"leaves such rows out"
            )
        if options and columns.choice_keys:
            listed = _cell(where, row, columns.choice_keys, "--choice-keys")
            if not isinstance(listed, list):
                raise DataError(f"{where}: field {columns.choice_keys!r} is {kind_of(listed)}; choice keys are a list")
            keys = [_key(key) for key in listed]
            if _key(value) not in keys[: len(options)]:
                known = ", ".join(keys)
                raise DataError(f"{where}: field {column!r} is {_show(value)}, none of the choice keys {known}")
            return options[keys.index(_key(value))], "text"
        if options:
            return _option(where, column, value, options, self), "text"
        if columns.labels:
            if isinstance(value, str) and value in columns.labels.values():
                return value, "text"
            if _key(value) not in columns.labels:
                known = ", ".join(f"{k} ({v})" for k, v in list(columns.labels.items())[:20])
                raise DataError(f"{where}: field {column!r} is {_show(value)}, not a known label; known: {known}")
            return columns.labels[_key(value)], "text"
        text, kind = _output_text(where, column, value)
        return _require_text(where, column, text), kind


def _how_answered(seen: Sequence[tuple[Any, tuple[str, ...]]], named_from_one: bool = False) -> str:
    """How outputs name their options: ``text``, ``letter``, ``zero`` or ``one`` (numbers from there), as all of them
    can be read. ``named_from_one``: the options stand in columns like option1, option2."""
    if not seen:
        return "text"
    values = [v for v, _ in seen]
    if all(isinstance(v, str) and v in options for v, options in seen):
        return "text"
    if all(isinstance(v, str) and _letter_index(v, options) is not None for v, options in seen):
        return "letter"
    numbers = [int(_key(v)) if _is_number(v) else 0 for v in values]
    last = [len(options) for _, options in seen]
    # numbers from 0 reach the number of options nowhere; those from 1 do sooner or later
    from_one = all(1 <= n <= end for n, end in zip(numbers, last, strict=True)) and any(
        n == end for n, end in zip(numbers, last, strict=True)
    )
    return "one" if from_one and (named_from_one or len(seen) >= _ENOUGH) else "zero"


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return (isinstance(value, int)) or (isinstance(value, str) and value.isdecimal() and len(value) < 10)


def _letter_index(value: str, options: Sequence[str]) -> int | None:
    letter = value.strip("(). ").upper()
    at = ascii_uppercase.find(letter) if len(letter) == 1 else -1
    return at if 0 <= at < len(options) else None


def _option(where: str, column: str, value: Any, options: tuple[str, ...], plan: _Plan) -> str:
    """The option that an output means."""
    if isinstance(value, LabelId):
        value = int(value) if value.name not in options else value.name
    if plan.answers == "letter" and isinstance(value, str) and (at := _letter_index(value, options)) is not None:
        return options[at]
    if isinstance(value, str) and value in options:
        return value
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        # thousands of digits are no number to Python, and no choice either
        number = int(value) if isinstance(value, int) or len(value) < 10 else -1
        start = 1 if plan.answers == "one" else 0
        if not start <= number < len(options) + start:
            raise DataError(
                f"{where}: field {column!r} is {_show(value)}, and there are {len(options)} choices from {start}"
            )
        return options[number - start]
    if isinstance(value, str):
        names = [name.rpartition(".")[2].casefold() for name in plan.columns.choices]
        if len(names) > 1 and value.casefold() in names[: len(options)]:
            return options[names.index(value.casefold())]
        if (at := _letter_index(value, options)) is not None:
            return options[at]
        same = [option for option in options if option.casefold() == value.casefold()]
        if len(same) == 1:
            return same[0]
        raise DataError(f"{where}: field {column!r} is {_show(value)}, none of the choices {', '.join(options)}")
    raise DataError(f"{where}: field {column!r} is {_show(value)}, {kind_of(value)}, and names no choice")


def _output_text(where: str, column: str, value: Any) -> tuple[str, str]:
    """An output as text: several labels with commas between them, objects as JSON."""
    if isinstance(value, list) and all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in value):
        items = [_plain_text(where, column, v) for v in value]
        if not items or any("," in item or not visible(item) for item in items):
            return json.dumps(items, ensure_ascii=False), "list"
        return ", ".join(items), "list"
    if isinstance(value, dict | list):
        plain = _plain_json(where, column, value)
        return json.dumps(plain, ensure_ascii=False), "object"
    text = _plain_text(where, column, value)
    return text, "text" if isinstance(value, str) else "number"


def _field_name(columns: Columns, column: str) -> str:
    """What a column is called as a field: the last part of its path, or all of it where two end alike."""
    ends = [c.rpartition(".")[2] for c in columns.input]
    end = column.rpartition(".")[2]
    return end if ends.count(end) == 1 else column


def _fields(where: str, cells: Mapping[str, object], column: str = "") -> Fields:
    fields = {str(k): _plain_text(where, f"{column}{k}", "" if v is None else v) for k, v in cells.items()}
    for name in fields:
        _check_encodes(where, f"{column}{name}", name)
    if not any(map(visible, fields.values())):
        what = f"field {column[:-1]!r} has no text in it" if column else f"the fields {', '.join(fields)} are all empty"
        raise DataError(f"{where}: {what}; remove the row or fill one in")
    return fields


def _input(where: str, row: Mapping[str, Any], column: str) -> Fields:
    value = _cell(where, row, column, "--input")
    if not isinstance(value, Mapping):
        return _require_text(where, column, _plain_text(where, column, value))
    return _fields(where, value, f"{column}.")


def _choices(where: str, row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    if len(columns.choices) > 1:
        cells = [(c, _plain_text(where, c, _cell(where, row, c, "--choices"))) for c in columns.choices]
        while len(cells) > 2 and not visible(cells[-1][1]):
            cells.pop()  # a row with fewer options than the others
        return tuple(_require_text(where, c, text) for c, text in cells)
    column = columns.choices[0] if columns.choices else "choices"
    if not columns.choices and not row.get("choices"):
        return ()
    value = _cell(where, row, column, "--choices")
    if isinstance(value, str) and value[:1] == "[":  # a cell of a table
        value = parse_json(value, f"{where}: field {column!r}")
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {column!r} is {kind_of(value)}; choices are a list of texts")
    texts = [v["text"] if isinstance(v, Mapping) and "text" in v else v for v in value]
    return tuple(_require_text(where, column, _plain_text(where, column, v)) for v in texts)


def _meta(where: str, own: Mapping[str, Any], row: Mapping[str, Any], columns: Columns) -> dict[str, Json]:
    """A row's own metadata and the columns to keep."""
    meta = {key: _plain_json(where, f"meta.{key}", value) for key, value in own.items()}
    meta |= {c: _plain_json(where, c, _cell(where, row, c, "--keep")) for c in columns.meta}
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
        kind = "not a number or infinite" if "Out of range float" in str(error) else kind_of(value)
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
                f"{where}: no field {column!r}; the row has: {', '.join(_places(row)) or 'none'}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" Name the field with {flag}"
                + ("; if its cells are not parted right, say --delimiter" if _unparted(row) else "")
            )
    return value


def _places(row: Mapping[str, Any]) -> Iterator[str]:
    """The columns, those inside an object with a dot."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield str(name)


def _unparted(row: Mapping[str, Any]) -> bool:
    """Whether a row may be a table's that was read with the wrong delimiter."""
    return len(row) == 1 and any(c in str(name) for name in row for c in ",;|\t:")


def _plain_text(where: str, column: str, value: object) -> str:
    if isinstance(value, LabelId):
        return value.name
    if isinstance(value, int | float) and not (isinstance(value, float) and not math.isfinite(value)):
        return _key(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {column!r} is {_show(value)}, {kind_of(value)}, not a text; give text")
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
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, LabelId):
        return str(int(value))
    return clean_text(str(value))


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
