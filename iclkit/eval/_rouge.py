"""ROUGE by rouge-score (the extra ``iclkit[metrics]``); loaded when it is asked for.

F-measures (Lin 2004) with Porter stemming. rouge-score's own tokenizer keeps ASCII letters and digits only, so that a
text in Hindi, Thai or Chinese has no words. Here words of all scripts count, as ``iclkit.text.words`` finds them; for
ASCII text they are rouge-score's own.
"""

from __future__ import annotations

import re
from functools import partial

from iclkit.errors import UsageError
from iclkit.eval._metrics import Metric, equal_text
from iclkit.extras import install_command
from iclkit.text import words

try:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
except ImportError as error:
    raise UsageError(f"ROUGE needs the extra: {install_command('metrics')}") from error

_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class _Words(Tokenizer):  # type: ignore[misc]
    """rouge-score's words for ASCII text; for other text its words stemmed like those where they are ASCII."""

    def __init__(self) -> None:
        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        if text.isascii():
            return [*self._ascii.tokenize(text)]
        found = list[str]()
        for word in words(text):
            found += self._ascii.tokenize(word) if word.isascii() else re.findall(r"[^_]+", word)
        return found


_WORDS = _Words()
_SCORER = RougeScorer([*_KINDS.values()], tokenizer=_WORDS)


def rouge(output: str, gold: str, kind: str) -> float:
    """F-measure of ``rouge_1``, ``rouge_2`` (shared words, word pairs) or ``rouge_l`` (longest common subsequence).

    A gold answer without words (signs, emoji) scores 1 where the output is the same, and else 0.
    """
    if not _WORDS.tokenize(gold):
        return equal_text(output, gold)
    return float(_SCORER.score(gold, output)[_KINDS[kind]].fmeasure)


ROUGE_1 = Metric("rouge_1", judge=partial(rouge, kind="rouge_1"), repeatable=True)
ROUGE_2 = Metric("rouge_2", judge=partial(rouge, kind="rouge_2"), repeatable=True)
ROUGE_L = Metric("rouge_l", judge=partial(rouge, kind="rouge_l"), repeatable=True)
