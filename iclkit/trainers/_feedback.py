"""An LM's scores of prompts with demonstrations, each computed once and kept in the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iclkit.errors import DataError, ModelError, RequestError, RunError
from iclkit.lm import LM, LOGITS
from iclkit.prompts import answer_options, answer_requests, assemble, best_option, log_softmax
from iclkit.records import CostEstimate, Example, Progress, Prompt, Query, Score, ScoreRequest
from iclkit.trainers._data import TaskData
from iclkit.trainers._ledger import LabelScores, Ledger, ScoreScope
from iclkit.trainers._processes import asks_lm, main_process_first

CHUNK = 512  # prompts planned together: demonstrations that many of them share are read once
Key = tuple[str, tuple[str, ...]]
"""A query's id, and demonstrations' ids in prompt order."""
ROUNDING = 1e-3  # nats above 0 that a token's log-probability may be by rounding


@dataclass(frozen=True, slots=True)
class FeedbackPrompt:
    """A query with its right answer, behind demonstrations in prompt order (the last stands next to it)."""

    query: Example
    demonstrations: tuple[Example, ...]

    @property
    def key(self) -> Key:
        """What the prompt is known by in its scope."""
        return self.query.id, tuple(e.id for e in self.demonstrations)


class Feedback:
    """Scores prompts with an LM. Every score is kept in the ledger, and no prompt is scored twice.

    ``labels``: score every label of a classification, not the gold one alone. ``known`` and ``computed`` count scores;
    ``skipped`` are prompts that do not fit the LM's context, ``failed`` those that it refused, with its reasons: both
    cost the candidate, not the training. Refusals are in the ledger too, and are tried again in another run.
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
        """Counts of the prompts without a score, in words."""
        notes = []
        if n := self.ledger.unusable:
            notes.append(f"{n:,} scores in {self.ledger.path} are damaged or not finite (NaN); they count as not there")
        if n := self.skipped:
            notes.append(f"{n:,} prompts do not fit the {self.lm.context_size:,} tokens of {self.lm.name}; left out")
        if n := len(self._failed):
            reason = next(iter(self._failed.values()))
            notes.append(
                f"{self.lm.name} refused {n:,} prompts (the first: {reason}); they are left out and stand in the "
                f"ledger as failed; the same command tries them again"
            )
        return notes

    def scope(self, task: TaskData) -> ScoreScope:
        """The scope that a task's scores are kept under."""
        return ScoreScope(self.lm.fingerprint, task.template, task.labels if self.labels else ())

    def score(
        self, task: TaskData, prompts: Sequence[FeedbackPrompt], progress: Progress | None = None
    ) -> list[LabelScores | None]:
        """The scores of each prompt, None for one that does not fit the LM's context whole or that it refused.

        A prompt is stored as soon as all its answers are scored. Of several processes the first asks the LM, and the
        others find its scores in the ledger. DataError for an answer that is none of the labels; RunError for an LM
        that refuses everything.
        """
        with main_process_first():
            return self._score(task, prompts, progress)

    def _score(
        self, task: TaskData, prompts: Sequence[FeedbackPrompt], progress: Progress | None
    ) -> list[LabelScores | None]:
        scope = self.scope(task)
        unique = {p.key: p for p in prompts}
        keys = [*unique]
        scores: dict[int, LabelScores | None] = {**self.ledger.get(scope, keys)}
        self.known += len(scores)
        todo = [n for n in range(len(keys)) if n not in scores] if asks_lm() else []
        done = 0
        for numbers in self._chunks(scope, keys, todo):
            with self.ledger.together(scope, [keys[n] for n in numbers]):
                answers = self._score_chunk(task, scope, [unique[keys[n]] for n in numbers])
            new = {n: a for n, a in zip(numbers, answers, strict=True) if n not in scores}
            self.computed += sum(a is not None for a in new.values())
            scores |= new
            done += len(new)
            if progress:
                progress(done, len(todo))
        number = {k: n for n, k in enumerate(keys)}
        return [scores.get(number[p.key]) for p in prompts]

    def _chunks(self, scope: ScoreScope, keys: Sequence[Key], todo: Sequence[int]) -> list[list[int]]:
        """The prompts ``todo``, by number, as they are read together.

        In bf16 a score depends a little on what is read beside it. So where a kill ended the reading of some prompts,
        a model whose logits are at hand is asked the same prompts together once more (what its cache holds is not
        computed again), and every score is that of an unbroken run.
        """
        number = {key: n for n, key in enumerate(keys)}
        left, unknown, chunks = [*todo], {*todo}, list[list[int]]()
        for prompts in self.ledger.begun(scope) if todo and self.lm.scoring == LOGITS else ():
            again = [number[key] for key in prompts if key in number]
            missing = [n for n in again if n in unknown]
            if missing and len(again) == len(prompts) and missing == left[: len(missing)]:
                left, chunks = left[len(missing) :], [again]
                break
        return chunks + [left[at : at + CHUNK] for at in range(0, len(left), CHUNK)]

    def estimate(self, task: TaskData, prompts: Sequence[FeedbackPrompt]) -> CostEstimate:
        """The cost of ``score``, each prompt once; ``calls`` are the answers that the ledger does not have.

        Tokens are of up to 32 of the prompts without a score, times their number: of a plain loop over the answers
        (``tokens_asked``), and with each prompt read once (``tokens_computed``).
        """
        unique = {p.key: p for p in prompts}
        known = self.ledger.get(self.scope(task), [*unique])
        todo = [p for n, p in enumerate(unique.values()) if n not in known]
        sample = todo[:: max(1, len(todo) // 32)]
        counts = [self.lm.count_tokens(p.text) for each in sample if (p := self._assemble(task, each)) is not None]
        mean = sum(counts) / max(1, len(counts))
        calls = self._answers(task, todo)
        return CostEstimate(
            requests=self._answers(task, unique.values()),
            prompts=len(unique),
            calls=calls,
            tokens_asked=round(mean * calls),
            tokens_computed=round(mean * len(todo)),
            seconds=None,
        )

    def lacking(self, task: TaskData, prompts: Sequence[FeedbackPrompt]) -> list[ScoreRequest]:
        """What ``score`` would ask the LM: the answers to the prompts that the ledger does not have."""
        unique = {p.key: p for p in prompts}
        known = self.ledger.get(self.scope(task), [*unique])
        todo = [p for n, p in enumerate(unique.values()) if n not in known]
        return [request for p in todo if (whole := self._assemble(task, p)) is not None
                for request in self._requests(task, p, whole)]  # fmt: skip

    def _requests(self, task: TaskData, prompt: FeedbackPrompt, assembled: Prompt) -> list[ScoreRequest]:
        options, query = self.options(task, prompt.query), prompt.query
        return [*answer_requests(assembled, task.template, options, query.choices, group=query.id)]

    def _answers(self, task: TaskData, prompts: Iterable[FeedbackPrompt]) -> int:
        return sum(len(self.options(task, p.query)) for p in prompts)

    def _assemble(self, task: TaskData, prompt: FeedbackPrompt) -> Prompt | None:
        """The prompt with all its demonstrations; None where they do not fit the LM's context."""
        query = Query(prompt.query.input, prompt.query.choices, id=prompt.query.id)
        longest = max(
            (task.template.answer(o, prompt.query.choices) for o in self.options(task, prompt.query)), key=len
        )
        render = self.lm.render_chat if task.template.chat else None
        # best-first: in the order given
        assembled = assemble(task.template, query, prompt.demonstrations, order="best-first", render_chat=render)
        tokens = self.lm.count_tokens(assembled.text) + self.lm.count_tokens(longest) + 1
        return assembled if tokens <= self.lm.context_size else None

    def options(self, task: TaskData, query: Example) -> tuple[str, ...]:
        """The answers that are scored for a query. DataError when the right one is not among the labels."""
        gold = (query.output,)
        options = (
            answer_options(Query(query.input, query.choices, id=query.id), task.labels, gold) if self.labels else gold
        )
        if query.output not in options:
            raise DataError(
                f"task {task.name!r}, example {query.id}: output {query.output!r} is none of the labels "
                f"{', '.join(options[:5])}…; fix or remove the example"
            )
        return options

    def _score_chunk(
        self, task: TaskData, scope: ScoreScope, prompts: Sequence[FeedbackPrompt]
    ) -> list[LabelScores | None]:
        requests, owner = list[ScoreRequest](), list[int]()
        missing, scores = dict[int, int](), dict[int, Score]()
        for n, prompt in enumerate(prompts):
            assembled = self._assemble(task, prompt)
            if assembled is None:
                self._skipped.add((scope.key_text, prompt.key))
                continue
            asked = self._requests(task, prompt, assembled)
            missing[n] = len(asked)
            owner += [n] * len(asked)
            requests += asked
        first = {n: i for i, n in reversed([*enumerate(owner)])}
        result: list[LabelScores | None] = [None] * len(prompts)

        def done(part: Iterable[tuple[int, Score]]) -> None:
            ready = []
            for i, score in part:
                if i in scores:
                    continue
                scores[i] = self._checked(score, prompts[owner[i]])
                n = owner[i]
                missing[n] -= 1
                if not missing[n]:
                    query, options = prompts[n].query, self.options(task, prompts[n].query)
                    answers = [scores[j] for j in range(first[n], first[n] + len(options))]
                    whole = LabelScores(
                        tuple(s.logprob for s in answers), tuple(s.tokens for s in answers), options.index(query.output)
                    )
                    result[n] = whole
                    ready.append((*prompts[n].key, whole))
            if ready:
                self.ledger.put(scope, ready)

        refused = dict[int, str]()
        left = [*range(len(requests))]
        while left:
            numbers = left
            try:
                answers = self.lm.score(
                    [requests[i] for i in numbers],
                    lambda part, numbers=numbers: done((numbers[i], s) for i, s in part),
                )
                done(zip(numbers, answers, strict=True))
                break
            except RequestError as error:  # costs this candidate; what was answered before it is stored
                n = owner[numbers[error.index]]
                refused[n] = str(error)
                left = [i for i in numbers if i not in scores and owner[i] != n]
        if refused:
            self.ledger.fail(scope, [(*prompts[n].key, why) for n, why in refused.items()])
            self._failed |= {(scope.key_text, prompts[n].key): why for n, why in refused.items()}
            if len(refused) > 1 and not self.known + self.computed and not any(result):
                raise RunError(f"{self.lm.name} refused all of {len(refused)} prompts: {next(iter(refused.values()))}")
        return result

    def _checked(self, score: Score, prompt: FeedbackPrompt) -> Score:
        """ModelError for what is no log-probability: nothing can be learned from it, and it must not be kept."""
        if not score.logprob <= ROUNDING * max(1, score.tokens) or score.logprob == -math.inf:
            raise ModelError(
                f"{self.lm.name} gives {score.logprob} as the log-probability of an answer to example "
                f"{prompt.query.id}; its weights or its precision are broken (try another --dtype, or another model)"
            )
        return score


def feedback_value(scores: LabelScores, how: str, normalize: str = "mean") -> float:
    """The value of a prompt, in nats; the higher, the better.

    ``share``: log of the gold option's share of the options' probabilities (UDR, section 3.1), where there are several.
    ``gold``: log-probability of the gold answer, per token (``mean``) or in all (``sum``); also of ``share`` where the
    gold answer is the only option.
    """
    gold = scores.logprobs[scores.gold]
    if how == "share" and len(scores.logprobs) > 1:
        return float(log_softmax(scores.logprobs)[scores.gold])
    return gold / max(1, scores.tokens[scores.gold]) if normalize == "mean" else gold


def is_correct(scores: LabelScores) -> bool | None:
    """Whether the gold option is the likeliest (``best_option``); None where there is no other option."""
    if len(scores.logprobs) < 2:
        return None
    return best_option(scores.logprobs) == scores.gold
