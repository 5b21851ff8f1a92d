"""BLEU and chrF by sacrebleu (the extra ``iclkit[metrics]``); loaded when one of them is asked for.

``bleu`` and ``chrf`` judge single answers, and a run's figure is their mean, so that runs can be compared query by
query. ``corpus_bleu`` and ``corpus_chrf`` are the usual figures of a whole test set, from summed counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from iclkit.errors import UsageError
from iclkit.eval._metrics import Metric

try:
    import sacrebleu
except ImportError as error:
    raise UsageError("BLEU and chrF need the extra: pip install 'iclkit[metrics]'") from error


def sentence_bleu(output: str, gold: str) -> float:
    """BLEU of one answer in [0, 1]: n-gram orders that the output is too short for are left out, zero counts smoothed
    exponentially (sacrebleu's sentence BLEU)."""
    return float(sacrebleu.sentence_bleu(output, [gold]).score) / 100


def corpus_bleu(outputs: Sequence[str], golds: Sequence[str]) -> float:
    """BLEU of all answers in [0, 1] (Papineni et al. 2002), tokenised as WMT does (13a)."""
    return float(sacrebleu.corpus_bleu(list(outputs), [list(golds)]).score) / 100


def sentence_chrf(output: str, gold: str) -> float:
    """chrF2 of one answer in [0, 1]: F-score of character 1- to 6-grams, recall counted twice (Popović 2015)."""
    return float(sacrebleu.sentence_chrf(output, [gold]).score) / 100


def corpus_chrf(outputs: Sequence[str], golds: Sequence[str]) -> float:
    """chrF2 of all answers in [0, 1]."""
    return float(sacrebleu.corpus_chrf(list(outputs), [list(golds)]).score) / 100


BLEU = Metric("bleu", judge=sentence_bleu)
CORPUS_BLEU = Metric("corpus_bleu", whole=corpus_bleu)
CHRF = Metric("chrf", judge=sentence_chrf)
CORPUS_CHRF = Metric("corpus_chrf", whole=corpus_chrf)
