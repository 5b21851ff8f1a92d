"""Calibration: take out of label scores what the prompt says before it has seen the query. Pure functions, in nats.

All work on scores after any length normalization, and all divide the label probabilities by a prior: of content-free
inputs after the same demonstrations (contextual: Zhao et al. 2021, arXiv 2102.09690), of random words of the domain
(domain: Fei et al. 2023, arXiv 2305.19148), of all queries of the run together (batch: Zhou et al. 2024, arXiv
2309.17249), of rows of the pool that are asked as the queries are and never see themselves (pool: the same without a
look at the queries), or one that is given. A uniform prior changes nothing; a factor common to all labels has no
effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.prompts import log_softmax
from iclkit.records import Example, Fields, Query

Floats = NDArray[np.float64]

CALIBRATIONS = ("none", "contextual", "domain", "batch", "pool", "given")
OVER_ROWS = ("batch", "pool", "given")
"""Those whose prior is one for the whole run, so that it is taken out when all rows are there."""
CONTENT_FREE = ("N/A", "", "[MASK]")
DOMAIN_TEXTS = 20
_LEAST = 1e-9  # a prior below this would let one label win everything


def label_prior(free: Floats) -> Floats:
    """Log prior of the labels (L,) from scores (m, L) on m content-free inputs: probabilities averaged, then normed."""
    return log_softmax(np.logaddexp.reduce(free, axis=0))


def divide_by_prior(scores: Floats, log_prior: Floats) -> Floats:
    """Log-probabilities (..., L) divided by the prior (L,) and normed again."""
    return log_softmax(log_softmax(scores) - np.log(np.maximum(np.exp(log_prior), _LEAST)))


def label_shares(scores: Floats, log_prior: Floats | None = None) -> Floats:
    """Log-probabilities of the labels (L,) from scores (1 + m, L): after a prompt, then after its m content-free ones.

    With m > 0 these are the prior; ``log_prior`` (L,) is one that holds for all prompts.
    """
    if len(scores) > 1:
        return divide_by_prior(scores[0], label_prior(scores[1:]))
    return log_softmax(scores[0]) if log_prior is None else divide_by_prior(scores[0], log_prior)


def mean_prior(scores: Floats) -> Floats:
    """Log prior (L,) from scores (n, L) of n queries: their mean probability, whatever order they come in.

    Dividing those same scores by it takes their labels to be about equally frequent; where they are not, it hurts. For
    n = 1 all labels come out equal.
    """
    shares = np.exp(log_softmax(scores))
    # fsum: the exactly rounded sum is the same in every order, and so are then the answers
    means = [math.fsum(column) / len(column) for column in shares.T.tolist()]
    return np.log(np.maximum(means, _LEAST))


def check_prior(prior: Mapping[str, float], labels: Sequence[str]) -> None:
    """UsageError unless a given prior has a probability above 0 for each label, and no other name."""
    for name in (*prior, *labels):
        if name not in prior or name not in labels:
            what = "is no label of the task" if name not in labels else "has no probability"
            raise UsageError(f"the given prior: {name!r} {what}; it must name {', '.join(labels[:8])}, and no other")
        value = prior[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise UsageError(f"the given prior: {name!r} has {value!r}; expected a probability above 0, at most 1")


def content_free_query(query: Query, text: str) -> Query:
    """The query with every field of its input replaced; id and choices stay."""
    value: Fields = text if isinstance(query.input, str) else dict.fromkeys(query.input, text)
    return Query(value, query.choices, query.exclude, query.id)


def domain_texts(examples: Sequence[Example], seed: int, count: int = DOMAIN_TEXTS) -> tuple[str, ...]:
    """``count`` texts of random lower-case words of the pool's inputs, each of their average length, ended by `` .``.

    The pool and not the test set: no test input is looked at.
    """
    words = [w for e in examples for w in e.text.lower().split()]
    if not words:
        return CONTENT_FREE
    length = max(1, round(len(words) / len(examples)))
    rng = np.random.default_rng([seed, len(words)])
    return tuple(" ".join([*(words[i] for i in rng.integers(0, len(words), length)), "."]) for _ in range(count))


def content_free_inputs(kind: str, examples: Sequence[Example], seed: int) -> tuple[str, ...]:
    """The content-free inputs of a calibration; none for those that have no use for them."""
    if kind == "domain":
        return domain_texts(examples, seed)
    return CONTENT_FREE if kind == "contextual" else ()
