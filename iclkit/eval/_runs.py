"""A run on disk: ``<out>/<run id>/run.json`` and ``rows.jsonl``, written so that a kill at any moment loses little.

Rows are appended in whole chunks and synced; a chunk that a kill left half written is cut off when the run is opened
again, and computed anew as a whole, so that the LM sees the same batches as in a run that was never stopped.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, overload

from iclkit.errors import DataError, RunBusy, RunError, UsageError
from iclkit.files import LineFile, parse_json, read_json, read_jsonl, replace_file, try_lock
from iclkit.prompts import Template
from iclkit.records import (
    RUN_FORMAT,
    Example,
    Json,
    ModelName,
    PoolPart,
    Query,
    Row,
    Run,
    RunSpec,
    Spec,
    TaskPart,
    digest,
)
from iclkit.schema import read_as

CHUNK = 64


class _Task(TypedDict):
    """The task in a stored spec."""

    name: str
    hash: str
    kind: str
    metric: str
    labels: tuple[str, ...]
    queries: int
    sample: NotRequired[int]
    rows: NotRequired[str]


class _Spec(TypedDict):
    """A selector or predictor in a stored spec."""

    name: str
    settings: dict[str, Any]
    version: int
    content: NotRequired[str]


class _Parts(TypedDict, total=False):
    """Parts whose meaning is known; a predictor may have others."""

    selector: _Spec
    lm: ModelName
    embedder: ModelName
    reranker: ModelName
    template: dict[str, Any]
    k: int
    seed: int
    order: str
    budget: int | None
    normalize: str
    calibrate: str
    prior: str | dict[str, float]
    answer_tokens: int
    stop: list[str]


_OF_A_PROMPT = ("selector", "lm", "template", "k", "seed", "order", "budget", "normalize", "calibrate")
OnLeak = Literal["exclude", "stop", "ignore"]


class _StoredSpec(TypedDict):
    """The spec in ``run.json``."""

    format: int
    task: _Task
    pool: PoolPart
    predictor: _Spec
    parts: _Parts
    conditions: dict[str, Any]
    on_leak: OnLeak


class _OldSelector(TypedDict):
    name: str
    settings: dict[str, Any]
    version: str


class _OldPredictor(TypedDict):
    name: str
    settings: dict[str, Any]
    version: int


class _OldSpec(TypedDict):
    """The spec in ``run.json`` of the first format."""

    iclkit: str
    task: _Task
    pool: PoolPart
    selector: _OldSelector
    predictor: NotRequired[_OldPredictor]
    lm: ModelName | None
    embedder: ModelName | None
    reranker: NotRequired[ModelName]
    template: dict[str, Any]
    on_leak: OnLeak
    k: int
    seed: int
    order: str
    budget: int | None
    normalise: str
    calibrate: NotRequired[str]
    prior: NotRequired[str | dict[str, float]]
    answer_tokens: NotRequired[int]
    stop: NotRequired[list[str]]


class Leaks(TypedDict, total=False):
    """What the leak firewall found."""

    policy: str
    pairs: dict[str, int]
    queries: int


RunFacts = TypedDict(
    "RunFacts",
    {
        "leaks": Leaks,
        "selector": str,
        "trained on": bool,
        "source": dict[str, str],
        "short": int,
        "dropped": int,
        "note": str,
        "no answer": int,
        "cut": int,
        "failed": int,
        "failure": str,
        "prior": dict[str, float],
        "iclkit": str,
        "date": str,
        "template": dict[str, Any],
    },
    total=False,
)
"""What ``run.json`` says beside the spec, as far as anything here relies on it."""


class RunState(TypedDict):
    """The whole of ``run.json``. ``id`` is the hash of ``spec``, taken when the run was made."""

    id: str
    done: bool
    spec: dict[str, Any]
    spent: dict[str, float]
    facts: RunFacts


class _StoredQuestion(TypedDict):
    """A line of ``questions.jsonl``."""

    question: str
    date: str


class StoredText(TypedDict):
    """A line of ``texts.jsonl``."""

    id: str
    input: str | dict[str, str]
    output: NotRequired[str]
    choices: NotRequired[list[str]]
    meta: NotRequired[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that cannot be used: the id or folder by which it is known, and why, in one line."""

    run: str
    reason: str


def batches(total: int, size: int = CHUNK) -> list[range]:
    """Positions 0..total in chunks of ``size``; a last one of less than half joins the one before it.

    >>> [len(c) for c in batches(150)], [len(c) for c in batches(200)]
    ([64, 86], [64, 64, 72])
    """
    starts = list(range(0, max(total, 1), size))
    if len(starts) > 1 and total - starts[-1] < size / 2:
        starts.pop()
    return [range(a, b) for a, b in zip(starts, [*starts[1:], total], strict=True)]


