"""What the methods that choose several demonstrations together have in common: prompts of sets, and their worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from iclkit.prompts import order_picks
from iclkit.records import Example
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import FeedbackPrompt, value
from iclkit.trainers._method import Session

DRAWS = 3  # random sets of each query that a model is judged on, to compare with


def set_prompt(s: Session, query: Example, rows: Sequence[int]) -> FeedbackPrompt:
    """The prompt of a query behind rows, best or first chosen first, laid out as the order policy best-last does."""
    shown = order_picks([s.corpus.examples[r] for r in rows], "best-last", seed=0, query_id=query.id)
    return FeedbackPrompt(query, tuple(shown))


@dataclass(frozen=True)
class HeldOutSets:
    """A course's held-out queries with the mean value (nats) of random sets of demonstrations for them."""

    course: TaskData
    queries: tuple[Example, ...]
    chance: tuple[float, ...]

    def gains(self, s: Session, sets: Sequence[Sequence[int]]) -> list[float]:
        """What each query's set is worth more than a random one; sets that fit no prompt are left out."""
        asks = [set_prompt(s, q, rows) for q, rows in zip(self.queries, sets, strict=True)]
        told = s.feedback.tell(self.course, asks)
        return [
            value(t, s.config.value, s.config.normalise) - chance
            for t, chance in zip(told, self.chance, strict=True)
            if t is not None
        ]


def held_out_sets(s: Session, course: TaskData) -> HeldOutSets:
    """Score the random sets, once; queries whose random sets fit no prompt are left out."""
    queries = [s.corpus.examples[int(r)] for r in course.held_out]
    told = iter(s.feedback.tell(course, random_sets(s, course), s.bar(f"{course.name}: held-out queries")))
    kept, chance = [], []
    for query in queries:
        values = [value(t, s.config.value, s.config.normalise) for _ in range(DRAWS) if (t := next(told)) is not None]
        if values:
            kept.append(query)
            chance.append(float(np.mean(values)))
    return HeldOutSets(course, tuple(kept), tuple(chance))


def random_sets(s: Session, course: TaskData) -> list[FeedbackPrompt]:
    """Several random sets for each held-out query of a course, as large as the sets in training."""
    asks = []
    for row in course.held_out:
        query = s.corpus.examples[int(row)]
        bad = s.miner.forbidden(query)
        rows = course.rows[~np.isin(course.rows, bad)]
        rng = s.rng("random set", query.id)
        size = min(s.config.shots, len(rows))
        asks += [set_prompt(s, query, rng.choice(rows, size, replace=False).tolist()) for _ in range(DRAWS)]
    return asks


@contextmanager
def report_savings(s: Session, title: str) -> Iterator[None]:
    """Says what the LM read inside the block, and what a plain loop over prompts and labels would have."""
    lm = s.feedback.lm
    before = lm.usage
    yield
    usage = lm.usage - before
    asked, computed = usage.tokens_asked - usage.tokens_cached, usage.tokens_computed
    if computed > 0:
        told = s.facts.setdefault("tokens", {"asked": 0, "computed": 0})
        told["asked"] += asked
        told["computed"] += computed
        s.say(f"{title}: {computed:,} tokens computed; prompt by prompt it would have been {asked:,} "
              f"({asked / computed:.1f} times as many)")  # fmt: skip
