"""One set of demonstrations for the task, in the order that leaves the LM least biased: GlobalE and LocalE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np

from iclkit.errors import UsageError
from iclkit.lm import GenerateRequest, ask_each
from iclkit.pool import Candidates
from iclkit.prompts import NORMALIZATIONS, best_option, parse_continuation
from iclkit.records import Example, Fields, Query, fold_text, input_text
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, FloatArray, IntArray, Needs, SelectorCost
from iclkit.selectors._label_scorer import LabelScorer, entropy
from iclkit.selectors._maths import SCORE_DECIMALS, hash_keys, rounded, shuffled_keys
from iclkit.settings import setting
from iclkit.text import count_words, fold

_PROBES = ("generated", "pool")


def global_entropy(logprobs: FloatArray) -> float:
    """Entropy in nats of the labels predicted over a probing set; logprobs (probes, labels), in [0, log labels].

    0 for an LM that always says the same; a tie within a row goes to the first label. A row in which all labels score
    the same is no answer: it is none of the labels, and the entropy counts for the share of rows that are answered.
    """
    answers = [best_option(row) for row in np.round(logprobs, SCORE_DECIMALS).tolist()]
    given = [answer for answer in answers if answer is not None]
    if not given:
        return 0.0
    counts = np.bincount(given, minlength=logprobs.shape[1])
    with np.errstate(divide="ignore"):
        return float(entropy(np.log(counts))) * len(given) / len(answers)


def local_entropy(logprobs: FloatArray) -> float:
    """Mean over a probing set of the entropy in nats of the label distribution; logprobs (probes, labels)."""
    return float(np.mean(entropy(logprobs)))


def distinct_orders(n: int, limit: int, seed: int) -> IntArray:
    """(orders, n) distinct permutations of 0 … n - 1, the plain one first: all of them, or ``limit`` at random."""
    if math.factorial(n) <= limit:
        return np.array([*permutations(range(n))], dtype=np.int64)
    rng, orders = np.random.default_rng([seed, n]), {tuple(range(n)): None}
    while len(orders) < limit:
        orders[tuple(rng.permutation(n).tolist())] = None
    return np.array([*orders], dtype=np.int64)


def with_replacements(fixed: IntArray, spare: IntArray, allowed: Callable[[IntArray], BoolArray]) -> IntArray:
    """``fixed`` with every row that is not allowed replaced, where it stands, by the next allowed spare one.

    Positions for which no spare row is left are dropped.
    """
    left = iter(spare[allowed(spare)].tolist())
    rows = [row if kept else next(left, None) for row, kept in zip(fixed.tolist(), allowed(fixed), strict=True)]
    return np.array([row for row in rows if row is not None], dtype=np.int64)


@dataclass
class _OrderSearchSelector(BaseSelector, ABC):
    """Orders are tried as rank orders, best first, shown through the task's order policy: what is found is shown."""

    source: ClassVar[str] = "Lu et al. 2022, ACL, arXiv 2104.08786"

    orders: int = setting(24, "how many orders are tried; all of them where there are no more", ge=1)
    probe: str = setting(
        "generated",
        "generated: by the LM after each order, as in the paper; pool: inputs of other pool examples",
        choices=_PROBES,
    )
    probes: int = setting(100, "at most so many probing inputs", ge=1)
    probe_tokens: int = setting(128, "length of a generated text, from which several inputs may be read", ge=1)
    temperature: float = setting(1.0, "temperature of the generation", ge=0)
    min_words: int = setting(5, "shorter generated inputs are left out", ge=0)
    normalize: str = setting("sum", "log-probability of a label: sum, or mean per token", choices=NORMALIZATIONS)

    def prepare(self) -> None:
        """The shuffle of ``random-fixed``; the search is made when k is known."""
        if self.kit_.order == "random":
            raise UsageError(f"{self.name} finds an order and order policy 'random' loses it; use best-last")
        self.scorer_ = LabelScorer.of(self.pool_, self.kit_)
        keys = shuffled_keys(hash_keys(self.pool_.ids), "random-fixed", self.kit_.seed)
        self.shuffled_ = self.pool_.rows[np.argsort(keys, kind="stable")]
        self.searched_: dict[int, tuple[IntArray, float, str]] = {}

    def shared(self, k: int) -> int:
        """All of them."""
        return k

    def cost(self, k: int) -> SelectorCost:
        """A text per order, and each order with each probing input and label."""
        size = min(k, len(self.pool_))
        tried = min(self.orders, math.factorial(min(size, 20)))
        return SelectorCost(per_task=tried * (int(self.probe == "generated") + self.probes * len(self.scorer_.labels)))

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """The task's demonstrations in the order found; a row that this query excludes makes room for the next.

        Every score is the entropy of the order, in nats.
        """
        order, value, note = self._search(self.shuffled_, k)
        rows = with_replacements(self.shuffled_[:k][order], self.shuffled_[k:], candidates.allowed)
        return Choice(rows, np.full(len(rows), value), notes=(note,) if note else ())

    @abstractmethod
    def value(self, logprobs: FloatArray) -> float:
        """What an order is worth; logprobs (probes, labels)."""

    def _search(self, shuffled: IntArray, k: int) -> tuple[IntArray, float, str]:
        """The order found for k (positions), its entropy, and what to note; asked for once per k."""
        if k not in self.searched_:
            demos = self.pool_.examples_at(shuffled[:k])
            orders = distinct_orders(len(demos), self.orders, self.kit_.seed)
            inputs, note = self._probing_set(demos, orders, shuffled[k:])
            if not inputs or len(orders) == 1:
                self.searched_[k] = orders[0], 0.0, note
                return self.searched_[k]
            ranked = [[demos[i] for i in order] for order in orders]
            prompts = [(Query(text), demonstrations) for demonstrations in ranked for text in inputs]
            scores = self.scorer_.label_logprobs(prompts, self.normalize)
            by_order = [scores[at : at + len(inputs)] for at in range(0, len(scores), len(inputs))]
            # an input that cannot be answered after one order is left out after all, so that orders stay comparable
            complete = [column for column in zip(*by_order, strict=True) if all(one is not None for one in column)]
            if len(complete) < len(inputs):
                lost = f"{len(inputs) - len(complete)} of {len(inputs)} probing inputs were left out"
                note = "; ".join(n for n in (note, f"{lost}: the LM cannot answer them") if n)
            if not complete:
                self.searched_[k] = orders[0], 0.0, f"the plain order: {note}"
                return self.searched_[k]
            values = np.array([self.value(np.stack(scored)) for scored in zip(*complete, strict=True)])
            best = int(np.argmax(rounded(values)))  # ties go to the plain order, which comes first
            self.searched_[k] = orders[best], float(values[best]), note
        return self.searched_[k]

    def _probing_set(self, demos: Sequence[Example], orders: IntArray, others: IntArray) -> tuple[list[Fields], str]:
        """Inputs without labels, and a note when they are not what was asked for."""
        written = self._written(demos, orders) if self.probe == "generated" else []
        if written:
            return written, ""
        inputs = [e.input for e in self.pool_.examples_at(others[: self.probes])]
        if not inputs:
            return [], "the plain order: there is no input to probe with"
        return inputs, "probed with inputs of the pool: the LM wrote none" if self.probe == "generated" else ""

    def _written(self, demos: Sequence[Example], orders: IntArray) -> list[Fields]:
        """What the LM writes as the next input after each order; its labels are thrown away."""
        requests = [
            GenerateRequest(
                self.scorer_.open_prompt([demos[i] for i in order], self.probe_tokens),
                self.probe_tokens,
                temperature=self.temperature,
                seed=self.kit_.seed + n,
            )
            for n, order in enumerate(orders)
        ]
        answers, _ = ask_each(self.scorer_.lm.generate, requests)
        texts = (answers[number].text for number in sorted(answers))  # an order that cannot be continued adds none
        known = {fold_text(e.text) for e in demos}
        inputs = list[Fields]()
        for block in (b for text in texts for b in parse_continuation(self.scorer_.template, text) if b.asks):
            text = " ".join(input_text(block.input).split())
            if count_words(text) >= self.min_words and _is_readable(text) and fold_text(text) not in known:
                known.add(fold_text(text))
                inputs.append(block.input)
        return inputs[: self.probes]


