"""BLEU and chrF by sacrebleu (the extra ``iclkit[metrics]``); loaded when one of them is asked for.

``bleu`` and ``chrf`` judge single answers, and a run's figure is their mean, so that runs can be compared query by
query. ``corpus_bleu`` is the usual figure of a whole test set.

BLEU counts words, and what a word is depends on the tokenizer: ``bleu,tokenize=intl``. The default, ``auto``, is WMT's
13a for all scripts with spaces between words; a pair whose gold answer has Chinese is split as sacrebleu's ``zh`` does
(characters), one with Japanese, Thai, Lao, Khmer or Burmese into characters (``char``). To compare with papers on
Japanese or Korean, name their tokenizer: ``ja-mecab``, ``ko-mecab``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.eval._metrics import Metric
from iclkit.extras import install_command

try:
    import sacrebleu
except ImportError as error:
    raise UsageError(f"BLEU and chrF need the extra: {install_command('metrics')}") from error

TOKENIZERS = ("auto", "13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab")
"""Those of sacrebleu's that need no download."""

_CHARACTERS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def _tokenizer_for(gold: str) -> str:
    """Decided by the gold answer alone, so that every run is judged alike."""
    if gold.isascii():
        return "13a"
    if _CHARACTERS.search(gold):
        return "char"
    return "zh" if _HAN.search(gold) else "13a"


@cache
def _scorer(tokenize: str, *, sentence: bool) -> Any:
    """sacrebleu's own settings for one answer, and for a corpus."""
    try:
        return sacrebleu.BLEU(tokenize=tokenize, effective_order=sentence)
    except (ImportError, RuntimeError) as error:  # a tokenizer that is a package of its own
        raise UsageError(f"tokenizer {tokenize!r}: {' '.join(str(error).split())}") from error


def _checked(tokenize: str) -> str:
    if tokenize not in TOKENIZERS:
        raise UsageError(f"tokenize is {tokenize!r}; choose from {', '.join(TOKENIZERS)}")
    if tokenize != "auto":
        _scorer(tokenize, sentence=False)
    return tokenize


def bleu(*, tokenize: str = "auto") -> Metric:
    """BLEU of single answers: n-gram orders that the output is too short for are left out, zero counts are smoothed
    exponentially (sacrebleu's sentence BLEU)."""
    _checked(tokenize)

    def judge(output: str, gold: str) -> float:
        output, gold = _nfc(output), _nfc(gold)
        chosen = _tokenizer_for(gold) if tokenize == "auto" else tokenize
        return _share(_scorer(chosen, sentence=True).sentence_score(output, [gold]).score)

    return Metric("bleu", judge=judge, repeatable=True)


def corpus_bleu(*, tokenize: str = "auto") -> Metric:
    """BLEU of all answers in [0, 1] (Papineni et al. 2002), from summed counts.

    An answer's counts are kept, so that a bootstrap over the queries takes sums and no new counting.
    """
    _checked(tokenize)

    def whole(outputs: Sequence[str], golds: Sequence[str]) -> float:
        total = np.sum([_counts(o, g, tokenize) for o, g in zip(outputs, golds, strict=True)], axis=0).tolist()
        found = sacrebleu.BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp")
        return _share(found.score)

    return Metric("corpus_bleu", whole=whole, repeatable=True)


@lru_cache(maxsize=200_000)
def _counts(output: str, gold: str, tokenize: str) -> NDArray[np.int64]:
    """Shared n-grams of orders 1 to 4, n-grams of orders 1 to 4, words of the output, words of the gold answer."""
    output, gold = _nfc(output), _nfc(gold)
    chosen = _tokenizer_for(gold) if tokenize == "auto" else tokenize
    found = _scorer(chosen, sentence=False).corpus_score([output], [[gold]])
    return np.array([*found.counts, *found.totals, found.sys_len, found.ref_len], np.int64)


def sentence_chrf(output: str, gold: str) -> float:
    """chrF2 of one answer in [0, 1]: F-score of character 1- to 6-grams, recall counted twice (Popović 2015)."""
    return _share(sacrebleu.sentence_chrf(_nfc(output), [_nfc(gold)]).score)


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _share(score: float) -> float:
    """A score of at most 100, which sacrebleu's may pass by a rounding error, as a share."""
    return min(1.0, float(score) / 100)


CHRF = Metric("chrf", judge=sentence_chrf, repeatable=True)
