"""From runs to lines that can be compared: which runs share a table, which are one line under several seeds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import DataError
from iclkit.eval import (
    Difference,
    Estimate,
    Metric,
    bootstrap_macro_f1,
    cautions,
    difference,
    estimate,
    macro_f1_difference,
    rank_intervals,
    smallest_effects,
    variance_components,
)
from iclkit.records import Run, RunSpec, canonical_json, digest
from iclkit.report._axes import AXES, USUAL, Axis, axes, axis_word, seed_scope
from iclkit.report._condensed import condensed, made_by, metric_of, rows_of
from iclkit.report._questions import Answer
from iclkit.report._records import ALPHA, Group, Line

Floats = NDArray[np.float64]
_USUAL_LABELS = {"order": "best-last", "calibrate": "none", "chat": "plain"}
_WRONG_SCOPE = 0.001
"""Seeds of a selector that draws per query may differ by chance; with a smaller p-value than this, it is said."""


@dataclass(frozen=True)
class Table:
    """Runs that can be compared: equal on all axes but those of the lines. ``fixed`` are the equal ones."""

    fixed: Mapping[str, Axis]
    compared: tuple[str, ...]
    runs: list[Run]


@dataclass(eq=False)
class DraftLine:
    """A line and the values (seeds, queries) of the task's metric, empty for a metric of whole runs.

    ``outputs``: the answers per seed, kept where a metric needs the answers themselves. ``selector`` is equal for lines
    whose seeds made the same draws.
    """

    line: Line
    values: Floats
    outputs: list[list[str]]
    selector: str


@dataclass(eq=False)
class Draft:
    """A table whose lines are not compared yet."""

    group: Group
    metric: Metric
    lines: list[DraftLine]
    golds: list[str]
    labels: tuple[str, ...]
    fixed: Mapping[str, Axis]


@dataclass(eq=False)
class Pair:
    """A line and the baseline of its table, compared; ``answer`` is its corrected p-value."""

    draft: Draft
    line: DraftLine
    base: DraftLine
    diff: Difference
    primary: bool = False
    answer: Answer | None = field(default=None)

    @property
    def shared_draw(self) -> bool:
        return self.line.selector == self.base.selector and self.line.line.seeds == self.base.line.seeds

    def at_level(self, alpha: float) -> Difference:
        """The difference with the smallest effects that a test at ``alpha`` would have shown."""
        if self.draft.metric.whole is not None:
            return self.diff
        gain, drop = smallest_effects(
            self.line.values, self.base.values, alpha=alpha, bounded=self.draft.metric.bounded,
            scopes=(self.line.line.scope, self.base.line.scope), shared_draw=self.shared_draw,
        )  # fmt: skip
        return replace(self.diff, smallest_gain=gain, smallest_drop=drop)


def count(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def tables_of(runs: Sequence[Run], compared: tuple[str, ...]) -> list[Table]:
    """Runs by the axes that are not compared, in the order of task, LM and k.

    A run that lacks an axis joins every table that agrees with it on the axes it has; it makes one of its own only
    where there is none.
    """
    placed = [(run, {a: x for a, x in axes(run).items() if a not in compared}) for run in runs]
    placed.sort(key=lambda pair: -len(pair[1]))
    tables: dict[str, Table] = {}
    whole = {len(fixed) for _, fixed in placed[:1]}
    for run, fixed in placed:
        key = canonical_json({axis: place.key for axis, place in fixed.items()})
        joined = [] if key in tables or len(fixed) in whole else [
            t for t in tables.values() if len(t.fixed) > len(fixed)
            and all(axis in t.fixed and t.fixed[axis].key == place.key for axis, place in fixed.items())
        ]  # fmt: skip
        if joined:
            for table in joined:
                table.runs.append(run)
        else:
            tables.setdefault(key, Table(fixed, compared, [])).runs.append(run)
    return sorted(tables.values(), key=lambda t: [
        *(t.fixed[a].label if a in ("task", "lm") else t.fixed[a].key for a in ("task", "lm", "k") if a in t.fixed),
        canonical_json({a: x.key for a, x in t.fixed.items()}),
    ])  # fmt: skip


def tags_of(tables: Sequence[Table]) -> list[str]:
    """For tables that would have the same title, what tells them apart, in words."""
    tags = []
    for table in tables:
        twins = [t for t in tables if _head(t) == _head(table)]
        apart = [a for a in table.fixed if a not in ("task", "lm", "k")
                 and len({t.fixed[a].key if a in t.fixed else "" for t in twins}) > 1]  # fmt: skip
        again = [
            a for a in ("task", "lm") if a in table.fixed and len({t.fixed[a].key for t in twins if a in t.fixed}) > 1
        ]
        words = [f"{axis_word(a)} {table.fixed[a].label}" for a in apart]
        words += [f"{axis_word(a)} {table.fixed[a].key[-6:].strip(']')}" for a in again]
        tags.append(", ".join(words))
    return tags


def _head(table: Table) -> tuple[str, ...]:
    """What a title tells anyway: task, LM, k, and those usual axes that are not compared here."""
    named = ["task", "lm", "k", *(a for a in AXES if a in USUAL and a not in table.compared)]
    return tuple(f"{a} {table.fixed[a].label}" for a in named if a in table.fixed)


def _title(table: Table, tag: str) -> str:
    fixed = table.fixed
    words = [fixed[a].label for a in ("task", "lm") if a in fixed]
    words += [f"k = {fixed['k'].label}"] if "k" in fixed else []
    words += [fixed["selector"].label] if "selector" in fixed else []
    words += [fixed[a].label for a in ("order", "calibrate") if a in fixed and fixed[a].label != _USUAL_LABELS[a]]
    return " · ".join([*words, *([tag] if tag else [])])


def make_draft(table: Table, tag: str) -> Draft:
    """The lines of a table with their figures."""
    newest, repeated = _newest(table.runs, table.compared)
    newest, failed = answered(newest)
    spec = max(newest, key=lambda r: r.spec.k).spec
    metric = metric_of(newest[0])
    lines: dict[str, list[Run]] = {}
    for run in newest:
        lines.setdefault(_line_key(run, table.compared), []).append(run)
    golds = [*rows_of(newest[0]).answers.golds]
    names = _names([axes(members[0]) for members in lines.values()], table.compared)
    drafts = [] if not golds else [
        _draft_line(name, members, metric, golds)
        for name, (_, members) in sorted(zip(names, lines.items(), strict=True), key=lambda pair: pair[1][0])
    ]  # fmt: skip
    notes = [*_leak_notes(spec, newest), *repeated]
    if failed:
        what = "query" if failed == 1 else "queries"
        notes.append(f"{failed} {what} failed in one run or another and count in none of these figures")
    fixed = table.fixed
    several = "several LMs" if any(run.spec.lm for run in newest) else "no LM"
    group = Group(
        spec.task.name, fixed["lm"].label if "lm" in fixed else several, spec.k, metric.name, len(golds),
        spec.pool.size, (), tuple(notes), tag, _title(table, tag),
    )  # fmt: skip
    return Draft(group, metric, drafts, golds, spec.task.labels, fixed)


def answered(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs with those rows alone at which none of them failed, and how many queries that leaves out.

    Figures that are compared are of the same queries: what one run failed at is neither right nor wrong in the others.
    """
    own = [rows_of(run) for run in runs]
    failed = {rows.answers.queries[at] for rows in own for at in np.flatnonzero(rows.answers.failed)}
    if not failed:
        return [*map(condensed, runs)], 0
    kept = [
        replace(run, rows=rows.only([at for at, query in enumerate(rows.answers.queries) if query not in failed]))
        for run, rows in zip(runs, own, strict=True)
    ]
    return kept, len(failed)


