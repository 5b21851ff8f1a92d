"""Who won: runs in, a Board of plain numbers out. Nothing here prints, reads a file or asks the time."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import DataError
from iclkit.eval import (
    Difference,
    Estimate,
    LeftOut,
    Metric,
    bootstrap_macro_f1,
    cautions,
    difference,
    estimate,
    holm,
    rank_intervals,
)
from iclkit.records import Run, Spec, canonical_json, digest
from iclkit.report._checks import metric_of, same_queries, usable_runs

ALPHA = 0.05
_ONE_CHUNK = 95  # queries that early runs calibrated together
BETTER, WORSE, INCONCLUSIVE, BASE, NONE = "better", "worse", "no difference shown", "baseline", "not compared"


@dataclass(frozen=True, slots=True)
class Line:
    """One way of choosing, on one task, LM and k: its figure and how it stands against the baseline.

    ``others`` are further figures by name. ``p`` is Holm's, over all comparisons of the board. ``ranks`` are the ranks,
    best 1, that the data leave open. ``tokens`` per prompt; ``calls`` and ``seconds`` of LM work per query, as far as
    recorded (a run served from the cache spends next to none).
    """

    selector: str
    order: str
    calibrate: str
    figure: Estimate
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    tokens: float
    calls: float
    seconds: float
    others: Mapping[str, Estimate] = field(default_factory=dict)
    diff: Difference | None = None
    p: float = math.nan
    verdict: str = NONE
    ranks: tuple[int, int] = (1, 1)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Selector, and order and calibration where they are not the usual ones."""
        extra = [self.order] if self.order != "best-last" else []
        extra += [self.calibrate] if self.calibrate != "none" else []
        return " + ".join([self.selector, *extra])


@dataclass(frozen=True, slots=True)
class Group:
    """The lines that answered the same queries with the same LM and k, best first."""

    task: str
    lm: str
    k: int
    metric: str
    queries: int
    pool: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    tag: str = ""

    @property
    def title(self) -> str:
        """Task, LM, k, and what else tells the group from its likes."""
        return f"{self.task} · {self.lm} · k = {self.k}" + (f" · {self.tag}" if self.tag else "")

    def baseline_of(self, line: Line, baseline: str) -> Line | None:
        """The line that this one is compared with: same order and calibration if there is one, else the plain one."""
        return _baseline_of(line, self.lines, baseline)


