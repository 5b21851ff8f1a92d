"""From folders of recorded runs to a board and the words that its page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iclkit.errors import DataError
from iclkit.eval import RunStore, load_texts
from iclkit.records import Run
from iclkit.report._board import leaderboard
from iclkit.report._questions import UnansweredQuestion
from iclkit.report._records import Board

Note = Callable[[str], None]
"""Called with a line that the user should see."""


def declared_questions(stores: Iterable[RunStore]) -> dict[str, str]:
    """The questions that were declared in these folders, each at its first time."""
    found: dict[str, str] = {}
    for store in stores:
        for question, date in store.declared().items():
            found[question] = min(date, found.get(question, date))
    return found


def board_with_questions(
    runs: Sequence[Run],
    baseline: str | None = None,
    *,
    primary: Sequence[str] = (),
    declared: Mapping[str, str],
    note: Note,
    **how: Any,
) -> Board:
    """The board with the questions in ``primary``, or else with those declared before that something answers."""
    if primary:
        return leaderboard(runs, baseline, primary=primary, declared=declared, **how)
    asked = list(declared)
    while asked:
        try:
            return leaderboard(runs, baseline, primary=asked, declared=declared, **how)
        except UnansweredQuestion as error:
            note(f"the question {error.question!r}, declared on {declared[error.question][:10]}: {error}")
            asked.remove(error.question)
    return leaderboard(runs, baseline, **how)


def run_texts(folders: Sequence[Path], runs: Sequence[Run], note: Note) -> dict[str, dict[str, Any]]:
    """The words of queries and demonstrations, by task and id. Where those of a run are damaged, a line says so."""
    texts: dict[str, dict[str, Any]] = {}
    for run in runs:
        for folder in folders:
            place = folder if (folder / "run.json").exists() else folder / run.id
            if place.name == run.id:
                try:
                    texts.setdefault(run.spec.task.hash, {}).update(load_texts(place))
                except DataError as error:
                    note(f"{error}; what no other run shows stands there by its id")
    return texts
