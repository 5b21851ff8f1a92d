"""What an answer is worth: one value per query, or one figure for a whole run.

A metric with ``judge`` gives each query a value and its figure is their mean. A metric with ``whole`` is a figure of
all answers together (macro-F1), and its interval comes from a bootstrap over the queries.
"""

from __future__ import annotations

import inspect
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclkit.errors import UsageError
from iclkit.records import clean_text
from iclkit.registry import Registry, parse_spec


@dataclass(frozen=True, slots=True)
class Metric:
    """A named judgement. Exactly one of ``judge`` and ``whole`` is set; higher is better.

    ``judge(output, gold)``: value of one answer. ``whole(outputs, golds)``: figure of all answers.
    ``bounded``: values lie in [0, 1], so that intervals are kept there.
    """

    name: str
    judge: Callable[[str, str], float] | None = None
    whole: Callable[[Sequence[str], Sequence[str]], float] | None = None
    bounded: bool = True

    def figure(self, outputs: Sequence[str], golds: Sequence[str]) -> float:
        """The metric's figure for a whole run; nan for no rows."""
        if not outputs:
            return float("nan")
        if self.whole is not None:
            return self.whole(outputs, golds)
        assert self.judge is not None
        return sum(self.judge(o, g) for o, g in zip(outputs, golds, strict=True)) / len(outputs)


class MetricRegistry(Registry):
    """Metrics by name: ours and those of the entry point group ``iclkit.metrics``.

    An entry is a ``Metric``; a function of two texts (output, gold), which becomes one; or a function that makes one of
    the settings in the name: ``sql_execution,database=geo.db``.
    """

    def get(self, name: str) -> Metric:
        """The metric of that name. UnknownName on a miss; UsageError when its settings or its plug-in are wrong."""
        spec = parse_spec(name)
        found = super().get(spec.name)
        if not isinstance(found, Metric):
            if not spec.settings and _takes_two_texts(found):
                return Metric(spec.name, judge=found, bounded=False)
            try:
                inspect.signature(found).bind(**spec.settings)
            except TypeError as error:
                raise UsageError(f"metric {name!r}: {error}; it takes {inspect.signature(found)}") from error
            made = found(**spec.settings)
            if not isinstance(made, Metric):
                raise UsageError(f"metric {name!r} gave {type(made).__name__}; it must give an iclkit.eval.Metric")
            return Metric(str(spec), made.judge, made.whole, made.bounded)
        if spec.settings:
            raise UsageError(f"the metric {spec.name!r} takes no settings, and {name!r} has {len(spec.settings)}")
        return found


