"""The torch backend: a causal LM of ``transformers``, scoring and generating by a plan."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from iclkit.engines import Engine, LocalEngine
from iclkit.errors import RequestError
from iclkit.lm._forward import ForwardJob, ForwardModel, ForwardResult, prefix_chain
from iclkit.lm._plan import Plan, make_plan
from iclkit.lm._protocol import OnDone, numbered
from iclkit.lm._shape import ModelShape
from iclkit.lm._token_lm import TokenLM
from iclkit.lm._tokens import TokenIds, TokenPair
from iclkit.records import GenerateRequest, Generation, Score, Usage

TOKENS_PER_ROW = 64
"""Sequences generated side by side: at most one for so many tokens of a pass."""


class TorchLM(TokenLM):
    """A loaded model and the engine that computes its jobs: here, or in several processes.

    Batches are planned over the whole request list, so equal lists give bit-equal answers wherever they are computed.
    """

    def __init__(
        self,
        model: ForwardModel,
        *,
        fingerprint: str,
        engine: Engine[ForwardJob, ForwardResult] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.model, self.engine = model, engine or LocalEngine(model.compute)
        self.name, self.fingerprint, self.context_size = model.name, fingerprint, model.context_size
        self.codec, self.vocabulary = model.codec, model.vocabulary
        self._notes = (*notes, *model.codec.notes, *model.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the model, its tokenizer and where it runs."""
        return (*self._notes, *self.engine.notes)

    @property
    def shape(self) -> ModelShape:
        """What reading costs depend on."""
        return self.model.shape

    def seconds_for(self, tokens: int) -> float:
        """Wall seconds that reading so many tokens takes in this process, from a probe of a second or less."""
        return self.model.seconds_for(tokens)

    def seconds_to_write(self, tokens: int, rows: int) -> float:
        """Wall seconds that writing so many tokens for ``rows`` prompts takes in this process, from a short probe."""
        return self.model.seconds_to_write(tokens, rows)

    def close(self) -> None:
        """Stop what the engine runs beside this process; the LM can be asked again."""
        self.engine.close()

    # -- scoring by token ids -------------------------------------------------------------------------------------

    def plan_encoded(self, pairs: Sequence[TokenPair], known: Collection[int] = ()) -> Plan:
        """The plan of ``score_encoded``."""
        model = self.model
        plan = make_plan(pairs, model.batch_tokens, share=model.packed is not None, apart=model.long_from)
        return plan.without(set(known)) if known else plan

    def score_encoded(
        self, pairs: Sequence[TokenPair], on_done: OnDone[Score] | None = None, known: Collection[int] = ()
    ) -> Iterator[tuple[int, Score]]:
        """(request index, score) of every request that is not ``known``, batch by batch.

        Known requests are left out of the batches that were planned for all, so a rerun that knows some whole batches
        computes the others exactly as an unbroken run would.
        """
        plan = self.plan_encoded(pairs, known)
        results: list[tuple[int, Score]] = []
        self._usage += Usage(requests=len(pairs), tokens_asked=plan.tokens_asked)
        jobs = [
            ForwardJob(tuple(plan.sequences[u] for u in b.sequences), chain=prefix_chain(plan.prefixes, b.prefix))
            for b in plan.batches
        ]
        failures: dict[int, str] = {}
        for number, answers in self._run(jobs):
            sequences = plan.batches[number].sequences
            answered = [(i, a) for u, a in zip(sequences, answers, strict=True) for i in plan.requests_of[u]]
            done = [(i, a) for i, a in answered if isinstance(a, Score)]
            failures.update((i, a) for i, a in answered if isinstance(a, str))
            if on_done is not None:
                on_done(done)
            results.extend(done)
        _raise_first(failures)
        return iter(results)

    def _run(self, jobs: Sequence[ForwardJob]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """(job number, answers) of each job as it is finished."""
        with closing(self.engine.run(jobs)) as results:
            while True:
                start = time.perf_counter()
                number, result = next(results, (-1, None))
                seconds = time.perf_counter() - start
                if result is None:
                    self._usage += Usage(seconds=seconds)
                    return
                self._usage += Usage(calls=len(result.answers), tokens_computed=result.tokens_computed, seconds=seconds)
                yield number, result.answers

    # -- generation -----------------------------------------------------------------------------------------------

    def generate_encoded(
        self,
        prompts: Sequence[TokenIds],
        requests: Sequence[GenerateRequest],
        on_done: OnDone[Generation] | None = None,
        known: Collection[int] = (),
    ) -> Iterator[tuple[int, Generation]]:
        """(request index, generation) of every request that is not ``known``, batch by batch."""
        skip = set(known)
        results: list[tuple[int, Generation]] = []
        self._usage += Usage(requests=len(requests), tokens_asked=sum(map(len, prompts)))
        batches = [
            left
            for batch in generation_batches(prompts, requests, self.model.batch_tokens)
            if (left := [i for i in batch if i not in skip])
        ]
        failures: dict[int, str] = {}

        def finish(indices: Sequence[int], answers: Sequence[Any]) -> None:
            answered = list(zip(indices, answers, strict=True))
            done = [(i, a) for i, a in answered if isinstance(a, Generation)]
            failures.update((i, a) for i, a in answered if isinstance(a, str))
            self._usage += Usage(tokens_generated=sum(g.tokens for i, g in done if not requests[i].choices))
            if on_done is not None:
                on_done(done)
            results.extend(done)

        if batches and requests[batches[0][0]].choices:
            chosen, *batches = batches
            with numbered(chosen):
                choices = self._choose([requests[i] for i in chosen])
            finish(chosen, choices)
        jobs = [ForwardJob((), tuple(prompts[i] for i in b), tuple(requests[i] for i in b)) for b in batches]
        for number, answers in self._run(jobs):
            finish(batches[number], answers)
        _raise_first(failures)
        return iter(results)

    def tokens_to_read(self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest]) -> int:
        """Tokens of the prompts after sharing: batch by batch they are read as the scorer reads."""
        if self.model.packed is None:
            return sum(map(len, prompts))
        return sum(
            self.model.prompt_plan([prompts[i] for i in batch]).as_laid_out().tokens_computed
            for batch in generation_batches(prompts, requests, self.model.batch_tokens)
        )


