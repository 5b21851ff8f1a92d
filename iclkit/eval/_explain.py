"""Why an answer came out as it did: what effect each demonstration had, and which ones look mislabeled.

The effect of a demonstration (leave one out) is the change in the right answer's log-probability (in nats, over the
labels where there are labels) that showing it made: with it, minus without it, all others in place. The effects of a
prompt do not add up to the whole.

An LM that tells no log-probabilities (see ``iclkit.lm.ranks_only``) is asked for its answers instead, and the effect of
a demonstration is what it adds to the value of the answer by the task's metric: 1 where the answer turns right by it,
-1 where it turns wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import DataError, RequestError, UsageError
from iclkit.eval._bench import Bench, pool_bench
from iclkit.eval._evaluate import evaluate
from iclkit.eval._metrics import METRICS, equal_text
from iclkit.eval._stats import Estimate, estimate
from iclkit.lm import LM, as_lm, ranks_only
from iclkit.predictors import (
    PromptPredictor,
    Settings,
    Tools,
    content_free_inputs,
    content_free_query,
    label_shares,
    recorded_prompt,
)
from iclkit.prompts import (
    Template,
    answer_options,
    answer_requests,
    best_option,
    log_probs,
    log_softmax,
    template_of,
)
from iclkit.records import Example, GenerateRequest, Progress, Prompt, Query, Row, Run, Spec
from iclkit.selectors import make_selector

Texts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class DemonstrationEffect:
    """One demonstration of a prompt. ``position`` counts from 1 at the top; ``effect`` is in its explanation's unit."""

    example: Example
    score: float
    rank: int
    position: int
    tokens: int
    effect: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """One query of a run: its demonstrations in prompt order, and what the LM believed.

    ``unit`` "nats": ``logprob`` of the right answer with all demonstrations shown, and ``without`` any; ``shares``:
    probability of each label, empty for written answers. ``unit`` "answer" (of an LM that tells no log-probabilities):
    ``logprob`` and ``without`` are the value of the LM's answer by the task's metric, 1.0 where it is right, and there
    are no ``shares``. ``next``: the best example not picked, where the pool is known; there ``story``, too: how the
    choice came about, in the words of selectors that choose step by step.
    """

    query: Query
    row: Row
    shown: tuple[DemonstrationEffect, ...]
    shares: Mapping[str, float]
    logprob: float
    without: float
    next: tuple[Example, float] | None = None
    story: tuple[str, ...] = ()
    unit: str = "nats"


@dataclass(frozen=True, slots=True)
class DemonstrationInfluence:
    """A demonstration over all queries it was shown to: how often, and its mean effect with an interval."""

    example: Example
    times: int
    effect: Estimate


@dataclass(frozen=True, slots=True)
class Suspect:
    """A demonstration asked about itself. ``own``: log-probability of the label it carries; ``said``: the likeliest, ""
    where the LM names none."""

    example: Example
    own: float
    said: str
    shares: Mapping[str, float]


def explain(
    run: Run,
    texts: Texts,
    lm: LM,
    rows: Iterable[Row] | None = None,
    progress: Progress | None = None,
    bench: Bench | None = None,
) -> list[Explanation]:
    """Explain rows of a run (all of them by default), asking the LM for every prompt with one demonstration left out.

    Labels are compared as in the run: normalized and calibrated alike. ``texts`` as ``load_texts`` reads them;
    ``bench`` is needed for domain calibration alone, whose words are the pool's. A prompt of k demonstrations costs
    k + 2 prompts, most of their beginnings shared, and as many times as many content-free ones as the calibration has.
    Rows that failed, or whose prompts this LM does not take, are left out; DataError when that is all of them, and when
    the run has no texts.
    """
    lm = as_lm(lm)
    template, content_free = template_of(run), _content_free(run, bench)
    chosen = list(run.rows if rows is None else rows)
    found, why_not = list[Explanation](), ""
    for done, row in enumerate(chosen, 1):
        try:
            found.append(_explain(run, row, texts, lm, template, content_free))
        except RequestError as error:
            why_not = why_not or f"query {row.query_id}: {error}"
        if progress:
            progress(done, len(chosen))
    if chosen and not found:
        raise DataError(f"nothing can be explained: {why_not}")
    return found