def _leak_notes(spec: RunSpec, runs: Sequence[Run]) -> tuple[str, ...]:
    leaks = next((r.facts["leaks"] for r in runs if r.facts.get("leaks", {}).get("queries")), None)
    if not leaks:
        return ()
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(leaks["pairs"].items()))
    done = {"exclude": "kept from the queries they give away", "ignore": "shown nevertheless"}[spec.on_leak]
    return (f"{leaks['queries']} of {spec.task.queries} test rows stand in the pool ({kinds}); {done}",)


def _names(places: Sequence[Mapping[str, Axis]], compared: Sequence[str]) -> list[str]:
    """A name for each line: its first compared axis, and the others where they are not the usual.

    A line that has none of these axes, as one that shows nothing has no k, is called by what chooses or predicts.
    Lines of one name get what else tells them apart: the models of a selector, a hash.
    """
    names = []
    for place in places:
        labels = [place[a].label if i == 0 or a not in _USUAL_LABELS else
                  "" if place[a].label == _USUAL_LABELS[a] else place[a].label
                  for i, a in enumerate(compared) if a in place]  # fmt: skip
        if compared[0] == "k" and "k" in place:
            labels[0] = f"k = {labels[0]}"
        names.append(" + ".join(label for label in labels if label) or place["selector"].label)
    for apart in (_details, _marks):
        for name in {n for n in names if names.count(n) > 1}:
            for i, own in enumerate(names):
                if own == name:
                    names[i] = f"{name} ({apart(places[i], compared)})"
    return names


