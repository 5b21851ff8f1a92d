"""How an LM is asked about answers, and how its scores are compared: one spelling for every room that asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.prompts._template import Template
from iclkit.records import Prompt, Query, Run, Score, ScoreRequest

Floats = NDArray[np.float64]

NORMALIZATIONS = ("sum", "mean")
_ROWS_PER_LABEL = 4


def answer_requests(
    prompt: Prompt,
    template: Template,
    options: Sequence[str],
    choices: Sequence[str] = (),
    *,
    group: str = "",
    end: str = "",
) -> list[ScoreRequest]:
    """One request per option: how likely is it as the answer to this prompt?

    ``choices`` are the query's own, of which a template with ``{letter}`` shows the letter. ``end`` is read after the
    answer and belongs to it; ``group`` as in ``ScoreRequest``. DataError for an option that a letter template cannot
    show.
    """
    answers = [template.answer(option, choices) for option in options]
    return [ScoreRequest(prompt.text, prompt.answer_prefix + answer + end, group) for answer in answers]


def answer_options(query: Query, labels: Sequence[str] = (), inferred: Sequence[str] = ()) -> tuple[str, ...]:
    """The answers to weigh for a query, each once: the task's labels, else the query's choices, else ``inferred`` ones.

    () for a query whose answer is written.
    """
    return tuple(dict.fromkeys(labels or query.choices or inferred))


def infer_labels(outputs: Iterable[str]) -> tuple[str, ...]:
    """The different outputs, sorted, where they look like labels: each is there four times on average. Else ().

    >>> infer_labels(["no", "yes"] * 4), infer_labels(["Paris", "Rome"])
    (('no', 'yes'), ())
    """
    outputs = list(outputs)
    labels = tuple(sorted(set(outputs)))
    return labels if _ROWS_PER_LABEL * len(labels) <= len(outputs) else ()


def log_probs(scores: Sequence[Score], normalize: str = "sum") -> Floats:
    """(n,) log-probability in nats of each scored answer; ``mean`` divides it by the answer's tokens."""
    summed = np.array([s.logprob for s in scores], dtype=np.float64)
    return summed / [max(1, s.tokens) for s in scores] if normalize == "mean" else summed


def log_softmax(values: Any) -> Floats:
    """Log-probabilities (…, n) that sum to 1 over the last axis, from unnormalized ones.

    >>> np.exp(log_softmax(np.log([0.1, 0.3]))).round(2).tolist()
    [0.25, 0.75]
    """
    values = np.asarray(values, dtype=np.float64)
    return np.asarray(values - np.logaddexp.reduce(values, axis=-1, keepdims=True))


def template_of(run: Run) -> Template:
    """The template that a run showed its demonstrations with; the task's for a run that showed an LM nothing."""
    fields = dict(run.spec.parts.get("template") or run.facts.get("template") or {})
    return Template(**fields | {"stop": tuple(fields.get("stop", ()))})
