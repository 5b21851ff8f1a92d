"""Shipped contracts and fakes: what our own tests use, for the tests of packages that build on iclkit.

``SelectorContract`` needs pytest, which is imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iclkit.testing._embedder import HashEmbedder, OverlapReranker, TableEmbedder
from iclkit.testing._feedback_tasks import (
    CoverageLM,
    FeedbackLM,
    HiddenModeLM,
    PairLM,
    conflicting_tasks,
    hidden_mode_task,
    pair_task,
    redundancy_task,
    shuffled_judge,
)
from iclkit.testing._lm import FakeLM, ScriptedLM
from iclkit.testing._ordered_sets import OrderedSetProblem
from iclkit.testing._skills import OracleRewriter, hidden_skill, hidden_skill_task

if TYPE_CHECKING:
    from iclkit.testing._contract import SelectorContract

__all__ = [
    "CoverageLM",
    "FakeLM",
    "FeedbackLM",
    "HashEmbedder",
    "HiddenModeLM",
    "OracleRewriter",
    "OrderedSetProblem",
    "OverlapReranker",
    "PairLM",
    "ScriptedLM",
    "SelectorContract",
    "TableEmbedder",
    "conflicting_tasks",
    "hidden_mode_task",
    "hidden_skill",
    "hidden_skill_task",
    "pair_task",
    "redundancy_task",
    "shuffled_judge",
]


def __getattr__(name: str) -> Any:
    if name == "SelectorContract":
        from iclkit.testing._contract import SelectorContract

        return SelectorContract
    raise AttributeError(f"module 'iclkit.testing' has no attribute {name!r}")
