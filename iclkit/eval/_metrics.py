"""What an answer is worth: one value per query, or one figure for a whole run.

A metric with ``judge`` gives each query a value and its figure is their mean. A metric with ``whole`` is a figure of
all answers together (macro-F1), and its interval comes from a bootstrap over the queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclkit.records import clean_text
from iclkit.registry import Registry


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


METRICS = Registry(
    "metric",
    "iclkit.metrics",
    {
        "accuracy": "iclkit.eval._metrics:ACCURACY",
        "macro_f1": "iclkit.eval._metrics:MACRO_F1",
        "exact_match": "iclkit.eval._metrics:EXACT_MATCH",
        "number_match": "iclkit.eval._metrics:NUMBER_MATCH",
        "set_match": "iclkit.eval._metrics:SET_MATCH",
        "sql_match": "iclkit.eval._metrics:SQL_MATCH",
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


_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*\.?\d*|\.\d+)")


def last_number(text: str) -> float | None:
    """The number a worked solution ends in: the one after the first ``####``, else the last number in the text.

    Thousands commas and a dollar sign are read over. None when there is no number.
    >>> last_number("so 3 * 4 = 12. #### 1,012 eggs"), last_number("it is $7.50."), last_number("none")
    (1012.0, 7.5, None)
    """
    _, mark, after = text.partition("####")
    found = _NUMBER.findall(after)[:1] if mark else []
    found = found or _NUMBER.findall(text)[-1:]
    return float(found[0].replace(",", "").replace("$", "")) if found else None


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


ACCURACY = Metric("accuracy", judge=equal_text)
MACRO_F1 = Metric("macro_f1", whole=macro_f1)
EXACT_MATCH = Metric("exact_match", judge=equal_text)
NUMBER_MATCH = Metric("number_match", judge=equal_number)
SET_MATCH = Metric("set_match", judge=equal_set)
SQL_MATCH = Metric("sql_match", judge=equal_sql)