def _details(place: Mapping[str, Axis], compared: Sequence[str]) -> str:
    return " ".join(place[a].detail or place[a].key[-6:] for a in compared if a in place and a not in _USUAL_LABELS)


def _marks(place: Mapping[str, Axis], compared: Sequence[str]) -> str:
    """What no person can read, for lines of which all that can be read is equal: two versions of one model."""
    return digest([place[a].key for a in compared if a in place], 2)


def _draft_line(name: str, runs: Sequence[Run], metric: Metric, golds: list[str]) -> DraftLine:
    runs = sorted(runs, key=lambda run: run.spec.seed)
    answers = [rows_of(run).answers for run in runs]
    first = answers[0]
    for run, own in zip(runs, answers, strict=True):
        if own.queries != first.queries:
            raise DataError(f"runs {runs[0].id} and {run.id} should have the same queries and have not; run them again")
    values, outputs = np.empty((len(runs), 0)), list[list[str]]()
    labels, scope = runs[0].spec.task.labels, seed_scope(runs[0])
    calibrate = axes(runs[0])["calibrate"].label if "calibrate" in axes(runs[0]) else "none"
    notes = [*_line_notes(runs), *cautions(runs)]
    if metric.whole is not None or labels:
        outputs = [[*own.outputs] for own in answers]
    if metric.whole is None:
        values = np.array([own.metrics[metric.name] for own in answers])
        figure = estimate(values, bounded=metric.bounded, scope=scope)
        notes += _scope_notes(values, scope)
    else:
        figure = _bootstrap(metric.whole, outputs, golds)
    others: dict[str, Estimate] = {}
    if labels:
        if metric.name != "macro_f1":
            others["macro_f1"] = bootstrap_macro_f1(outputs, golds, labels)
        if all(own.has("gold_logprob") for own in answers):
            logs = np.array([own.metrics["gold_logprob"] for own in answers])
            others["gold_logprob"] = estimate(logs, bounded=False, scope=scope)
    raw = f"{metric.name}_raw"
    if calibrate != "none" and all(own.has(raw) for own in answers):
        before = np.array([own.metrics[raw] for own in answers])
        others[raw] = estimate(before, bounded=metric.bounded, scope=scope)
    queries = len(runs) * len(first.queries)
    spent, asked, known = (sum(r.usage.get(k, 0.0) for r in runs) for k in ("cost", "tokens_asked", "tokens_cached"))
    if spent and known:
        notes.append(f"the cache knew {100 * known / max(asked, known):.0f} % of its tokens, which cost nothing")
    place = axes(runs[0])
    line = Line(
        selector=place["selector"].label,
        order=runs[0].spec.order,
        calibrate=calibrate,
        figure=figure,
        seeds=tuple(r.spec.seed for r in runs),
        runs=tuple(r.id for r in runs),
        tokens=sum(int(own.tokens.sum()) for own in answers) / queries,
        calls=sum(r.usage.get("calls", 0) for r in runs) / queries,
        seconds=sum(r.usage.get(k, 0) for r in runs for k in ("select_s", "assemble_s", "score_s")) / queries,
        name=name,
        scope=scope,
        asks_lm=runs[0].spec.lm is not None,
        others=others,
        notes=tuple(notes),
        cost=spent / queries,
    )
    return DraftLine(line, values, outputs, canonical_json([place["selector"].key, runs[0].spec.k]))


def _scope_notes(values: Floats, scope: str) -> list[str]:
    if scope == "task" and len(values) == 1:
        return ["one seed: the figure is of this one set of demonstrations, not of the selector"]
    if scope == "query" and values.shape[1] > 1 and variance_components(values, "query").seed_p < _WRONG_SCOPE:
        return ["its seeds differ by more than draws for each query explain; the interval may be too narrow"]
    return []


def _newest(runs: Sequence[Run], compared: tuple[str, ...]) -> tuple[list[Run], list[str]]:
    """Of runs that are the same but for the version that made them the newest, and a note on the others."""
    twins: dict[tuple[str, int], list[Run]] = {}
    for run in sorted(runs, key=_age):
        twins.setdefault((_line_key(run, compared), run.spec.seed), []).append(run)
    pairs = [f"{old.id} by {made[-1].id}" for made in twins.values() for old in made[:-1]]
    notes = [f"{count(len(pairs), 'run')} repeated by a newer one, which counts: {', '.join(pairs)}"] if pairs else []
    return [made[-1] for made in twins.values()], notes


