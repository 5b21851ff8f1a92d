"""Who won: boards out of runs, and boards as text."""

from iclkit.report._board import Board, Group, Line, leaderboard
from iclkit.report._text import (
    bar,
    cells,
    figure_of,
    group_notes,
    heads,
    legend,
    plain_words,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)

__all__ = [
    "Board",
    "Group",
    "Line",
    "bar",
    "cells",
    "figure_of",
    "group_notes",
    "heads",
    "leaderboard",
    "legend",
    "plain_words",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
]