@dataclass(frozen=True, slots=True)
class Board:
    """All groups, the baseline, and how many comparisons the p-values are corrected for.

    ``left_out`` are runs that could not be used, with the reason of each; ``notes`` tell of them too.
    """

    groups: tuple[Group, ...]
    baseline: str
    comparisons: int
    alpha: float = ALPHA
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def leaderboard(
    runs: Iterable[Run], baseline: str = "random", alpha: float = ALPHA, *, left_out: Iterable[LeftOut] = ()
) -> Board:
    """Group runs by task, LM and k, join seeds, and compare every line with the baseline of its group.

    Runs that are not finished are left out and noted, and so are those of ``left_out``, which could not be read, and
    those whose values are not what their answers are worth (see ``usable_runs``). Seeds of one line are joined; a
    selector that does not depend on the seed has one run. DataError when nothing is left.
    """
    runs, lost = list(runs), list(left_out)
    done = [r for r in runs if r.facts.get("done", True) and r.rows]
    notes = [f"{len(runs) - len(done)} unfinished runs are left out"] if len(done) < len(runs) else []
    trusted, wrong, more = usable_runs(done)
    lost += wrong
    grouped = dict[str, list[Run]]()
    for key, members in _groups(trusted).items():
        alike, odd = same_queries(members)
        lost += [one for one in odd if one not in lost]
        if alike:
            grouped[key] = alike
    if not grouped:
        why = f"; {_count(len(lost), 'run')} cannot be used, the first: {lost[0].reason}" if lost else ""
        raise DataError(f"no finished run to rank; finish them with the same iclkit eval command{why}")
    notes += [*more, *(f"run {one.run} is left out: {one.reason}" for one in lost)]
    tags = _tags([json.loads(key) for key in grouped])
    every = [_draft(grouped[key], tag) for key, tag in sorted(zip(grouped, tags, strict=True))]
    drafts = [draft for draft in every if draft.golds]
    notes += [f"{d.group.title} is left out: each of its queries failed in one run or another" for d in every
              if not d.golds]  # fmt: skip
    if not drafts:
        raise DataError(f"nothing to rank: {'; '.join(notes)}")
    pairs = []
    for draft in drafts:
        lines = [d.line for d in draft.lines]
        for d in draft.lines:
            base = _baseline_of(d.line, lines, baseline)
            if base is not None and not _is(d.line, baseline):
                pairs.append((d, draft.lines[lines.index(base)], draft))
    if not pairs and len({d.line.selector for g in drafts for d in g.lines}) > 1:
        notes.append(f"no run of {baseline!r} beside the others: nothing is compared")
    found = {id(d): _compare(draft.metric, d, base, draft.golds, alpha, len(pairs)) for d, base, draft in pairs}
    adjusted = dict(zip(found, holm([f.p for f in found.values()]), strict=True))
    groups = []
    for draft in drafts:
        ranks = _ranks(draft)
        lines = [
            replace(
                d.line,
                diff=found.get(id(d)),
                p=adjusted.get(id(d), math.nan),
                verdict=_verdict(d.line, baseline, found.get(id(d)), adjusted.get(id(d)), alpha),
                ranks=rank,
            )
            for d, rank in zip(draft.lines, ranks, strict=True)
        ]
        lines.sort(key=lambda line: (-line.figure.value, line.name))
        groups.append(replace(draft.group, lines=tuple(lines)))
    return Board(tuple(groups), baseline, len(pairs), alpha, tuple(notes), tuple(lost))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


@dataclass(eq=False)
class _DraftLine:
    line: Line
    values: NDArray[np.float64]  # (seeds, queries) of the task's metric; empty for a metric of whole runs
    outputs: list[list[str]]  # per seed, kept where a metric needs the answers themselves


@dataclass(eq=False)
class _Draft:
    group: Group
    metric: Metric
    lines: list[_DraftLine]
    golds: list[str]


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by all that must be equal to be compared. Runs without demonstrations join every k."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_group_key(run, run.spec["k"]), []).append(run)
    for key in [k for k in found if found[k][0].spec["k"] == 0]:
        joined = [k for k in found if k != key and _group_key(found[k][0], 0) == key]
        for other in joined:
            found[other] += found[key]
        if joined:
            del found[key]
    return found


def _group_key(run: Run, k: int) -> str:
    spec = run.spec
    same = [spec["pool"]["hash"], spec["template"], spec["on_leak"], spec["budget"], spec["normalise"]]
    task, lm = spec["task"], spec["lm"]
    head = [task["name"], lm["name"], f"{k:06}"]
    later = [task.get("sample"), task.get("rows"), spec.get("answer_tokens"), spec.get("stop")]
    return canonical_json([*head, task["hash"], task["queries"], lm["fingerprint"], *same, *later])


def _tags(keys: Sequence[list[Any]]) -> list[str]:
    """For groups that would have the same title, what tells them apart."""
    names = ("task", "queries", "LM", "pool", "template", "on leak", "budget", "normalise", "sample", "rows",
             "answer tokens", "stops")  # fmt: skip
    tags = []
    for key in keys:
        twins = [k for k in keys if k[:3] == key[:3]]
        apart = [n for n, name in enumerate(names) if len({canonical_json(k[3 + n]) for k in twins}) > 1]
        shown = [(names[n], key[3 + n]) for n in apart]
        tags.append(", ".join(f"{n} {v if isinstance(v, int) or v is None else str(v)[-8:]}" if n != "template"
                              else f"template {digest(v, 3)}" for n, v in shown))  # fmt: skip
    return tags


