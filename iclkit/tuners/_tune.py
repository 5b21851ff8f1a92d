"""From a task to a selector file: split, search, confirm, write down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, Trial, TrialState

from iclkit import __version__
from iclkit.datasets import Task, find_leaks
from iclkit.embed import Embedder, encode_checked
from iclkit.errors import DataError, ModelError, RequestError, RunError, UnknownName, UsageError
from iclkit.eval import METRICS, Bench, Estimate, estimate, evaluate
from iclkit.lm import LM, as_lm, ranks_only
from iclkit.pool import Pool, PoolView
from iclkit.predictors import Settings, Tools, make_predictor, recorded_prompt
from iclkit.prompts import Template, answer_requests
from iclkit.records import Example, GenerateRequest, Json, Prompt, Query, ScoreRequest, digest
from iclkit.selectors import FixedSelector, Kit, SelectorFile, make_selector
from iclkit.settings import check_settings, read_settings, setting
from iclkit.tuners._bandit import FloatArray
from iclkit.tuners._samplers import EaseSettings, arm_of, make_sampler, sampler_options
from iclkit.tuners._space import (
    Arm,
    ArmFeatures,
    BlockFeatures,
    PositionFeatures,
    SearchSpace,
    is_order_sensitive,
    render_block,
)
from iclkit.tuners._study import (
    check_trials,
    finished,
    open_study,
    run_trials,
    storage_errors,
    stored_settings,
    stored_spec,
    without_password,
)

FEATURES = ("positions", "block")
PRUNERS = ("none", "median")
DRAWS = ("random", "validation", "vote-k")
OBJECTIVES = ("auto", "metric", "greedy", "logprob")


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How a search is made. All but ``trials``, ``batch``, ``top`` and ``confirm`` say which search it is.

    ``trials`` lists are scored on ``validation`` queries each; the ``top`` best of them on ``confirm`` fresh ones.
    ``candidates``: at most so many examples to choose from, drawn by ``draw`` where there are more: ``random``;
    ``validation``, the nearest neighbors of the validation queries, each query's in turn; ``vote-k``, which represent
    the rest. ``features``: what the bandit sees, ``positions`` (the
    demonstrations' embeddings side by side) or ``block`` (the embedding of the whole block). ``pruner`` ``median``
    gives a list up when its mean after half or three quarters of the queries is below the median of the others there.
    ``batch``: lists proposed at a time.

    ``objective`` of a trial: ``metric`` is the task's, on what the LM answers. ``greedy`` is the share of right answers
    that greedy decoding writes, letter by letter, up to the end of the line: read in one pass where the LM's scores
    cover an answer and its end, else written, with room for the longest right answer. ``logprob`` is the mean
    log-probability of the right answer in nats. ``auto`` is greedy for tasks of exact match whose answers are generated
    and can be read, else metric. The confirmation goes by the metric, or by greedy as well. An answer that is empty or
    refused is none, which is worth 0.
    """

    k: int = setting(4, "demonstrations of a list", ge=1)
    trials: int = setting(60, "lists to score", ge=1)
    sampler: str = setting("ease", "who proposes, with its settings")
    seed: int = setting(0, "splits, draws and the network's first weights", ge=0)
    validation: int = setting(20, "queries that score a list", ge=1)
    confirm: int = setting(60, "fresh queries for the best few", ge=0)
    top: int = setting(3, "how many of the best are confirmed", ge=1)
    candidates: int = setting(100, "examples to choose from", ge=1)
    draw: str = setting("random", "which examples these are, of more", choices=DRAWS)
    features: str = setting("positions", "what the bandit sees of a list", choices=FEATURES)
    pruner: str = setting("none", "who gives lists up half-way", choices=PRUNERS)
    batch: int = setting(1, "lists proposed at a time", ge=1)
    objective: str = setting("auto", "what a trial is judged by", choices=OBJECTIVES)

    def __post_init__(self) -> None:
        check_settings(self, "the search")
        sampler_options(self.sampler)


TUNE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {},
    "paper": {
        "k": 5,
        "trials": 165,
        "sampler": "ease,batches=20,domain=50000,hidden=3,keep=1000,neighbors=0.0,rate=0.001,steps=1000,"
        "targets=raw,update=batch,warmup=40,width=100",
        "validation": 20,
        "candidates": 100,
        "features": "block",
    },
}
"""``paper``: EASE as its reference code runs it (docs/reproduction.md). ``small``: a 2-core CPU and a 135M LM."""


