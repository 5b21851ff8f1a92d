"""What an LM makes of demonstrations, asked once and kept in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclkit.errors import DataError
from iclkit.lm import LM, Progress, Score, ScoreRequest
from iclkit.prompts import assemble
from iclkit.records import Example, Query
from iclkit.trainers._corpus import Course
from iclkit.trainers._ledger import Ledger, Scope, Told
from iclkit.trainers._processes import first_goes_first

CHUNK = 512  # prompts planned together: demonstrations that many of them share are read once


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt: a query with its right answer, behind demonstrations in prompt order (the last stands next to it)."""

    query: Example
    shown: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Price:
    """What asking will cost: prompts, those not known yet, and the tokens these take (a loop's, from a sample)."""

    prompts: int
    unknown: int
    tokens: int


class Feedback:
    """Scores prompts with an LM; whatever was scored is in the ledger and never asked again.

    ``labels``: score every label of a classification, not the gold one alone. ``known`` and ``computed`` count prompts;
    ``skipped`` those that do not fit the LM's context.
    """

    def __init__(self, lm: LM, ledger: Ledger, *, labels: bool = True) -> None:
        self.lm, self.ledger, self.labels = lm, ledger, labels
        self.known = self.computed = self.skipped = 0

    def scope(self, course: Course) -> Scope:
        """Under what a course's scores are kept."""
        return Scope(self.lm.fingerprint, course.template, course.labels if self.labels else ())

    def tell(self, course: Course, asks: Sequence[Ask], progress: Progress | None = None) -> list[Told | None]:
        """What the LM says of each prompt, None for one that does not fit its context whole.

        A prompt is stored with its chunk's batches as they end. Of several processes the first asks, and the others
        find its scores in the ledger. DataError for an answer that is none of the labels.
        """
        with first_goes_first():
            return self._tell(course, asks, progress)

    def _tell(self, course: Course, asks: Sequence[Ask], progress: Progress | None) -> list[Told | None]:
        scope = self.scope(course)
        unique = {(a.query.id, tuple(e.id for e in a.shown)): a for a in asks}
        keys = [*unique]
        told: dict[int, Told | None] = {**self.ledger.get(scope, keys)}
        self.known += len(told)
        todo = [n for n in range(len(keys)) if n not in told]
        for at in range(0, len(todo), CHUNK):
            some = todo[at : at + CHUNK]
            answers = self._ask(course, scope, [unique[keys[n]] for n in some])
            told.update(zip(some, answers, strict=True))
            if progress:
                progress(at + len(some), len(todo))
        number = {k: n for n, k in enumerate(keys)}
        return [told[number[a.query.id, tuple(e.id for e in a.shown)]] for a in asks]

    def price(self, course: Course, asks: Sequence[Ask]) -> Price:
        """What ``tell`` would cost; tokens from up to 32 of the prompts."""
        keys = [(a.query.id, tuple(e.id for e in a.shown)) for a in asks]
        known = self.ledger.get(self.scope(course), keys)
        todo = [a for n, a in enumerate(asks) if n not in known]
        sample = todo[:: max(1, len(todo) // 32)]
        mean = sum(self.lm.count_tokens(self._prompt(course, a)[0]) for a in sample) / max(1, len(sample))
        return Price(len(asks), len(todo), round(mean * len(todo)))

    def _prompt(self, course: Course, ask: Ask) -> tuple[str, str, bool]:
        """Text, answer prefix, and whether every demonstration fits."""
        query = Query(ask.query.input, ask.query.choices, id=ask.query.id)
        longest = max((course.template.answer(o, ask.query.choices) for o in self.options(course, ask)), key=len)
        prompt = assemble(
            course.template,
            query,
            ask.shown,
            order="best-first",  # as given
            budget=self.lm.context_size,
            count_tokens=self.lm.count_tokens,
            reserve=self.lm.count_tokens(longest) + 1,
        )
        return prompt.text, prompt.answer_prefix, not prompt.dropped

    def options(self, course: Course, ask: Ask) -> tuple[str, ...]:
        """The answers that are scored for a prompt. DataError when the right one is not among the labels."""
        alone = (ask.query.output,)
        options = (course.labels or ask.query.choices or alone) if self.labels else alone
        if ask.query.output not in options:
            raise DataError(
                f"task {course.name!r}, example {ask.query.id}: output {ask.query.output!r} is none of the labels "
                f"{', '.join(options[:5])}…; mend or remove the example"
            )
        return options

    def _ask(self, course: Course, scope: Scope, asks: Sequence[Ask]) -> list[Told | None]:
        requests, owner = list[ScoreRequest](), list[int]()
        missing, scores = dict[int, int](), dict[int, Score]()
        for n, ask in enumerate(asks):
            text, prefix, whole = self._prompt(course, ask)
            if not whole:
                self.skipped += 1
                continue
            options = self.options(course, ask)
            missing[n] = len(options)
            owner += [n] * len(options)
            answers = (course.template.answer(o, ask.query.choices) for o in options)
            requests += [ScoreRequest(text, prefix + a, ask.query.id) for a in answers]
        first = {n: i for i, n in reversed([*enumerate(owner)])}
        out: list[Told | None] = [None] * len(asks)

        def done(part: Sequence[tuple[int, Score]]) -> None:
            ready = []
            for i, score in part:
                if i in scores:
                    continue
                scores[i] = score
                n = owner[i]
                missing[n] -= 1
                if not missing[n]:
                    ask, options = asks[n], self.options(course, asks[n])
                    own = [scores[j] for j in range(first[n], first[n] + len(options))]
                    out[n] = told = Told(
                        tuple(s.logprob for s in own), tuple(s.tokens for s in own), options.index(ask.query.output)
                    )
                    ready.append((ask.query.id, [e.id for e in ask.shown], told))
            if ready:
                self.ledger.put(scope, ready)
                self.computed += len(ready)

        done([*enumerate(self.lm.score(requests, done))])
        return out


def value(told: Told, how: str, normalise: str = "mean") -> float:
    """How good a prompt is, in nats; the higher, the better.

    ``share``: log of the gold option's share of the options' probabilities (UDR, section 3.1), where there are several.
    ``gold``: log-probability of the gold answer, per token (``mean``) or in all (``sum``); also of ``share`` where the
    gold answer is the only option.
    """
    gold = told.logprobs[told.gold]
    if how == "share" and len(told.logprobs) > 1:
        return gold - float(np.logaddexp.reduce(np.array(told.logprobs)))
    return gold / max(1, told.tokens[told.gold]) if normalise == "mean" else gold


def right(told: Told) -> bool | None:
    """Whether the gold option is the likeliest; None where there is no other."""
    if len(told.logprobs) < 2:
        return None
    return int(np.argmax(told.logprobs)) == told.gold
