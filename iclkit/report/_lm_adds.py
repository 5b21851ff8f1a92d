"""Was an LM needed at all: its lines against one that asks none, on each task and over all of them.

The reference is not the best of several, which would be chosen by the figures that it is judged by: it is the first
that there is of neighbors' vote, logistic regression and majority label. Every line that asks the LM is compared with
it, so that the best of them can be named with a p-value that is corrected for the choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from iclkit.eval import holm
from iclkit.report._drafts import Draft, DraftLine, Pair, compare_lines
from iclkit.report._overall import PooledLine
from iclkit.report._records import BETTER, INCONCLUSIVE, WORSE, LMAdds

_REFERENCES = ("knn-vote", "logreg", "majority")


def lm_pairs(drafts: Sequence[Draft]) -> list[Pair]:
    """Every line that asks an LM with the reference of its table."""
    pairs = []
    for draft in drafts:
        reference = _reference(draft)
        if reference is not None:
            pairs += [compare_lines(draft, d, reference) for d in draft.lines if d.line.asks_lm]
    return pairs


def same_reference(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with the reference that most tables have: what can be pooled over tasks."""
    counts = Counter(pair.base.line.name for pair in pairs)
    return [pair for pair in pairs if pair.base.line.name == counts.most_common(1)[0][0]]


def of_table(draft: Draft, pairs: Sequence[Pair], alpha: float) -> tuple[LMAdds, ...]:
    """The answers of one table, best line first."""
    own = [pair for pair in pairs if pair.draft is draft]
    found = []
    for pair, p in zip(own, holm([pair.diff.p for pair in own]), strict=True):
        a, b = pair.line, pair.base
        only = _only(a, b)
        found.append(
            LMAdds(
                a.line.name,
                b.line.name,
                a.line.figure.value,
                b.line.figure.value,
                pair.diff,
                p,
                _verdict(p, pair.diff.value, alpha),
                len(own),
                draft.group.k,
                *only,
                best=_best(draft.lines, b),
            )
        )
    return tuple(sorted(found, key=lambda x: (-x.figure, x.name)))


def over_tasks(lines: Sequence[PooledLine], alpha: float) -> tuple[LMAdds, ...]:
    """The answers over all tasks of one LM, best line first."""
    found = []
    for line, p in zip(lines, holm([line.diff.p for line in lines]), strict=True):
        sizes = np.array([len(pair.draft.golds) for pair in line.pairs])
        figures, others = (
            float(np.dot(sizes, [d.line.figure.value for d in side]) / sizes.sum())
            for side in ([pair.line for pair in line.pairs], [pair.base for pair in line.pairs])
        )
        found.append(
            LMAdds(
                line.name,
                line.pairs[0].base.line.name,
                figures,
                others,
                line.diff,
                p,
                _verdict(p, line.diff.value, alpha),
                len(lines),
                line.k,
            )
        )
    return tuple(sorted(found, key=lambda x: (-x.figure, x.name)))


def _reference(draft: Draft) -> DraftLine | None:
    """The line to compare with: by kind, then by name; None where a table has none or nothing but such."""
    without = [d for d in draft.lines if not d.line.asks_lm]
    if not without or len(without) == len(draft.lines):
        return None

    def order(d: DraftLine) -> tuple[int, str]:
        kind = d.line.selector.partition(",")[0]
        return _REFERENCES.index(kind) if kind in _REFERENCES else len(_REFERENCES), d.line.name

    return min(without, key=order)


def _best(lines: Sequence[DraftLine], reference: DraftLine) -> tuple[str, float] | None:
    best = max((d.line for d in lines if not d.line.asks_lm), key=lambda line: line.figure.value)
    return (best.name, best.figure.value) if best.figure.value > reference.line.figure.value else None


def _only(a: DraftLine, b: DraftLine) -> tuple[int | None, int | None]:
    values = (a.values, b.values)
    if any(len(v) != 1 or v.size == 0 or not np.isin(v, (0.0, 1.0)).all() for v in values):
        return None, None
    x, y = (v[0] == 1 for v in values)
    return int((x & ~y).sum()), int((y & ~x).sum())


def _verdict(p: float, value: float, alpha: float) -> str:
    return INCONCLUSIVE if p > alpha else BETTER if value > 0 else WORSE