def _takes_two_texts(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind("output", "gold")
    except TypeError:
        return False
    return True


METRICS = MetricRegistry(
    "metric",
    "iclkit.metrics",
    {
        "accuracy": "iclkit.eval._metrics:ACCURACY",
        "macro_f1": "iclkit.eval._metrics:MACRO_F1",
        "exact_match": "iclkit.eval._metrics:EXACT_MATCH",
        "number_match": "iclkit.eval._metrics:NUMBER_MATCH",
        "set_match": "iclkit.eval._metrics:SET_MATCH",
        "sql_match": "iclkit.eval._metrics:SQL_MATCH",
        "sql_execution": "iclkit.eval._sql:sql_execution",
        "token_f1": "iclkit.eval._metrics:TOKEN_F1",
        "bleu": "iclkit.eval._bleu:BLEU",
        "corpus_bleu": "iclkit.eval._bleu:CORPUS_BLEU",
        "chrf": "iclkit.eval._bleu:CHRF",
        "rouge_1": "iclkit.eval._rouge:ROUGE_1",
        "rouge_2": "iclkit.eval._rouge:ROUGE_2",
        "rouge_l": "iclkit.eval._rouge:ROUGE_L",
    },
)


def one_line(text: str) -> str:
    """NFC, white space folded to single spaces, none at either end."""
    return " ".join(clean_text(text).split())


def equal_text(output: str, gold: str) -> float:
    """1 when both texts are equal but for white space."""
    return float(one_line(output) == one_line(gold))


def macro_f1(outputs: Sequence[str], golds: Sequence[str]) -> float:
    """Unweighted mean over the labels, seen in ``golds`` or ``outputs``, of 2TP / (2TP + FP + FN).

    >>> macro_f1(["a", "a", "b"], ["a", "b", "b"])
    0.6666666666666666
    """
    labels = sorted({*outputs, *golds})
    pairs = list(zip(outputs, golds, strict=True))
    scores = []
    for label in labels:
        hits = sum(o == g == label for o, g in pairs)
        said, true = sum(o == label for o, _ in pairs), sum(g == label for _, g in pairs)
        scores.append(2 * hits / (said + true))
    return sum(scores) / len(scores)


_MINUS = str.maketrans("−–", "--")
# a hyphen is a sign only where no number, letter or bracket stands before it: "10-12" ends in 12
_NUMBER = re.compile(r"(?:(?<![\w.)\]%])-)?(?:[$€£]-?)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> float | None:
    """The number a worked solution ends in: the one after the first ``####``, else the last number in the text.

    Thousands commas and a currency sign are read over, and so is what follows the first number after ``####``. None
    when there is no number.
    >>> last_number("so 3 * 4 = 12. #### 1,012 eggs"), last_number("it is $7.50."), last_number("none")
    (1012.0, 7.5, None)
    >>> last_number("from 10-12"), last_number("it fell to −1,000"), last_number("-$3")
    (12.0, -1000.0, -3.0)
    """
    _, mark, after = text.partition("####")
    found = _NUMBER.findall(after.translate(_MINUS))[:1] if mark else []
    found = found or _NUMBER.findall(text.translate(_MINUS))[-1:]
    return float(re.sub(r"[,$€£]", "", found[0])) if found else None


def equal_number(output: str, gold: str) -> float:
    """1 when both texts end in the same number (GSM8K: Cobbe et al. 2021, arXiv 2110.14168)."""
    said, true = last_number(output), last_number(gold)
    return float(said is not None and true is not None and abs(said - true) <= 1e-6 * max(1.0, abs(true)))


def equal_set(output: str, gold: str) -> float:
    """1 when both texts hold the same comma-separated words, whatever their order, case and spacing."""
    said, true = ({one_line(w).casefold() for w in t.split(",")} - {""} for t in (output, gold))
    return float(said == true)


_SQL_TOKEN = re.compile(r"\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'|[\w.]+|[^\w\s]")


def sql_tokens(text: str) -> list[str]:
    """A query as tokens: quoted values as they are (either quote), all else in lower case, no closing semicolon."""
    tokens = [f"'{t[1:-1]}'" if t[0] in "\"'" and len(t) > 1 else t.lower() for t in _SQL_TOKEN.findall(text)]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return tokens


def equal_sql(output: str, gold: str) -> float:
    """1 when both queries have the same tokens: white space and letter case outside quotes aside."""
    return float(sql_tokens(output) == sql_tokens(gold))


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def plain_tokens(text: str) -> list[str]:
    """Lower case, without ASCII punctuation and English articles, split at white space: SQuAD's normalisation."""
    kept = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _ARTICLES.sub(" ", kept).split()


def token_f1(output: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the bags of words (Rajpurkar et al. 2016, SQuAD).

    Two texts without words are equal (1), one without words has nothing right (0).
    >>> token_f1("the cat sat", "A cat, sitting"), token_f1("the", "a")
    (0.5, 1.0)
    """
    said, true = plain_tokens(output), plain_tokens(gold)
    if not said or not true:
        return float(said == true)
    shared = (Counter(said) & Counter(true)).total()
    return 2 * shared / (len(said) + len(true))


ACCURACY = Metric("accuracy", judge=equal_text)
MACRO_F1 = Metric("macro_f1", whole=macro_f1)
EXACT_MATCH = Metric("exact_match", judge=equal_text)
NUMBER_MATCH = Metric("number_match", judge=equal_number)
SET_MATCH = Metric("set_match", judge=equal_set)
SQL_MATCH = Metric("sql_match", judge=equal_sql)
TOKEN_F1 = Metric("token_f1", judge=token_f1)
