"""Recorded runs, and boards of them, each behind an address that cannot be guessed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iclkit.errors import DataError
from iclkit.eval import RunStore
from iclkit.predictors import display_name
from iclkit.records import Run
from iclkit.report import (
    board_with_questions,
    declared_questions,
    format_figure,
    read_runs,
    run_texts,
    to_html,
    usable_runs,
)


class Boards:
    """The runs of a folder, read anew whenever they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._secret = secrets.token_bytes(32)
        self._tasks: dict[str, str | None] = {}

    def runs(self) -> dict[str, Any]:
        """A line per run, and addresses of their boards. Why there is none is said in ``note``."""
        store = RunStore(self.folder)
        try:
            found, problems = read_runs([store])
        except DataError as error:
            return {"folder": str(self.folder), "runs": [], "boards": [], "notes": [str(error)]}
        notes = [f"run {one.run} cannot be used: {one.reason}" for one in problems]
        tasks = sorted({run.spec.task.name for run in found})
        boards = [{"title": "Board of all runs", "path": self._path(None)}] if found else []
        if len(tasks) > 1:
            boards += [{"title": f"Board of {task}", "path": self._path(task)} for task in tasks]
        return {"folder": str(self.folder), "runs": [_line(run) for run in found], "boards": boards, "notes": notes}

    def page(self, ticket: str) -> str:
        """The board's page, as ``iclkit leaderboard --html`` writes it. DataError for an address of none."""
        if ticket not in self._tasks:
            raise DataError("there is no such board; open one from the list of runs")
        task = self._tasks[ticket]
        store = RunStore(self.folder)
        found, problems = read_runs([store])
        runs = [run for run in found if task is None or run.spec.task.name == task]
        notes: list[str] = []
        board = board_with_questions(runs, declared=declared_questions([store]), note=notes.append, left_out=problems)
        kept = _kept(runs, {one.run for one in board.left_out})
        return to_html(board, kept, run_texts([self.folder], kept, notes.append), title=task or "")

    def _path(self, task: str | None) -> str:
        ticket = hmac.new(self._secret, repr(task).encode(), hashlib.sha256).hexdigest()[:32]
        self._tasks[ticket] = task
        return f"board/{ticket}"


def _kept(runs: Sequence[Run], left_out: set[str]) -> list[Run]:
    return usable_runs(run for run in runs if run.id not in left_out)[0]


def _line(run: Run) -> dict[str, Any]:
    spec = run.spec
    return {
        "id": run.id,
        "task": spec.task.name,
        "lm": spec.lm.name if spec.lm else None,
        "selector": display_name(spec.selector) if spec.parts.get("selector") else str(spec.predictor),
        "k": spec.k,
        "seed": spec.seed,
        "queries": len(run.rows),
        "of": spec.task.queries,
        "figure": format_figure(run) if run.rows else "no rows yet",
        "date": str(run.facts.get("date", ""))[:10],
    }