def _is_readable(text: str) -> bool:
    """No control, private or unassigned characters; joiners and other marks of writing that show nothing may stand."""
    return " ".join(fold(text).split()).isprintable()


@dataclass
class GlobalESelector(_OrderSearchSelector):
    """Finds for one fixed set the order after which the LM's answers to probing inputs vary most (GlobalE).

    An order after which every answer is the same label says little. Probing inputs are written by the LM itself, or
    taken from the pool.
    Use it for one prompt for all, where there are no labeled examples to tune with.
    Cost: orders * (1 + probes * labels) texts, once.
    """

    name: ClassVar[str] = "globale"
    example: ClassVar[str] = "globale,probe=pool,probes=20 --lm smollm2-135m"
    summary: ClassVar[str] = (
        "one fixed set in the order after which the LM's answers vary most over probing inputs (GlobalE)"
    )
    needs: ClassVar[Needs] = Needs(
        lm=True, labels=True, whole_pool=True, seed_scope="task", lm_calls_per_task="orders * (1 + probes * labels)"
    )

    def value(self, logprobs: FloatArray) -> float:
        """Entropy of the predicted labels."""
        return global_entropy(logprobs)


@dataclass
class LocalESelector(_OrderSearchSelector):
    """Finds for one fixed set the order after which the LM is least sure of each answer on average (LocalE).

    Orders that make an LM overconfident of one label are avoided. Probing inputs as in `globale`.
    Use it as `globale`; the paper finds GlobalE the better of the two.
    Cost: orders * (1 + probes * labels) texts, once.
    """

    name: ClassVar[str] = "locale"
    example: ClassVar[str] = "locale,probe=pool,probes=20 --lm smollm2-135m"
    summary: ClassVar[str] = (
        "one fixed set in the order after which the LM is least sure of each answer on average (LocalE)"
    )
    needs: ClassVar[Needs] = Needs(
        lm=True,
        labels=True,
        log_probs=True,
        whole_pool=True,
        seed_scope="task",
        lm_calls_per_task="orders * (1 + probes * labels)",
    )

    def value(self, logprobs: FloatArray) -> float:
        """Mean entropy of the label distributions."""
        return local_entropy(logprobs)
