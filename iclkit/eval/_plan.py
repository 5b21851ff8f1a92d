"""Many runs: what has to be run for a cross product, and what it will cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from iclkit.embed import Embedder, Reranker
from iclkit.errors import DataError, UsageError
from iclkit.eval._calibrate import free_inputs
from iclkit.eval._evaluate import POOL_ROWS, Bench, Settings, evaluate, run_spec
from iclkit.eval._runs import finished
from iclkit.lm import LM, ModelShape, as_lm, break_even
from iclkit.pool import PoolView
from iclkit.prompts import Template, assemble
from iclkit.records import CostEstimate, Progress, Run, digest
from iclkit.selectors import RANDOM_FILL, Kit, SelectorCost, make_selector

_PROBES = 8


@dataclass(frozen=True)
class Grid:
    """What is crossed: selectors by settings (see ``Settings``). ``seeds`` is how many, from 0 on."""

    selectors: tuple[str, ...]
    ks: tuple[int, ...] = (8,)
    seeds: int = 3
    orders: tuple[str, ...] = ("best-last",)
    budget: int | None = None
    normalise: str = "sum"
    calibrations: tuple[str, ...] = ("none",)
    prior: tuple[tuple[str, float], ...] = ()
    answer_tokens: int | None = None
    stop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (self.selectors and self.ks and self.orders and self.calibrations):
            raise UsageError("a grid needs at least one selector, one k, one order and one calibration")
        if self.seeds < 1:
            raise UsageError(f"seeds is {self.seeds}; it must be at least 1")
        for selector in self.selectors:
            make_selector(selector)
        if self.prior and "given" not in self.calibrations:
            raise UsageError("a prior is for the calibration 'given', which is not among those to be made")
        for k, order, calibrate in product(self.ks, self.orders, self.calibrations):
            self.settings(k, 0, order, calibrate)

    def settings(self, k: int, seed: int, order: str, calibrate: str) -> Settings:
        """The settings of one run."""
        prior = self.prior if calibrate == "given" else ()
        return Settings(k, seed, order, self.budget, self.normalise, calibrate, prior, self.answer_tokens, self.stop)


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run to be made. ``title`` says which."""

    bench: Bench
    selector: str
    lm: LM
    embedder: Embedder | None
    settings: Settings
    template: Template | None = None
    reranker: Reranker | None = None

    @property
    def title(self) -> str:
        """Task, selector, and the settings that tell it from its siblings."""
        s = self.settings
        more = "" if s.calibrate == "none" else f" {s.calibrate}"
        return f"{self.bench.task.name} {self.selector} k={s.k} {s.order}{more} seed {s.seed}"

    @cached_property
    def run_id(self) -> str:
        """The id that the run will have."""
        return digest(run_spec(self.bench, make_selector(self.selector), self.kit, self.settings), 8)

    @property
    def kit(self) -> Kit:
        """What the selector is given."""
        template = make_selector(self.selector).template_for(self.template or self.bench.task.template)
        s = self.settings
        task = self.bench.task
        return Kit(
            self.embedder, self.lm, template, task.labels, s.seed, s.order, reranker=self.reranker, task=task.name
        )

    def finished(self, out: Path) -> bool:
        """Whether the run stands finished in a folder of runs, with no failed row left to ask again."""
        return finished(out / self.run_id)

    def run(self, out: Path | None, progress: Progress | None = None, on_error: str = "record") -> Run:
        """Make the run, or take it from ``out``."""
        s = self.settings
        return evaluate(
            self.bench, self.selector, self.lm, k=s.k, seed=s.seed, order=s.order, embedder=self.embedder,
            reranker=self.reranker, template=self.template, budget=s.budget, normalise=s.normalise,
            calibrate=s.calibrate, prior=dict(s.prior), answer_tokens=s.answer_tokens, stop=s.stop,
            on_error=on_error, out=out, progress=progress,
        )  # fmt: skip


