"""A table again, for a part of its queries: those of a label, of a length, of a value of their metadata."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.eval import Difference, Estimate, difference, estimate, false_discovery
from iclkit.records import Run, input_text
from iclkit.report._condensed import Answers, metric_of, rows_of
from iclkit.report._drafts import answered
from iclkit.report._records import BETTER, INCONCLUSIVE, NONE, WORSE, Board, Group, Line, baseline_of

_MOST_VALUES = 40
_ENOUGH = 20  # queries from which on a part has verdicts
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SliceLine:
    """A line on a part of the queries. ``q``: over all parts of the table; NaN where the part has too few queries."""

    name: str
    figure: Estimate
    diff: Difference | None
    q: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Queries that share a value: of ``label``, ``length`` or a field of their metadata."""

    kind: str
    value: str
    queries: int
    lines: tuple[SliceLine, ...]


def slices(board: Board, group: Group, runs: Mapping[str, Run], texts: Mapping[str, Mapping[str, Any]]) -> list[Slice]:
    """The parts of a table's queries, with the statistics of the table and q-values over all of them.

    Labels where the task has some, thirds of length in words where texts are known, and every field of the queries'
    metadata with 2 to 40 values. Verdicts from 20 queries on. Empty for a metric that has no value per query.
    """
    ids = [i for line in group.lines for i in line.runs]
    known = dict(zip(ids, answered([runs[i] for i in ids])[0], strict=True))
    metric = metric_of(known[ids[0]])
    if metric.whole is not None:
        return []
    first = rows_of(known[ids[0]]).answers
    values = {
        line.name: np.array([rows_of(known[i]).answers.metrics[metric.name] for i in line.runs]) for line in group.lines
    }
    has_labels = bool(known[ids[0]].spec.task.labels)
    found: list[tuple[str, str, int, list[tuple[Line, Estimate, Difference | None]]]] = []
    for kind, of_row in _kinds(first, texts, has_labels).items():
        for value in dict.fromkeys(sorted(of_row, key=_natural)):
            at = np.array([v == value for v in of_row])
            lines = []
            for line in group.lines:
                base = baseline_of(line, group.lines, board.baseline, board.compared) if line.diff else None
                part = values[line.name][:, at]
                diff = None
                if base is not None and at.sum() >= _ENOUGH:
                    scopes, key = (line.scope, base.scope), zlib.crc32(f"{kind} {value} {line.name}".encode())
                    other = values[base.name][:, at]
                    diff = difference(part, other, bounded=metric.bounded, scopes=scopes, key=key)
                lines.append((line, estimate(part, bounded=metric.bounded, scope=line.scope), diff))
            found.append((kind, value, int(at.sum()), lines))
    tested = [diff.p for *_, lines in found for _, _, diff in lines if diff]
    corrected = iter(false_discovery(tested))
    out = []
    for kind, value, count, lines in found:
        done = []
        for line, figure, diff in lines:
            q = next(corrected) if diff else float("nan")
            verdict = line.verdict if line.diff is None else NONE
            if diff:
                verdict = INCONCLUSIVE if q > board.alpha else BETTER if diff.value > 0 else WORSE
            done.append(SliceLine(line.name, figure, diff, q, verdict))
        out.append(Slice(kind, value, count, tuple(done)))
    return out


def _natural(value: str) -> tuple[int, str]:
    """Thirds of length in their order; everything else by name."""
    return (("short", "middle", "long").index(value.split()[0]) if value.split()[:1] and value.split()[0] in
            ("short", "middle", "long") and "words" in value else 0, value)  # fmt: skip


def _kinds(answers: Answers, texts: Mapping[str, Mapping[str, Any]], labels: bool) -> dict[str, list[str]]:
    """What to part the queries by: a value for each row."""
    kinds: dict[str, list[str]] = {}
    if labels:
        kinds["label"] = [*answers.golds]
    words, metas = list[int](), list[Mapping[str, Any]]()
    for query in answers.queries:
        about = texts.get(query, {})
        words += [len(input_text(about["input"]).split())] if "input" in about else []
        metas.append(about.get("meta", {}))
    if len(words) == len(metas):
        kinds["length"] = _thirds(words)
    for field in dict.fromkeys(name for meta in metas for name in meta):
        given = [meta.get(field) for meta in metas]
        if all(value is None or isinstance(value, str | int | bool) for value in given):
            kinds.setdefault(field, ["(none)" if value is None else str(value) for value in given])
    return {kind: values for kind, values in kinds.items() if 2 <= len(set(values)) <= _MOST_VALUES}


def _thirds(sizes: Sequence[int]) -> list[str]:
    low, high = (int(x) for x in np.quantile(sizes, [1 / 3, 2 / 3], method="lower"))
    names = (f"short (up to {low} words)", f"middle (up to {high} words)", f"long (over {high} words)")
    return [names[0] if n <= low else names[1] if n <= high else names[2] for n in sizes]
