"""iclkit: which demonstrations to show a language model, in what order, and whether it helps.

The public names below load on first use, so ``import iclkit`` needs neither torch nor faiss.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
    "load_embedder": "iclkit.pool",
    "Template": "iclkit.prompts",
    "assemble": "iclkit.prompts",
    "load_lm": "iclkit.lm",
    "Task": "iclkit.datasets",
    "load_task": "iclkit.datasets",
    "Kit": "iclkit.selectors",
    "make_selector": "iclkit.selectors",
    "evaluate": "iclkit.eval",
    "leaderboard": "iclkit.report",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'iclkit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
