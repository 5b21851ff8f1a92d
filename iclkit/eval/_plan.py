"""Many runs: what has to be run for a cross product, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

from iclkit.errors import UnknownName, UsageError
from iclkit.eval._bench import Bench
from iclkit.eval._evaluate import evaluate, run_spec
from iclkit.eval._runs import RunStore
from iclkit.lm import LM, DryRunLM, ModelShape, break_even, load_lm
from iclkit.pool import PoolView
from iclkit.predictors import (
    PREDICTORS,
    Predictor,
    PromptPredictor,
    Settings,
    Tools,
    is_predictor,
    make_predictor,
)
from iclkit.prompts import Template
from iclkit.records import CostEstimate, Progress, Run, SeedScope
from iclkit.registry import parse_spec
from iclkit.selectors import RANDOM_FILL, Kit, Needs, SelectorCost, make_selector, strongest

SEEDS: Mapping[SeedScope, int] = {"none": 1, "query": 3, "task": 10}
"""Seeds by what they draw. One draw for a whole task tells little of the selector, however many queries are asked:
at 50 queries ten seeds lift the power of a comparison from .30 to .78 (``docs/statistics.md``). Draws for each query
differ from query to query already."""


@dataclass(frozen=True)
class Grid:
    """What is crossed: selectors by settings (see ``Settings``). ``seeds`` is how many, from 0 on; None: see ``SEEDS``.

    ``predictors`` are those that are no prompt to an LM; they have settings of their own and run once.
    """

    selectors: tuple[str, ...] = ()
    ks: tuple[int, ...] = (8,)
    seeds: int | None = None
    orders: tuple[str, ...] = ("best-last",)
    budget: int | None = None
    normalize: str = "sum"
    calibrations: tuple[str, ...] = ("none",)
    prior: tuple[tuple[str, float], ...] = ()
    answer_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    predictors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.predictors or self.selectors) or not (self.ks and self.orders and self.calibrations):
            raise UsageError("a grid needs at least one selector or predictor, one k, one order and one calibration")
        for name in self.predictors:
            if not is_predictor(name):
                raise UnknownName("predictor", parse_spec(name).name, PREDICTORS.names())
            make_predictor(name, Tools())
        if self.seeds is not None and self.seeds < 1:
            raise UsageError(f"seeds is {self.seeds}; it must be at least 1")
        for selector in self.selectors:
            make_selector(selector)
        if self.prior and "given" not in self.calibrations:
            raise UsageError("a prior is for the calibration 'given', which is not among those to be made")
        for k, order, calibrate in product(self.ks, self.orders, self.calibrations):
            self.settings(k, 0, order, calibrate)

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What each selector and predictor must be given."""
        made = [make_predictor(name, Tools()) for name in self.predictors]
        return (*(make_selector(name).needs for name in self.selectors), *(predictor.needs for predictor in made))

    def settings(self, k: int, seed: int, order: str, calibrate: str) -> Settings:
        """The settings of one run."""
        prior = self.prior if calibrate == "given" else ()
        return Settings(k, seed, order, self.budget, self.normalize, calibrate, prior, self.answer_tokens, self.stop)


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run to be made: a predictor by name (see ``make_predictor``) on a bench. ``title`` says which.

    ``settings`` are those of a prompt, None for a predictor that has its own.
    """

    bench: Bench
    name: str
    tools: Tools
    settings: Settings | None = None
    template: Template | None = None

    @property
    def title(self) -> str:
        """Task, name, and the settings that tell it from its siblings."""
        s = self.settings
        if s is None:
            return f"{self.bench.task.name} {self.name}"
        more = "" if s.calibrate == "none" else f" {s.calibrate}"
        return f"{self.bench.task.name} {self.name} k={s.k} {s.order}{more} seed {s.seed}"

    @property
    def predictor(self) -> Predictor:
        """What answers, made anew: a plan holds names alone, and nothing that was learned of a pool."""
        return make_predictor(self.name, self.tools, self.settings, self.template)

    @property
    def prompt(self) -> PromptPredictor:
        """The same, of a run that prompts an LM."""
        return PromptPredictor(make_selector(self.name), self.tools, self.prompt_settings, self.template)

    @property
    def prompt_settings(self) -> Settings:
        """The settings of a run that prompts an LM."""
        assert self.settings is not None, f"{self.name} is no prompt"
        return self.settings

    @cached_property
    def run_id(self) -> str:
        """The id that the run will have."""
        return run_spec(self.bench, self.predictor.fit(self.bench.context)).id

    def finished(self, out: Path) -> bool:
        """Whether the run stands finished in a folder of runs, with no failed row left to ask again."""
        return RunStore(out).finished(self.run_id)

    def run(
        self, out: Path | None, progress: Progress | None = None, on_error: str = "record", *, wait: bool = True
    ) -> Run:
        """Make the run, or take it from ``out``; ``wait`` as in ``evaluate``."""
        return evaluate(self.bench, self.predictor, out=out, on_error=on_error, progress=progress, wait=wait)


def plan(benches: Sequence[Bench], tools: Tools, grid: Grid, template: Template | None = None) -> list[PlannedRun]:
    """The runs of a grid with one LM, each once.

    ``zero`` runs once, whatever k, order and seed. A selector runs under as many seeds as what they draw there asks for
    (see ``SEEDS``), once where they draw nothing. Predictors that are no prompt run once. UsageError for a k that is
    larger than a pool; NeedError for what a selector lacks.
    """
    jobs: dict[tuple[int, str, Settings | None], PlannedRun] = {}
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
            combination = (selector, k, order)
            if combination not in seeds_of:
                kit = tools.kit(bench.context, template=template, order=order)
                scope = drawn_by_seed(bench, selector, kit, k, order) if k > 0 and grid.seeds != 1 else "none"
                seeds_of[combination] = SEEDS[scope] if scope == "none" else grid.seeds or SEEDS[scope]
            for seed in range(seeds_of[combination]):
                settings = grid.settings(k, seed, order, calibrate)
                jobs.setdefault((at, selector, settings), PlannedRun(bench, selector, tools, settings, template))
        for name in grid.predictors:
            jobs.setdefault((at, name, None), PlannedRun(bench, name, tools))
    return list(jobs.values())


def drawn_by_seed(bench: Bench, selector: str, kit: Kit, k: int, order: str) -> SeedScope:
    """What another seed would draw anew here: the picks of the whole task, those of each query (or their order), or
    nothing.

    A selector that draws only where it has nothing to go by is asked for its picks, to see whether it does here.
    """
    needs = make_selector(selector).needs
    drawn: SeedScope = "query" if k > 1 and order == "random" else "none"
    scope = strongest([needs.seed_scope, drawn])
    if scope != "none" or not needs.random_fill:
        return scope
    selections = make_selector(selector).fit(bench.view, kit).select_many(bench.queries, k)
    return "query" if any(pick.why == RANDOM_FILL for selection in selections for pick in selection) else "none"


@dataclass(frozen=True, slots=True)
class PlanEstimate:
    """What runs will ask of their LM. ``finished`` runs are there already and cost nothing.

    ``notes`` tell what selectors ask of their own, which is not in ``cost``.
    """

    runs: int
    finished: int
    cost: CostEstimate
    notes: tuple[str, ...] = ()


def cost(jobs: Sequence[PlannedRun], out: Path | None = None) -> PlanEstimate:
    """What the runs not yet finished in ``out`` will take, from a sample of prompts (see ``Predictor.cost``).

    Prompts that share a beginning, and answers in the cache, make the work less.
    """
    todo = [job for job in jobs if out is None or not job.finished(out)]
    costs = (job.predictor.fit(job.bench.context).cost(job.bench.queries) for job in todo)
    notes = tuple(_notes([job for job in todo if job.settings is not None]))
    return PlanEstimate(len(todo), len(jobs) - len(todo), sum(costs, CostEstimate()), notes)


def dry_run(jobs: Sequence[PlannedRun], progress: Progress | None = None) -> CostEstimate:
    """Select and assemble everything that the runs need, and estimate what their LM would be asked; nothing is kept.

    A selector that asks the LM itself is given blank answers, so what it would ask next is an estimate. What an LM is
    asked that a setting names, such as a rewriter, is counted too. Progress is in queries. Errors as ``evaluate``.
    """
    total, done = sum(len(job.bench.queries) for job in jobs), 0
    cost, overlays, seconds = CostEstimate(), dict[int, PoolView](), dict[str, DryRunLM]()
    for job in jobs:
        if job.settings is not None:
            lm, view = job.prompt.lm.dry_run(), overlays.setdefault(id(job.bench.view), job.bench.view.overlay())
            tools = replace(job.tools.with_lm(lm), load_lm=partial(_dry_second, job.tools.load_lm or load_lm, seconds))
            replace(job, tools=tools, bench=replace(job.bench, view=view)).run(None)
            cost += lm.cost
        done += len(job.bench.queries)
        if progress is not None:
            progress(done, total)
    return sum((lm.cost for lm in seconds.values()), cost)


def _dry_second(load: Callable[[str], LM], known: dict[str, DryRunLM], name: str) -> DryRunLM:
    """The dry run of an LM that a setting names, such as a rewriter; one for all runs."""
    if name not in known:
        known[name] = load(name).dry_run()
    return known[name]


def break_evens(jobs: Sequence[PlannedRun]) -> list[str]:
    """From how many queries on demonstrations that all share cost less to read than each query's own, a line a pair.

    The shared part is read once. Each query's own are those of the selectors without a shared part at their smallest k.
    Sizes are estimated as by ``cost``; where an LM does not say its shape, tokens alone are compared.
    """
    kinds: dict[tuple[int, int, int], list[PlannedRun]] = {}
    for job in jobs:
        if job.settings is None:
            continue
        chooser, k = make_selector(job.name), job.settings.k
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
        job = replace(fixed[0], settings=replace(fixed[0].prompt_settings, k=shots))
        return round(job.prompt.fit(job.bench.context).mean_tokens(job.bench.queries))

    def named(jobs: Sequence[PlannedRun]) -> str:
        return ", ".join(dict.fromkeys(job.name for job in jobs))

    bare, shape = tokens(0), fixed[0].prompt.lm.shape
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
    for name in dict.fromkeys(job.name for job in todo if make_selector(job.name).needs.lm):
        jobs, cost_of = [job for job in todo if job.name == name], dict[tuple[int, int], SelectorCost]()
        for job in jobs:
            if (key := (id(job.bench), job.prompt_settings.k)) not in cost_of:
                fitted = job.prompt.fit(job.bench.context).fitted_selector()
                cost_of[key] = fitted.cost(job.prompt_settings.k)
        costs = [cost_of[id(job.bench), job.prompt_settings.k] for job in jobs]
        total = sum(c.per_task + c.per_query * len(job.bench.queries) for c, job in zip(costs, jobs, strict=True))
        yield (
            f"{name} asks the LM itself: at most {total:,} texts more ({max(c.per_task for c in costs):,} once a run "
            f"and {max(c.per_query for c in costs):,} per query), less what was asked before"
        )
