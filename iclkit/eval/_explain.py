"""Why an answer came out as it did: what each demonstration was worth, and which ones look mislabelled.

The worth of a demonstration is the change in the right answer's log-probability (in nats, over the labels where there
are labels) that showing it made: with it, minus without it, all others in place. It is leave-one-out influence; the
worths of a prompt do not add up to the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from iclkit.errors import DataError
from iclkit.eval._calibrate import log_shares
from iclkit.eval._evaluate import Bench, evaluate, prompt_of
from iclkit.eval._stats import Estimate, estimate
from iclkit.lm import LM, Progress, ScoreRequest
from iclkit.pool import Embedder
from iclkit.prompts import Template
from iclkit.records import Example, Query, Row, Run, Spec, fold_text
from iclkit.selectors import Kit, make_selector, story_of

Texts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Shown:
    """One demonstration of a prompt. ``position`` counts from 1 at the top; ``worth`` in nats, see above."""

    example: Example
    score: float
    rank: int
    position: int
    tokens: int
    worth: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """One query of a run: its demonstrations in prompt order, and what the LM believed.

    ``shares``: probability of each label, empty for generated answers. ``logprob`` of the right answer with all
    demonstrations shown, and ``without`` any. ``next``: the best example not picked, where the pool is known; there
    ``story``, too: how the choice came about, in the words of selectors that choose step by step.
    """

    query: Query
    row: Row
    shown: tuple[Shown, ...]
    shares: Mapping[str, float]
    logprob: float
    without: float
    next: tuple[Example, float] | None = None
    story: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Influence:
    """A demonstration over all queries it was shown to: how often, and its mean worth with an interval."""

    example: Example
    times: int
    worth: Estimate


@dataclass(frozen=True, slots=True)
class Suspect:
    """A demonstration asked about itself. ``own``: log-probability of the label it carries; ``said``: the likeliest."""

    example: Example
    own: float
    said: str
    shares: Mapping[str, float]


def explain(
    run: Run, texts: Texts, lm: LM, rows: Iterable[Row] | None = None, progress: Progress | None = None
) -> list[Explanation]:
    """Explain rows of a run (all of them by default), asking the LM for every prompt with one demonstration left out.

    ``texts`` as ``load_texts`` reads them. A prompt of k demonstrations costs k + 2 prompts, most of their beginnings
    shared. DataError when the run has no texts.
    """
    template = template_of(run)
    chosen = list(run.rows if rows is None else rows)
    found = []
    for done, row in enumerate(chosen, 1):
        found.append(_explain(run, row, texts, lm, template))
        if progress:
            progress(done, len(chosen))
    return found


def _explain(run: Run, row: Row, texts: Texts, lm: LM, template: Template) -> Explanation:
    if row.query_id not in texts or any(i not in texts for i in row.shown):
        raise DataError(f"run {run.id} was not finished, so its texts are missing; finish it with iclkit eval first")
    own = texts[row.query_id]
    query = Query(own["input"], tuple(own.get("choices", ())), id=row.query_id)
    shown = [example_of(i, texts) for i in row.shown]
    left = [shown, *([*shown[:n], *shown[n + 1 :]] for n in range(len(shown))), []]
    prompts = [prompt_of(template, query, examples, lm) for examples in left]
    labels = [*row.label_logprobs] or [row.gold]
    requests = [
        ScoreRequest(p.text, p.answer_prefix + template.answer(label, query.choices))
        for p in prompts
        for label in labels
    ]
    scores = np.array([s.logprob for s in lm.score(requests)]).reshape(len(prompts), len(labels))
    if row.label_logprobs:
        scores = log_shares(scores)
    gold = scores[:, labels.index(row.gold)]
    rank = {i: (n, s) for n, (i, s) in enumerate(row.picks, 1)}
    return Explanation(
        query=query,
        row=row,
        shown=tuple(
            Shown(
                example=e,
                score=rank[e.id][1],
                rank=rank[e.id][0],
                position=n + 1,
                tokens=lm.count_tokens(template.render_demo(e)),
                worth=float(gold[0] - gold[n + 1]),
            )
            for n, e in enumerate(shown)
        ),
        shares=dict(zip(labels, np.exp(scores[0]).tolist(), strict=True)) if row.label_logprobs else {},
        logprob=float(gold[0]),
        without=float(gold[-1]),
    )


def with_runner_up(
    explanation: Explanation, run: Run, bench: Bench, embedder: Embedder | None = None, lm: LM | None = None
) -> Explanation:
    """The explanation with how the choice came about and what came next: the selector asked again, and for one more."""
    spec = run.spec
    chooser = make_selector(Spec(spec["selector"]["name"], spec["selector"]["settings"]))
    template = template_of(run)
    chooser.fit(
        bench.view, Kit(embedder, lm, template, bench.task.labels, spec["seed"], spec["order"], task=bench.task.name)
    )
    query = next((q for q in bench.queries if q.id == explanation.row.query_id), explanation.query)
    picked = {i for i, _ in explanation.row.picks}
    explanation = replace(explanation, story=story_of(chooser, query, spec["k"]))
    more = [p for p in chooser.select(query, spec["k"] + 1) if p.example_id not in picked]
    if not more or not picked:
        return explanation
    row = bench.view.row_of(more[0].example_id)
    assert row is not None
    return replace(explanation, next=(bench.view.examples[row], more[0].score))


def influences(explanations: Sequence[Explanation]) -> list[Influence]:
    """Every demonstration shown, the most helpful first: mean worth over the queries it was shown to.

    Ordered by the nearer end of the interval, so that a single lucky showing does not lead; shown once: no interval.
    """
    worths: dict[str, list[float]] = {}
    examples: dict[str, Example] = {}
    for explanation in explanations:
        for item in explanation.shown:
            worths.setdefault(item.example.id, []).append(item.worth)
            examples[item.example.id] = item.example
    found = [Influence(examples[i], len(w), estimate(np.array([w]), bounded=False)) for i, w in worths.items()]
    return sorted(found, key=lambda f: (-_surely(f), -f.worth.value, f.example.id))


def _surely(f: Influence) -> float:
    """How far from zero the worth surely lies: the end of its interval nearer to zero, zero if that holds zero."""
    return max(0.0, f.worth.low) + min(0.0, f.worth.high)


def suspects(
    bench: Bench,
    selector: str | Spec,
    lm: LM,
    examples: Sequence[Example],
    *,
    k: int = 8,
    embedder: Embedder | None = None,
    template: Template | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Suspect]:
    """Labelled examples of the pool, the likeliest to be mislabelled first.

    Each is made a query, with demonstrations as the selector picks them for it (never itself nor its doubles), and the
    LM says how likely its own label is: in-context pointwise usable information (Lu et al. 2023, arXiv 2310.12300)
    without the term that is the same for all. DataError for a task without labels.
    """
    if not bench.task.labels:
        raise DataError(f"task {bench.task.name!r} has no labels, so none can be wrong")
    same: dict[str, set[str]] = {}
    for e in bench.view.examples:
        same.setdefault(fold_text(e.text), set()).add(e.id)
    queries = tuple(Query(e.input, e.choices, frozenset(same[fold_text(e.text)] | {e.id}), e.id) for e in examples)
    asked = replace(bench, queries=queries, golds=tuple(e.output for e in examples), leaks={})
    run = evaluate(asked, selector, lm, k=k, embedder=embedder, template=template, out=out, progress=progress)
    found = []
    for example, row in zip(examples, run.rows, strict=True):
        shares = log_shares(np.array([*row.label_logprobs.values()]))
        by_label = dict(zip(row.label_logprobs, np.exp(shares).tolist(), strict=True))
        found.append(Suspect(example, row.metrics["gold_logprob"], row.output, by_label))
    return sorted(found, key=lambda s: (s.own, s.example.id))


def template_of(run: Run) -> Template:
    """The template of a run's spec."""
    fields = dict(run.spec["template"])
    return Template(**fields | {"stop": tuple(fields.get("stop", ()))})


def example_of(example_id: str, texts: Texts) -> Example:
    """An example as ``texts`` holds it."""
    found = texts[example_id]
    return Example(found["input"], found["output"], choices=tuple(found.get("choices", ())), id=example_id)
