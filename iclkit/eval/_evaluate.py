"""One task, one selector, one LM, one seed: a Run."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from iclkit import __version__
from iclkit.augment import generated
from iclkit.datasets import Task, find_leaks, sample_rows
from iclkit.embed import Embedder, Reranker
from iclkit.errors import DataError, IclkitError, LeakError, NothingAnswered, PoolError, RequestError, UsageError
from iclkit.eval._calibrate import (
    CALIBRATIONS,
    OVER_ROWS,
    blank,
    check_prior,
    divide,
    free_inputs,
    mean_prior,
    prior,
)
from iclkit.eval._metrics import METRICS, Metric
from iclkit.eval._runs import RunWriter, batches
from iclkit.lm import LM, as_lm, ask_each, ranks_only
from iclkit.models import home
from iclkit.pool import Pool, PoolView
from iclkit.prompts import (
    NORMALIZATIONS,
    ORDERS,
    Template,
    answer_options,
    answer_requests,
    answer_stops,
    assemble,
    best_option,
    log_probs,
    log_softmax,
)
from iclkit.records import (
    Example,
    GenerateRequest,
    Message,
    Progress,
    Prompt,
    Query,
    Row,
    Run,
    Score,
    ScoreRequest,
    Selection,
    Spec,
    clean_text,
    digest,
    fold_text,
)
from iclkit.selectors import SELECTORS, Kit, Selector, make_selector, selector_info

ON_LEAK = ("exclude", "stop", "ignore")
ON_ERROR = ("record", "stop")
NO_ANSWER = "no answer: the LM wrote nothing, or nothing that names an option"
CUT = "the answer ended by length, after"
"""How the notes of a row begin whose answer is none, or was cut; every other note is the selector's."""
MANY_CUT = 0.05  # share of answers that end by length from which a figure may say more of the limit than of the LM
POOL_ROWS = 100  # rows of the pool that the prior of ``pool`` calibration is taken over
_LEAST_ROOM = 16  # tokens that an answer has beyond those that the longest one shown would need, and a quarter of these
_REASONING = 256  # tokens for an answer that may be reasoned out, however short the answers that are shown
_MEASURED = 32  # of the longest texts are counted with the tokenizer


@dataclass(frozen=True)
class Bench:
    """A task made ready to be judged: its pool, the queries with what must not be shown to them, the right answers.

    ``leaks`` is what the firewall found: counts by kind, and what was done about it. ``drawn`` tells other queries than
    the first of the test rows, as a part of a run's identity: ``{"sample": seed}``, or ``{"rows": hash}``.
    """

    task: Task
    view: PoolView
    queries: tuple[Query, ...]
    golds: tuple[str, ...]
    on_leak: str = "exclude"
    leaks: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    """Where ``task`` and ``pool`` were read from, for a later command; not part of a run's identity."""
    drawn: Mapping[str, int | str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where queries were read, by id, as far as known; for messages."""

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Every different output that may be shown: those of the pool, and those of the task's train rows."""
        return tuple(dict.fromkeys([*(e.output for e in self.view.examples), *(e.output for e in self.task.train)]))

    @cached_property
    def largest_outputs(self) -> tuple[str, ...]:
        """The longest of them, to be counted with an LM's tokenizer."""
        return tuple(_largest(self.outputs))

    @property
    def writes(self) -> bool:
        """Whether answers are written, and not chosen among labels or choices."""
        return not self.task.labels and self.task.kind != "multiple_choice"


def task_pool(task: Task) -> Pool:
    """The pool of a task's train rows, kept under ``home()/pools`` so that its vectors are computed once."""
    folder = home() / "pools"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot keep pools in {folder} ({error.strerror}); set ICLKIT_HOME to a writable folder"
        ) from error
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in task.name)
    pool = Pool.open(folder / f"{safe}-{digest([e.id for e in task.train], 6)}.db")
    if len(pool) == 0:
        pool.add(task.train)
    return pool


