"""Which demonstrations to show. Every strategy is one file; ``make_selector`` builds one by name."""

from __future__ import annotations

from iclkit.selectors._annotate import annotation_file
from iclkit.selectors._base import (
    RANDOM_FILL,
    BaseSelector,
    Choice,
    FloatArray,
    IntArray,
    Kit,
    Needs,
    PaperSetup,
    PoolLike,
    Selector,
    SelectorCost,
    selector_help,
    selector_info,
    strongest,
)
from iclkit.selectors._dpp import dpp_order
from iclkit.selectors._fixed import FixedSelector, SelectorFile
from iclkit.selectors._many_labels import label_recall
from iclkit.selectors._maths import top_rows
from iclkit.selectors._pvi import pvi
from iclkit.selectors._registry import (
    BUILTINS,
    SELECTORS,
    import_selectors,
    make_selector,
    move_files,
    paper_setup,
    selectors_table,
)
from iclkit.selectors._saved import Chooser, is_saved_selector, load_selector
from iclkit.selectors._votek import worth_labeling

__all__ = [
    "BUILTINS",
    "RANDOM_FILL",
    "SELECTORS",
    "BaseSelector",
    "Choice",
    "Chooser",
    "FixedSelector",
    "FloatArray",
    "IntArray",
    "Kit",
    "Needs",
    "PaperSetup",
    "PoolLike",
    "Selector",
    "SelectorCost",
    "SelectorFile",
    "annotation_file",
    "dpp_order",
    "import_selectors",
    "is_saved_selector",
    "label_recall",
    "load_selector",
    "make_selector",
    "move_files",
    "paper_setup",
    "pvi",
    "selector_help",
    "selector_info",
    "selectors_table",
    "strongest",
    "top_rows",
    "worth_labeling",
]
