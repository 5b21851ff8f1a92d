"""One task, one selector, one LM, one seed: a Run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from iclkit import __version__
from iclkit.augment import generated
from iclkit.datasets import Task, find_leaks
from iclkit.errors import DataError, LeakError, UsageError
from iclkit.eval._calibrate import CALIBRATIONS, blank, by_batch, divide, free_inputs, log_shares, prior
from iclkit.eval._metrics import METRICS, Metric
from iclkit.eval._store import RunFolder, chunks
from iclkit.lm import LM, GenerateRequest, Progress, ScoreRequest
from iclkit.models import home
from iclkit.pool import Embedder, Pool, PoolView, Retriever
from iclkit.prompts import ORDERS, Template, assemble
from iclkit.records import Example, Message, Prompt, Query, Row, Run, Selection, Spec, digest
from iclkit.selectors import SELECTORS, Kit, Reranker, Selector, describe, make_selector, template_for

ON_LEAK = ("exclude", "stop", "ignore")
NORMALISE = ("sum", "mean")


@dataclass(frozen=True)
class Bench:
    """A task made ready to be judged: its pool, the queries with what must not be shown to them, the right answers.

    ``leaks`` is what the firewall found: counts by kind, and what was done about it.
    """

    task: Task
    view: PoolView
    queries: tuple[Query, ...]
    golds: tuple[str, ...]
    on_leak: str = "exclude"
    leaks: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    """Where ``task`` and ``pool`` were read from, for a later command; not part of a run's identity."""


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
    task: Task, pool: Pool | PoolView | None = None, *, limit: int | None = None, on_leak: str = "exclude"
) -> Bench:
    """The first ``limit`` test rows of a task against a pool (None: the task's own, kept with its vectors).

    Pool examples whose input is that of a test row, exactly, normalised or nearly, are leaks: ``exclude`` keeps each
    from the query it gives away, ``stop`` raises LeakError, ``ignore`` leaves them to be shown. DataError for an empty
    pool, and for test rows that a model wrote (see ``iclkit.augment``); UsageError for a limit below 1 or an unknown
    policy.
    """
    if on_leak not in ON_LEAK:
        raise UsageError(f"on_leak is {on_leak!r}; choose from {', '.join(ON_LEAK)}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    pool = task_pool(task) if pool is None else pool
    view = pool.view() if isinstance(pool, Pool) else pool
    if not len(view):
        raise DataError(f"the pool for task {task.name!r} is empty; add examples with: iclkit pool add POOL FILE")
    if made := generated(task.test[:limit]):
        raise DataError(
            f"{len(made)} of {len(task.test[:limit])} test rows of {task.name!r} were written by a model "
            f"(meta.generated: {made[0].meta['generated']}): agreeing with it is not being right; take them out of the "
            f"test rows, or take `generated` out of their meta if people have checked them"
        )
    queries, golds = task.queries("test")[:limit], tuple(e.output for e in task.test[:limit])
    leaks = find_leaks(view.examples, queries)
    kinds = Counter(leak.kind for leak in leaks)
    facts = {"policy": on_leak, "pairs": dict(kinds), "queries": len({leak.test_id for leak in leaks})}
    if leaks and on_leak == "stop":
        first = leaks[0]
        raise LeakError(
            f"{facts['queries']} of {len(queries)} test rows of {task.name!r} stand in the pool, e.g. row "
            f"{first.test_id} as example {first.example_id} ({first.kind}); remove them with iclkit pool rm, "
            f"or use --on-leak exclude"
        )
    hidden: dict[str, set[str]] = {}
    for leak in leaks if on_leak == "exclude" else ():
        hidden.setdefault(leak.test_id, set()).add(leak.example_id)
    queries = tuple(replace(q, exclude=q.exclude | frozenset(hidden.get(q.id, ()))) for q in queries)
    return Bench(task, view, queries, golds, on_leak, facts)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is made; all of it is part of the run's identity.

    ``budget`` in tokens for prompt and answer (None: the LM's context). ``normalise``: ``sum`` compares labels by their
    summed log-probability, ``mean`` by that divided by the label's tokens. ``calibrate``: see ``CALIBRATIONS``.
    """

    k: int = 8
    seed: int = 0
    order: str = "best-last"
    budget: int | None = None
    normalise: str = "sum"
    calibrate: str = "none"

    def __post_init__(self) -> None:
        if self.k < 0:
            raise UsageError(f"k is {self.k}; give 0 or more")
        if self.calibrate not in CALIBRATIONS:
            raise UsageError(f"calibrate is {self.calibrate!r}; choose from {', '.join(CALIBRATIONS)}")
        if self.normalise not in NORMALISE:
            raise UsageError(f"normalise is {self.normalise!r}; choose from {', '.join(NORMALISE)}")
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
    on_leak: str = "exclude",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Select, assemble, ask and judge for every test query of a task.

    A ``Bench`` in place of the task brings pool, limit and leaks along, found once for many runs. With ``out`` the run
    is kept in ``out/<run id>``: the same call again resumes it, or returns it at once when it is finished. Errors:
    those of ``make_bench``, ``make_selector`` and ``fit``; DataError when a query alone is over the budget; RunError
    when another process works on the same run.
    """
    bench = task if isinstance(task, Bench) else make_bench(task, pool, limit=limit, on_leak=on_leak)
    chooser = make_selector(selector) if isinstance(selector, str | Spec) else selector
    if k == 0 or chooser.spec.name == "zero":
        k, seed, order = 0, 0, "best-last"  # nothing is shown: neither matters, and all such runs are one
    settings = Settings(k, seed, order, budget, normalise, calibrate)
    shown = template_for(chooser, template or bench.task.template)
    kit = Kit(embedder, lm, shown, bench.task.labels, seed, order, reranker=reranker, task=bench.task.name)
    work = _Work(bench, chooser, kit, settings, progress)
    if out is None:
        rows = [row for part in chunks(len(bench.queries)) for row in work.rows(part)]
        return Run(work.spec, tuple(rows), work.spent, work.facts | _notes(rows) | {"done": True})
    asked = [(q.id, gold) for q, gold in zip(bench.queries, bench.golds, strict=True)]
    with RunFolder.opened(Path(out), work.spec, len(asked), asked) as folder:
        if not folder.done:
            before = dict(folder.spent)
            folder.facts = work.facts
            folder.save(done=False)
            for part in chunks(len(bench.queries)):
                if part.start < len(folder.rows):
                    work.skip(part)
                    continue
                folder.append(work.rows(part))
                folder.spent = {key: before.get(key, 0) + value for key, value in work.spent.items()}
                folder.facts = work.facts
                folder.save(done=False)
            folder.facts = work.facts | _notes(folder.rows)
            folder.save(done=True, texts=work.texts(folder.rows))
        return Run(work.spec, tuple(folder.rows), folder.spent, folder.facts | {"done": True})


def run_spec(bench: Bench, chooser: Selector, kit: Kit, settings: Settings) -> dict[str, Any]:
    """Everything that determines a run's rows."""
    task, spec, lm = bench.task, chooser.spec, kit.lm
    assert lm is not None
    assert kit.template is not None
    used = {part: getattr(kit, part) for part in ("embedder", "reranker") if getattr(chooser.needs, part)}
    models = {part: {"name": m.name, "fingerprint": m.fingerprint} for part, m in used.items() if m is not None}
    return {
        "iclkit": __version__,
        "task": {"name": task.name, "hash": task.hash, "kind": task.kind, "metric": task.metric,
                 "labels": list(task.labels), "queries": len(bench.queries)},
        "pool": {"hash": bench.view.hash, "size": len(bench.view)},
        "selector": {"name": spec.name, "settings": dict(spec.settings), "version": spec.version},
        "lm": {"name": lm.name, "fingerprint": lm.fingerprint},
        "embedder": None,
        **models,
        "template": asdict(kit.template),
        "on_leak": bench.on_leak,
        **asdict(settings),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer, and what it would be without calibration; for scored labels their summed log-probabilities, and the
    log-probabilities, normed over the labels, by which the answer was chosen."""

    output: str
    raw: str
    logprobs: Mapping[str, float]
    shares: Mapping[str, float]
    greedy: tuple[str, ...] | None = None
    """Those labels that greedy decoding would have written; None for a written answer."""


def _by_label(labels: Sequence[str], values: Any) -> dict[str, float]:
    return {label: float(value) for label, value in zip(labels, values, strict=True)}


def short_name(spec: Spec) -> str:
    """A selector's spec without the settings that are its defaults."""
    if spec.name not in SELECTORS.names():
        return str(spec)
    defaults: Any = describe(SELECTORS.get(spec.name))["settings"]
    return str(Spec(spec.name, {k: v for k, v in spec.settings.items() if k not in defaults or defaults[k] != v}))


class _Work:
    """The three stages of a run, a chunk of queries at a time; counts what they cost."""

    def __init__(
        self,
        bench: Bench,
        chooser: Selector,
        kit: Kit,
        settings: Settings,
        progress: Progress | None,
    ) -> None:
        assert kit.lm is not None
        assert kit.template is not None
        self.bench, self.chooser, self.kit, self.settings, self.progress = bench, chooser, kit, settings, progress
        self.lm: LM = kit.lm
        lm, template = self.lm, kit.template
        self.template: Template = template
        self.metric: Metric = METRICS.get(bench.task.metric)
        self.spec = run_spec(bench, chooser, kit, settings)
        self.facts: dict[str, Any] = {
            "leaks": bench.leaks,
            "selector": short_name(chooser.spec),
            "trained on": _trained_on(chooser, kit, bench.task.name),
            "source": bench.source,
        }
        self.spent: dict[str, float] = {}
        self._fitted = False
        self._done = 0
        task = bench.task
        self.scored = bool(task.labels) or task.kind == "multiple_choice"
        self.stops = template.stop_strings if self.scored else _stops(template, task)
        if settings.calibrate != "none" and not self.scored:
            raise UsageError(f"task {task.name!r} has no labels to calibrate; leave --calibrate out")
        if settings.calibrate == "batch" and task.kind == "multiple_choice":
            raise UsageError("batch calibration needs one label set for all queries; use contextual or domain")
        self.free = free_inputs(settings.calibrate, bench.view.examples, settings.seed)
        longest = max(bench_answers(bench), key=len, default="")
        self.reserve = lm.count_tokens(longest) if self.scored else task.max_answer_tokens

    def skip(self, part: range) -> None:
        """Count a chunk that was done before."""
        self._step(len(part))

    def rows(self, part: range) -> list[Row]:
        """The rows of the queries at these positions."""
        queries = self.bench.queries[part.start : part.stop]
        golds = self.bench.golds[part.start : part.stop]
        with self._timed("select"):
            if not self._fitted:
                self.chooser.fit(self.bench.view, replace(self.kit, reserve=self.reserve))
                self._fitted = True
            selections = self.chooser.select_many(queries, self.settings.k)
        with self._timed("assemble"):
            prompts = [self._prompt(q, s) for q, s in zip(queries, selections, strict=True)]
        with self._timed("score"):
            answers = self._scored(queries, prompts) if self.scored else self._generated(prompts)
        self._step(len(part))
        return [
            self._row(q, gold, s, p, answer)
            for q, gold, s, p, answer in zip(queries, golds, selections, prompts, answers, strict=True)
        ]

    def texts(self, rows: Sequence[Row]) -> list[Query | Example]:
        """Queries and shown examples, for the reports."""
        shown = dict.fromkeys(i for row in rows for i in row.shown)
        row_of = {i: n for n, i in enumerate(self.bench.view.ids)}
        return [*self.bench.queries, *(self.bench.view.examples[row_of[i]] for i in shown)]

    def _prompt(self, query: Query, selection: Selection) -> Prompt:
        view = self.bench.view
        ranked = [view.examples[row] for i in selection.ids if (row := view.row_of(i)) is not None]
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

    def _scored(self, queries: Sequence[Query], prompts: Sequence[Prompt]) -> list[_Answer]:
        options = [options_of(self.bench.task, q) for q in queries]
        asked = [*zip(queries, prompts, options, strict=True)]
        # the content-free prompts of a query stand beside it, so that the LM reads their demonstrations once
        asked = [each for one in asked for each in (one, *self._blanks(*one))]
        scores = iter(
            self.lm.score(
                [
                    ScoreRequest(p.text, p.answer_prefix + self.template.answer(o, q.choices))
                    for q, p, answers in asked
                    for o in answers
                ]
            )
        )
        summed, judged, greedy = [], [], []
        for _, _, answers in asked:
            these = [next(scores) for _ in answers]
            greedy.append(tuple(o for o, s in zip(answers, these, strict=True) if s.greedy))
            summed.append(np.array([s.logprob for s in these]))
            tokens = np.array([max(1, s.tokens) for s in these])
            judged.append(summed[-1] / tokens if self.settings.normalise == "mean" else summed[-1])
        step = 1 + len(self.free)
        raw, final = judged[::step], [log_shares(j) for j in judged[::step]]
        if self.free:
            priors = [prior(np.stack(judged[i + 1 : i + step])) for i in range(0, len(judged), step)]
            final = [divide(r, p) for r, p in zip(raw, priors, strict=True)]
        elif self.settings.calibrate == "batch" and len(raw) > 1:
            final = list(by_batch(np.stack(raw)))
        # ties go to the first label
        return [
            _Answer(o[int(np.argmax(f))], o[int(np.argmax(r))], _by_label(o, s), _by_label(o, f), g)
            for o, s, r, f, g in zip(options, summed[::step], raw, final, greedy[::step], strict=True)
        ]

    def _blanks(
        self, query: Query, prompt: Prompt, options: tuple[str, ...]
    ) -> list[tuple[Query, Prompt, tuple[str, ...]]]:
        if not self.free:
            return []
        view = self.bench.view
        shown = [view.examples[row] for i in prompt.shown if (row := view.row_of(i)) is not None]
        blanks = [blank(query, text) for text in self.free]
        return [(b, prompt_of(self.template, b, shown, self.lm), options) for b in blanks]

    def _generated(self, prompts: Sequence[Prompt]) -> list[_Answer]:
        requests = [GenerateRequest(p.text, self.bench.task.max_answer_tokens, self.stops) for p in prompts]
        return [_Answer(g.text.strip(), g.text.strip(), {}, {}) for g in self.lm.generate(requests)]

    def _row(self, query: Query, gold: str, selection: Selection, prompt: Prompt, answer: _Answer) -> Row:
        metrics = {}
        if self.metric.judge:
            metrics[self.metric.name] = self.metric.judge(answer.output, gold)
            if self.settings.calibrate != "none":
                metrics[f"{self.metric.name}_raw"] = self.metric.judge(answer.raw, gold)
        if gold in answer.shares:
            metrics["gold_logprob"] = answer.shares[gold]
        return Row(
            query_id=query.id,
            gold=gold,
            output=answer.output,
            metrics=metrics,
            picks=tuple((p.example_id, p.score) for p in selection.picks),
            shown=prompt.shown,
            dropped=prompt.dropped,
            prompt_hash=prompt.hash,
            prompt_tokens=prompt.tokens,
            label_logprobs=answer.logprobs,
            notes=selection.notes,
            greedy=answer.greedy,
        )

    @contextmanager
    def _timed(self, stage: str) -> Any:
        spent = getattr(self.lm, "spent", None)
        before = spent.as_dict() if spent else {}
        start = time.perf_counter()
        yield
        self._add(f"{stage}_s", time.perf_counter() - start)
        for key, value in (spent.as_dict() if spent else {}).items():
            self._add("lm_s" if key == "seconds" else key, value - before[key])

    def _add(self, key: str, value: float) -> None:
        self.spent[key] = round(self.spent.get(key, 0) + value, 6)

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
    options = query.choices if task.kind == "multiple_choice" else task.labels
    if not options:
        raise DataError(f"query {query.id} of {task.name!r} has no choices to score")
    return tuple(dict.fromkeys(options))


def bench_answers(bench: Bench) -> set[str]:
    """Every answer that may be scored."""
    return {*bench.task.labels, *(c for q in bench.queries for c in q.choices)}


def _stops(template: Template, task: Task) -> tuple[str, ...]:
    """What ends a generated answer: the template's own, and a line's end where no answer shown has more than one."""
    one_line = not template.chat and all("\n" not in e.output.strip() for e in task.train)
    return tuple(dict.fromkeys([*template.stop_strings, *(["\n"] if one_line else [])]))


def _trained_on(chooser: Selector, kit: Kit, task: str) -> bool:
    """Whether the run chooses with a retriever that has learnt from this task."""
    return chooser.needs.embedder and isinstance(kit.embedder, Retriever) and task in kit.embedder.seen


def _notes(rows: Sequence[Row]) -> dict[str, Any]:
    """What a reader of the run should know, counted over its rows."""
    return {
        "short": sum(bool(r.notes) for r in rows),
        "dropped": sum(len(r.dropped) for r in rows),
        "note": next((n for r in rows for n in r.notes), ""),
    }


def seed_matters(bench: Bench, selector: str | Spec, kit: Kit, k: int, order: str, probes: int = 16) -> bool:
    """Whether another seed gives other prompts: the order is random, or the picks of the first queries differ.

    Fits the selector with two seeds and compares what it picks for ``probes`` queries. A selector that asks the LM is
    taken to depend on the seed, as finding out would cost what only a run should.
    """
    if (k > 1 and order == "random") or make_selector(selector).needs.lm:
        return True
    chosen = []
    for seed in (0, 1):
        fitted = make_selector(selector).fit(bench.view, replace(kit, seed=seed))
        chosen.append([s.ids for s in fitted.select_many(bench.queries[:probes], k)])
    return chosen[0] != chosen[1]
