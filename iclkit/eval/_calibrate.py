"""Calibration: take out of label scores what the prompt says before it has seen the query. Pure functions, in nats.

All work on scores after any length normalisation, and all divide the label probabilities by a prior that the prompt
gives: of content-free inputs (contextual: Zhao et al. 2021, arXiv 2102.09690), of random words of the domain (domain:
Fei et al. 2023, arXiv 2305.19148), or of a batch of queries (batch: Zhou et al. 2024, arXiv 2309.17249). A uniform
prior changes nothing; a factor common to all labels has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iclkit.records import Example, Fields, Query

Floats = NDArray[np.float64]

CALIBRATIONS = ("none", "contextual", "domain", "batch")
CONTENT_FREE = ("N/A", "", "[MASK]")
DOMAIN_TEXTS = 20
_LEAST = 1e-9  # a prior below this would let one label win everything


def log_shares(scores: Floats) -> Floats:
    """Log-probabilities that sum to 1 over the last axis.

    >>> np.exp(log_shares(np.log([0.1, 0.3]))).round(2).tolist()
    [0.25, 0.75]
    """
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))


def prior(free: Floats) -> Floats:
    """Log prior of the labels (L,) from scores (m, L) on m content-free inputs: probabilities averaged, then normed."""
    return log_shares(np.logaddexp.reduce(free, axis=0))


def divide(scores: Floats, log_prior: Floats) -> Floats:
    """Log-probabilities (..., L) divided by the prior (L,) and normed again."""
    return log_shares(log_shares(scores) - np.log(np.maximum(np.exp(log_prior), _LEAST)))


def by_batch(scores: Floats) -> Floats:
    """Batch calibration of scores (n, L): the prior is their own mean probability. For n = 1 all labels come out equal.

    It takes the batch's labels to be about equally frequent; where they are not, it hurts.
    """
    shares = log_shares(scores)
    return divide(shares, np.log(np.maximum(np.exp(shares).mean(axis=0), _LEAST)))


def blank(query: Query, text: str) -> Query:
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


def free_inputs(kind: str, examples: Sequence[Example], seed: int) -> tuple[str, ...]:
    """The content-free inputs of a calibration; none for ``none`` and ``batch``."""
    if kind == "domain":
        return domain_texts(examples, seed)
    return CONTENT_FREE if kind == "contextual" else ()
