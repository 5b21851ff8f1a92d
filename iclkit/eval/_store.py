"""A run on disk: ``<out>/<run id>/run.json`` and ``rows.jsonl``, written so that a kill at any moment loses little.

Rows are appended in whole chunks and synced; a chunk that a kill left half written is cut off when the run is opened
again, and computed anew as a whole, so that the LM sees the same batches as in a run that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iclkit.errors import DataError, RunError
from iclkit.records import Example, Query, Row, Run, digest

CHUNK = 64


def chunks(total: int, size: int = CHUNK) -> list[range]:
    """Positions 0..total in chunks of ``size``; a last one of less than half joins the one before it.

    >>> [len(c) for c in chunks(150)], [len(c) for c in chunks(200)]
    ([64, 86], [64, 64, 72])
    """
    starts = list(range(0, max(total, 1), size))
    if len(starts) > 1 and total - starts[-1] < size / 2:
        starts.pop()
    return [range(a, b) for a, b in zip(starts, [*starts[1:], total], strict=True)]


class RunFolder:
    """One run's folder, held by one process at a time. Use ``opened``."""

    def __init__(self, folder: Path, spec: Mapping[str, Any], total: int) -> None:
        self.folder, self.spec, self.total = folder, spec, total
        self.done = False
        self.spent: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self.rows: list[Row] = []
        self._read()

    @classmethod
    @contextmanager
    def opened(cls, out: Path, spec: Mapping[str, Any], total: int) -> Iterator[RunFolder]:
        """The folder of a run of ``total`` queries, made if it is not there, locked against other processes.

        RunError when another process holds it or the folder cannot be written; DataError when a row cannot be read.
        """
        folder = out / digest(spec, 8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("a")
        except OSError as error:
            raise RunError(f"cannot write runs to {out} ({error.strerror}); give another folder with --out") from error
        with lock:
            if not _try_lock(lock):
                raise RunError(
                    f"run {folder} is being worked on by another process; wait for it, or give another --out"
                )
            yield cls(folder, spec, total)

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
            "spent": self.spent,
        }
        _replace(self.folder / "run.json", json.dumps(state, ensure_ascii=False, indent=1) + "\n")
        self.done = done

    def _read(self) -> None:
        file, state = self.folder / "rows.jsonl", self.folder / "run.json"
        if state.exists():
            found = _state(state)
            self.done, self.spent, self.facts = found["done"], found["spent"], found["facts"]
        if not file.exists():
            self.done = False
            return
        raw = file.read_bytes()
        lines = raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True)
        ends = {0, *(c.stop for c in chunks(self.total))}
        whole = max(n for n in ends if n <= len(lines))
        kept = b"".join(lines[:whole])
        if kept != raw:
            with file.open("r+b") as handle:
                handle.truncate(len(kept))
                os.fsync(handle.fileno())
        self.rows = list(_rows(file, kept.decode("utf-8")))
        self.done = self.done and len(self.rows) == self.total


def load_run(folder: str | Path) -> Run:
    """The run of a folder, finished or not (``facts["done"]`` says). DataError when it is none."""
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise DataError(f"{folder} is no run: it has no run.json")
    state = _state(folder / "run.json")
    file = folder / "rows.jsonl"
    raw = file.read_text(encoding="utf-8") if file.exists() else ""
    rows = tuple(_rows(file, raw[: raw.rfind("\n") + 1]))
    return Run(state["spec"], rows, state["spent"], state["facts"] | {"done": state["done"]})


def load_runs(out: str | Path) -> list[Run]:
    """All runs under a folder, in order of their ids; a folder that is itself a run is one. DataError when none is."""
    out = Path(out)
    if not out.is_dir():
        raise DataError(f"no folder {out}; make runs with: iclkit eval TASK --selector NAME --lm M --out {out}")
    folders = [out] if (out / "run.json").exists() else sorted(p.parent for p in out.glob("*/run.json"))
    if not folders:
        raise DataError(f"no runs in {out}; make some with: iclkit eval TASK --selector NAME --lm M --out {out}")
    return [load_run(f) for f in folders]


def load_texts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Inputs (and outputs) of the queries and shown examples of a finished run, by id."""
    file = Path(folder) / "texts.jsonl"
    if not file.exists():
        return {}
    return {(t := json.loads(line))["id"]: t for line in file.read_text(encoding="utf-8").splitlines()}


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {key: state[key] for key in ("done", "spec", "spent", "facts")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); delete the folder {file.parent} and run again") from error


def _rows(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield Row.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}, line {number} is damaged ({error}); delete the folder {file.parent} and run again"
            ) from error


def _replace(file: Path, text: str) -> None:
    """Write a whole file or leave the old one."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(file)
    except OSError as error:
        raise _not_written(file.parent, error) from error


def _not_written(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write to run {folder} ({error.strerror}); what was finished is kept, the same call resumes"
    )


def _try_lock(file: IO[str]) -> bool:
    """An advisory lock that ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: no such lock there; two processes on one run are the user's to avoid
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
