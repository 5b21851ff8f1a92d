"""Closer looks at a classification: label by label, and whether the model's probabilities can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.prompts import log_softmax
from iclkit.records import Row


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label's precision, recall and F1 in [0, 1] (0 where undefined), its rows in gold and in the answers."""

    label: str
    precision: float
    recall: float
    f1: float
    gold: int
    said: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose confidence lies in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def label_scores(outputs: Sequence[str], golds: Sequence[str]) -> list[LabelScore]:
    """Precision, recall and F1 of every label in ``golds`` or ``outputs``, sorted by label.

    No answer ("") is no label: it says nothing, and counts against the recall of its gold label alone.
    """
    pairs = list(zip(outputs, golds, strict=True))
    scores = []
    for label in sorted({*outputs, *golds} - ({""} - {*golds})):
        hits = sum(o == g == label for o, g in pairs)
        said, gold = sum(o == label for o, _ in pairs), sum(g == label for _, g in pairs)
        scores.append(
            LabelScore(
                label, hits / said if said else 0.0, hits / gold if gold else 0.0, 2 * hits / (said + gold), gold, said
            )
        )
    return scores


def label_probabilities(logprobs: Mapping[str, float]) -> dict[str, float]:
    """A row's label log-probabilities (nats) as probabilities that sum to 1 over the labels."""
    if not logprobs:
        raise UsageError(
            "the row has no label log-probabilities: it failed, or its answer was written or compared, not scored"
        )
    shares = np.exp(log_softmax([*logprobs.values()]))
    return dict(zip(logprobs, shares.tolist(), strict=True))


def label_log_likelihood(rows: Sequence[Row]) -> float:
    """Mean log-probability (nats) of the gold label among the labels; 0 is best, -ln(labels) is guessing."""
    golds = []
    for row in rows:
        if row.failure:
            raise UsageError(f"row {row.query_id} failed ({row.failure}); leave failed rows out")
        if row.gold not in row.label_logprobs:
            raise UsageError(f"row {row.query_id} has no log-probability of its gold label {row.gold!r}")
        shares = log_softmax([*row.label_logprobs.values()])
        golds.append(shares[[*row.label_logprobs].index(row.gold)])
    return float(np.mean(golds)) if golds else float("nan")


def confidences(rows: Sequence[Row]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(confidence, right), one per row: the probability of the label that the model gave, and whether it is gold.

    A row without an answer, whose labels are all equally likely, has the share that each of them has.
    """
    found = [label_probabilities(row.label_logprobs) for row in rows]
    shares = [of.get(row.output, 1 / len(of)) for of, row in zip(found, rows, strict=True)]
    return np.array(shares, np.float64), np.array([row.output == row.gold for row in rows], bool)


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 15) -> list[Bin]:
    """``bins`` equal parts of [0, 1] as (low, high], the first with its 0; empty ones have count 0 and nan."""
    if bins < 1:
        raise UsageError(f"bins is {bins}; it must be at least 1")
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for b in range(bins):
        inside = place == b
        count = int(inside.sum())
        mean, share = (confidence[inside].mean(), right[inside].mean()) if count else (np.nan, np.nan)
        found.append(Bin(float(edges[b]), float(edges[b + 1]), count, float(mean), float(share)))
    return found


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence| of the bins, weighted by their rows.

    confidence (n,) in [0, 1], right (n,). nan for no rows.
    """
    if not len(confidence):
        return float("nan")
    filled = [b for b in reliability(confidence, right, bins) if b.count]
    return sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / len(confidence)