def tune_preset(name: str, /, **settings: Any) -> TuneSettings:
    """The settings of a search under a preset, with some replaced. UnknownName, UsageError as for other settings."""
    if name not in TUNE_PRESETS:
        raise UnknownName("preset", name, TUNE_PRESETS)
    return TuneSettings(**{**TUNE_PRESETS[name], **read_settings(TuneSettings, settings, "the search")})


_OF_OWN_ANSWERS = ("first-token", "decisions", "forced", "generate")
"""Ways of scoring of a server that look at what it answers by itself, not at the answer that is asked about."""
_LETTERS = 4  # of a token, about
_ROOM = 8  # tokens beyond the longest right answer, in which a wrong one shows that it goes on
Q = TypeVar("Q")
A = TypeVar("A")
LabeledQuery = tuple[Query, Example]
"""A query with the example that answers it."""


@dataclass(frozen=True)
class TuneProblem:
    """What is searched: candidates that may be shown, and the questions that judge them, none of which is in both.

    ``instructions`` to choose from; (None,) leaves the template's own.
    """

    task: Task
    view: PoolView
    validation: tuple[LabeledQuery, ...]
    confirmation: tuple[LabeledQuery, ...]
    lm: LM
    instructions: tuple[str | None, ...] = (None,)

    @cached_property
    def metric(self) -> str:
        """The metric's name; UsageError for one that judges runs as a whole."""
        metric = METRICS.get(self.task.metric)
        if metric.judge is None:
            raise UsageError(f"metric {metric.name!r} judges whole runs, and a search needs one for each answer")
        return metric.name

    def template(self, arm: Arm) -> Template:
        """The template an arm is shown with."""
        words = self.instructions[arm.instruction]
        return self.task.template if words is None else replace(self.task.template, instruction=words)

    def demonstrations(self, arm: Arm) -> list[Example]:
        """The examples of an arm, first shown first."""
        return [self.view.examples[row] for row in arm.rows]

    @property
    def written(self) -> bool:
        """Whether answers are generated, not chosen among labels or options."""
        return not self.task.labels and self.task.kind != "multiple_choice"

    @property
    def readable(self) -> bool:
        """Whether the LM's scores can tell what greedy decoding would write, from its beginning to its end.

        In a chat nothing that can be scored ends an answer. A server that tells probabilities of its own answers alone
        (``first-token``) or none (``generate``) says how an answer begins.
        """
        return not self.task.template.chat and self.lm.scoring not in _OF_OWN_ANSWERS

    def objective(self, wanted: str) -> str:
        """What ``auto`` means here. UsageError for one that this LM cannot tell."""
        scoring = self.lm.scoring
        if wanted == "logprob" and (ranks_only(self.lm) or (self.written and scoring in _OF_OWN_ANSWERS)):
            raise UsageError(
                f"{self.lm.name} does not tell the log-probability of a whole answer (scoring {scoring}); use another "
                f"--objective, e.g. metric"
            )
        read = self.written and self.readable and self.metric == "exact_match"
        return wanted if wanted != "auto" else "greedy" if read else "metric"

    def score(
        self, arm: Arm, asked: Sequence[LabeledQuery], objective: str = "metric"
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """(q,) value of each question with an arm in front, and what the LM was asked for it.

        All prompts begin with the same demonstrations, which the engine reads once where it scores answers. Answers
        that are empty or refused are worth 0 and counted under ``no_answer``.
        """
        if objective == "greedy" and not self.readable:
            return self._write(arm, asked)
        if objective == "greedy" or (objective == "logprob" and self.written):
            return self._score_gold(arm, asked, objective)
        bench = Bench(self.task, self.view, tuple(q for q, _ in asked), tuple(e.output for _, e in asked), "ignore")
        shown = FixedSelector.showing(self.demonstrations(arm), self.instructions[arm.instruction])
        predictor = make_predictor(shown, Tools(self.lm), Settings(k=len(arm.rows)))
        run = evaluate(bench, predictor, on_error="stop")
        if any(row.dropped for row in run.rows):
            raise self._too_long(arm)
        key = "gold_logprob" if objective == "logprob" else self.metric
        known = [row.metrics.get(key) for row in run.rows]
        if objective == "logprob" and None in known:
            raise self._no_logprob(run.rows[known.index(None)].query_id, "it got no answer")
        values = [0.0 if value is None else float(value) for value in known]
        return _finite_values(values, self.lm), {**run.usage, **_silent(sum(not row.output for row in run.rows))}

    def _score_gold(
        self, arm: Arm, asked: Sequence[LabeledQuery], objective: str
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """The right answers, ended as a demonstration is, read after their prompts."""
        template, requests = self.template(arm), list[ScoreRequest]()
        for (prompt, _), (_, example) in zip(self._prompts(arm, asked), asked, strict=True):
            requests += answer_requests(prompt, template, [example.output], example.choices, end=self._end)
        found, refused, cost = self._ask(self.lm.score, requests)
        if refused and objective == "logprob":
            first = min(refused)
            raise self._no_logprob(asked[first][0].id, refused[first])
        values = [
            (found[n].logprob if objective == "logprob" else float(found[n].greedy)) if n in found else 0.0
            for n in range(len(asked))
        ]
        _finite_values([s.logprob for s in found.values()], self.lm)
        return np.array(values), cost

    def _write(self, arm: Arm, asked: Sequence[LabeledQuery]) -> tuple[NDArray[np.float64], dict[str, float]]:
        """Whether the LM writes the right answers, and then stops or ends the line."""
        prompts, end = self._prompts(arm, asked), self._end
        # one bound for all: what is asked of a question says nothing of its own answer
        room = max(self.lm.count_tokens(answer) for _, answer in prompts) + _ROOM
        stops = () if not end or any(end in answer for _, answer in prompts) else (end,)
        requests = [
            GenerateRequest(p.text, max(1, min(room, self.lm.context_size - p.tokens)), stops) for p, _ in prompts
        ]
        found, _, cost = self._ask(self.lm.generate, requests)
        values = [0.0] * len(asked)
        for n, generation in found.items():
            said, answer = generation.text.lstrip(), prompts[n][1].strip()
            rest = said[len(answer) :]
            whole = (not rest.strip() and generation.finish != "length") or bool(end and rest.startswith(end))
            values[n] = float(said.startswith(answer) and whole)
        silent = sum(not g.text.strip() for g in found.values())
        return np.array(values), {**cost, **_silent(silent + int(cost.get("no_answer", 0)))}

    @property
    def _end(self) -> str:
        """What ends an answer as it ends a demonstration's; nothing in a chat."""
        separator = self.task.template.behind_demos
        # models write the blank line between demonstrations one newline at a time
        return "" if self.task.template.chat else "\n" if separator.startswith("\n") else separator

    def _prompts(self, arm: Arm, asked: Sequence[LabeledQuery]) -> list[tuple[Prompt, str]]:
        """Each question's prompt and its right answer. DataError where the two do not fit the LM's context."""
        template, shown, out = self.template(arm), self.demonstrations(arm), []
        for query, example in asked:
            prompt = recorded_prompt(template, query, shown, self.lm)
            answer = template.answer(example.output, example.choices)
            if prompt.tokens + self.lm.count_tokens(prompt.answer_prefix + answer) > self.lm.context_size:
                raise self._too_long(arm)
            out.append((prompt, answer))
        return out

    def _ask(
        self, ask: Callable[[Sequence[Q], Any], Sequence[A]], requests: Sequence[Q]
    ) -> tuple[dict[int, A], dict[int, str], dict[str, float]]:
        """Answers by position, reasons by position of what was refused, and what it cost."""
        before = self.lm.usage
        found, refused, left = dict[int, A](), dict[int, str](), [*range(len(requests))]
        while left:
            some = left

            def done(part: Sequence[tuple[int, A]], some: list[int] = some) -> None:
                found.update((some[i], answer) for i, answer in part)

            try:
                found.update(zip(some, ask([requests[n] for n in some], done), strict=True))
            except RequestError as error:
                refused[some[error.index]] = str(error)
            left = [n for n in some if n not in found and n not in refused]
        if refused and not found:
            raise RunError(f"{self.lm.name} refused all of {len(refused)} prompts: {next(iter(refused.values()))}")
        return found, refused, {**(self.lm.usage - before).as_dict(), **_silent(len(refused))}

    def _no_logprob(self, query: str, why: str) -> RunError:
        return RunError(
            f"question {query} has no log-probability ({why}), and lists cannot be compared by logprob without; use "
            f"--objective metric"
        )

    def _too_long(self, arm: Arm) -> DataError:
        return DataError(f"{len(arm.rows)} demonstrations do not fit the context of {self.lm.name}; give a smaller -k")

    def facts(self) -> dict[str, Json]:
        """What tells this search from others."""
        return {
            "task": self.task.name,
            "lm": self.lm.fingerprint,
            "metric": self.metric,
            "candidates": self.view.hash,
            "validation": digest([q.id for q, _ in self.validation], 8),
            "template": digest([self.task.template.demo, self.task.template.instruction, self.task.template.chat], 8),
            "instructions": digest([*self.instructions], 8),
        }


def _silent(count: int) -> dict[str, float]:
    return {"no_answer": count} if count else {}


def _finite_values(values: Sequence[float], lm: LM) -> NDArray[np.float64]:
    """(n,) the values. ModelError unless all are finite: a broken model must not win a search."""
    out = np.array(values, dtype=np.float64)
    if not np.isfinite(out).all():
        raise ModelError(
            f"{lm.name} gives scores that are not finite; its weights or its precision are broken (try another "
            f"--dtype, or another model)"
        )
    return out


def make_problem(
    task: Task,
    lm: LM,
    settings: TuneSettings,
    *,
    instructions: Sequence[str] = (),
    embedder: Embedder | None = None,
    report: Callable[[str], None] = print,
) -> TuneProblem:
    """Split a task's rows: questions from dev, or from train where dev has too few; candidates from train.

    Questions are drawn by seed, candidates as ``settings.draw`` says; all but ``random`` need an embedder. A question
    that resembles a test row, or an earlier question, is not asked; a candidate that resembles a question is not shown.
    DataError when too few are left.
    """
    asked, free, source = _split(task, settings)
    validation, confirmation = asked[: settings.validation], asked[settings.validation :]
    picked = _drawn(free, validation, settings, embedder)
    report(
        f"{task.name}: {settings.validation} validation and {settings.confirm} confirmation queries from {source}, "
        f"{len(picked)} candidates of {len(free)} train rows"
        + (f", drawn by {settings.draw}" if settings.draw != "random" and len(picked) < len(free) else "")
    )
    return TuneProblem(
        task, Pool.of(picked).view(), tuple(validation), tuple(confirmation), as_lm(lm), tuple(instructions) or (None,)
    )


def _split(task: Task, settings: TuneSettings) -> tuple[list[LabeledQuery], list[Example], str]:
    """The questions, the examples that may be shown, and the split that the questions come from."""
    wanted = settings.validation + settings.confirm
    from_dev = len(task.dev) >= wanted
    rng = np.random.default_rng([settings.seed, 7])
    source = task.dev if from_dev else task.train
    rows = [source[int(r)] for r in rng.permutation(len(source))]
    test = {leak.example_id for leak in find_leaks(rows, task.queries("test"))} if task.test else set()
    held: dict[str, Example] = {}
    for e in rows:
        if len(held) < wanted and e.id not in test:
            held.setdefault(" ".join(e.text.split()).casefold(), e)
    asked = [(Query(e.input, e.choices), e) for e in held.values()]
    gone = {leak.example_id for leak in find_leaks(task.train, [q for q, _ in asked])} | {e.id for _, e in asked}
    free = [e for e in task.train if e.id not in gone]
    if len(asked) < wanted or len(free) < settings.k:
        raise DataError(
            f"{task.name!r} has {len(source)} rows to ask about and {len(free)} left to show, and the search wants "
            f"{settings.validation} + {settings.confirm} questions and {settings.k} demonstrations; "
            f"add examples, or ask for fewer with --validation and --confirm"
        )
    return asked, free, "dev" if from_dev else "train"


def _drawn(
    free: Sequence[Example], validation: Sequence[LabeledQuery], settings: TuneSettings, embedder: Embedder | None
) -> list[Example]:
    """The candidates among the examples that may be shown, in their order."""
    count = settings.candidates
    if len(free) <= count:
        return [*free]
    if settings.draw == "random":
        picked = np.random.default_rng([settings.seed, 8]).permutation(len(free))[:count].tolist()
        return [free[n] for n in sorted(picked)]
    if embedder is None:
        raise UsageError(f"candidates drawn by {settings.draw} need an embedder; give one with --embedder")
    pool, kit = Pool.of(free).view(), Kit(embedder, seed=settings.seed)
    if settings.draw == "vote-k":
        ids = [*make_selector(f"vote-k,budget={count}").fit(pool, kit).select(Query("", id="candidates"), count).ids]
    else:
        near = make_selector("knn").fit(pool, kit).select_many([q for q, _ in validation], count)
        ids = [i for rank in zip(*(n.ids for n in near), strict=True) for i in rank]  # each query's nearest come first
    kept = {*[*dict.fromkeys(ids)][:count]}
    return [e for e in free if e.id in kept]


@dataclass(frozen=True)
class SearchPrice:
    """What a search would ask for, as far as its settings and the task's texts tell. Nothing is loaded.

    ``prompts`` to the LM, at most; ``tokens`` in them by a rule of thumb (a token is about four letters), and of these
    ``read`` where every list's demonstrations are read once. ``proposals`` by the sampler's network, with at most
    ``encoded`` texts for the embedder.
    """

    lists: int
    prompts: int
    tokens: int
    read: int
    proposals: int
    encoded: int


def price_search(task: Task, settings: TuneSettings) -> SearchPrice:
    """The price of a search. DataError when the task has too few rows for it."""
    asked, free, _ = _split(task, settings)
    template = task.template
    demo = np.mean([len(template.render_demo(e)) + len(template.separator) for e in free[:1000]]) / _LETTERS
    query = np.mean([len(template.render_demo(e)) for _, e in asked]) / _LETTERS
    lists = min(settings.trials, math.perm(min(len(free), settings.candidates), settings.k))
    judged = [settings.validation] * lists + [settings.confirm] * (min(settings.top, lists) if settings.confirm else 0)
    tokens = sum(judged) * (settings.k * demo + query)
    read = sum(judged) * query + len(judged) * settings.k * demo
    options = sampler_options(settings.sampler)
    proposals = max(0, lists - options.warmup) if isinstance(options, EaseSettings) else 0
    shown = 0
    if isinstance(options, EaseSettings):
        block = lists + proposals * min(options.keep, options.domain)
        shown = block if settings.features == "block" else 0
        shown += min(len(free), settings.candidates) + settings.validation
    if settings.draw != "random" and len(free) > settings.candidates:
        shown += len(free)
    return SearchPrice(lists, sum(judged), round(tokens), round(read), proposals, shown)


def make_space(problem: TuneProblem, settings: TuneSettings, embedder: Embedder | None) -> SearchSpace:
    """The search space with the bandit's eyes: features and transport costs where there is an embedder.

    UsageError when the block's embedding does not change with the order of the last two demonstrations: an embedder
    that ignores order, or cuts the text off before its end.
    """
    view, n = problem.view, len(problem.instructions)
    if embedder is None:
        return SearchSpace(len(view), settings.k, n)
    template = problem.task.template
    demos = _vectors(embedder, [template.render_demo(e) for e in view.examples])
    features: ArmFeatures
    if settings.features == "block":
        features = BlockFeatures(
            embedder,
            lambda arm: render_block(
                template, problem.demonstrations(arm), problem.instructions[arm.instruction] or template.instruction
            ),
        )
        if not is_order_sensitive(features, len(view), settings.k):
            raise UsageError(
                f"embedder {embedder.name!r} gives a block of {settings.k} demonstrations the same vector when the "
                f"last two change places: it ignores order or cuts the text off; use --features positions, or another "
                f"--embedder"
            )
    else:
        words = _vectors(embedder, [i or "none" for i in problem.instructions]) if n > 1 else None
        features = PositionFeatures(demos, settings.k, words)
    whole = len(problem.validation) // settings.k * settings.k or len(problem.validation)
    # a multiple of k makes the transport an assignment
    targets = _vectors(embedder, [template.render_demo(e) for _, e in problem.validation[:whole]])
    return SearchSpace(len(view), settings.k, n, features, 1 - demos @ targets.T)


def _vectors(embedder: Embedder, texts: Sequence[str]) -> FloatArray:
    return np.asarray(encode_checked(embedder, texts, "document"), dtype=np.float64)


@dataclass(frozen=True)
class TuneResult:
    """The outcome: the arm, its figures, and the trials. ``file`` is what to write."""

    arm: Arm
    validation: Estimate
    error: float
    """Standard error of the validation figure."""
    luck: float
    """How much the best of so many figures would exceed the mean by chance alone, were all lists equally good."""
    confirmation: Estimate | None
    finalists: tuple[tuple[int, float, float], ...]
    """(trial, validation, confirmation) of those that were confirmed, by validation."""
    trials: tuple[FrozenTrial, ...]
    usage: Mapping[str, float]
    file: SelectorFile = field(repr=False)

    @property
    def curve(self) -> list[float]:
        """The trials' values in order, of those that were finished."""
        return [float(t.value) for t in self.trials if t.state == TrialState.COMPLETE and t.value is not None]


def tune(
    problem: TuneProblem,
    settings: TuneSettings,
    *,
    embedder: Embedder | None = None,
    storage: str | None = None,
    study_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> TuneResult:
    """Search, resume a search, or help with one; then confirm the best few and say what was found.

    The same call again goes on where it stopped, with more ``trials`` further. Several processes may call it with one
    ``storage``. UsageError for settings that do not fit together, DataError for a study about something else.
    """
    space = make_space(problem, settings, embedder)
    count = math.perm(space.rows, space.k) * space.instructions
    trials = min(settings.trials, count)
    sampler = make_sampler(settings.sampler, space, settings.seed)
    facts = problem.facts() | {
        "k": settings.k, "sampler": stored_spec(settings.sampler), "seed": settings.seed, "pruner": settings.pruner,
        "features": settings.features, "embedder": embedder.fingerprint if embedder else "",
        "objective": problem.objective(settings.objective), "settings": stored_settings(sampler.settings),
    }  # fmt: skip
    name = study_name or f"{problem.task.name}-{sampler.name}-{digest(facts, 5)}"
    # a median of fewer than five trials says little, and a mean of less than half of the queries too
    pruner = optuna.pruners.NopPruner() if settings.pruner == "none" else optuna.pruners.MedianPruner(5)
    study = open_study(storage, name, sampler, pruner, facts)

    def judge(got: list[tuple[Trial, Arm]]) -> None:
        for trial, arm in got:
            _judge(study, problem, trial, arm, settings)

    with storage_errors(storage):
        check_trials(study, space, len(problem.validation), storage)
        run_trials(study, space, trials, judge, batch=settings.batch, progress=progress)
        return _conclude(study, problem, space, settings, storage, sampler.settings)


def _judge(study: optuna.Study, problem: TuneProblem, trial: Trial, arm: Arm, settings: TuneSettings) -> None:
    """Score one list on the validation queries, in steps if it may be given up."""
    queries, size = problem.validation, len(problem.validation)
    steps = [size] if settings.pruner == "none" else sorted({math.ceil(size * part / 4) for part in (2, 3, 4)})
    values, spent, at = np.empty(0), dict[str, float](), 0
    for step in steps:
        got, cost = problem.score(arm, queries[at:step], problem.objective(settings.objective))
        values, at = np.concatenate([values, got]), step
        spent = {key: spent.get(key, 0) + cost.get(key, 0) for key in {*spent, *cost}}
        trial.report(float(values.mean()), step)
        if step < size and trial.should_prune():
            break
    trial.set_user_attr("values", values.tolist())
    trial.set_user_attr("spent", spent)
    if len(values) < size:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
    else:
        study.tell(trial, float(values.mean()), skip_if_finished=True)


def expected_maximum(trials: int) -> float:
    """Expected greatest of so many draws from the standard normal distribution (Blom's approximation, 1958).

    >>> round(expected_maximum(1), 6), round(expected_maximum(100), 1)
    (0.0, 2.5)
    """
    from statistics import NormalDist

    return NormalDist().inv_cdf((trials - 0.375) / (trials + 0.25))


def _conclude(
    study: optuna.Study,
    problem: TuneProblem,
    space: SearchSpace,
    settings: TuneSettings,
    storage: str | None,
    of: Mapping[str, Json],
) -> TuneResult:
    trials = finished(study)
    whole = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    ranked = sorted(whole, key=lambda t: (-float(t.value or 0), t.number))
    bounded = all(0 <= v <= 1 for t in whole for v in t.user_attrs["values"])
    if not ranked:
        raise RunError(f"no list was scored to the end in {len(trials)} trials; give more --trials, or --pruner none")
    finalists = ranked[: settings.top if problem.confirmation else 1]
    arms = {t.number: a for t in finalists if (a := arm_of(t, space))}
    spent: dict[str, float] = {}
    for t in trials:
        spent = {key: spent.get(key, 0) + t.user_attrs["spent"].get(key, 0) for key in {*spent, *t.user_attrs["spent"]}}
    confirmed: dict[int, NDArray[np.float64]] = {}
    for t in finalists if problem.confirmation else ():
        way = "greedy" if problem.objective(settings.objective) == "greedy" else "metric"
        confirmed[t.number], cost = problem.score(arms[t.number], problem.confirmation, way)
        spent = {key: spent.get(key, 0) + cost.get(key, 0) for key in {*spent, *cost}}
    # the confirmation figure decides; validation only where it cannot
    best = max(finalists, key=lambda t: (_mean(confirmed.get(t.number)), float(t.value or 0), -t.number))
    values = np.array(best.user_attrs["values"])
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    validation = estimate(values[None], bounded=bounded)
    confirmation = estimate(confirmed[best.number][None], bounded=bounded) if confirmed else None
    luck = expected_maximum(len(whole)) * (0.0 if math.isnan(error) else error)
    arm = arms[best.number]
    lists = tuple((t.number, float(t.value or 0), _mean(confirmed.get(t.number))) for t in finalists)
    facts: dict[str, Json] = {
        "made": {"by": f"iclkit {__version__} tune", "at": datetime.now(UTC).isoformat(timespec="seconds")},
        "task": {"name": problem.task.name, "hash": problem.task.hash, "metric": problem.metric},
        "lm": {"name": problem.lm.name, "fingerprint": problem.lm.fingerprint},
        "search": {
            "sampler": settings.sampler, "settings": dict(of), "seed": settings.seed, "features": settings.features,
            "objective": problem.objective(settings.objective),
            "pruner": settings.pruner, "trials": len(trials), "pruned": len(trials) - len(whole),
            "trial": best.number, "values": [float(t.value or 0) for t in whole],
        },
        "study": {"name": study.study_name, "storage": without_password(storage)},
        "candidates": {"count": len(problem.view), "hash": problem.view.hash, "draw": settings.draw,
                       "instructions": len(problem.instructions)},
        "validation": {
            **_figure(validation, len(values)), "standard_error": _finite(error), "luck": luck,
            "note": f"the best of {len(whole)} figures: by luck alone it would lie about {luck:.3f} above the mean",
        },
        "confirmation": None if confirmation is None else {
            **_figure(confirmation, len(problem.confirmation)),
            "finalists": [{"trial": n, "validation": v, "confirmation": _finite(c)} for n, v, c in lists],
        },
        "spent": {key: float(value) for key, value in sorted(spent.items())},
    }  # fmt: skip
    file = SelectorFile(
        tuple(problem.demonstrations(arm)), problem.instructions[arm.instruction], problem.task.template, facts
    )
    return TuneResult(arm, validation, error, luck, confirmation, lists, tuple(trials), spent, file)


def _mean(values: NDArray[np.float64] | None) -> float:
    return float(values.mean()) if values is not None and len(values) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figure(figure: Estimate, queries: int) -> dict[str, Any]:
    return {
        "value": figure.value, "low": _finite(figure.low), "high": _finite(figure.high), "queries": queries,
    }  # fmt: skip


def curves(storage: str | None, facts: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """The values by trial of every search in a storage that asked the same questions of the same LM, by sampler."""
    from iclkit.tuners._study import _storage

    found: dict[str, list[list[float]]] = {}
    if storage is None:
        return found
    same = ("task", "lm", "metric", "template")
    with storage_errors(storage):
        for summary in optuna.get_all_study_summaries(_storage(storage)):
            if all(summary.user_attrs.get(key) == facts[key] for key in same):
                study = optuna.load_study(study_name=summary.study_name, storage=_storage(storage))
                values = [t.value for t in finished(study) if t.value is not None and t.state == TrialState.COMPLETE]
                found.setdefault(str(summary.user_attrs.get("sampler", "")), []).append(values)
    return {name: runs for name, runs in found.items() if any(runs)}
