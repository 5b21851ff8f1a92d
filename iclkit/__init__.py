"""iclkit: which demonstrations to show a language model, in what order, and whether it helps.

The public names below load on first use, so ``import iclkit`` needs neither torch nor faiss.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker and an editor see; at run time each name loads on first use
    from iclkit.datasets import Task, load_task
    from iclkit.embed import load_embedder
    from iclkit.errors import IclkitError
    from iclkit.eval import evaluate_task as evaluate
    from iclkit.lm import load_lm
    from iclkit.pool import Pool
    from iclkit.predictors import chooser
    from iclkit.prompts import Template, assemble
    from iclkit.records import Example, Pick, Prompt, Query, Row, Run, Selection, Spec
    from iclkit.report import leaderboard
    from iclkit.selectors import BaseSelector, Chooser, Kit, Needs, Selector, load_selector, make_selector

__version__ = "0.1.0"

_HOME = {
    "Example": "iclkit.records",
    "Query": "iclkit.records",
    "Pick": "iclkit.records",
    "Selection": "iclkit.records",
    "Spec": "iclkit.records",
    "Prompt": "iclkit.records",
    "Row": "iclkit.records",
    "Run": "iclkit.records",
    "Pool": "iclkit.pool",
    "chooser": "iclkit.predictors",
    "load_embedder": "iclkit.embed",
    "Template": "iclkit.prompts",
    "assemble": "iclkit.prompts",
    "load_lm": "iclkit.lm",
    "Task": "iclkit.datasets",
    "load_task": "iclkit.datasets",
    "IclkitError": "iclkit.errors",
    "BaseSelector": "iclkit.selectors",
    "Chooser": "iclkit.selectors",
    "load_selector": "iclkit.selectors",
    "Kit": "iclkit.selectors",
    "Needs": "iclkit.selectors",
    "Selector": "iclkit.selectors",
    "make_selector": "iclkit.selectors",
    "evaluate": "iclkit.eval:evaluate_task",
    "leaderboard": "iclkit.report",
}
__all__ = [
    "BaseSelector",
    "Chooser",
    "Example",
    "IclkitError",
    "Kit",
    "Needs",
    "Pick",
    "Pool",
    "Prompt",
    "Query",
    "Row",
    "Run",
    "Selection",
    "Selector",
    "Spec",
    "Task",
    "Template",
    "__version__",
    "assemble",
    "chooser",
    "evaluate",
    "leaderboard",
    "load_embedder",
    "load_lm",
    "load_selector",
    "load_task",
    "make_selector",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'iclkit' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
