"""How much an input tells the LM about its own label, and selectors that mistrust examples where it tells little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from iclkit.lm import ask_each
from iclkit.pool import CandidateBatch, Candidates, PoolView
from iclkit.prompts import Template, answer_requests, infer_labels
from iclkit.records import Example, Query, ScoreRequest
from iclkit.selectors._base import Choice, FloatArray, IntArray, Kit, Needs, SelectorCost
from iclkit.selectors._composite import CompositeSelector
from iclkit.selectors._label_scorer import LabelScorer
from iclkit.selectors._maths import SCORE_DECIMALS, hash_keys, shuffled_keys, smallest_rows, top_rows
from iclkit.settings import setting


def null_template(template: Template) -> Template:
    """The template without its inputs: of what stands before the answer, only the words right before it.

    >>> null_template(Template("Input: {input}\\nOutput: {output}")).demo
    'Output: {output}'
    """
    answer = "{letter}" if "letter" in template.fields else "{output}"
    before, _, after = template.demo.partition(answer)
    return replace(template, demo=before.rpartition("}")[2].lstrip() + answer + after.partition("{")[0])


def pvi(pool: PoolView, kit: Kit, *, shots: int = 8, sets: int = 3) -> FloatArray:
    """Pointwise V-usable information of every pool example, in context (Lu et al. 2023, arXiv 2310.12300).

    (sets, n) float64 in nats, a row per demonstration set: log p(y | D, x) - log p(y | D0), where D are ``shots``
    random examples without the one in question and D0 are their answers alone. Low or negative: hard, ambiguous or
    mislabeled; NaN where the LM cannot read one of the two prompts. Average over the rows for one number per example;
    divide by ln 2 for bits. All 2 * sets * n requests go to the LM in one call; those of the second term repeat a lot
    and are computed once.
    """
    scorer, keys = LabelScorer.of(pool, kit), hash_keys(pool.ids)
    scorer = replace(scorer, reserve=max(scorer.lm.count_tokens(e.output) for e in pool.examples))
    null = null_template(scorer.template)
    everything, requests, places = np.arange(len(pool)), list[ScoreRequest](), list[tuple[int, int, int]]()
    for number in range(sets):
        drawn = smallest_rows(shuffled_keys(keys, "pvi", kit.seed, number), shots + 1, everything)
        for row, example in enumerate(pool.examples):
            demos = [pool.examples[r] for r in drawn if r != row][:shots]
            for term, template in enumerate((scorer.template, null)):
                gold = _gold_requests(scorer, template, example, demos)
                requests += gold
                places += [(number, row, term)] * len(gold)
    scores, _ = ask_each(scorer.lm.score, requests)
    values = np.full((sets, len(pool), 2), np.nan)
    for position, score in scores.items():
        values[places[position]] = score.logprob
    gain: FloatArray = values[:, :, 0] - values[:, :, 1]
    return gain


def _gold_requests(
    scorer: LabelScorer, template: Template, example: Example, demos: Sequence[Example]
) -> list[ScoreRequest]:
    """One request, or none where the prompt does not fit."""
    # without its inputs every query is the same, so that equal prompts are seen to be equal
    query = Query(example.input, example.choices, id="pvi")
    prompt = scorer.prompt_or_none(query, demos, template)
    return answer_requests(prompt, template, [example.output], example.choices) if prompt else []


def lowest_per_label(values: FloatArray, labels: Sequence[str], share: float) -> IntArray:
    """Rows of the lowest ``share`` of each label's values (rounded down), ascending; ties go to the higher row.

    What has no value (NaN) is neither among them nor counted.
    """
    names, of = np.unique(np.asarray(labels), return_inverse=True)
    out = list[int]()
    for label in range(len(names)):
        rows = np.flatnonzero((of == label) & ~np.isnan(values))[::-1]
        worst = rows[np.argsort(np.round(values[rows], SCORE_DECIMALS), kind="stable")]
        out += worst[: math.floor(share * len(rows) + 1e-9)].tolist()
    return np.array(sorted(out), dtype=np.int64)


def label_percentile(values: FloatArray, labels: Sequence[str]) -> FloatArray:
    """(n,) in (0, 1): where each value stands among those of its label; equal values (to 1e-6) stand together.

    The share of the label's values below, and half of those equal; 0.5 for what has no value (NaN).
    """
    rounded, out = np.round(values, SCORE_DECIMALS), np.full(len(values), 0.5)
    names, of = np.unique(np.asarray(labels), return_inverse=True)
    for label in range(len(names)):
        rows = np.flatnonzero((of == label) & ~np.isnan(values))
        ordered = np.sort(rounded[rows])
        below, upto = (np.searchsorted(ordered, rounded[rows], side) for side in ("left", "right"))
        out[rows] = (below + upto) / (2 * max(1, len(rows)))
    return out


@dataclass
class _PVISelector(CompositeSelector):
    """What filter and weight share: the PVI of the pool, asked for when the first query comes."""

    own_needs: ClassVar[Needs] = Needs(lm=True, log_probs=True, seed_scope="task", lm_calls_per_task="2 * sets * n")
    source: ClassVar[str] = "the signal: Lu et al. 2023, arXiv 2310.12300; its use here: ours"

    of: str = setting("knn", "the selector")
    shots: int = setting(8, "demonstrations in a set that examples are judged by", ge=0)
    sets: int = setting(3, "how many such sets are averaged over", ge=1)

    def prepare(self) -> None:
        """Fit the inner selector; forget what was asked about another pool."""
        super().prepare()
        self.pvi_: FloatArray | None = None

    def cost(self, k: int) -> SelectorCost:
        """The pool twice for each demonstration set, and what the inner selector asks."""
        inner = super().cost(k)
        return SelectorCost(inner.per_task + 2 * self.sets * len(self.pool_), inner.per_query)

    def values(self) -> FloatArray:
        """(n,): mean PVI of each pool example over the demonstration sets that the LM can read with it, in nats; NaN
        where there are none."""
        if self.pvi_ is None:
            values = pvi(self.pool_, self.kit_, shots=self.shots, sets=self.sets)
            counts = np.count_nonzero(~np.isnan(values), axis=0)
            self.pvi_ = np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan)
        return self.pvi_

    def unreadable_note(self) -> tuple[str, ...]:
        """When some examples have no PVI."""
        missing = int(np.isnan(self.values()).sum())
        note = f"{missing} of the pool's {len(self.pool_)} examples have no PVI: the LM cannot read them"
        return (note,) if missing else ()

    def labels(self) -> list[str]:
        """The label of each example; all alike where the outputs are no labels."""
        outputs = [e.output for e in self.pool_.examples]
        return outputs if self.kit_.labels or infer_labels(outputs) else [""] * len(outputs)


@dataclass
class PVIFilterSelector(_PVISelector):
    """Keeps the examples of each label that are hardest for the LM away from another selector.

    An example's PVI (pointwise V-information) is what the input adds to the log-probability of its label; the lowest
    are often mislabeled.
    Use it on pools with label noise.
    Cost: 2 * sets * n scores, once; then that of the inner selector.
    """

    name: ClassVar[str] = "pvi-filter"
    example: ClassVar[str] = "pvi-filter,of=knn,drop=0.2 --lm smollm2-135m"
    summary: ClassVar[str] = (
        "another selector on the pool without each label's hardest examples, which are often mislabeled"
    )
    keeps_fill: ClassVar[bool] = True

    drop: float = setting(0.1, "share of each label's examples, those of lowest PVI, that is never shown", ge=0, lt=1)

    def capacity(self, k: int) -> int:
        """As many as the inner selector."""
        return self.parts_[0].capacity(k)

    def shared(self, k: int) -> int:
        """As many as of the inner selector's: what is dropped is the same for all queries."""
        return self.parts_[0].shared(k)

    def dropped(self) -> IntArray:
        """Positions in the pool of the examples that are never shown, ascending."""
        return lowest_per_label(self.values(), self.labels(), self.drop)

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """As the inner selector chooses when the dropped examples are excluded; its scores."""
        gone = frozenset(self.pool_.ids[position] for position in self.dropped())
        selections = self.parts_[0].select_many([replace(q, exclude=q.exclude | gone) for q in batch.queries], k)
        note = f"{len(gone)} of the pool's {len(self.pool_)} examples are left out for their low PVI"
        notes = ((note,) if gone else ()) + self.unreadable_note()
        return [replace(self._choice(s), notes=notes) for s in selections]

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:
        if got == k or not k:
            return ()
        allowed = len(candidates) - int(candidates.allowed(self.pool_.rows[self.dropped()]).sum())
        return (f"{got} of {k} demonstrations: {allowed} of the pool's {len(self.pool_)} examples were allowed",)


