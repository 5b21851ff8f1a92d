"""How good an answer is: one value per query, or one figure for a whole run.

A metric with ``judge`` gives each query a value and its figure is their mean. A metric with ``whole`` is a figure of
all answers together (macro-F1), and its interval comes from a bootstrap over the queries.
"""

from __future__ import annotations

import inspect
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from iclkit.errors import UsageError
from iclkit.eval._numbers import equal_number
from iclkit.eval._sql_text import equal_sql
from iclkit.records import one_line
from iclkit.registry import Registry, parse_spec
from iclkit.text import words


@dataclass(frozen=True, slots=True)
class Metric:
    """A named judgement. Exactly one of ``judge`` and ``whole`` is set; higher is better.

    ``judge(output, gold)``: value of one answer. ``whole(outputs, golds)``: figure of all answers; with ``by_label`` it
    takes the task's labels as its third argument. ``bounded``: values lie in [0, 1], so that intervals are kept there.
    ``repeatable``: values follow from answer and gold answer alone, so a board takes them anew and trusts no file.
    """

    name: str
    judge: Callable[[str, str], float] | None = None
    whole: Callable[..., float] | None = None
    bounded: bool = True
    repeatable: bool = False
    by_label: bool = False

    def for_labels(self, labels: Sequence[str]) -> Metric:
        """The metric of a task with these labels, whose ``whole`` takes outputs and golds alone."""
        if self.whole is None or not self.by_label:
            return self
        return replace(self, whole=partial(self.whole, labels=tuple(labels)), by_label=False)

    def figure(self, outputs: Sequence[str], golds: Sequence[str], labels: Sequence[str] = ()) -> float:
        """The metric's figure for a whole run of a task with these labels; nan for no rows."""
        if not outputs:
            return float("nan")
        if self.whole is not None:
            bound = self.for_labels(labels or sorted(set(golds))).whole
            assert bound is not None
            return bound(outputs, golds)
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
            return replace(made, name=str(spec))
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
        "set_f1": "iclkit.eval._metrics:SET_F1",
        "json_match": "iclkit.eval._metrics:JSON_MATCH",
        "json_fields": "iclkit.eval._metrics:JSON_FIELDS",
        "sql_match": "iclkit.eval._metrics:SQL_MATCH",
        "sql_execution": "iclkit.eval._sql:sql_execution",
        "token_f1": "iclkit.eval._metrics:TOKEN_F1",
        "bleu": "iclkit.eval._bleu:bleu",
        "corpus_bleu": "iclkit.eval._bleu:corpus_bleu",
        "chrf": "iclkit.eval._bleu:CHRF",
        "rouge_1": "iclkit.eval._rouge:ROUGE_1",
        "rouge_2": "iclkit.eval._rouge:ROUGE_2",
        "rouge_l": "iclkit.eval._rouge:ROUGE_L",
    },
)


def equal_text(output: str, gold: str) -> float:
    """1 when both texts are equal but for white space."""
    return float(one_line(output) == one_line(gold))


def macro_f1(outputs: Sequence[str], golds: Sequence[str], labels: Sequence[str] = ()) -> float:
    """Unweighted mean over the labels, as far as seen in ``golds`` or ``outputs``, of 2TP / (2TP + FP + FN).

    An answer that is none of ``labels`` is wrong, and no class of its own. Without ``labels`` every text that is seen
    is one.
    >>> macro_f1(["a", "a", "b"], ["a", "b", "b"])
    0.6666666666666666
    >>> macro_f1(["a", "dunno", "b"], ["a", "b", "b"], ["a", "b", "c"])
    0.8333333333333333
    """
    said, true = [one_line(o) for o in outputs], [one_line(g) for g in golds]
    known = {one_line(label) for label in labels} | set(true) if labels else {*said, *true}
    hits = Counter(o for o, g in zip(said, true, strict=True) if o == g)
    claimed, there = Counter(o for o in said if o in known), Counter(true)
    seen = sorted(claimed.keys() | there.keys())
    return sum(2 * hits[label] / (claimed[label] + there[label]) for label in seen) / len(seen)


_COMMA = re.compile("[,،、，]")


def equal_set(output: str, gold: str) -> float:
    """1 when both texts hold the same comma-separated words, whatever their order, case and spacing."""
    return float(_items(output) == _items(gold))