def _content_free(run: Run, bench: Bench | None) -> tuple[str, ...]:
    """The content-free inputs that the run's calibration asked about. DataError where they cannot be made again."""
    kind = run.spec.calibrate
    if kind == "domain" and bench is None:
        raise DataError(f"run {run.id} was calibrated with words of its pool, and the pool is not known; give --task")
    return content_free_inputs(kind, bench.view.examples if bench else (), run.spec.seed)


def _explain(run: Run, row: Row, texts: Texts, lm: LM, template: Template, content_free: Sequence[str]) -> Explanation:
    if row.failure:
        raise RequestError(0, f"it failed in the run ({row.failure})")
    if row.query_id not in texts or any(i not in texts for i in row.shown):
        raise DataError(f"run {run.id} was not finished, so its texts are missing; finish it with iclkit eval first")
    own = texts[row.query_id]
    query = Query(own["input"], tuple(own.get("choices", ())), id=row.query_id)
    shown = [example_of(i, texts) for i in row.shown]
    left = [shown, *([*shown[:n], *shown[n + 1 :]] for n in range(len(shown))), []]
    prompts = [recorded_prompt(template, query, examples, lm) for examples in left]
    ranks = ranks_only(lm)
    labels = _labels(run, row, query)
    asked = labels or [row.gold]
    if labels and not ranks:  # each prompt, and after it the same with the query's input replaced
        queries = [query, *(content_free_query(query, text) for text in content_free)]
        prompts = [recorded_prompt(template, q, examples, lm) for examples in left for q in queries]
    requests = [r for p in prompts for r in answer_requests(p, template, asked, query.choices)]
    if ranks and not labels:
        gold = _effect_of(run, row, _written(run, row, lm, prompts))
    else:
        found = lm.score(requests)
        scores = log_probs(found).reshape(-1, len(asked))
        if ranks:
            best = [best_option(of_prompt.tolist()) for of_prompt in scores]
            gold = _effect_of(run, row, ["" if b is None else asked[b] for b in best])
        else:
            if labels:
                judged = log_probs(found, run.spec.normalize)
                scores = _calibrated(run, labels, judged.reshape(len(left), -1, len(labels)))
            gold = scores[:, asked.index(row.gold)]
    rank = {i: (n, s) for n, (i, s) in enumerate(row.picks, 1)}
    return Explanation(
        query=query,
        row=row,
        shown=tuple(
            DemonstrationEffect(
                example=e,
                score=rank[e.id][1],
                rank=rank[e.id][0],
                position=n + 1,
                tokens=lm.count_tokens(template.render_demo(e)),
                effect=float(gold[0] - gold[n + 1]),
            )
            for n, e in enumerate(shown)
        ),
        shares=dict(zip(labels, np.exp(scores[0]).tolist(), strict=True)) if labels and not ranks else {},
        logprob=float(gold[0]),
        without=float(gold[-1]),
        unit="answer" if ranks else "nats",
    )