def make_bench(
    task: Task,
    pool: Pool | PoolView | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    first: int | None = None,
    on_leak: str = "exclude",
) -> Bench:
    """A task's test rows against a pool (None: the task's own, kept with its vectors).

    ``limit``: so many test rows, drawn by ``seed`` and in their old order, as ``load_task`` draws them; a smaller
    limit's rows are among a larger one's. ``first``: the first rows of the file instead, whatever its order. Pool
    examples whose input is that of a test row, exactly, normalised or nearly, are leaks: ``exclude`` keeps each from
    the query it gives away, ``stop`` raises LeakError, ``ignore`` leaves them to be shown. DataError for an empty pool,
    and for test rows that a model wrote (see ``iclkit.augment``); UsageError for a limit below 1, for both limits
    together, or for an unknown policy.
    """
    if on_leak not in ON_LEAK:
        raise UsageError(f"on_leak is {on_leak!r}; choose from {', '.join(ON_LEAK)}")
    if limit is not None and first is not None:
        raise UsageError(f"limit is {limit} and first is {first}; give one of them")
    for name, count in (("limit", limit), ("first", first)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}; it must be at least 1")
    pool = task_pool(task) if pool is None else pool
    view = pool.view() if isinstance(pool, Pool) else pool
    if not len(view):
        raise DataError(f"the pool for task {task.name!r} is empty; add examples with: iclkit pool add POOL FILE")
    rows = sample_rows([*zip(task.queries("test"), task.test, strict=True)][:first], limit, seed=seed)
    queries, examples = [q for q, _ in rows], [e for _, e in rows]
    if made := generated(examples):
        raise DataError(
            f"{len(made)} of {len(rows)} test rows of {task.name!r} were written by a model "
            f"(meta.generated: {made[0].meta['generated']}): agreeing with it is not being right; take them out of the "
            f"test rows, or take `generated` out of their meta if people have checked them"
        )
    leaks = find_leaks(view.examples, queries)
    kinds = Counter(leak.kind for leak in leaks)
    facts = {"policy": on_leak, "pairs": dict(kinds), "queries": len({leak.test_id for leak in leaks})}
    if leaks and on_leak == "stop":
        found = leaks[0]
        raise LeakError(
            f"{facts['queries']} of {len(queries)} test rows of {task.name!r} stand in the pool, e.g. row "
            f"{found.test_id} as example {found.example_id} ({found.kind}); remove them with iclkit pool rm, "
            f"or use --on-leak exclude"
        )
    hidden: dict[str, set[str]] = {}
    for leak in leaks if on_leak == "exclude" else ():
        hidden.setdefault(leak.test_id, set()).add(leak.example_id)
    return Bench(
        task,
        view,
        tuple(replace(q, exclude=q.exclude | frozenset(hidden.get(q.id, ()))) for q in queries),
        tuple(e.output for e in examples),
        on_leak,
        facts,
        drawn={"sample": seed} if len(rows) < len(task.test) and first is None else {},
        places={q.id: task.places[e.id] for q, e in rows if e.id in task.places},
    )


def pool_bench(bench: Bench, examples: Sequence[Example]) -> Bench:
    """The same task and pool with examples as queries, each kept from seeing itself and its doubles."""
    queries, golds = leave_one_out(bench.view, examples), tuple(e.output for e in examples)
    drawn = {"rows": digest([q.id for q in queries], 8)}
    return replace(bench, queries=queries, golds=golds, leaks={}, drawn=drawn, places={})