def set_f1(output: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the sets of comma-separated words; 1 where both are empty.

    >>> set_f1("car, red", "red, car"), set_f1("red, bus", "red, car"), set_f1("[]", "[]")
    (1.0, 0.5, 1.0)
    """
    said, true = _items(output), _items(gold)
    return 2 * len(said & true) / (len(said) + len(true)) if said or true else 1.0


def _items(text: str) -> set[str]:
    """The words of a text with commas between them, or of a JSON list, as readers write labels that hold commas."""
    found = _json_in(text) if text.lstrip().startswith("[") else None
    words_ = map(str, found) if isinstance(found, list) else _COMMA.split(text)
    return {one_line(w).casefold() for w in words_} - {""}


def _json_in(text: str) -> Any:
    """The JSON object or list that a text holds, perhaps in a code fence or after words; None where there is none."""
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, min(starts))[0]
    except (ValueError, RecursionError):
        return None


def equal_json(output: str, gold: str) -> float:
    """1 when both texts hold equal JSON values: the order of an object's keys does not count, nor 1 against 1.0.

    What stands around the value in the answer (a code fence, words before it) is not looked at.
    >>> equal_json('```json {"b": 1.0, "a": [1, 2]} ```', '{"a": [1, 2], "b": 1}')
    1.0
    >>> equal_json('{"a": 1}', '{"a": true}')
    0.0
    """
    said, true = _json_in(output), _json_in(gold)
    if true is None:
        return equal_text(output, gold)
    return float(said is not None and _leaves(said) == _leaves(true))


def json_fields(output: str, gold: str) -> float:
    """Share of fields that are right: F1 over the (path, value) pairs of both JSON values, so that a field too many
    costs as much as one that lacks. 0 for an answer without JSON.

    >>> json_fields('{"name": "weather", "city": "Lima"}', '{"name": "weather", "city": "Oslo"}')
    0.5
    """
    said, true = _json_in(output), _json_in(gold)
    if said is None or true is None:
        return equal_text(output, gold)
    mine, theirs = _leaves(said), _leaves(true)
    return 2 * len(mine & theirs) / (len(mine) + len(theirs))


def _leaves(value: Any, path: str = "") -> set[tuple[str, str]]:
    """The values that hold no others, with the paths to them; 1 and 1.0 are one value, 1 and true are two."""
    if isinstance(value, dict) and value:
        return {leaf for k, v in value.items() for leaf in _leaves(v, f"{path}.{json.dumps(k)}")}
    if isinstance(value, list) and value:
        return {leaf for n, v in enumerate(value) for leaf in _leaves(v, f"{path}[{n}]")}
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return {(path, json.dumps(value))}


_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def plain_tokens(text: str) -> list[str]:
    """Lower case, without punctuation and English articles, split at white space: SQuAD's normalization.

    Scripts that put no spaces between words are split into characters, as MLQA does (Lewis et al. 2020).
    """
    if text.isascii():
        return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()
    kept = unicodedata.normalize("NFC", text).lower().translate(_ASCII_PUNCTUATION)
    kept = "".join(c for c in kept if c.isascii() or unicodedata.category(c)[0] != "P")
    pieces = _ARTICLES.sub(" ", kept).split()
    return [w for piece in pieces for w in ([piece] if piece.isascii() else words(piece) or [piece])]


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


ACCURACY = Metric("accuracy", judge=equal_text, repeatable=True)
MACRO_F1 = Metric("macro_f1", whole=macro_f1, repeatable=True, by_label=True)
EXACT_MATCH = Metric("exact_match", judge=equal_text, repeatable=True)
NUMBER_MATCH = Metric("number_match", judge=equal_number, repeatable=True)
SET_MATCH = Metric("set_match", judge=equal_set, repeatable=True)
SET_F1 = Metric("set_f1", judge=set_f1, repeatable=True)
JSON_MATCH = Metric("json_match", judge=equal_json, repeatable=True)
JSON_FIELDS = Metric("json_fields", judge=json_fields, repeatable=True)
SQL_MATCH = Metric("sql_match", judge=equal_sql, repeatable=True)
TOKEN_F1 = Metric("token_f1", judge=token_f1, repeatable=True)
