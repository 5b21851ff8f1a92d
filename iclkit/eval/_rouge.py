"""ROUGE by rouge-score (the extra ``iclkit[metrics]``); loaded when it is asked for.

F-measures (Lin 2004) with Porter stemming. rouge-score keeps ASCII letters and digits only: for English.
"""

from __future__ import annotations

from functools import partial

from iclkit.errors import UsageError
from iclkit.eval._metrics import Metric

try:
    from rouge_score.rouge_scorer import RougeScorer
except ImportError as error:
    raise UsageError("ROUGE needs the extra: pip install 'iclkit[metrics]'") from error

_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
_SCORER = RougeScorer([*_KINDS.values()], use_stemmer=True)


def rouge(output: str, gold: str, kind: str) -> float:
    """F-measure of ``rouge_1``, ``rouge_2`` (shared words, word pairs) or ``rouge_l`` (longest common subsequence)."""
    return float(_SCORER.score(gold, output)[_KINDS[kind]].fmeasure)


ROUGE_1 = Metric("rouge_1", judge=partial(rouge, kind="rouge_1"))
ROUGE_2 = Metric("rouge_2", judge=partial(rouge, kind="rouge_2"))
ROUGE_L = Metric("rouge_l", judge=partial(rouge, kind="rouge_l"))