def leave_one_out(view: PoolView, examples: Iterable[Example]) -> tuple[Query, ...]:
    """Examples as queries, each kept from seeing itself and its doubles in the pool."""

    def spelling(e: Example) -> str:
        return fold_text(e.text) or clean_text(e.text)  # a text of signs alone folds to nothing

    same: dict[str, set[str]] = {}
    for e in view.examples:
        same.setdefault(spelling(e), set()).add(e.id)
    return tuple(Query(e.input, e.choices, frozenset(same.get(spelling(e), ())) | {e.id}, e.id) for e in examples)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is made; all of it is part of the run's identity.

    ``budget`` in tokens for prompt and answer (None: the LM's context). ``normalise``: ``sum`` compares labels by their
    summed log-probability, ``mean`` by that divided by the label's tokens. ``calibrate``: see ``CALIBRATIONS``;
    ``prior``: (label, probability) of each label, for the calibration ``given``. ``answer_tokens`` and ``stop`` bound
    an answer that is written (None: see ``answer_bounds``).
    """

    k: int = 8
    seed: int = 0
    order: str = "best-last"
    budget: int | None = None
    normalise: str = "sum"
    calibrate: str = "none"
    prior: tuple[tuple[str, float], ...] = ()
    answer_tokens: int | None = None
    stop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.k < 0:
            raise UsageError(f"k is {self.k}; give 0 or more")
        if self.calibrate not in CALIBRATIONS:
            raise UsageError(f"calibrate is {self.calibrate!r}; choose from {', '.join(CALIBRATIONS)}")
        if self.normalise not in NORMALIZATIONS:
            raise UsageError(f"normalise is {self.normalise!r}; choose from {', '.join(NORMALIZATIONS)}")
        if (self.calibrate == "given") != bool(self.prior):
            raise UsageError(
                "the calibration 'given' needs a prior, a probability for each label"
                if self.calibrate == "given"
                else f"a prior is for the calibration 'given', and calibrate is {self.calibrate!r}"
            )
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise UsageError(f"answer_tokens is {self.answer_tokens}; it must be at least 1")
        if self.stop and "" in self.stop:
            raise UsageError("a stop string is empty; give some text")
        ORDERS.get(self.order)


def evaluate(
    task: Task | Bench,
    selector: str | Spec | Selector,
    lm: LM,
    *,
    pool: Pool | PoolView | None = None,
    k: int = 8,
    seed: int = 0,
    order: str = "best-last",
    embedder: Embedder | None = None,
    reranker: Reranker | None = None,
    template: Template | None = None,
    limit: int | None = None,
    budget: int | None = None,
    normalise: str = "sum",
    calibrate: str = "none",
    prior: Mapping[str, float] | None = None,
    answer_tokens: int | None = None,
    stop: Sequence[str] | None = None,
    on_leak: str = "exclude",
    on_error: str = "record",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Select, assemble, ask and judge for every test query of a task.

    A ``Bench`` in place of the task brings pool, limit and leaks along, found once for many runs. With ``out`` the run
    is kept in ``out/<run id>``: the same call again resumes it, or returns it at once when it is finished.

    A query that cannot be answered or judged (it does not fit the LM's context, a server refuses it, the metric raises)
    becomes a row with a ``failure``, and the run goes on; the same call again asks for those rows alone. With
    ``on_error`` "stop" its error is raised. ``limit`` as in ``make_bench``; the other settings as in ``Settings``.

    Errors: those of ``make_bench``, ``make_selector`` and ``fit``; NothingAnswered when every query failed; RunError
    when another process works on the same run.
    """
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error is {on_error!r}; choose from {', '.join(ON_ERROR)}")
    lm = as_lm(lm)
    bench = task if isinstance(task, Bench) else make_bench(task, pool, limit=limit, on_leak=on_leak)
    chooser = make_selector(selector)
    if k == 0 or chooser.spec.name == "zero":
        k, seed, order = 0, 0, "best-last"  # nothing is shown: neither matters, and all such runs are one
    given = tuple(sorted((prior or {}).items()))
    stops = None if stop is None else tuple(stop)
    settings = Settings(k, seed, order, budget, normalise, calibrate, given, answer_tokens, stops)
    shown = chooser.template_for(template or bench.task.template)
    kit = Kit(embedder, lm, shown, bench.task.labels, seed, order, reranker=reranker, task=bench.task.name)
    work = _Work(bench, chooser, kit, settings, on_error, progress)
    total = len(bench.queries)
    if out is None:
        rows = work.finished([row for part in batches(total) for row in work.rows(part)])
        work.must_have_answers(rows)
        return Run(work.spec, tuple(rows), work.usage, work.facts | _counts(rows) | {"done": True})
    asked = [(q.id, gold) for q, gold in zip(bench.queries, bench.golds, strict=True)]
    with RunWriter.opened(Path(out), work.spec, total, asked) as folder:
        again = [at for at, row in enumerate(folder.rows) if row.failure]
        if not folder.done or again:
            before = dict(folder.usage)

            def save(*, done: bool) -> None:
                folder.usage = before | {key: before.get(key, 0) + value for key, value in work.usage.items()}
                folder.facts = work.facts | (_counts(folder.rows) if done else {})
                folder.save(done=done, texts=work.texts(folder.rows) if done else ())

            if not folder.done:  # a finished run with failed rows stays finished until they are asked again
                save(done=False)
            for part in batches(total):
                if part.start < len(folder.rows):
                    work.skip(part)
                    continue
                folder.append(work.rows(part))
                save(done=False)
            rows = list(folder.rows)
            for part in batches(len(again)) if again else ():
                some = again[part.start : part.stop]
                for at, row in zip(some, work.rows(some, steps=False), strict=True):
                    rows[at] = row
            rows = work.finished(rows)
            if rows != folder.rows:
                folder.rewrite(rows)
            work.must_have_answers(rows)
            save(done=True)
        return Run(work.spec, tuple(folder.rows), folder.usage, folder.facts | {"done": True})


def run_spec(bench: Bench, chooser: Selector, kit: Kit, settings: Settings) -> dict[str, Any]:
    """Everything that determines a run's rows."""
    task, spec, lm = bench.task, chooser.spec, kit.lm
    assert lm is not None
    assert kit.template is not None
    used = {part: getattr(kit, part) for part in ("embedder", "reranker") if getattr(chooser.needs, part)}
    models = {part: {"name": m.name, "fingerprint": m.fingerprint} for part, m in used.items() if m is not None}
    settled: dict[str, Any] = {
        "k": settings.k,
        "seed": settings.seed,
        "order": settings.order,
        "budget": settings.budget,
        "normalise": settings.normalise,
        "calibrate": settings.calibrate,
    }
    if settings.calibrate in OVER_ROWS:
        of_pool = {"pool rows": min(POOL_ROWS, len(bench.view))}
        settled["prior"] = {"given": dict(settings.prior), "batch": "all rows", "pool": of_pool}[settings.calibrate]
    if bench.writes:
        bounds = answer_bounds(bench, kit.template, lm, settings)
        settled |= {"answer_tokens": bounds.tokens, "stop": list(bounds.stops)}
    return {
        "iclkit": __version__,
        "task": {"name": task.name, "hash": task.hash, "kind": task.kind, "metric": task.metric,
                 "labels": list(task.labels), "queries": len(bench.queries), **bench.drawn},
        "pool": {"hash": bench.view.hash, "size": len(bench.view)},
        "selector": {"name": spec.name, "settings": dict(spec.settings), "version": spec.version},
        "lm": {"name": lm.name, "fingerprint": lm.fingerprint},
        "embedder": None,
        **models,
        "template": kit.template.identity(),
        "on_leak": bench.on_leak,
        **settled,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class AnswerBounds:
    """Where a written answer ends: at one of ``stops``, or after so many ``tokens``."""

    tokens: int
    stops: tuple[str, ...]


def answer_bounds(bench: Bench, template: Template, lm: LM, settings: Settings) -> AnswerBounds:
    """Where the written answers of a run end, unless the settings or the task say it.

    Tokens: what the longest output that may be shown takes, and a quarter and 16 more; at least 256 for a reasoning
    task, whose answers may be short where the way to them is not; at most half of what the LM reads. Stops: see
    ``iclkit.prompts.answer_stops``; a reasoning may take several lines.
    """
    reasons = bench.task.kind == "reasoning"
    stops = settings.stop
    if stops is None:
        stops = answer_stops(template, bench.outputs, one_line=not reasons)
    tokens = settings.answer_tokens or bench.task.max_answer_tokens
    if tokens is None:
        longest = most_tokens(bench.largest_outputs, lm)
        wanted = max(_LEAST_ROOM + math.ceil(1.25 * longest), _REASONING if reasons else 0)
        tokens = max(1, min(wanted, (settings.budget or lm.context_size) // 2))
    return AnswerBounds(tokens, stops)


def most_tokens(texts: Iterable[str], lm: LM) -> int:
    """Tokens of the text that has the most, found among those with the most bytes; 0 for no texts."""
    return max((lm.count_tokens(text) for text in _largest(texts)), default=0)


def _largest(texts: Iterable[str]) -> list[str]:
    """The texts with the most bytes, always the same ones: a tokenizer makes at most about a token of each byte."""
    return sorted(texts, key=lambda text: (-len(text.encode("utf-8", "replace")), text))[:_MEASURED]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer, and what it would be without calibration; for scored labels their summed log-probabilities, and the
    log-probabilities, normed over the labels, by which the answer was chosen. "" where there is no answer."""

    output: str
    raw: str
    logprobs: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    greedy: tuple[str, ...] | None = None
    """Those labels that greedy decoding would have written; None for a written answer."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _by_label(labels: Sequence[str], values: Any) -> dict[str, float]:
    return {label: float(value) for label, value in zip(labels, values, strict=True)}


def short_name(spec: Spec) -> str:
    """A selector's spec without the settings that are its defaults."""
    if spec.name not in SELECTORS.names():
        return str(spec)
    defaults: Any = selector_info(SELECTORS.get(spec.name))["settings"]
    return str(Spec(spec.name, {k: v for k, v in spec.settings.items() if k not in defaults or defaults[k] != v}))


@dataclass
class _Asked:
    """A query on its way to a row. ``error``: what ended it; nothing further is done with it then."""

    query: Query
    gold: str
    selection: Selection
    prompt: Prompt = field(default_factory=lambda: Prompt(""))
    answer: _Answer = field(default_factory=lambda: _Answer("", ""))
    error: str = ""


class _Work:
    """The three stages of a run, a chunk of queries at a time; counts what they cost.

    An error that one query brings about ends that query (``on_error`` "record") or the run ("stop").
    """

    def __init__(
        self,
        bench: Bench,
        chooser: Selector,
        kit: Kit,
        settings: Settings,
        on_error: str,
        progress: Progress | None,
    ) -> None:
        assert kit.lm is not None
        assert kit.template is not None
        self.bench, self.chooser, self.kit, self.settings, self.progress = bench, chooser, kit, settings, progress
        self.on_error = on_error
        self.lm: LM = kit.lm
        lm, template = self.lm, kit.template
        self.template: Template = template
        self.metric: Metric = METRICS.get(bench.task.metric)
        task, calibrate = bench.task, settings.calibrate
        self.scored, self.ranks = not bench.writes, ranks_only(lm)
        if calibrate != "none" and not self.scored:
            raise UsageError(f"task {task.name!r} has no labels to calibrate; leave --calibrate out")
        if calibrate in OVER_ROWS and task.kind == "multiple_choice":
            raise UsageError(f"{calibrate} calibration needs one label set for all queries; use contextual or domain")
        if self.ranks and self.scored and (calibrate, settings.normalise) != ("none", "sum"):
            what = f"calibrate {calibrate}" if calibrate != "none" else "normalise mean"
            raise UsageError(
                f"{lm.name} tells no log-probabilities: its answers are compared with the labels, and such ranks "
                f"cannot be averaged or calibrated; leave {what!r} out"
            )
        if calibrate == "given":
            check_prior(dict(settings.prior), task.labels)
        self.spec = run_spec(bench, chooser, kit, settings)
        self.facts: dict[str, Any] = {
            "leaks": bench.leaks,
            "selector": short_name(chooser.spec),
            "trained on": _trained_on(chooser, kit, bench.task.name),
            "source": bench.source,
        }
        self.usage: dict[str, float] = {}
        self._fitted = False
        self._done = 0
        self.free = free_inputs(calibrate, bench.view.examples, settings.seed)
        if self.scored:
            self.reserve = most_tokens(bench_answers(bench), lm)
        else:
            self.bounds = answer_bounds(bench, template, lm, settings)
            self.reserve = self.bounds.tokens

    def skip(self, part: Sequence[int]) -> None:
        """Count a chunk that was done before."""
        self._step(len(part))

    def rows(self, part: Sequence[int], *, steps: bool = True) -> list[Row]:
        """The rows of the queries at these positions, as ``finished`` wants them; ``steps``: count them as done."""
        asked = self._answered([(self.bench.queries[at], self.bench.golds[at]) for at in part])
        if steps:
            self._step(len(part))
        return [self._row(one) for one in asked]

    def finished(self, rows: list[Row]) -> list[Row]:
        """All rows of the run, calibrated where the calibration looks at many of them. May be called on its result."""
        labels, kind = self.bench.task.labels, self.settings.calibrate
        told = [row for row in rows if row.label_logprobs]
        if kind not in OVER_ROWS or not told:
            return rows
        if kind == "given":
            log_prior = np.log([dict(self.settings.prior)[label] for label in labels])
        else:
            seen = self._pool_scores() if kind == "pool" else [self._judged_by(r.label_logprobs, r) for r in told]
            seen = [scores for scores in seen if best_option([*scores]) is not None]
            if len(seen) < 2:  # one query alone would come out with all labels alike
                return rows
            log_prior = mean_prior(np.stack(seen))
        self.facts["prior"] = {label: float(p) for label, p in zip(labels, np.exp(log_prior), strict=True)}
        return [self._calibrated(row, log_prior) if row.label_logprobs else row for row in rows]

    def must_have_answers(self, rows: Sequence[Row]) -> None:
        """NothingAnswered, with the reason of the first, when every row failed."""
        if rows and all(row.failure for row in rows):
            raise NothingAnswered(f"none of {len(rows)} queries could be answered and judged: {rows[0].failure}")

    def texts(self, rows: Sequence[Row]) -> list[Query | Example]:
        """Queries and shown examples, for the reports."""
        shown = dict.fromkeys(i for row in rows for i in row.shown)
        return [*self.bench.queries, *self.bench.view.examples_of(shown)]

    # -- stages ---------------------------------------------------------------------------------------------------

    def _answered(self, wanted: Sequence[tuple[Query, str]]) -> list[_Asked]:
        with self._timed("select"):
            if not self._fitted:
                self.chooser.fit(self.bench.view, replace(self.kit, reserve=self.reserve))
                self._fitted = True
            asked = self._selected(wanted)
        with self._timed("assemble"):
            for one in asked:
                with self._ends(one):
                    one.prompt = self._prompt(one.query, one.selection.ids)
        with self._timed("score"):
            left = [one for one in asked if not one.error]
            if self.scored:
                self._score(left)
            else:
                self._generate(left)
        return asked

    def _selected(self, wanted: Sequence[tuple[Query, str]]) -> list[_Asked]:
        queries, k = [query for query, _ in wanted], self.settings.k
        asked = [_Asked(query, gold, Selection(query, (), self.chooser.spec)) for query, gold in wanted]
        try:
            selections = self.chooser.select_many(queries, k)
        except IclkitError as error:
            if not _ends_a_row(error):
                raise
            for one in asked:  # which of them is it?
                with self._ends(one):
                    (one.selection,) = self.chooser.select_many([one.query], k)
        else:
            for one, selection in zip(asked, selections, strict=True):
                one.selection = selection
        return asked

    def _prompt(self, query: Query, best_first: Sequence[str]) -> Prompt:
        ranked = self.bench.view.examples_of(best_first)
        return assemble(
            self.template,
            query,
            ranked,
            order=self.settings.order,
            budget=self.settings.budget or self.lm.context_size,
            count_tokens=self.lm.count_tokens,
            render_chat=self.lm.render_chat if self.template.chat else None,
            seed=self.settings.seed,
            reserve=self.reserve,
        )

    def _score(self, asked: Sequence[_Asked]) -> None:
        # the content-free prompts of a query stand beside it, so that the LM reads their demonstrations once
        requests, owners, places = list[ScoreRequest](), list[int](), dict[int, range]()
        options: dict[int, tuple[str, ...]] = {}
        for n, one in enumerate(asked):
            with self._ends(one):
                query, options[n] = one.query, options_of(self.bench.task, one.query)
                prompts = [one.prompt, *self._blanks(one)]
                own = [r for p in prompts for r in answer_requests(p, self.template, options[n], query.choices)]
                places[n] = range(len(requests), len(requests) + len(own))
                requests += own
                owners += [n] * len(own)
        found = self._ask(self.lm.score, requests, owners, asked)
        for n, one in enumerate(asked):
            if not one.error:
                one.answer = self._read(options[n], [found[i] for i in places[n]])

    def _read(self, options: tuple[str, ...], scores: Sequence[Score]) -> _Answer:
        """The answer that scores tell: of the query's own prompt, then of each content-free one."""
        count = len(options)
        summed = log_probs(scores[:count])
        judged = log_probs(scores, self.settings.normalise).reshape(-1, count)
        greedy = tuple(o for o, s in zip(options, scores, strict=False) if s.greedy)
        best = best_option(judged[0].tolist())
        if best is None:
            logprobs = {} if self.ranks else _by_label(options, summed)
            return _Answer("", "", logprobs, greedy=greedy, notes=(NO_ANSWER,))
        final = log_softmax(judged[0])
        if self.free:
            final = divide(judged[0], prior(judged[1:]))
        chosen, raw = options[int(np.argmax(final))], options[best]  # ties go to the first label
        if self.ranks:
            return _Answer(chosen, raw, greedy=greedy)
        divided = self.settings.normalise == "mean" and self.settings.calibrate in OVER_ROWS
        counts = {o: max(1, s.tokens) for o, s in zip(options, scores, strict=False)} if divided else {}
        return _Answer(chosen, raw, _by_label(options, summed), _by_label(options, final), greedy, counts)

    def _blanks(self, one: _Asked) -> list[Prompt]:
        """The content-free prompts of a query, under the same budget: what is over it goes, worst rank first."""
        kept = {*one.prompt.shown}
        shown = [i for i in one.selection.ids if i in kept]
        return [self._prompt(blank(one.query, text), shown) for text in self.free]

    def _generate(self, asked: Sequence[_Asked]) -> None:
        tokens, stops = self.bounds.tokens, self.bounds.stops
        requests = [GenerateRequest(one.prompt.text, tokens, stops) for one in asked]
        found = self._ask(self.lm.generate, requests, range(len(asked)), asked)
        for n, one in enumerate(asked):
            if not one.error:
                text = found[n].text.strip()
                cut = (f"{CUT} {tokens} tokens",) if found[n].finish == "length" else ()
                one.answer = _Answer(text, text, notes=(*cut, *(() if text else (NO_ANSWER,))))

    def _ask(self, ask: Any, requests: Sequence[Any], owners: Sequence[int], asked: Sequence[_Asked]) -> dict[int, Any]:
        found, failed = ask_each(ask, requests, owners)
        for n, error in failed.items():
            with self._ends(asked[n]):
                raise error
        return found

    # -- rows -----------------------------------------------------------------------------------------------------

    def _row(self, one: _Asked) -> Row:
        selection, prompt, answer = one.selection, one.prompt, one.answer
        metrics: dict[str, float] = {}
        if not one.error:
            with self._ends(one):
                metrics = self._metrics(answer, one.gold)
        return Row(
            query_id=one.query.id,
            gold=one.gold,
            output=answer.output,
            metrics=metrics,
            picks=tuple((p.example_id, p.score) for p in selection.picks),
            shown=prompt.shown,
            dropped=prompt.dropped,
            prompt_hash=prompt.hash if prompt.text else "",
            prompt_tokens=prompt.tokens,
            label_logprobs=answer.logprobs,
            notes=(*selection.notes, *answer.notes),
            greedy=answer.greedy,
            failure=one.error,
            label_tokens=answer.tokens,
        )

    def _metrics(self, answer: _Answer, gold: str) -> dict[str, float]:
        metrics = {}
        if self.metric.judge:
            metrics[self.metric.name] = self._worth(answer.output, gold)
            if self.settings.calibrate != "none":
                metrics[f"{self.metric.name}_raw"] = self._worth(answer.raw, gold)
        if gold in answer.shares:
            metrics["gold_logprob"] = answer.shares[gold]
        return metrics

    def _worth(self, output: str, gold: str) -> float:
        """What the metric says. DataError for anything but a finite number, and whatever it raises itself."""
        name = self.metric.name
        assert self.metric.judge is not None
        try:
            value = self.metric.judge(output, gold)
            finite = math.isfinite(value)
        except IclkitError:
            raise
        except Exception as error:  # metrics are plug-ins too: what one raises costs the row it was raised for
            raise DataError(f"metric {name!r} raised {type(error).__name__}: {error}") from error
        if not finite:
            raise DataError(f"metric {name!r} gave {value!r} for an answer; a finite number was expected")
        return value

    def _judged_by(self, logprobs: Mapping[str, float], row: Row | _Answer) -> Any:
        """(L,) scores of the labels in the task's order, after normalisation."""
        labels = self.bench.task.labels
        tokens = row.label_tokens if isinstance(row, Row) else row.tokens
        return np.array([logprobs[label] / tokens.get(label, 1) for label in labels])

    def _calibrated(self, row: Row, log_prior: Any) -> Row:
        """A row with its answer chosen by the scores divided by a prior; of a calibrated row the same again."""
        labels = self.bench.task.labels
        judged = self._judged_by(row.label_logprobs, row)
        best = best_option(judged.tolist())
        if best is None:
            return row
        final = divide(judged, log_prior)
        answer = _Answer(labels[int(np.argmax(final))], labels[best], shares=_by_label(labels, final))
        query = Query("", id=row.query_id)
        one = _Asked(query, row.gold, Selection(query, (), self.chooser.spec))
        metrics: dict[str, float] = {}
        with self._ends(one):
            metrics = self._metrics(answer, row.gold)
        return replace(row, output=answer.output, metrics=metrics, failure=one.error)

    def _pool_scores(self) -> list[Any]:
        """(L,) scores of each of some rows of the pool, asked as the queries are, never seeing themselves."""
        examples = sample_rows(self.bench.view.examples, POOL_ROWS, seed=self.settings.seed)
        queries = leave_one_out(self.bench.view, examples)
        asked = self._answered([(q, e.output) for q, e in zip(queries, examples, strict=True)])
        return [self._judged_by(one.answer.logprobs, one.answer) for one in asked if one.answer.logprobs]

    @contextmanager
    def _ends(self, one: _Asked) -> Any:
        """An error that one query brings about ends it, or the run where that is wanted."""
        try:
            yield
        except IclkitError as error:
            if not _ends_a_row(error):
                raise
            place = self.bench.places.get(one.query.id, "")
            if self.on_error == "stop":
                if not place:
                    raise
                raise DataError(f"{place}: {error}") from error
            one.error = f"{place}: {error}" if place else str(error)

    @contextmanager
    def _timed(self, stage: str) -> Any:
        before = self.lm.usage
        start = time.perf_counter()
        yield
        self._add(f"{stage}_s", time.perf_counter() - start)
        for key, value in (self.lm.usage - before).as_dict().items():
            self._add("lm_s" if key == "seconds" else key, value)

    def _add(self, key: str, value: float) -> None:
        self.usage[key] = round(self.usage.get(key, 0) + value, 6)

    def _step(self, count: int) -> None:
        self._done += count
        if self.progress:
            self.progress(self._done, len(self.bench.queries))


def prompt_of(template: Template, query: Query, shown: Sequence[Example], lm: LM | None = None) -> Prompt:
    """A row's prompt again, from the examples that it showed, in prompt order. ``lm`` renders chat templates."""
    return assemble(
        template,
        query,
        list(shown),
        order="best-first",
        count_tokens=lm.count_tokens if lm else None,
        render_chat=(lm.render_chat if lm else plain_chat) if template.chat else None,
    )


def plain_chat(messages: Sequence[Message]) -> str:
    """A chat as people read it, where no model's own template is at hand."""
    return "".join(f"[{m.role}]\n{m.content}\n" for m in messages) + "[assistant]\n"


def options_of(task: Task, query: Query) -> tuple[str, ...]:
    """The answers that are scored for a query: the task's labels, or the query's own choices."""
    options = answer_options(query, task.labels)
    if not options:
        raise DataError(f"query {query.id} of {task.name!r} has no choices to score")
    return options


def bench_answers(bench: Bench) -> set[str]:
    """Every answer that may be scored."""
    return {*bench.task.labels, *(c for q in bench.queries for c in q.choices)}


def _ends_a_row(error: IclkitError) -> bool:
    """Whether an error says something of one query or its prompt, and not of the pool, the LM or the command."""
    return isinstance(error, RequestError | DataError) and not isinstance(error, PoolError)


def _trained_on(chooser: Selector, kit: Kit, task: str) -> bool:
    """Whether the run chooses with a retriever that has learnt from this task."""
    return chooser.needs.embedder and kit.embedder is not None and task in kit.embedder.trained_on


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """What a reader of the run should know, counted over its rows."""
    ours = (NO_ANSWER, CUT)
    notes = [[n for n in row.notes if not n.startswith(ours)] for row in rows]
    counts = {
        "short": sum(map(bool, notes)),
        "dropped": sum(len(row.dropped) for row in rows),
        "note": next((n for own in notes for n in own), ""),
    }
    failed = [row.failure for row in rows if row.failure]
    more = {
        "no answer": sum(NO_ANSWER in row.notes for row in rows),
        "cut": sum(any(n.startswith(CUT) for n in row.notes) for row in rows),
        "failed": len(failed),
        "failure": failed[0] if failed else "",
    }
    return counts | {name: value for name, value in more.items() if value}


def cautions(runs: Sequence[Run]) -> list[str]:
    """What else a reader of the runs' figure must know, in sentences; empty for most runs."""

    def count(name: str) -> int:
        return sum(run.facts.get(name, 0) for run in runs)

    total, said = sum(run.spec["task"]["queries"] for run in runs), list[str]()
    if failed := count("failed"):
        reason = next(run.facts["failure"] for run in runs if run.facts.get("failed"))
        said.append(
            f"{failed} of {total} queries failed, the first with: {reason} (the same command asks for them again)"
        )
    if silent := count("no answer"):
        said.append(f"{silent} of {total} queries got no answer, which counts as wrong")
    if (cut := count("cut")) > MANY_CUT * total:
        bound = max(run.spec.get("answer_tokens", 0) for run in runs)
        said.append(
            f"{cut} of {total} answers ended by length, after {bound} tokens: give them more with --answer-tokens, or "
            f"an end with --stop"
        )
    return said
