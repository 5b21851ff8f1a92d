"""Shipped contracts and fakes: what our own tests use, for the tests of packages that build on iclkit.

``SelectorContract`` needs pytest, which is imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclkit.testing._embedder import HashEmbedder, OverlapReranker, TableEmbedder
from iclkit.testing._lm import FakeLM, ScriptedLM
from iclkit.testing._skills import OracleRewriter, hidden_skill, hidden_skill_task

if TYPE_CHECKING:
    from iclkit.testing._contract import SelectorContract

__all__ = [
    "FakeLM",
    "HashEmbedder",
    "OracleRewriter",
    "OverlapReranker",
    "ScriptedLM",
    "SelectorContract",
    "TableEmbedder",
    "hidden_skill",
    "hidden_skill_task",
]


def __getattr__(name: str) -> Any:
    if name == "SelectorContract":
        from iclkit.testing._contract import SelectorContract

        return SelectorContract
    raise AttributeError(f"module 'iclkit.testing' has no attribute {name!r}")
