"""Who won: boards out of runs, and boards as text."""

from iclkit.report._board import leaderboard
from iclkit.report._checks import usable_runs
from iclkit.report._drafts import distinct_runs
from iclkit.report._folders import board_with_questions, declared_questions, read_runs, run_texts, without_rows
from iclkit.report._harness import write_harness
from iclkit.report._html import headline, to_html
from iclkit.report._methods import methods
from iclkit.report._page import fill_page, page_script, page_style, policy_hash
from iclkit.report._questions import Primary, UnansweredQuestion
from iclkit.report._records import BASELINES, Board, Group, Line, LMAdds, Made, Overall, OverallLine
from iclkit.report._rows import Texts
from iclkit.report._text import (
    COST_HEAD,
    bar,
    cells,
    curves,
    format_figure,
    group_notes,
    heads,
    interval,
    legend,
    lm_words,
    overall_cells,
    overall_heads,
    overall_lm_words,
    overall_notes,
    plain_words,
    priced,
    signed,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)

__all__ = [
    "BASELINES",
    "COST_HEAD",
    "Board",
    "Group",
    "LMAdds",
    "Line",
    "Made",
    "Overall",
    "OverallLine",
    "Primary",
    "Texts",
    "UnansweredQuestion",
    "bar",
    "board_with_questions",
    "cells",
    "curves",
    "declared_questions",
    "distinct_runs",
    "fill_page",
    "format_figure",
    "group_notes",
    "headline",
    "heads",
    "interval",
    "leaderboard",
    "legend",
    "lm_words",
    "methods",
    "overall_cells",
    "overall_heads",
    "overall_lm_words",
    "overall_notes",
    "page_script",
    "page_style",
    "plain_words",
    "policy_hash",
    "priced",
    "read_runs",
    "run_texts",
    "signed",
    "to_csv",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "usable_runs",
    "without_rows",
    "write_harness",
]
