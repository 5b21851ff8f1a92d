"""Which demonstrations to show. Every strategy is one file; ``make_selector`` builds one by name."""

from __future__ import annotations

from iclkit.selectors._base import (
    BaseSelector,
    BoolArray,
    Choice,
    FloatArray,
    IntArray,
    Kit,
    Needs,
    Reranker,
    Selector,
    describe,
    story_of,
    template_for,
)
from iclkit.selectors._dpp import dpp_order
from iclkit.selectors._fixed import FixedSelector, SelectorFile
from iclkit.selectors._many_labels import label_recall
from iclkit.selectors._maths import top_rows
from iclkit.selectors._pvi import pvi
from iclkit.selectors._registry import BUILTINS, SELECTORS, import_selectors, make_selector, selectors_table

__all__ = [
    "BUILTINS",
    "SELECTORS",
    "BaseSelector",
    "BoolArray",
    "Choice",
    "FixedSelector",
    "FloatArray",
    "IntArray",
    "Kit",
    "Needs",
    "Reranker",
    "Selector",
    "SelectorFile",
    "describe",
    "dpp_order",
    "import_selectors",
    "label_recall",
    "make_selector",
    "pvi",
    "selectors_table",
    "story_of",
    "template_for",
    "top_rows",
]
