"""What an LM makes of demonstrations, asked once and kept in the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iclkit.errors import DataError, ModelError, RequestError, RunError
from iclkit.lm import LM
from iclkit.prompts import answer_options, answer_requests, assemble, best_option, log_softmax
from iclkit.records import Example, Progress, Prompt, Query, Score, ScoreRequest
from iclkit.trainers._data import TaskData
from iclkit.trainers._ledger import LabelScores, Ledger, ScoreScope
from iclkit.trainers._processes import asks_lm, main_process_first

CHUNK = 512  # prompts planned together: demonstrations that many of them share are read once
ROUNDING = 1e-3  # nats above 0 that a token's log-probability may be by rounding


@dataclass(frozen=True, slots=True)
class FeedbackPrompt:
    """One prompt: a query with its right answer, behind demonstrations in prompt order (the last stands next to it)."""

    query: Example
    shown: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What asking will cost: prompts, those not known yet, and the tokens these take (a loop's, from a sample)."""

    prompts: int
    unknown: int
    tokens: int


Key = tuple[str, tuple[str, ...]]
"""A query's id, and demonstrations' ids in prompt order."""


def key_of(ask: FeedbackPrompt) -> Key:
    """What a prompt is known by in its scope."""
    return ask.query.id, tuple(e.id for e in ask.shown)