def _calibrated(run: Run, labels: Sequence[str], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(p, L) log-probabilities of the labels after each prompt, from scores (p, 1 + content-free inputs, L)."""
    prior = run.facts.get("prior")  # of all rows of the run
    log_prior = None if prior is None else np.log([prior[label] for label in labels])
    return np.stack([label_shares(of_prompt, log_prior) for of_prompt in scores])


def _labels(run: Run, row: Row, query: Query) -> list[str]:
    """What the answer was chosen among; nothing where it was written."""
    task = run.spec.task
    if row.label_logprobs or not (task.labels or task.kind == "multiple_choice"):
        return [*row.label_logprobs]
    return [*answer_options(query, task.labels)]


def _written(run: Run, row: Row, lm: LM, prompts: Sequence[Prompt]) -> list[str]:
    """What the LM writes after each prompt, within the bounds of the run."""
    tokens = run.spec.answer_tokens or lm.count_tokens(row.gold) + 16  # early runs do not say it
    stop = template_of(run).stop_strings if run.spec.stop is None else run.spec.stop
    return [a.text.strip() for a in lm.generate([GenerateRequest(p.text, tokens, stop) for p in prompts])]


def _effect_of(run: Run, row: Row, answers: Sequence[str]) -> NDArray[np.float64]:
    """(answers,): the value of each by the run's metric; of a metric of whole runs, whether it is the right text."""
    judge = METRICS.get(run.spec.task.metric).judge or equal_text
    return np.array([float(judge(answer, row.gold)) for answer in answers])


def predictor_of(run: Run, tools: Tools, *, plain: bool = False) -> PromptPredictor:
    """The predictor that made a run, made again; ``plain`` without its normalization and calibration."""
    spec = run.spec
    settings = Settings(
        k=spec.k,
        seed=spec.seed,
        order=spec.order,
        budget=spec.budget,
        normalize="sum" if plain else spec.normalize,
        calibrate="none" if plain else spec.calibrate,
        prior=spec.prior if spec.calibrate == "given" and not plain else None,
        answer_tokens=spec.answer_tokens,
        stop=spec.stop,
    )
    selector = make_selector(Spec(spec.selector.name, spec.selector.settings))
    return PromptPredictor(selector, tools, settings, template_of(run))


def with_runner_up(explanation: Explanation, run: Run, bench: Bench, tools: Tools) -> Explanation:
    """The explanation with how the choice came about and what came next: the selector asked again, and for one more."""
    k = run.spec.k
    selector = predictor_of(run, tools).fit(bench.context).fitted_selector()
    query = next((q for q in bench.queries if q.id == explanation.row.query_id), explanation.query)
    picked = {i for i, _ in explanation.row.picks}
    explanation = replace(explanation, story=selector.explain(query, k))
    more = [p for p in selector.select(query, k + 1) if p.example_id not in picked]
    if not more or not picked:
        return explanation
    (example,) = bench.view.examples_of([more[0].example_id])
    return replace(explanation, next=(example, more[0].score))


def influences(explanations: Sequence[Explanation]) -> list[DemonstrationInfluence]:
    """Every demonstration shown, the most helpful first: mean effect over the queries it was shown to.

    Ordered by the nearer end of the interval, so that a single lucky showing does not lead; shown once: no interval.
    """
    effects: dict[str, list[float]] = {}
    examples: dict[str, Example] = {}
    for explanation in explanations:
        for item in explanation.shown:
            effects.setdefault(item.example.id, []).append(item.effect)
            examples[item.example.id] = item.example
    found = [
        DemonstrationInfluence(examples[i], len(w), estimate(np.array([w]), bounded=False)) for i, w in effects.items()
    ]
    return sorted(found, key=lambda f: (-_interval_bound(f), -f.effect.value, f.example.id))


def _interval_bound(f: DemonstrationInfluence) -> float:
    """How far from zero the effect surely lies: the end of its interval nearer to zero, zero if that holds zero."""
    return max(0.0, f.effect.low) + min(0.0, f.effect.high)


def suspects(
    bench: Bench,
    predictor: PromptPredictor,
    examples: Sequence[Example],
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Suspect]:
    """Labeled examples of the pool, the likeliest to be mislabeled first.

    Each is made a query, with demonstrations as the predictor's selector picks them for it (never itself nor its
    doubles), and the LM says how likely its own label is: in-context pointwise usable information (Lu et al. 2023,
    arXiv 2310.12300) without the term that is the same for all. Examples whose prompt the LM does not take are left
    out. DataError for a task without labels; UsageError for an LM that tells no log-probabilities.
    """
    if not bench.task.labels:
        raise DataError(f"task {bench.task.name!r} has no labels, so none can be wrong")
    if ranks_only(predictor.lm):
        raise UsageError(f"{predictor.lm.name} tells no log-probabilities, so it cannot say how likely a label is")
    run = evaluate(pool_bench(bench, examples), predictor, out=out, progress=progress)
    results = []
    for example, row in zip(examples, run.rows, strict=True):
        if row.failure or row.gold not in row.label_logprobs:
            continue
        shares = dict(zip(row.label_logprobs, log_softmax([*row.label_logprobs.values()]).tolist(), strict=True))
        by_label = {label: math.exp(share) for label, share in shares.items()}
        results.append(Suspect(example, shares[row.gold], row.output, by_label))
    return sorted(results, key=lambda s: (s.own, s.example.id))


def example_of(example_id: str, texts: Texts) -> Example:
    """An example as ``texts`` holds it."""
    found = texts[example_id]
    return Example(found["input"], found["output"], choices=tuple(found.get("choices", ())), id=example_id)
