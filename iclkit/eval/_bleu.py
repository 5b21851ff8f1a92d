"""BLEU and chrF by sacrebleu (the extra ``iclkit[metrics]``); loaded when one of them is asked for.

``bleu`` and ``chrf`` judge single answers, and a run's figure is their mean, so that runs can be compared query by
query. ``corpus_bleu`` is the usual figure of a whole test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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


@lru_cache(maxsize=200_000)
def _counts(output: str, gold: str) -> NDArray[np.int64]:
    """Shared n-grams of orders 1 to 4, n-grams of orders 1 to 4, words of the output, words of the gold answer."""
    found = sacrebleu.corpus_bleu([output], [[gold]])
    return np.array([*found.counts, *found.totals, found.sys_len, found.ref_len], np.int64)


def corpus_bleu(outputs: Sequence[str], golds: Sequence[str]) -> float:
    """BLEU of all answers in [0, 1] (Papineni et al. 2002), tokenised as WMT does (13a), from summed counts.

    An answer's counts are kept, so that a bootstrap over the queries takes sums and no new counting.
    """
    total = np.sum([_counts(o, g) for o, g in zip(outputs, golds, strict=True)], axis=0).tolist()
    bleu = sacrebleu.BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp")
    return float(bleu.score) / 100


def sentence_chrf(output: str, gold: str) -> float:
    """chrF2 of one answer in [0, 1]: F-score of character 1- to 6-grams, recall counted twice (Popović 2015)."""
    return float(sacrebleu.sentence_chrf(output, [gold]).score) / 100


BLEU = Metric("bleu", judge=sentence_bleu)
CORPUS_BLEU = Metric("corpus_bleu", whole=corpus_bleu)
CHRF = Metric("chrf", judge=sentence_chrf)
