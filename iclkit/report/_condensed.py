"""What a board needs of a run, in arrays: its rows are looked at once, one run after the other, and not held.

A run whose rows are in a file is condensed to a few numbers a row; the page reads the rows that it shows from the file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from iclkit import __version__
from iclkit.errors import DataError, IclkitError
from iclkit.eval import METRICS, Metric, RowFile, RowReader
from iclkit.prompts import log_softmax
from iclkit.records import Row, Run, RunSpec
from iclkit.registry import parse_spec

Floats = NDArray[np.float64]
_ROUNDING = 1e-6
_LARGEST = 1e60  # variances of variances take the fourth power
REMEDY = "delete its folder and give the same iclkit eval command again"


@dataclass(frozen=True, eq=False, slots=True)
class Answers:
    """The rows of a run by column: equal ids and answers are one object, in all runs.

    ``outputs`` is empty where no statistic needs the answers themselves. ``metrics`` are NaN where a row has none.
    """

    queries: tuple[str, ...]
    golds: tuple[str, ...]
    outputs: tuple[str, ...]
    failed: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    metrics: Mapping[str, Floats]

    def has(self, metric: str) -> bool:
        """Whether every row has a value of it."""
        return metric in self.metrics and not np.isnan(self.metrics[metric]).any()

    def only(self, kept: Sequence[int]) -> Answers:
        """Those of the rows at these positions."""
        queries, golds, outputs = (
            tuple(column[i] for i in kept) if column else () for column in (self.queries, self.golds, self.outputs)
        )
        at = np.asarray(kept, np.int64)
        metrics = {name: values[at] for name, values in self.metrics.items()}
        return Answers(queries, golds, outputs, self.failed[at], self.tokens[at], metrics)


class CondensedRows(RowReader):
    """A run's rows after a look at them: ``answers`` in arrays, and where the rows themselves can be read.

    ``wrong`` says why the values cannot be trusted, "" where they can. ``anew`` are values of the metric by position
    that differ from the recorded ones, because another version of iclkit judged; the rows that are read have them.
    """

    def __init__(
        self, source: Sequence[Row], at: Sequence[int], answers: Answers, metric: Metric, wrong: str,
        anew: Mapping[int, float],
    ) -> None:  # fmt: skip
        self._source, self._at = source, at
        self.answers, self.metric, self.wrong, self.anew = answers, metric, wrong, anew

    def only(self, kept: Sequence[int]) -> CondensedRows:
        """The rows at these positions."""
        anew = {new: self.anew[old] for new, old in enumerate(kept) if old in self.anew}
        at = [self._at[i] for i in kept]
        return CondensedRows(self._source, at, self.answers.only(kept), self.metric, self.wrong, anew)

    def read(self, numbers: Iterable[int]) -> Iterator[Row]:
        """The rows at these positions, one after the other."""
        numbers = [*numbers]
        places = [self._at[i] for i in numbers]
        rows = self._source.read(places) if isinstance(self._source, RowFile) else (self._source[i] for i in places)
        for number, row in zip(numbers, rows, strict=True):
            if number in self.anew:
                row = replace(row, metrics={**row.metrics, self.metric.name: self.anew[number]})
            yield row

    def __len__(self) -> int:
        return len(self._at)


def condensed(run: Run, file: RowFile | None = None) -> Run:
    """The run with ``CondensedRows``. ``file``: where the rows can be read again, so that they need not be held."""
    return run if isinstance(run.rows, CondensedRows) else replace(run, rows=_condense(run, file))


def rows_of(run: Run) -> CondensedRows:
    """The run's rows, condensed."""
    return run.rows if isinstance(run.rows, CondensedRows) else _condense(run)


def metric_of(run: Run) -> Metric:
    """The metric of a run's task; where it is not at hand here, one that has recorded values only."""
    return _metric(run.spec, rows_of(run).answers)[0]


def made_by(run: Run) -> str:
    """The version of iclkit that made the run; of one that several went on with, the first."""
    return str(run.facts.get("iclkit", __version__))


def _condense(run: Run, file: RowFile | None = None) -> CondensedRows:
    answers = _answers(run.rows)
    metric, reason = _metric(run.spec, answers)
    wrong, anew = "", dict[int, float]()
    try:
        anew = _judged_anew(run, metric)
    except DataError as error:
        wrong = f"{error}; {reason or REMEDY}"
    if anew:
        values = answers.metrics[metric.name]
        values[[*anew]] = [*anew.values()]
    if metric.whole is None and not run.spec.task.labels:  # no statistic needs what was written
        answers = replace(answers, outputs=())
    else:
        answers = replace(answers, outputs=tuple(map(sys.intern, answers.outputs)))
    rows = run.rows if file is None else file
    return CondensedRows(rows, range(len(rows)), answers, metric, wrong, anew)