class Feedback:
    """Scores prompts with an LM; whatever was scored is in the ledger and never asked again.

    ``labels``: score every label of a classification, not the gold one alone. ``known`` and ``computed`` count scores;
    ``skipped`` are prompts that do not fit the LM's context, ``failed`` those that it refused, with its reasons: both
    cost the candidate, not the training. What was refused is in the ledger too, and is asked again in another run.
    """

    def __init__(self, lm: LM, ledger: Ledger, *, labels: bool = True) -> None:
        self.lm, self.ledger, self.labels = lm, ledger, labels
        self.known = self.computed = 0
        self._skipped: set[tuple[str, Key]] = set()
        self._failed: dict[tuple[str, Key], str] = {}

    @property
    def skipped(self) -> int:
        """How many prompts do not fit the LM's context."""
        return len(self._skipped)

    @property
    def failed(self) -> dict[tuple[str, Key], str]:
        """(scope, key) of the prompts that the LM refused, with its reasons."""
        return dict(self._failed)

    def notes(self) -> list[str]:
        """What a user should know about prompts without a score, counted."""
        out = []
        if n := self.ledger.unusable:
            out.append(f"{n:,} scores in {self.ledger.path} are damaged or not finite (NaN); they count as not there")
        if n := self.skipped:
            out.append(f"{n:,} prompts do not fit the {self.lm.context_size:,} tokens of {self.lm.name}; left out")
        if n := len(self._failed):
            reason = next(iter(self._failed.values()))
            out.append(
                f"{self.lm.name} refused {n:,} prompts (the first: {reason}); they are left out and stand in the "
                f"ledger as failed; the same command asks them again"
            )
        return out

    def scope(self, course: TaskData) -> ScoreScope:
        """Under what a course's scores are kept."""
        return ScoreScope(self.lm.fingerprint, course.template, course.labels if self.labels else ())

    def tell(
        self, course: TaskData, asks: Sequence[FeedbackPrompt], progress: Progress | None = None
    ) -> list[LabelScores | None]:
        """What the LM says of each prompt, None for one that does not fit its context whole or that it refused.

        A prompt is stored with its chunk's batches as they end. Of several processes the first asks, and the others
        find its scores in the ledger. DataError for an answer that is none of the labels; RunError for an LM that
        refuses everything.
        """
        with main_process_first():
            return self._tell(course, asks, progress)

    def _tell(
        self, course: TaskData, asks: Sequence[FeedbackPrompt], progress: Progress | None
    ) -> list[LabelScores | None]:
        scope = self.scope(course)
        unique = {key_of(a): a for a in asks}
        keys = [*unique]
        told: dict[int, LabelScores | None] = {**self.ledger.get(scope, keys)}
        self.known += len(told)
        todo = [n for n in range(len(keys)) if n not in told] if asks_lm() else []
        for at in range(0, len(todo), CHUNK):
            some = todo[at : at + CHUNK]
            answers = self._ask(course, scope, [unique[keys[n]] for n in some])
            told.update(zip(some, answers, strict=True))
            if progress:
                progress(at + len(some), len(todo))
        number = {k: n for n, k in enumerate(keys)}
        return [told.get(number[key_of(a)]) for a in asks]

    def price(self, course: TaskData, asks: Sequence[FeedbackPrompt]) -> CostEstimate:
        """What ``tell`` would cost, each prompt once; tokens from up to 32 of the prompts."""
        unique = {key_of(a): a for a in asks}
        known = self.ledger.get(self.scope(course), [*unique])
        todo = [a for n, a in enumerate(unique.values()) if n not in known]
        sample = todo[:: max(1, len(todo) // 32)]
        counts = [self.lm.count_tokens(p.text) for a in sample if (p := self._prompt(course, a)) is not None]
        return CostEstimate(len(unique), len(todo), round(sum(counts) / max(1, len(counts)) * len(todo)))

    def _prompt(self, course: TaskData, ask: FeedbackPrompt) -> Prompt | None:
        """The prompt with all its demonstrations; None where they do not fit the LM's context."""
        query = Query(ask.query.input, ask.query.choices, id=ask.query.id)
        longest = max((course.template.answer(o, ask.query.choices) for o in self.options(course, ask)), key=len)
        prompt = assemble(course.template, query, ask.shown, order="best-first")  # as given
        tokens = self.lm.count_tokens(prompt.text) + self.lm.count_tokens(longest) + 1
        return prompt if tokens <= self.lm.context_size else None

    def options(self, course: TaskData, ask: FeedbackPrompt) -> tuple[str, ...]:
        """The answers that are scored for a prompt. DataError when the right one is not among the labels."""
        alone = (ask.query.output,)
        query = Query(ask.query.input, ask.query.choices, id=ask.query.id)
        options = answer_options(query, course.labels, alone) if self.labels else alone
        if ask.query.output not in options:
            raise DataError(
                f"task {course.name!r}, example {ask.query.id}: output {ask.query.output!r} is none of the labels "
                f"{', '.join(options[:5])}…; fix or remove the example"
            )
        return options

    def _ask(self, course: TaskData, scope: ScoreScope, asks: Sequence[FeedbackPrompt]) -> list[LabelScores | None]:
        requests, owner = list[ScoreRequest](), list[int]()
        missing, scores = dict[int, int](), dict[int, Score]()
        for n, ask in enumerate(asks):
            prompt = self._prompt(course, ask)
            if prompt is None:
                self._skipped.add((scope.mark, key_of(ask)))
                continue
            options = self.options(course, ask)
            missing[n] = len(options)
            owner += [n] * len(options)
            requests += answer_requests(prompt, course.template, options, ask.query.choices, group=ask.query.id)
        first = {n: i for i, n in reversed([*enumerate(owner)])}
        out: list[LabelScores | None] = [None] * len(asks)

        def done(part: Iterable[tuple[int, Score]]) -> None:
            ready = []
            for i, score in part:
                if i in scores:
                    continue
                scores[i] = self._checked(score, asks[owner[i]])
                n = owner[i]
                missing[n] -= 1
                if not missing[n]:
                    ask, options = asks[n], self.options(course, asks[n])
                    own = [scores[j] for j in range(first[n], first[n] + len(options))]
                    out[n] = told = LabelScores(
                        tuple(s.logprob for s in own), tuple(s.tokens for s in own), options.index(ask.query.output)
                    )
                    ready.append((*key_of(ask), told))
            if ready:
                self.ledger.put(scope, ready)
                self.computed += len(ready)

        refused = dict[int, str]()
        left = [*range(len(requests))]
        while left:
            some = left
            try:
                found = self.lm.score(
                    [requests[i] for i in some], lambda part, some=some: done((some[i], s) for i, s in part)
                )
                done(zip(some, found, strict=True))
                break
            except RequestError as error:  # costs this candidate; what was answered before it is stored
                n = owner[some[error.index]]
                refused[n] = str(error)
                left = [i for i in some if i not in scores and owner[i] != n]
        if refused:
            self.ledger.fail(scope, [(*key_of(asks[n]), why) for n, why in refused.items()])
            self._failed |= {(scope.mark, key_of(asks[n])): why for n, why in refused.items()}
            if len(refused) > 1 and not self.known + self.computed:
                raise RunError(f"{self.lm.name} refused all of {len(refused)} prompts: {next(iter(refused.values()))}")
        return out

    def _checked(self, score: Score, ask: FeedbackPrompt) -> Score:
        """ModelError for what is no log-probability: nothing can be learnt from it, and it must not be kept."""
        if not score.logprob <= ROUNDING * max(1, score.tokens) or score.logprob == -math.inf:
            raise ModelError(
                f"{self.lm.name} gives {score.logprob} as the log-probability of an answer to example {ask.query.id}; "
                f"its weights or its precision are broken (try another --dtype, or another model)"
            )
        return score


def value(told: LabelScores, how: str, normalise: str = "mean") -> float:
    """How good a prompt is, in nats; the higher, the better.

    ``share``: log of the gold option's share of the options' probabilities (UDR, section 3.1), where there are several.
    ``gold``: log-probability of the gold answer, per token (``mean``) or in all (``sum``); also of ``share`` where the
    gold answer is the only option.
    """
    gold = told.logprobs[told.gold]
    if how == "share" and len(told.logprobs) > 1:
        return float(log_softmax(told.logprobs)[told.gold])
    return gold / max(1, told.tokens[told.gold]) if normalise == "mean" else gold


def right(told: LabelScores) -> bool | None:
    """Whether the gold option is the likeliest (``best_option``); None where there is no other option."""
    if len(told.logprobs) < 2:
        return None
    return best_option(told.logprobs) == told.gold