def _raise_first(failures: Mapping[int, str]) -> None:
    """The error of the first request that has no answer, once all others are handed over."""
    if failures:
        raise RequestError(min(failures), failures[min(failures)])


def generation_batches(
    prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest], batch_tokens: int
) -> Iterable[list[int]]:
    """Indices of requests generated together: choices apart, then longest first within a bound on cache memory."""
    choices = [i for i, r in enumerate(requests) if r.choices]
    if choices:
        yield choices
    budget = 4 * batch_tokens
    current: list[int] = []
    rows = width = 0
    free = [i for i, r in enumerate(requests) if not r.choices]
    for i in sorted(free, key=lambda i: (-(len(prompts[i]) + requests[i].max_tokens), i)):
        size = len(prompts[i]) + requests[i].max_tokens
        if current and (rows >= max(32, batch_tokens // TOKENS_PER_ROW) or (rows + 1) * width > budget):
            yield current
            current, rows = [], 0
        if not current:
            width = size
        current.append(i)
        rows += 1
    if current:
        yield current


def estimated_tokens(job: ForwardJob) -> int:
    """Tokens of a job, roughly: what decides whether workers are worth starting."""
    if job.requests:
        return sum(len(p) + 4 * r.max_tokens for p, r in zip(job.prompts, job.requests, strict=True))
    depth = len(job.chain[-1].ids) if job.chain else 0
    return len({p.ids[: p.n_context] for p in job.pairs}) * max(len(p.ids) - depth for p in job.pairs)
