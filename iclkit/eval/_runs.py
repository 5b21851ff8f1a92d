"""A run on disk: ``<out>/<run id>/run.json`` and ``rows.jsonl``, written so that a kill at any moment loses little.

Rows are appended in whole chunks and synced; a chunk that a kill left half written is cut off when the run is opened
again, and computed anew as a whole, so that the LM sees the same batches as in a run that was never stopped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from iclkit.errors import DataError, RunError, UsageError
from iclkit.files import parse_json, read_json, read_jsonl, replace_file, try_lock
from iclkit.prompts import Template
from iclkit.records import Example, Query, Row, Run, digest
from iclkit.schema import read_as

CHUNK = 64


class TaskPart(TypedDict):
    """The task in a run's spec."""

    name: str
    hash: str
    kind: str
    metric: str
    labels: list[str]
    queries: int
    sample: NotRequired[int]
    rows: NotRequired[str]


class PoolPart(TypedDict):
    """The pool in a run's spec."""

    hash: str
    size: int


class SelectorPart(TypedDict):
    """The selector in a run's spec."""

    name: str
    settings: dict[str, Any]
    version: str


class PredictorPart(TypedDict):
    """The predictor in the spec of a run that prompts no LM."""

    name: str
    settings: dict[str, Any]
    version: int


class ModelPart(TypedDict):
    """A model in a run's spec."""

    name: str
    fingerprint: str


class RunSpec(TypedDict):
    """What ``run.json`` says determined a run, as far as anything here relies on it; it may say more."""

    iclkit: str
    task: TaskPart
    pool: PoolPart
    selector: SelectorPart
    predictor: NotRequired[PredictorPart]
    lm: ModelPart | None
    embedder: ModelPart | None
    reranker: NotRequired[ModelPart]
    template: dict[str, Any]
    on_leak: Literal["exclude", "stop", "ignore"]
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
    },
    total=False,
)
"""What ``run.json`` says beside the spec, as far as anything here relies on it."""


class RunState(TypedDict):
    """The whole of ``run.json``. ``id`` is the hash of ``spec``, taken when the run was made."""

    id: str
    done: bool
    spec: RunSpec
    spent: dict[str, float]
    facts: RunFacts