def plan(
    benches: Sequence[Bench],
    lm: LM,
    grid: Grid,
    embedder: Embedder | None = None,
    template: Template | None = None,
    reranker: Reranker | None = None,
) -> list[PlannedRun]:
    """The runs of a grid with one LM, each once.

    ``zero`` runs once, whatever k, order and seed. A selector runs under every seed only if its picks or their order
    depend on it. UsageError for a k that is larger than a pool; NeedError for what a selector lacks.
    """
    lm = as_lm(lm)
    jobs: dict[tuple[int, str, Settings], PlannedRun] = {}
    for at, bench in enumerate(benches):
        seeds_of: dict[tuple[str, int, str], int] = {}
        for selector, k, order, calibrate in product(grid.selectors, grid.ks, grid.orders, grid.calibrations):
            if make_selector(selector).spec.name == "zero" or k == 0:
                k, order = 0, "best-last"
            if k > len(bench.view):
                raise UsageError(
                    f"k is {k}, and the pool for {bench.task.name!r} has {len(bench.view)} examples; "
                    f"give -k {len(bench.view)} or less"
                )
            way = (selector, k, order)
            if way not in seeds_of:
                shown = template or bench.task.template
                kit = Kit(embedder, lm, shown, bench.task.labels, order=order, reranker=reranker, task=bench.task.name)
                many = k > 0 and grid.seeds > 1 and differs_by_seed(bench, selector, kit, k, order)
                seeds_of[way] = grid.seeds if many else 1
            for seed in range(seeds_of[way]):
                settings = grid.settings(k, seed, order, calibrate)
                job = PlannedRun(bench, selector, lm, embedder, settings, template, reranker)
                jobs.setdefault((at, selector, settings), job)
    return list(jobs.values())


def differs_by_seed(bench: Bench, selector: str, kit: Kit, k: int, order: str) -> bool:
    """Whether another seed can give other prompts: the order is random, or the selector says that it draws.

    A selector that draws only where it has nothing to go by is asked for its picks, to see whether it does here.
    """
    needs = make_selector(selector).needs
    if needs.seed_scope != "none" or (k > 1 and order == "random"):
        return True
    if not needs.random_fill:
        return False
    selections = make_selector(selector).fit(bench.view, kit).select_many(bench.queries, k)
    return any(pick.why == RANDOM_FILL for selection in selections for pick in selection)


@dataclass(frozen=True, slots=True)
class Cost:
    """What runs will ask of an LM: prompts, label scores or generated answers among them, and prompt tokens.

    ``finished`` runs are there already and cost nothing.
    """

    runs: int
    finished: int
    prompts: int
    scores: int
    tokens: int
    notes: tuple[str, ...] = field(default=())


def cost(jobs: Sequence[PlannedRun], out: Path | None = None) -> Cost:
    """Prompts and tokens that the runs not yet finished in ``out`` will take, from a sample of prompts.

    Each prompt is estimated by the mean over a few queries with the pool's evenly spaced examples; prompts that share a
    beginning, and answers in the cache, make the work less. ``notes`` name selectors that ask the LM themselves.
    """
    todo = [job for job in jobs if out is None or not job.finished(out)]
    mean = {key: _mean_tokens(job) for job in todo for key in [_shape(job)]}
    # a content-free prompt beside each prompt, for the calibrations that have them
    times = {job: 1 + len(free_inputs(job.settings.calibrate, job.bench.view.examples, 0)) for job in todo}
    # and rows of the pool, for the one whose prior is theirs
    more = {job: min(POOL_ROWS, len(job.bench.view)) if job.settings.calibrate == "pool" else 0 for job in todo}
    prompts = {job: len(job.bench.queries) * times[job] + more[job] for job in todo}
    scores = sum(_answers(job.bench) * times[job] + more[job] * len(job.bench.task.labels) for job in todo)
    return Cost(
        runs=len(todo),
        finished=len(jobs) - len(todo),
        prompts=sum(prompts.values()),
        scores=scores,
        tokens=round(sum(mean[_shape(job)] * prompts[job] for job in todo)),
        notes=tuple(_notes(todo)),
    )


def dry_run(jobs: Sequence[PlannedRun], progress: Progress | None = None) -> CostEstimate:
    """Select and assemble everything that the runs need, and estimate what their LM would be asked; nothing is kept.

    A selector that asks the LM itself is given blank answers, so what it would ask next is an estimate. Progress is in
    queries. Errors as ``evaluate``.
    """
    total, done = sum(len(job.bench.queries) for job in jobs), 0
    cost, overlays = CostEstimate(), dict[int, PoolView]()
    for job in jobs:
        lm, view = job.lm.dry_run(), overlays.setdefault(id(job.bench.view), job.bench.view.overlay())
        replace(job, lm=lm, bench=replace(job.bench, view=view)).run(None)
        cost += lm.cost
        done += len(job.bench.queries)
        if progress is not None:
            progress(done, total)
    return cost