class RunStore:
    """A folder of runs, one folder each."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.problems: list[LeftOut] = []
        """Runs that ``runs`` could not read."""

    @contextmanager
    def open(self, spec: RunSpec, asked: Sequence[tuple[str, str]], *, wait: bool = True) -> Iterator[RunWriter]:
        """The folder of a run, made if it is not there, locked against other processes.

        ``asked``: id and gold answer of each query, by position, which the rows that are there must have. While another
        process holds the folder this one waits for it, and then finds its rows; with ``wait`` False it is RunBusy.
        RunError when the folder cannot be written; DataError when what is there is damaged: nothing is changed then.
        """
        folder = self.out / spec.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("a")
        except OSError as error:
            raise RunError(
                f"cannot write runs to {self.out} ({error.strerror}); give another folder with --out"
            ) from error
        with lock:
            if not try_lock(lock, wait=wait):
                raise RunBusy(f"run {folder} is being made by another process; wait for it, or give another --out")
            for stale in folder.glob("*.part"):  # of a process that was killed while it replaced a file
                stale.unlink(missing_ok=True)
            yield RunWriter(folder, spec, asked)

    def finished(self, run_id: str) -> bool:
        """Whether a run is here and says that it is finished, with no failed row left to ask again.

        DataError when its ``run.json`` is damaged.
        """
        file = self.out / run_id / "run.json"
        if not _there(file):
            return False
        state = _read_state(file)
        return state.done and not state.facts.get("failed", 0)

    def declare(self, questions: Sequence[str]) -> None:
        """Record questions about runs of this folder, with the time; one that is declared already keeps its time.

        RunError when the folder cannot be written; DataError when what is there is damaged.
        """
        there = self.declared()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [{"question": q, "date": date} for q in dict.fromkeys(questions) if q not in there]
        if not lines:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with self._questions.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"cannot write {self._questions} ({error.strerror}); give another folder with --out"
            ) from error

    def declared(self) -> dict[str, str]:
        """Questions that were declared here, and when (UTC, ISO 8601). DataError when the file is damaged."""
        found: dict[str, str] = {}
        if not _there(self._questions):
            return found
        try:
            for number, value in read_jsonl(self._questions):
                where = f"{self._questions}, line {number}"
                line = read_as(_StoredQuestion, value, where)
                try:
                    datetime.fromisoformat(line["date"])
                except ValueError as error:
                    raise DataError(f"{where}: date is {line['date']!r}, which is no time") from error
                found.setdefault(line["question"], line["date"])
        except DataError as error:
            raise DataError(f"{error}; correct the line or take it out") from error
        return found

    @property
    def _questions(self) -> Path:
        return self.out / "questions.jsonl"

    def runs(self) -> list[Run]:
        """All runs, in order of their folders; a folder that is itself a run is one.

        A run that is damaged is put into ``problems`` and left out, so that it does not hide the others. DataError when
        there is no run at all.
        """
        return [run for run, _ in self.each()]

    def each(self) -> Iterator[tuple[Run, RowFile]]:
        """``runs`` one at a time, each with its rows and with the file to read them from again.

        Who drops the rows before asking for the next run holds those of one run, however many there are.
        """
        self.problems = []
        for folder in self._folders():
            try:
                found = _load(folder)
            except DataError as error:
                self.problems.append(LeftOut(folder.name, str(error)))
            else:
                yield found
                del found

    def rows_of(self, run: Run) -> RowFile:
        """The rows of a run that was made here, to be read from their file when they are asked for.

        DataError where the file cannot be read or has another number of rows.
        """
        file = self.out / run.id / "rows.jsonl"
        found = RowFile(LineFile.read(file)[0])
        if len(found) != len(run.rows):
            raise DataError(f"{file} was changed after the run was made; give the command again")
        return found

    def _folders(self) -> list[Path]:
        out = self.out
        make = f"make some with: iclkit eval TASK --selector NAME --lm M --out {out}"
        try:
            if not out.is_dir():
                raise DataError(f"no folder {out}; {make}")
            marks = ("run.json", "rows.jsonl")
            found = [out] if any((out / m).exists() for m in marks) else sorted(
                {path for path in out.iterdir() if path.is_dir() and any((path / m).exists() for m in marks)}
            )  # fmt: skip
        except OSError as error:
            raise DataError(f"cannot read {out} ({error.strerror})") from error
        if not found:
            raise DataError(f"no runs in {out}; {make}")
        return found


class RunWriter:
    """One run's folder, held by one process at a time; ``RunStore.open`` makes it."""

    def __init__(self, folder: Path, spec: RunSpec, asked: Sequence[tuple[str, str]]) -> None:
        self.folder, self.spec, self.asked = folder, spec, asked
        self.done = False
        self.usage: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.rows: list[Row] = []
        self._read()

    @property
    def todo(self) -> list[range]:
        """Positions without a row, in the batches in which they are to be asked."""
        return [part for part in batches(len(self.asked)) if part.start >= len(self.rows)]

    def append(self, rows: Sequence[Row]) -> None:
        """Add a chunk's rows; they are on disk when this returns."""
        try:
            with (self.folder / "rows.jsonl").open("a", encoding="utf-8", newline="\n") as file:
                file.write("".join(r.to_json() + "\n" for r in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _not_written(self.folder, error) from error
        self.rows += rows

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Put other rows in the place of all that are there, in one step."""
        _replace(self.folder / "rows.jsonl", "".join(r.to_json() + "\n" for r in rows))
        self.rows = list(rows)

    def save(
        self,
        *,
        done: bool,
        texts: Sequence[Query | Example] = (),
        meta: Mapping[str, Mapping[str, Json]] | None = None,
    ) -> None:
        """Write ``run.json``; at the end also ``texts.jsonl``: the inputs of queries and shown examples, and what is
        known of a query beside (``meta`` by its id)."""
        if done:
            lines = [
                json.dumps(
                    {"id": t.id, "input": t.input if isinstance(t.input, str) else dict(t.input)}
                    | ({"output": t.output} if isinstance(t, Example) else {})
                    | ({"choices": list(t.choices)} if t.choices else {})
                    | ({"meta": dict(meta[t.id])} if meta and isinstance(t, Query) and t.id in meta else {}),
                    ensure_ascii=False,
                )
                for t in texts
            ]
            _replace(self.folder / "texts.jsonl", "".join(f"{line}\n" for line in lines))
        state = {
            "id": self.folder.name,
            "done": done,
            "spec": self.spec.identity(),
            "facts": self.facts,
            "spent": self.usage,
        }
        _replace(self.folder / "run.json", json.dumps(state, ensure_ascii=False, indent=1) + "\n")
        self.done = done

    def _read(self) -> None:
        file, state = self.folder / "rows.jsonl", self.folder / "run.json"
        if _there(state):
            found = _read_state(state)
            if found.id != self.spec.id:
                raise DataError(f"{state}: the run in this folder is another, {found.id}; {_STATE_REMEDY}")
            self.done, self.usage, self.facts = found.done, found.spent, found.facts
        if not _there(file):
            self.done = False
            return
        lines = LineFile.read(file)[1]
        if len(lines) > len(self.asked):
            raise DataError(f"{file} has {len(lines)} rows and the run {len(self.asked)} queries; {_ROWS_REMEDY}")
        whole = max(n for n in {0, *(c.stop for c in batches(len(self.asked)))} if n <= len(lines))
        rows = _rows(file, lines[:whole])
        for number, (row, asked) in enumerate(zip(rows, self.asked, strict=False), 1):
            if (row.query_id, row.gold) != asked:
                raise DataError(f"{file}, line {number} is damaged (it answers another query); {_ROWS_REMEDY}")
        self.rows = rows
        self.done = self.done and len(rows) == len(self.asked)
        size = sum(len(line) + 1 for line in lines[:whole])
        if size < file.stat().st_size:
            with file.open("r+b") as handle:
                handle.truncate(size)
                os.fsync(handle.fileno())


class RowReader(Sequence[Row], ABC):
    """Rows that are read when they are asked for."""

    @abstractmethod
    def read(self, numbers: Iterable[int]) -> Iterator[Row]:
        """The rows of these numbers, from 0, one after the other."""

    def __iter__(self) -> Iterator[Row]:
        return self.read(range(len(self)))

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, at: int | slice) -> Row | tuple[Row, ...]:
        numbers = range(len(self))[at]
        return tuple(self.read(numbers)) if isinstance(numbers, range) else next(self.read([numbers]))


class RowFile(RowReader):
    """The rows of ``rows.jsonl``, each read when it is asked for."""

    def __init__(self, file: LineFile) -> None:
        self._file = file

    def read(self, numbers: Iterable[int]) -> Iterator[Row]:
        """The rows of these numbers, from 0. DataError where the file is not what it was."""
        for line in self._file.lines(numbers):
            yield _row(line, str(self._file.path))

    def __len__(self) -> int:
        return len(self._file)


def load_run(folder: str | Path) -> Run:
    """The run of a folder, finished or not (``facts["done"]`` says). DataError when it is none or is damaged."""
    return _load(Path(folder))[0]


def _load(folder: Path) -> tuple[Run, RowFile]:
    if not _there(folder / "run.json"):
        more = f", though it has rows; {_GO_ON}" if _there(folder / "rows.jsonl") else ""
        raise DataError(f"{folder} is no run: it has no run.json{more}")
    state = _read_state(folder / "run.json")
    file = folder / "rows.jsonl"
    kept, lines = LineFile.read(file) if _there(file) else (LineFile.none(file), [])
    rows = _rows(file, lines)
    queries = state.spec.task.queries
    if len(rows) > queries or (state.done and len(rows) < queries):
        raise DataError(
            f"{file} has {len(rows)} rows and the run {queries} queries; "
            f"{_GO_ON if len(rows) < queries else _ROWS_REMEDY}"
        )
    return Run(state.spec, tuple(rows), state.spent, {**state.facts, "done": state.done}, state.id), RowFile(kept)


def load_runs(out: str | Path) -> list[Run]:
    """All runs under a folder. DataError when there is none or one is damaged; ``RunStore.runs`` leaves these out."""
    store = RunStore(out)
    runs = store.runs()
    if store.problems:
        raise DataError(store.problems[0].reason)
    return runs


def load_texts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Inputs (and outputs) of the queries and shown examples of a finished run, by id. DataError when damaged."""
    return {text["id"]: dict(text) for _, text in _texts(_text_lines(Path(folder))[1], Path(folder))}


class StoredTexts(Mapping[str, Mapping[str, Any]]):
    """``load_texts`` of several runs, each text read from its file when it is asked for: only its place is held.

    Of a text that stands in several runs the one that was added last counts.
    """

    def __init__(self) -> None:
        self._files: list[tuple[LineFile, Path]] = []
        self._places: dict[str, int] = {}  # file and line as one number, which takes a third of the memory of a pair

    def add(self, folder: Path) -> None:
        """The texts of a finished run. DataError, and nothing is added, when they are damaged."""
        file, lines = _text_lines(folder)
        base = len(self._files) << 32
        found = {sys.intern(text["id"]): base | number for number, text in _texts(lines, folder)}
        self._files.append((file, folder))
        self._places |= found

    def __getitem__(self, text_id: str) -> Mapping[str, Any]:
        place = self._places[text_id]
        file, folder = self._files[place >> 32]
        ((_, text),) = _texts(file.lines([place & 0xFFFFFFFF]), folder)
        return dict(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _text_lines(folder: Path) -> tuple[LineFile, Iterable[bytes]]:
    file = folder / "texts.jsonl"
    return LineFile.read(file, torn=False) if _there(file) else (LineFile.none(file), ())


def _texts(lines: Iterable[bytes], folder: Path) -> Iterator[tuple[int, StoredText]]:
    """The number from 0 and the text of each line that is not blank. DataError for a damaged one."""
    file = folder / "texts.jsonl"
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{file}, line {number + 1}"
        try:
            yield number, read_as(StoredText, parse_json(line, where), where)
        except DataError as error:
            raise DataError(f"{error}; {_ROWS_REMEDY}") from error


_GO_ON = "give the same iclkit eval command again: it goes on from what is there"
_STATE_REMEDY = f"delete this file and {_GO_ON}"
_ROWS_REMEDY = "delete the folder and give the same iclkit eval command again"


def _there(file: Path) -> bool:
    """Whether there is something of that name. DataError when that cannot be told."""
    try:
        return file.exists()
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class _State:
    """``run.json``, read."""

    id: str
    done: bool
    spec: RunSpec
    spent: dict[str, float]
    facts: dict[str, Any]


def _read_state(file: Path) -> _State:
    """``run.json`` with every field of its type, and a spec that is the one its id was taken of."""
    try:
        state = read_as(RunState, read_json(file), str(file))
        if state["id"] != digest(state["spec"], 8):
            raise DataError(f"{file}: the spec was changed after the run was made")
        for name, value in state["spent"].items():
            if not math.isfinite(value):
                raise DataError(f"{file}: spent.{name} is {value}")
        facts: dict[str, Any] = {**state["facts"]}
        spec, more = read_spec(state["spec"], str(file))
        facts = more | facts
        if "format" not in state["spec"] and "selector" in facts:  # the name by which a board joins it with new runs
            facts["selector"] = _american(facts["selector"])
        for template in (spec.parts.get("template"), facts.get("template")):
            if template is not None:
                try:
                    read_as(Template, template, f"{file}: spec.template")
                except UsageError as error:
                    raise DataError(f"{file}: spec.template: {error}") from error
    except DataError as error:
        raise DataError(f"{error}; {_STATE_REMEDY}") from error
    return _State(state["id"], state["done"], spec, state["spent"], facts)


def read_spec(value: dict[str, Any], where: str) -> tuple[RunSpec, dict[str, Any]]:
    """A spec as ``run.json`` holds it, of any format, and what older formats kept in it that is a fact now.

    DataError for one that is damaged, or of a format that this version does not know.
    """
    where = f"{where}: spec"
    if "format" not in value:
        return upgrade_spec(value, where)
    if type(value["format"]) is int and value["format"] > RUN_FORMAT:
        raise DataError(f"{where}: format {value['format']} is of a newer iclkit; read it with that one")
    found = read_as(_StoredSpec, value, where)
    if found["format"] != RUN_FORMAT:
        raise DataError(f"{where}: format should be {RUN_FORMAT}, and is {found['format']}")
    predictor, parts = Spec(**found["predictor"]), value["parts"]
    if predictor.name == "prompt" and (missing := [name for name in _OF_A_PROMPT if name not in parts]):
        raise DataError(f"{where}: parts.{missing[0]} should be there, and is missing")
    return RunSpec(
        TaskPart(**_known(found["task"], _Task)), found["pool"], predictor, parts, found["conditions"], found["on_leak"]
    ), {}


def _known(value: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    return {name: value[name] for name in kind.__annotations__ if name in value}


_AMERICAN = {"normalise": "normalize", "neighbours": "neighbors", "centre": "center"}
"""Settings of the first format by their names of today."""


def upgrade_spec(value: dict[str, Any], where: str = "spec") -> tuple[RunSpec, dict[str, Any]]:
    """The spec of a run of the first format, and the facts that stood in it: it can be ranked beside those of today.

    It is not resumed: the same command makes a run of today's format, for which the cache knows the answers. Versions
    of selectors were those of the package then; they count as version 0, older than any. DataError for a damaged spec.
    """
    old = read_as(_OldSpec, value, where)
    selector = old["selector"]
    content = selector["version"].partition("+")[2]
    facts: dict[str, Any] = {"iclkit": old["iclkit"]}
    models = {name: value[name] for name in ("embedder", "reranker") if value.get(name)}
    if "predictor" in old:
        predictor, parts = Spec(**_known(old["predictor"], _OldPredictor)), models
        facts["template"] = old["template"]
    elif old["lm"] is None:
        raise DataError(f"{where}: lm should be an object, and is null")
    else:
        predictor = Spec("prompt", {}, 0)
        settings = _american(selector["settings"])
        parts = {
            "selector": Spec(selector["name"], settings, 0, content).identity(),
            "lm": value["lm"],
            **models,
            "template": old["template"],
            **{name: value[name] for name in ("k", "seed", "order", "budget")},
            "normalize": old["normalise"],
            "calibrate": old.get("calibrate", "none"),
            **{name: value[name] for name in ("prior", "answer_tokens", "stop", "shapes") if name in value},
        }
    return RunSpec(TaskPart(**_known(old["task"], _Task)), old["pool"], predictor, parts, {}, old["on_leak"]), facts


def _american(value: Any) -> Any:
    """Settings with today's names, in the specs of parts (``of``) too."""
    if isinstance(value, dict):
        return {_AMERICAN.get(name, name): _american(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_american(item) for item in value]
    if isinstance(value, str):
        return re.sub(rf"\b({'|'.join(_AMERICAN)})=", lambda found: f"{_AMERICAN[found[1]]}=", value)
    return value


def _rows(file: Path, lines: Sequence[bytes]) -> list[Row]:
    try:
        return [_row(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]
    except DataError as error:
        raise DataError(f"{error}; {_ROWS_REMEDY}") from error


def _row(line: bytes, where: str) -> Row:
    row = read_as(Row, parse_json(line, where), where)
    for field, values in (("metrics", row.metrics), ("label_logprobs", row.label_logprobs)):
        for name, value in values.items():
            if not math.isfinite(value):
                raise DataError(f"{where}: {field}.{name} is {value}, which no answer can have")
    return row


def _replace(file: Path, text: str) -> None:
    """Write a whole file or leave the old one."""
    try:
        replace_file(file, text)
    except OSError as error:
        raise _not_written(file.parent, error) from error


def _not_written(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write to run {folder} ({error.strerror}); what was finished is kept, the same call resumes"
    )