def _line_key(run: Run, compared: Sequence[str]) -> str:
    """Runs that share their places on the compared axes are one line, under several seeds."""
    place = axes(run)
    return canonical_json([place[a].key if a in place else "" for a in compared])


def distinct_runs(runs: Iterable[Run]) -> list[Run]:
    """Each run once: of those of one id, which stand in several folders, the newest."""
    return [*{run.id: run for run in sorted(runs, key=_age)}.values()]


def _age(run: Run) -> tuple[int, int, list[tuple[int, str]], str]:
    """Versions of predictor, selector and package, and the date; the newest is the largest."""
    package = [(int(part), "") if part.isdigit() else (-1, part) for part in made_by(run).split(".")]
    return run.spec.predictor.version, run.spec.selector.version, package, str(run.facts.get("date", ""))


def _line_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    notes = []
    if dropped := sum(r.facts.get("dropped", 0) for r in runs):
        what = "demonstration was" if dropped == 1 else "demonstrations were"
        notes.append(f"{dropped} {what} dropped for the token budget")
    if short := sum(r.facts.get("short", 0) for r in runs):
        notes.append(f"{short} queries got fewer than k: {next(r.facts['note'] for r in runs if r.facts.get('short'))}")
    if any(r.facts.get("trained on") for r in runs):
        notes.append("its retriever was trained on this task; the figure says nothing of tasks it has not seen")
    return tuple(notes)


def compare_lines(draft: Draft, a: DraftLine, b: DraftLine) -> Pair:
    """A line with the baseline of its table."""
    pair = Pair(draft, a, b, Difference(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0))
    key, metric = zlib.crc32(f"{a.line.name} {b.line.name}".encode()), draft.metric
    if metric.whole is None:
        pair.diff = difference(
            a.values, b.values, bounded=metric.bounded, scopes=(a.line.scope, b.line.scope),
            shared_draw=pair.shared_draw, key=key,
        )  # fmt: skip
    elif metric.name == "macro_f1":
        pair.diff = macro_f1_difference(
            a.outputs, b.outputs, draft.golds, draft.labels, scopes=(a.line.scope, b.line.scope), key=key
        )
    else:
        pair.diff = _bootstrap_difference(metric.whole, a.outputs, b.outputs, draft.golds)
    return pair


def rank_lines(draft: Draft) -> list[tuple[int, int]]:
    """For each line the ranks that pairwise comparisons leave open."""
    if draft.metric.whole is not None or len(draft.golds) < 2:
        return [(1, len(draft.lines))] * len(draft.lines)
    scopes = [d.line.scope for d in draft.lines]
    return rank_intervals([d.values for d in draft.lines], bounded=draft.metric.bounded, scopes=scopes)


Whole = Callable[[Sequence[str], Sequence[str]], float]
_DRAWS = 1000


def _draws(whole: Whole, outputs: Sequence[Sequence[str]], golds: Sequence[str]) -> Floats:
    """The figure of resampled queries and seeds, (draws,); equal queries in every call, so that draws are paired."""
    rng, seeds = np.random.default_rng(len(golds)), np.random.default_rng([len(golds), len(outputs)])
    figures = []
    for _ in range(_DRAWS):
        picked = rng.integers(0, len(golds), len(golds))
        runs = seeds.integers(0, len(outputs), len(outputs))
        these = [golds[i] for i in picked]
        figures.append(float(np.mean([whole([outputs[s][i] for i in picked], these) for s in runs])))
    return np.array(figures)


def _bootstrap(whole: Whole, outputs: Sequence[Sequence[str]], golds: Sequence[str]) -> Estimate:
    value = float(np.mean([whole(o, golds) for o in outputs]))
    low, high = np.quantile(_draws(whole, outputs, golds), [ALPHA / 2, 1 - ALPHA / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def _bootstrap_difference(
    whole: Whole, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]], golds: Sequence[str]
) -> Difference:
    """Paired bootstrap with the normal limit: for figures of whole runs, which have no value per query."""
    from scipy.stats import norm

    value = float(np.mean([whole(o, golds) for o in a]) - np.mean([whole(o, golds) for o in b]))
    error = float((_draws(whole, a, golds) - _draws(whole, b, golds)).std(ddof=1))
    half = float(norm.isf(ALPHA / 2)) * error
    least = float(norm.isf(ALPHA / 2) + norm.isf(0.2)) * error
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else 1.0
    return Difference(value, value - half, value + half, p, least, least, len(golds))