def break_evens(jobs: Sequence[PlannedRun]) -> list[str]:
    """From how many queries on demonstrations that all share cost less to read than each query's own, a line a pair.

    The shared part is read once. Each query's own are those of the selectors without a shared part at their smallest k.
    Sizes are estimated as by ``cost``; where an LM does not say its shape, tokens alone are compared.
    """
    kinds: dict[tuple[int, int, int], list[PlannedRun]] = {}
    for job in jobs:
        chooser = make_selector(job.selector)
        k = job.settings.k
        part, k = chooser.shared(k), chooser.capacity(k)
        if k:
            kinds.setdefault((id(job.bench), part, k), []).append(job)
    lines = []
    for (bench, part, k), fixed in kinds.items():
        own = [(least, rivals) for (where, no, least), rivals in kinds.items() if where == bench and not no]
        if part and own:
            lines.append(_break_even(fixed, part, k, *min(own, key=lambda pair: pair[0])))
    return lines


def _break_even(fixed: Sequence[PlannedRun], part: int, k: int, least: int, own: Sequence[PlannedRun]) -> str:
    def tokens(shots: int) -> int:
        return round(_mean_tokens(replace(fixed[0], settings=replace(fixed[0].settings, k=shots))))

    def named(jobs: Sequence[PlannedRun]) -> str:
        return ", ".join(dict.fromkeys(job.selector for job in jobs))

    bare, shape = tokens(0), fixed[0].lm.shape
    shared, near, chosen = (tokens(shots) - bare for shots in (part, k - part, least))
    even = break_even(
        shape or ModelShape(1, 0, 0),
        fixed_tokens=shared,
        near_tokens=near,
        selected_tokens=chosen,
        query_tokens=bare,
    )
    more = f" and {near:,} of its own for each query" if near else ""
    return (
        f"{fixed[0].bench.task.name}: {named(fixed)} at k={k} (about {shared:,} tokens that all share{more}) against "
        f"{named(own)} at k={least} ({chosen:,} for each query): {even}{'' if shape else ', by tokens alone'}"
    )


def _notes(todo: Sequence[PlannedRun]) -> Iterator[str]:
    """What each selector that asks the LM will ask at most; fitting one asks nothing."""
    for name in dict.fromkeys(job.selector for job in todo if make_selector(job.selector).needs.lm):
        jobs, found = [job for job in todo if job.selector == name], dict[tuple[int, int], SelectorCost]()
        for job in jobs:
            if (key := (id(job.bench), job.settings.k)) not in found:
                found[key] = make_selector(name).fit(job.bench.view, job.kit).cost(job.settings.k)
        costs = [found[id(job.bench), job.settings.k] for job in jobs]
        total = sum(c.per_task + c.per_query * len(job.bench.queries) for c, job in zip(costs, jobs, strict=True))
        yield (
            f"{name} asks the LM itself: at most {total:,} texts more ({max(c.per_task for c in costs):,} once a run "
            f"and {max(c.per_query for c in costs):,} per query), less what was asked before"
        )


def _answers(bench: Bench) -> int:
    of_each = bench.task.kind == "multiple_choice"  # a query without choices fails in its run, and not here
    return sum(1 if bench.writes else len(set(q.choices if of_each else bench.task.labels)) for q in bench.queries)


def _shape(job: PlannedRun) -> tuple[int, int, int | None]:
    return id(job.bench), job.settings.k, job.settings.budget


def _mean_tokens(job: PlannedRun) -> float:
    bench, lm, k = job.bench, job.lm, job.settings.k
    template, examples = job.template or bench.task.template, bench.view.examples
    queries = bench.queries[:: max(1, len(bench.queries) // _PROBES)][:_PROBES]
    sizes = []
    for n, query in enumerate(queries):
        shown = [examples[(n + i * max(1, len(examples) // max(1, k))) % len(examples)] for i in range(k)]
        with suppress(DataError):  # a query that fits no prompt costs nothing; its run will say so
            prompt = assemble(
                template,
                query,
                list(dict.fromkeys(shown)),
                budget=job.settings.budget or lm.context_size,
                count_tokens=lm.count_tokens,
                render_chat=lm.render_chat if template.chat else None,
            )
            sizes.append(prompt.tokens)
    return sum(sizes) / max(1, len(sizes))
