"""All tasks together: for each way of answering and k, does it help over these tasks, and what of new ones."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from iclkit.eval import Estimate, NewTasks, PooledDifference, TaskPair, new_tasks, pooled_difference, rank_estimates
from iclkit.records import canonical_json
from iclkit.report._drafts import Draft, Pair
from iclkit.report._questions import Answer
from iclkit.report._records import BASE, BETTER, INCONCLUSIVE, NO_LM, NONE, WORSE, Group, Overall, OverallLine

_OF_A_TASK = {"task", "pool", "template", "sample", "rows", "answer_tokens", "stop", "budget"}
"""Axes on which tables of different tasks may differ and still be pooled."""
_UNEQUAL = 2  # times as many queries: then weighing queries and weighing tasks are two answers


@dataclass(eq=False)
class PooledLine:
    """One way of answering and k over several tasks: the pairs of the tasks' tables, pooled."""

    title: str
    name: str
    k: int
    pairs: list[Pair]
    diff: PooledDifference
    by_task: PooledDifference | None
    new: NewTasks | None
    primary: bool = False
    answer: Answer | None = field(default=None)


def pool(drafts: Sequence[Draft], pairs: Sequence[Pair]) -> tuple[list[PooledLine], list[str]]:
    """The pooled lines of tables of several tasks that belong together, and what cannot be pooled."""
    families: dict[str, list[Draft]] = {}
    for draft in drafts:
        if draft.metric.whole is None:
            families.setdefault(_family(draft), []).append(draft)
    lines, notes = list[PooledLine](), list[str]()
    for members in families.values():
        tasks = [m.group.task for m in members]
        if len(set(tasks)) < 2:
            continue
        if len(set(tasks)) < len(tasks):
            twice = sorted({t for t in tasks if tasks.count(t) > 1})
            notes.append(f"{', '.join(twice)}: several tables of one task and k, so nothing is pooled over tasks there")
            continue
        by_name: dict[str, list[Pair]] = {}
        for pair in pairs:
            if any(pair.draft is m for m in members):
                by_name.setdefault(pair.line.line.name, []).append(pair)
        lines += [_pooled(_title(members[0]), name, own) for name, own in by_name.items() if len(own) > 1]
    whole = sorted({d.group.task for d in drafts if d.metric.whole is not None})
    if whole and len({d.group.task for d in drafts}) > 1:
        notes.append(f"not pooled over tasks: {', '.join(whole)}, whose metric has no value per query")
    return lines, notes


def _family(draft: Draft) -> str:
    """What tables of different tasks must share to be pooled."""
    return canonical_json({axis: place.key for axis, place in draft.fixed.items() if axis not in _OF_A_TASK})


def _title(draft: Draft) -> str:
    return draft.group.lm


def _pooled(title: str, name: str, pairs: list[Pair]) -> PooledLine:
    tasks = [
        TaskPair(p.line.values, p.base.values, (p.line.line.scope, p.base.line.scope), p.shared_draw) for p in pairs
    ]
    sizes, key = [len(p.draft.golds) for p in pairs], zlib.crc32(name.encode())
    diff = pooled_difference(tasks, key=key)
    unequal = max(sizes) >= _UNEQUAL * min(sizes)
    alone = [pooled_difference([t], key=key) for t in tasks]
    by_task = pooled_difference(tasks, by="task", key=key) if unequal else None
    return PooledLine(
        title, name, pairs[0].draft.group.k, pairs, diff, by_task,
        new_tasks([d.value for d in alone], [d.error for d in alone]),
    )  # fmt: skip


def finish(
    pooled: Sequence[PooledLine], drafts: Sequence[Draft], groups: Sequence[Group], alpha: float
) -> tuple[Overall, ...]:
    """One table per LM: the pooled lines with verdicts and average ranks, and the baseline's rank beside them."""
    out = []
    for title in dict.fromkeys(line.title for line in pooled):
        own = [line for line in pooled if line.title == title]
        tasks = tuple(dict.fromkeys(p.draft.group.task for line in own for p in line.pairs))
        lines = list[OverallLine]()
        for k in sorted({line.k for line in own}):
            ranked = [line for line in own if line.k == k]
            these = [d for d in drafts if any(p.draft is d for line in ranked for p in line.pairs)]
            ranks = _ranks(these, tasks)
            lines += [_finished(line, groups, drafts, ranks.get(line.name), alpha) for line in ranked]
            lines += [
                OverallLine(name, k, tasks, sum(len(d.golds) for d in these), None, None, None, rank, 0, 0, 0,
                            verdict=_beside(name, these[0]))
                for name, rank in ranks.items() if all(name != line.name for line in ranked)
            ]  # fmt: skip
        lines.sort(
            key=lambda x: (x.k, x.rank.value if x.rank else math.inf, -(x.diff.value if x.diff else 0.0), x.name)
        )
        out.append(Overall(f"all tasks · {title}", tuple(lines), tasks, title))
    return tuple(out)


def _beside(name: str, draft: Draft) -> str:
    """What a line without a difference to the baseline is."""
    return BASE if next(d.line for d in draft.lines if d.line.name == name).asks_lm else NO_LM


def _ranks(drafts: Sequence[Draft], tasks: Sequence[str]) -> dict[str, Estimate]:
    """The average rank of every line that stands on all tasks."""
    if {d.group.task for d in drafts} != set(tasks):
        return {}
    names = [
        d.line.name for d in drafts[0].lines if all(any(x.line.name == d.line.name for x in o.lines) for o in drafts)
    ]
    values = [[next(x.values for x in d.lines if x.line.name == name) for name in names] for d in drafts]
    if len(names) < 2 or any(v.shape[1] < 2 for task in values for v in task):
        return {}
    return dict(zip(names, rank_estimates(values), strict=True))


def _finished(
    line: PooledLine, groups: Sequence[Group], drafts: Sequence[Draft], rank: Estimate | None, alpha: float
) -> OverallLine:
    corrected = line.answer
    own = [g for g, d in zip(groups, drafts, strict=True) if any(p.draft is d for p in line.pairs)]
    verdicts = [next(x.verdict for x in g.lines if x.name == line.name) for g in own]
    better, unclear, worse = (verdicts.count(v) for v in (BETTER, INCONCLUSIVE, WORSE))
    verdict = NONE
    if corrected is not None:
        verdict = INCONCLUSIVE if corrected.p > alpha else BETTER if line.diff.value > 0 else WORSE
    return OverallLine(
        line.name, line.k, tuple(p.draft.group.task for p in line.pairs), line.diff.queries, line.diff, line.by_task,
        line.new, rank, better, unclear, worse,
        corrected.p if corrected else math.nan, corrected.kind if corrected else "", verdict,
    )  # fmt: skip