@dataclass
class PVIWeightSelector(_PVISelector):
    """Raises another selector's scores for examples that tell the LM much about their label.

    What is added is `weight` times where the example's PVI stands among those of its label, from 0 to 1.
    Use it as `pvi-filter`, where nothing should be left out altogether.
    Cost: 2 * sets * n scores, once; then that of the inner selector.
    """

    name: ClassVar[str] = "pvi-weight"
    example: ClassVar[str] = "pvi-weight,of=knn,weight=0.2 --lm smollm2-135m"
    summary: ClassVar[str] = (
        "another selector whose scores are raised for examples that tell the LM much about their label"
    )

    weight: float = setting(
        0.1, "what the best of a label gains on the worst, in the inner selector's scores (knn: cosine)", ge=0
    )
    candidates: int = setting(30, "how many of the inner selector's picks are ranked anew; k when k is larger", ge=1)

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Score plus weight times where the example's PVI stands in its label, from 0 to 1; ties to the inner order."""
        bonus = self.weight * label_percentile(self.values(), self.labels())
        choices = []
        for selection in self.parts_[0].select_many(batch.queries, max(k, self.candidates)):
            rows = self._rows(selection)
            scores = np.array([p.score for p in selection]) + bonus[self.pool_.positions(rows)]
            best = top_rows(scores, k, significant=True)
            choices.append(Choice(rows[best], scores[best], notes=self.unreadable_note()))
        return choices