def _answers(rows: Sequence[Row]) -> Answers:
    metrics: dict[str, Floats] = {}
    for at, row in enumerate(rows):
        for name, value in row.metrics.items():
            if name not in metrics:
                metrics[name] = np.full(len(rows), math.nan)
            metrics[name][at] = value
    return Answers(
        tuple(sys.intern(row.query_id) for row in rows),
        tuple(sys.intern(row.gold) for row in rows),
        tuple(row.output for row in rows),
        np.array([bool(row.failure) for row in rows], np.bool_),
        np.array([row.prompt_tokens for row in rows], np.int64),
        metrics,
    )


def _metric(spec: RunSpec, answers: Answers) -> tuple[Metric, str]:
    """The metric; where it is not at hand here, one that has recorded values only, and why."""
    try:
        found: Metric = METRICS.get(spec.task.metric)
        return found.for_labels(spec.task.labels or sorted(set(answers.golds))), ""
    except IclkitError as error:
        name = str(parse_spec(spec.task.metric))
        values = answers.metrics.get(name, np.empty(0))
        bounded = bool(((values >= 0) & (values <= 1) | np.isnan(values)).all())
        return Metric(name, judge=_not_here, bounded=bounded), str(error)


def _not_here(output: str, gold: str) -> float:  # noqa: ARG001
    raise DataError("the metric of this run is not at hand here")


def _judged_anew(run: Run, metric: Metric) -> dict[int, float]:
    """The values of the metric, by position, that had to be replaced. DataError, naming the row, for wrong ones."""
    anew: dict[int, float] = {}
    plain = run.spec.normalize == "sum" and run.spec.calibrate == "none"
    for number, row in enumerate(run.rows):
        if row.failure:
            continue
        place = f"row {number + 1}"
        _check_scores(row, place, plain=plain)
        raw = row.metrics.get(f"{metric.name}_raw")
        if metric.judge is None:
            continue
        if metric.name not in row.metrics:
            raise DataError(f"{place} has no value of {metric.name}")
        value = row.metrics[metric.name]
        judged = _value_of(metric, row.output, row.gold)
        if judged is not None and abs(value - judged) > _ROUNDING * max(1.0, abs(judged)):
            if made_by(run) == __version__:
                raise DataError(
                    f"{place} has {metric.name} {value:g}, and its answer {_short(row.output)} gets {judged:g} "
                    f"against {_short(row.gold)}"
                )
            anew[number] = value = judged
        if abs(value) > _LARGEST:
            raise DataError(f"{place} has {metric.name} {value:g}, which is beyond what can be averaged and compared")
        for one in (value, raw):
            if metric.bounded and one is not None and not -_ROUNDING <= one <= 1 + _ROUNDING:
                raise DataError(f"{place} has {metric.name} {one:g}, which is not between 0 and 1")
    return anew


def _check_scores(row: Row, place: str, *, plain: bool) -> None:
    """Whether the answer and the log-probability of the gold label are what the label scores say, as far as they do."""
    gold = row.metrics.get("gold_logprob")
    if gold is not None and gold > _ROUNDING:
        raise DataError(f"{place} has gold_logprob {gold:g}, which is above 0")
    if not plain or not row.label_logprobs:
        return
    best = max(row.label_logprobs.values())
    if row.label_logprobs.get(row.output, best) < best - _ROUNDING * max(1.0, abs(best)):
        raise DataError(f"{place} has the answer {_short(row.output)}, which is not its likeliest label")
    if gold is not None and row.gold in row.label_logprobs:
        shares = log_softmax([*row.label_logprobs.values()])
        right = float(shares[[*row.label_logprobs].index(row.gold)])
        if not abs(gold - right) <= _ROUNDING * max(1.0, abs(right)):
            raise DataError(f"{place} has gold_logprob {gold:g}, and its label scores say {right:g}")


def _value_of(metric: Metric, output: str, gold: str) -> float | None:
    return _judged(metric, output, gold) if metric.repeatable else None


@lru_cache(maxsize=20_000)  # of several runs of a task: it holds texts
def _judged(metric: Metric, output: str, gold: str) -> float:
    """What a metric gives an answer; seeds and selectors often give the same answers."""
    assert metric.judge is not None
    value = metric.judge(output, gold)
    return value if math.isfinite(value) else math.nan


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else f"{text[:27]}...")
