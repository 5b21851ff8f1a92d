"""Who reads the prompt: the LM protocol, the scoring engine, its cache, and the backends.

Importing this room loads neither torch nor transformers; ``load_lm`` does.
"""

from iclkit.lm._base import BaseLM, as_lm
from iclkit.lm._dry_run import DryRunLM
from iclkit.lm._each import ask_each
from iclkit.lm._load import answer_by_batch, capabilities, load_lm, spread_spec
from iclkit.lm._protocol import LM, LOGITS, MinimalLM, OnDone, ranks_only
from iclkit.lm._shape import BreakEven, ModelShape, break_even
from iclkit.records import CostEstimate, GenerateRequest, Generation, Score, ScoreRequest, Usage

__all__ = [
    "LM",
    "LOGITS",
    "BaseLM",
    "BreakEven",
    "CostEstimate",
    "DryRunLM",
    "GenerateRequest",
    "Generation",
    "MinimalLM",
    "ModelShape",
    "OnDone",
    "Score",
    "ScoreRequest",
    "Usage",
    "answer_by_batch",
    "as_lm",
    "ask_each",
    "break_even",
    "capabilities",
    "load_lm",
    "ranks_only",
    "spread_spec",
]
