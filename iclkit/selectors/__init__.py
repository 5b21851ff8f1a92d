"""Which demonstrations to show. Every strategy is one file; ``make_selector`` builds one by name."""

from __future__ import annotations

from iclkit.selectors._base import BaseSelector, BoolArray, Chosen, FloatArray, IntArray, Kit, Needs, Selector, describe
from iclkit.selectors._maths import best_rows
from iclkit.selectors._registry import BUILTINS, SELECTORS, make_selector, selectors_table

__all__ = [
    "BUILTINS",
    "SELECTORS",
    "BaseSelector",
    "BoolArray",
    "Chosen",
    "FloatArray",
    "IntArray",
    "Kit",
    "Needs",
    "Selector",
    "best_rows",
    "describe",
    "make_selector",
    "selectors_table",
]