def _draft(runs: Sequence[Run], tag: str) -> _Draft:
    spec = max(runs, key=lambda r: r.spec["k"]).spec
    runs, failed = answered(_newest(runs))
    metric, _ = metric_of(runs[0])
    lines: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        lines.setdefault(_line_key(run), []).append(run)
    several = {n for n, *_ in lines if len({k[3] for k in lines if k[0] == n}) > 1}  # same selector, two embedders
    golds = [r.gold for r in runs[0].rows]
    drafts = [] if not golds else [
        _draft_line(f"{name} ({emb})" if name in several else name, order, calibrate, members, metric, golds)
        for (name, order, calibrate, emb), members in sorted(lines.items())
    ]  # fmt: skip
    notes = [*_leak_notes(spec, runs)]
    if failed:
        what = "query" if failed == 1 else "queries"
        notes.append(f"{failed} {what} failed in one run or another and count in none of these figures")
    group = Group(
        spec["task"]["name"], spec["lm"]["name"], spec["k"], metric.name, len(golds), spec["pool"]["size"], (),
        tuple(notes), tag,
    )  # fmt: skip
    return _Draft(group, metric, drafts, golds)


def answered(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs with those rows alone at which none of them failed, and how many queries that leaves out.

    Figures that are compared are of the same queries: what one run failed at is neither right nor wrong in the others.
    """
    failed = {row.query_id for run in runs for row in run.rows if row.failure}
    if not failed:
        return [*runs], 0
    kept = [replace(run, rows=tuple(row for row in run.rows if row.query_id not in failed)) for run in runs]
    return kept, len(failed)


def _calibration(run: Run) -> str:
    """The calibration by name; with what tells two of one name apart."""
    kind: str = run.spec.get("calibrate", "none")
    if kind == "batch" and "prior" not in run.spec and run.spec["task"]["queries"] > _ONE_CHUNK:
        return "batch of 64"  # early runs took a prior from each chunk of their rows
    return f"given {digest(run.spec['prior'], 3)}" if kind == "given" else kind


def _leak_notes(spec: Mapping[str, Any], runs: Sequence[Run]) -> tuple[str, ...]:
    leaks = next((r.facts["leaks"] for r in runs if r.facts.get("leaks", {}).get("queries")), None)
    if not leaks:
        return ()
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(leaks["pairs"].items()))
    done = {"exclude": "kept from the queries they give away", "ignore": "shown nevertheless"}[spec["on_leak"]]
    return (f"{leaks['queries']} of {spec['task']['queries']} test rows stand in the pool ({kinds}); {done}",)


def _draft_line(
    name: str, order: str, calibrate: str, runs: Sequence[Run], metric: Metric, golds: list[str]
) -> _DraftLine:
    runs = sorted(runs, key=lambda run: int(run.spec["seed"]))
    ids = [r.query_id for r in runs[0].rows]
    for run in runs:
        if [r.query_id for r in run.rows] != ids:
            raise DataError(f"runs {runs[0].id} and {run.id} should have the same queries and have not; run them again")
    values, outputs = np.empty((len(runs), 0)), list[list[str]]()
    labels = runs[0].spec["task"]["labels"]
    if metric.whole is not None or labels:
        outputs = [[r.output for r in run.rows] for run in runs]
    if metric.whole is None:
        values = np.array([[r.metrics[metric.name] for r in run.rows] for run in runs], dtype=np.float64)
        figure = estimate(values, bounded=metric.bounded)
    else:
        figure = _bootstrap(metric.whole, outputs, golds)
    others: dict[str, Estimate] = {}
    if labels:
        if metric.name != "macro_f1":
            others["macro_f1"] = bootstrap_macro_f1(outputs, golds, labels)
        if all("gold_logprob" in r.metrics for r in runs[0].rows):
            logs = np.array([[r.metrics["gold_logprob"] for r in run.rows] for run in runs])
            others["gold_logprob"] = estimate(logs, bounded=False)
    raw = f"{metric.name}_raw"
    if calibrate != "none" and all(raw in r.metrics for r in runs[0].rows):
        others[raw] = estimate(np.array([[r.metrics[raw] for r in run.rows] for run in runs]), bounded=metric.bounded)
    queries = len(runs) * len(ids)
    line = Line(
        selector=name,
        order=order,
        calibrate=calibrate,
        figure=figure,
        seeds=tuple(r.spec["seed"] for r in runs),
        runs=tuple(r.id for r in runs),
        tokens=sum(r.prompt_tokens for run in runs for r in run.rows) / queries,
        calls=sum(r.usage.get("calls", 0) for r in runs) / queries,
        seconds=sum(r.usage.get(k, 0) for r in runs for k in ("select_s", "assemble_s", "score_s")) / queries,
        others=others,
        notes=(*_line_notes(runs), *cautions(runs)),
    )
    return _DraftLine(line, values, outputs)


def _newest(runs: Sequence[Run]) -> list[Run]:
    """The same run made by two versions counts once: the later version's."""
    return [*{(*_line_key(run), run.spec["seed"]): run for run in sorted(runs, key=_version)}.values()]


def _line_key(run: Run) -> tuple[str, str, str, str]:
    """Selector, order, calibration and embedder: runs that share them are one line, under several seeds."""
    selector = run.spec["selector"]
    name = run.facts.get("selector") or str(Spec(selector["name"], selector["settings"]))
    return name, run.spec["order"], _calibration(run), (run.spec["embedder"] or {}).get("name", "")


def _version(run: Run) -> list[tuple[int, str]]:
    text = f"{run.spec['iclkit']}.{run.spec['selector']['version']}"
    return [(int(part), "") if part.isdigit() else (-1, part) for part in text.split(".")]


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


def _is(line: Line, baseline: str) -> bool:
    return line.selector == baseline


def _baseline_of(line: Line, lines: Sequence[Line], baseline: str) -> Line | None:
    bases = [b for b in lines if _is(b, baseline)]
    same = [b for b in bases if (b.order, b.calibrate) == (line.order, line.calibrate)]
    plain = [b for b in bases if (b.order, b.calibrate) == ("best-last", "none")]
    return next(iter([*same, *plain, *bases]), None)


def _compare(
    metric: Metric, a: _DraftLine, b: _DraftLine, golds: Sequence[str], alpha: float, comparisons: int
) -> Difference:
    key = zlib.crc32(f"{a.line.name} {b.line.name}".encode())
    if metric.whole is None:
        return difference(a.values, b.values, bounded=metric.bounded, alpha=alpha, comparisons=comparisons, key=key)
    return _bootstrap_difference(metric.whole, a.outputs, b.outputs, golds, alpha, comparisons)


def _verdict(line: Line, baseline: str, diff: Difference | None, p: float | None, alpha: float) -> str:
    if _is(line, baseline):
        return BASE
    if diff is None or p is None:
        return NONE
    if p > alpha:
        return INCONCLUSIVE
    return BETTER if diff.value > 0 else WORSE


def _ranks(draft: _Draft) -> list[tuple[int, int]]:
    if draft.metric.whole is not None or len(draft.golds) < 2:
        return [(1, len(draft.lines))] * len(draft.lines)
    return rank_intervals([d.values for d in draft.lines], bounded=draft.metric.bounded)


Whole = Callable[[Sequence[str], Sequence[str]], float]
_DRAWS = 400


def _draws(whole: Whole, outputs: Sequence[Sequence[str]], golds: Sequence[str]) -> NDArray[np.float64]:
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
    whole: Whole,
    a: Sequence[Sequence[str]],
    b: Sequence[Sequence[str]],
    golds: Sequence[str],
    alpha: float,
    comparisons: int,
) -> Difference:
    """Paired bootstrap with the normal limit: for figures of whole runs, which have no value per query."""
    from scipy.stats import norm

    value = float(np.mean([whole(o, golds) for o in a]) - np.mean([whole(o, golds) for o in b]))
    error = float((_draws(whole, a, golds) - _draws(whole, b, golds)).std(ddof=1))
    half = float(norm.isf(alpha / 2)) * error
    least = float(norm.isf(alpha / comparisons / 2) + norm.isf(0.2)) * error
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else 1.0
    return Difference(value, value - half, value + half, p, least, len(golds))
