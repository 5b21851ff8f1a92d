"""Which runs a board can trust: what follows from answers and gold answers is taken anew, and what disagrees is named.

A run is a folder of files that anyone can edit. A figure is only as good as the values it is made of, so a stored value
is never more than a claim where the metric can say for itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from iclkit import __version__
from iclkit.errors import DataError, IclkitError
from iclkit.eval import METRICS, LeftOut, Metric
from iclkit.prompts import log_softmax
from iclkit.records import Row, Run
from iclkit.registry import parse_spec

_ROUNDING = 1e-6
_LARGEST = 1e60  # variances of variances take the fourth power
_REMEDY = "delete its folder and give the same iclkit eval command again"


def usable_runs(runs: Iterable[Run]) -> tuple[list[Run], list[LeftOut], list[str]]:
    """Runs whose values can be trusted, those that cannot with the reason, and what a reader must know of the former.

    Values of a run that another version has made are replaced by this version's where they differ, and a note says so.
    """
    kept, lost = list[Run](), list[LeftOut]()
    anew, recorded = Counter[tuple[str, str]](), dict[str, None]()
    for run in runs:
        metric, reason = metric_of(run)
        try:
            checked, changed = _checked(run, metric)
        except DataError as error:
            lost.append(LeftOut(run.id, f"{error}; {reason or _REMEDY}"))
            continue
        kept.append(checked)
        anew[metric.name, made_by(run)] += changed
        if not metric.repeatable:
            recorded[metric.name] = None
    notes = [f"values of {name} are as they were recorded: a board cannot take them anew" for name in recorded]
    notes += [
        f"{count} run{'s' * (count != 1)} of iclkit {version}: {name} is by the rules of {__version__}, and was another"
        for (name, version), count in anew.items()
        if count
    ]
    return kept, lost, notes


def made_by(run: Run) -> str:
    """The version of iclkit that made the run; of one that several went on with, the first."""
    return str(run.facts.get("iclkit", __version__))


def metric_of(run: Run) -> tuple[Metric, str]:
    """The metric of a run's task; where it is not at hand here, one that has recorded values only, and why."""
    name: str = run.spec.task.metric
    labels = run.spec.task.labels or sorted({row.gold for row in run.rows})
    try:
        found: Metric = METRICS.get(name)
        return found.for_labels(labels), ""
    except IclkitError as error:
        spec = str(parse_spec(name))
        values = [row.metrics[spec] for row in run.rows if spec in row.metrics]
        return Metric(spec, judge=_not_here, bounded=all(0 <= v <= 1 for v in values)), str(error)


def _not_here(output: str, gold: str) -> float:  # noqa: ARG001
    raise DataError("the metric of this run is not at hand here")


def same_queries(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs that answered the queries that most of them did, in order and with equal gold answers; and the others.

    Where no more than half agree, nobody knows which are right, and none is kept.
    """
    asked = {run.id: tuple((row.query_id, row.gold) for row in run.rows) for run in runs}
    most, count = Counter(asked.values()).most_common(1)[0]
    if 2 * count <= len(asked):
        most = ()
    reason = f"its queries or gold answers are not those of the other runs of its task; {_REMEDY}"
    return [run for run in runs if asked[run.id] == most], [
        LeftOut(run.id, reason) for run in runs if asked[run.id] != most
    ]


def _checked(run: Run, metric: Metric) -> tuple[Run, bool]:
    """The run with values that are right, and whether any had to be replaced. DataError, naming the row, for others."""
    rows = list(run.rows)
    plain = run.spec.normalize == "sum" and run.spec.calibrate == "none"
    for number, row in enumerate(rows):
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
            rows[number] = replace(row, metrics={**row.metrics, metric.name: judged})
            value = judged
        if abs(value) > _LARGEST:
            raise DataError(f"{place} has {metric.name} {value:g}, which is beyond what can be averaged and compared")
        for one in (value, raw):
            if metric.bounded and one is not None and not -_ROUNDING <= one <= 1 + _ROUNDING:
                raise DataError(f"{place} has {metric.name} {one:g}, which is not between 0 and 1")
    changed = rows != list(run.rows)
    return (replace(run, rows=tuple(rows)) if changed else run), changed


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


@lru_cache(maxsize=200_000)
def _judged(metric: Metric, output: str, gold: str) -> float:
    """What a metric gives an answer; seeds and selectors often give the same answers."""
    assert metric.judge is not None
    value = metric.judge(output, gold)
    return value if math.isfinite(value) else math.nan


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else f"{text[:27]}...")
