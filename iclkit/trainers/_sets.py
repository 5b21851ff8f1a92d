"""What the methods that choose several demonstrations together share: prompts of sets, and the gain of sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from iclkit.prompts import order_picks
from iclkit.records import Example
from iclkit.trainers._config import SetConfig, TrainConfig
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import FeedbackPrompt, feedback_value
from iclkit.trainers._method import Session

DRAWS = 3  # random sets of each held-out query that a model's sets are compared with


def set_prompt(s: Session[TrainConfig], query: Example, rows: Sequence[int]) -> FeedbackPrompt:
    """The prompt of a query behind rows, best or first chosen first, laid out as the order policy best-last does."""
    demonstrations = order_picks([s.corpus.examples[r] for r in rows], "best-last", seed=0, query_id=query.id)
    return FeedbackPrompt(query, tuple(demonstrations))


@dataclass(frozen=True)
class HeldOutSets:
    """A task's held-out queries with the mean value (nats) of random sets of demonstrations for them."""

    task: TaskData
    queries: tuple[Example, ...]
    chance: tuple[float, ...]

    def gains(self, s: Session[SetConfig], sets: Sequence[Sequence[int]]) -> list[float]:
        """The gain of each query's set over a random one, in nats; sets without a score are left out."""
        prompts = [set_prompt(s, q, rows) for q, rows in zip(self.queries, sets, strict=True)]
        return [
            feedback_value(scores, s.config.value, s.config.normalize) - chance
            for scores, chance in zip(s.feedback.score(self.task, prompts), self.chance, strict=True)
            if scores is not None
        ]


def held_out_sets(s: Session[SetConfig], task: TaskData) -> HeldOutSets:
    """Score the random sets, once; queries of whose random sets none has a score are left out."""
    queries = [s.corpus.examples[int(r)] for r in task.held_out]
    scores = iter(s.feedback.score(task, random_sets(s, task), s.bar(f"{task.name}: held-out queries")))
    kept, chance = [], []
    for query in queries:
        values = [
            feedback_value(answer, s.config.value, s.config.normalize)
            for _ in range(DRAWS)
            if (answer := next(scores)) is not None
        ]
        if values:
            kept.append(query)
            chance.append(float(np.mean(values)))
    return HeldOutSets(task, tuple(kept), tuple(chance))


def random_sets(s: Session[SetConfig], task: TaskData) -> list[FeedbackPrompt]:
    """Several random sets for each held-out query of a task, as large as the sets in training."""
    prompts = []
    for row in task.held_out:
        query = s.corpus.examples[int(row)]
        rows = task.rows[~np.isin(task.rows, s.miner.forbidden(query))]
        rng = s.rng("random set", query.id)
        size = min(s.config.shots, len(rows))
        prompts += [set_prompt(s, query, rng.choice(rows, size, replace=False).tolist()) for _ in range(DRAWS)]
    return prompts


@contextmanager
def report_savings(s: Session[TrainConfig], title: str) -> Iterator[None]:
    """Report what the LM computed inside the block, beside what a plain loop over prompts and labels would have."""
    lm = s.feedback.lm
    before = lm.usage
    yield
    usage = lm.usage - before
    asked, computed = usage.tokens_asked - usage.tokens_cached, usage.tokens_computed
    if computed > 0:
        total = s.facts.setdefault("tokens", {"asked": 0, "computed": 0})
        total["asked"] += asked
        total["computed"] += computed
        s.say(f"{title}: {computed:,} tokens computed; prompt by prompt it would have been {asked:,} "
              f"({asked / computed:.1f} times as many)")  # fmt: skip
