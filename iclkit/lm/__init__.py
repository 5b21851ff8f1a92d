"""Who reads the prompt: the LM protocol, the scoring engine, its cache, and the backends.

Importing this room loads neither torch nor transformers; ``load_lm`` does.
"""

from iclkit.lm._each import ask_each
from iclkit.lm._load import load_lm
from iclkit.lm._protocol import LM, OnDone, ranks_only
from iclkit.lm._usage import Usage
from iclkit.records import GenerateRequest, Generation, Score, ScoreRequest

__all__ = [
    "LM",
    "GenerateRequest",
    "Generation",
    "OnDone",
    "Score",
    "ScoreRequest",
    "Usage",
    "ask_each",
    "load_lm",
    "ranks_only",
]