class StoredText(TypedDict):
    """A line of ``texts.jsonl``."""

    id: str
    input: str | dict[str, str]
    output: NotRequired[str]
    choices: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that cannot be used: the id or folder by which it is known, and why, in one line."""

    run: str
    reason: str


def batches(total: int, size: int = CHUNK) -> list[range]:
    """Positions 0..total in chunks of ``size``; a last one of less than half joins the one before it.

    >>> [len(c) for c in chunks(150)], [len(c) for c in chunks(200)]
    ([64, 86], [64, 64, 72])
    """
    starts = list(range(0, max(total, 1), size))
    if len(starts) > 1 and total - starts[-1] < size / 2:
        starts.pop()
    return [range(a, b) for a, b in zip(starts, [*starts[1:], total], strict=True)]


class RunWriter:
    """One run's folder, held by one process at a time. Use ``opened``."""

    def __init__(
        self, folder: Path, spec: Mapping[str, Any], total: int, asked: Sequence[tuple[str, str]] | None = None
    ) -> None:
        self.folder, self.spec, self.total, self.asked = folder, spec, total, asked
        self.done = False
        self.usage: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.rows: list[Row] = []
        self._read()

    @classmethod
    @contextmanager
    def opened(
        cls, out: Path, spec: Mapping[str, Any], total: int, asked: Sequence[tuple[str, str]] | None = None
    ) -> Iterator[RunWriter]:
        """The folder of a run of ``total`` queries, made if it is not there, locked against other processes.

        ``asked``: id and gold answer of each query, which the rows that are there must have. RunError when another
        process holds the folder or it cannot be written; DataError when what is there is damaged: nothing is changed
        then.
        """
        folder = out / digest(spec, 8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("a")
        except OSError as error:
            raise RunError(f"cannot write runs to {out} ({error.strerror}); give another folder with --out") from error
        with lock:
            if not try_lock(lock):
                raise RunError(
                    f"run {folder} is being worked on by another process; wait for it, or give another --out"
                )
            for stale in folder.glob("*.part"):  # of a process that was killed while it replaced a file
                stale.unlink(missing_ok=True)
            yield cls(folder, spec, total, asked)

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

    def save(self, *, done: bool, texts: Sequence[Query | Example] = ()) -> None:
        """Write ``run.json``; at the end also ``texts.jsonl``, the inputs of queries and shown examples."""
        if done:
            lines = [
                json.dumps(
                    {"id": t.id, "input": t.input if isinstance(t.input, str) else dict(t.input)}
                    | ({"output": t.output} if isinstance(t, Example) else {})
                    | ({"choices": list(t.choices)} if t.choices else {}),
                    ensure_ascii=False,
                )
                for t in texts
            ]
            _replace(self.folder / "texts.jsonl", "".join(f"{line}\n" for line in lines))
        state = {
            "id": self.folder.name,
            "done": done,
            "spec": self.spec,
            "facts": self.facts,
            "spent": self.usage,
        }
        _replace(self.folder / "run.json", json.dumps(state, ensure_ascii=False, indent=1) + "\n")
        self.done = done

    def _read(self) -> None:
        file, state = self.folder / "rows.jsonl", self.folder / "run.json"
        if _there(state):
            found = _read_state(state)
            if found["id"] != digest(self.spec, 8):
                raise DataError(f"{state}: the run in this folder is another, {found['id']}; {_STATE_REMEDY}")
            self.done, self.usage, self.facts = found["done"], found["spent"], dict(found["facts"])
        if not _there(file):
            self.done = False
            return
        lines = _whole_lines(file)
        if len(lines) > self.total:
            raise DataError(f"{file} has {len(lines)} rows and the run {self.total} queries; {_ROWS_REMEDY}")
        whole = max(n for n in {0, *(c.stop for c in batches(self.total))} if n <= len(lines))
        rows = _rows(file, lines[:whole])
        for number, (row, asked) in enumerate(zip(rows, self.asked or (), strict=False), 1):
            if (row.query_id, row.gold) != asked:
                raise DataError(f"{file}, line {number} is damaged (it answers another query); {_ROWS_REMEDY}")
        self.rows = rows
        self.done = self.done and len(rows) == self.total
        size = sum(len(line) + 1 for line in lines[:whole])
        if size < file.stat().st_size:
            with file.open("r+b") as handle:
                handle.truncate(size)
                os.fsync(handle.fileno())


def finished(folder: Path) -> bool:
    """Whether a folder holds a run that says it is finished, with no failed row left to ask again.

    DataError when its ``run.json`` is damaged.
    """
    file = folder / "run.json"
    if not _there(file):
        return False
    state = _read_state(file)
    return state["done"] and not state["facts"].get("failed", 0)


def load_run(folder: str | Path) -> Run:
    """The run of a folder, finished or not (``facts["done"]`` says). DataError when it is none or is damaged."""
    folder = Path(folder)
    if not _there(folder / "run.json"):
        more = f", though it has rows; {_GO_ON}" if _there(folder / "rows.jsonl") else ""
        raise DataError(f"{folder} is no run: it has no run.json{more}")
    state = _read_state(folder / "run.json")
    file = folder / "rows.jsonl"
    rows = _rows(file, _whole_lines(file) if _there(file) else [])
    queries = state["spec"]["task"]["queries"]
    if len(rows) > queries or (state["done"] and len(rows) < queries):
        raise DataError(
            f"{file} has {len(rows)} rows and the run {queries} queries; "
            f"{_GO_ON if len(rows) < queries else _ROWS_REMEDY}"
        )
    return Run(state["spec"], tuple(rows), state["spent"], {**state["facts"], "done": state["done"]})


def load_runs(out: str | Path, on_damage: Callable[[LeftOut], None] | None = None) -> list[Run]:
    """All runs under a folder, in order of their folders; a folder that is itself a run is one.

    A run that is damaged is handed to ``on_damage`` and left out, so that it does not hide the others; without
    ``on_damage`` the first one is raised. DataError when there is no run at all.
    """
    out = Path(out)
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
    runs = []
    for folder in found:
        try:
            runs.append(load_run(folder))
        except DataError as error:
            if on_damage is None:
                raise
            on_damage(LeftOut(folder.name, str(error)))
    return runs


def load_texts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Inputs (and outputs) of the queries and shown examples of a finished run, by id. DataError when damaged."""
    file = Path(folder) / "texts.jsonl"
    texts: dict[str, dict[str, Any]] = {}
    if not _there(file):
        return texts
    try:
        for number, value in read_jsonl(file):
            text = read_as(StoredText, value, f"{file}, line {number}")
            texts[text["id"]] = dict(text)
    except DataError as error:
        raise DataError(f"{error}; {_ROWS_REMEDY}") from error
    return texts


_GO_ON = "give the same iclkit eval command again: it goes on from what is there"
_STATE_REMEDY = f"delete this file and {_GO_ON}"
_ROWS_REMEDY = "delete the folder and give the same iclkit eval command again"


def _there(file: Path) -> bool:
    """Whether there is something of that name. DataError when that cannot be told."""
    try:
        return file.exists()
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror})") from error


def _read_state(file: Path) -> RunState:
    """``run.json`` with every field of its type, and a spec that is the one its id was taken of."""
    try:
        state = read_as(RunState, read_json(file), str(file))
        if state["id"] != digest(state["spec"], 8):
            raise DataError(f"{file}: the spec was changed after the run was made")
        for name, value in state["spent"].items():
            if not math.isfinite(value):
                raise DataError(f"{file}: spent.{name} is {value}")
        try:
            read_as(Template, state["spec"]["template"], f"{file}: spec.template")
        except UsageError as error:
            raise DataError(f"{file}: spec.template: {error}") from error
    except DataError as error:
        raise DataError(f"{error}; {_STATE_REMEDY}") from error
    return state


def _whole_lines(file: Path) -> list[bytes]:
    """The lines that end: what a kill cut short in the last one is no row."""
    try:
        return file.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror})") from error


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
                raise DataError(f"{where}: {field}.{name} is {value}, which no answer is worth")
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
