"""From folders of recorded runs to a board and the words that its page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iclkit.errors import DataError
from iclkit.eval import LeftOut, RunStore, StoredTexts
from iclkit.records import Run
from iclkit.report._board import leaderboard
from iclkit.report._condensed import condensed
from iclkit.report._drafts import distinct_runs
from iclkit.report._questions import UnansweredQuestion
from iclkit.report._records import Board
from iclkit.report._rows import Texts

Note = Callable[[str], None]
"""Called with a line that the user should see."""


def read_runs(stores: Sequence[RunStore]) -> tuple[list[Run], list[LeftOut]]:
    """The runs of these folders, each once, and those that cannot be read.

    One at a time is looked at, and what a board needs of it is kept; its rows are read again where they are asked for.
    DataError where a folder has no run.
    """
    found = distinct_runs(condensed(run, file) for store in stores for run, file in store.each())
    return found, [problem for store in stores for problem in store.problems]


def without_rows(run: Run, out: Path) -> Run:
    """A run that was just made in the folder ``out``, with what a board needs of it: its rows are not held, and read
    from there where they are asked for."""
    return condensed(run, RunStore(out).rows_of(run))


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


def run_texts(folders: Sequence[Path], runs: Sequence[Run], note: Note) -> Texts:
    """The words of queries and demonstrations, by task and id. Where those of a run are damaged, a line says so.

    They stay in their files until one is asked for.
    """
    texts: dict[str, StoredTexts] = {}
    for run in runs:
        for folder in folders:
            place = folder if (folder / "run.json").exists() else folder / run.id
            if place.name == run.id:
                try:
                    texts.setdefault(run.spec.task.hash, StoredTexts()).add(place)
                except DataError as error:
                    note(f"{error}; what no other run shows stands there by its id")
    return texts
