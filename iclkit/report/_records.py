"""What a board holds: plain numbers and names, frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from iclkit.eval import Difference, Estimate, LeftOut, NewTasks, PooledDifference
from iclkit.records import Run, SeedScope, data_frame, html_table
from iclkit.report._axes import USUAL

ALPHA = 0.05
BETTER, WORSE, INCONCLUSIVE, BASE, NONE = "better", "worse", "no difference shown", "baseline", "not compared"
NO_LM = "asks no LM"
"""Instead of a verdict: such a line stands beside the others and takes no power from their comparisons."""
BASELINES = {"selector": "random", "order": "best-last", "calibrate": "none", "chat": "plain"}
"""What lines are compared with on the first axis, unless the user names another."""


@dataclass(frozen=True, slots=True)
class Line:
    """One way of answering on one task: its figure and how it stands against the baseline of its table.

    ``others`` are further figures by name. ``p`` is corrected as ``kind`` says; for ``explored`` it is a q-value.
    ``ranks`` are the ranks, best 1, that the data leave open. ``scope`` is what the seeds stand for. ``asks_lm``: false
    for what answers without one, such as a vote of neighbors. ``tokens`` per
    prompt; ``calls`` and ``seconds`` of LM work and ``cost`` in money per query, as far as recorded (a run served from
    the cache spends next to none; money only where a price was given).
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
    name: str = ""
    scope: SeedScope = "none"
    others: Mapping[str, Estimate] = field(default_factory=dict)
    diff: Difference | None = None
    p: float = math.nan
    kind: str = ""
    verdict: str = NONE
    asks_lm: bool = True
    ranks: tuple[int, int] = (1, 1)
    notes: tuple[str, ...] = ()
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class LMAdds:
    """What asking an LM adds: one of its lines against ``reference``, a line that asks none, on the same queries.

    ``figure`` and ``reference_figure`` are means over the queries of both. ``diff`` has its interval; ``p`` is
    corrected (Holm) over ``among``, the lines of the same table that were compared with the reference. ``only_lm`` and
    ``only_reference`` count queries that one of the two alone got right; None where answers are more than right or
    wrong, or of several seeds. ``best`` is the best line that asks no LM, where that is another one, with its figure.
    """

    name: str
    reference: str
    figure: float
    reference_figure: float
    diff: Difference | PooledDifference
    p: float
    verdict: str
    among: int
    k: int = 0
    only_lm: int | None = None
    only_reference: int | None = None
    best: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The lines that can be compared with one another, best first: they differ on the compared axes alone.

    ``comparisons`` are those with the baseline of this table. ``lm_adds``: every line that asks an LM against one that
    asks none, best first; empty where there is none.
    """

    task: str
    lm: str
    k: int
    metric: str
    queries: int
    pool: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    tag: str = ""
    title: str = ""
    comparisons: int = 0
    lm_adds: tuple[LMAdds, ...] = ()


@dataclass(frozen=True, slots=True)
class OverallLine:
    """One way of answering over several tasks.

    ``diff``: against the baseline, over all queries of these tasks. ``by_task``: each task weighed alike, where their
    numbers of queries differ twofold or more. ``new``: the mean over tasks as a sample of tasks; None under three.
    ``rank``: the average rank over tasks with its interval, for lines that stand on every task. ``better``, ``open``
    and ``worse`` count the verdicts of the tasks' own tables.
    """

    name: str
    k: int
    tasks: tuple[str, ...]
    queries: int
    diff: PooledDifference | None
    by_task: PooledDifference | None
    new: NewTasks | None
    rank: Estimate | None
    better: int
    open: int
    worse: int
    p: float = math.nan
    kind: str = ""
    verdict: str = NONE


@dataclass(frozen=True, slots=True)
class Overall:
    """All tasks of one LM together: a line per way of answering and k. ``lm_adds`` as in ``Group``, over the tasks."""

    title: str
    lines: tuple[OverallLine, ...]
    tasks: tuple[str, ...]
    lm: str = ""
    notes: tuple[str, ...] = ()
    lm_adds: tuple[LMAdds, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """Runs of one command: as it was typed ("" where nobody recorded it), by which version, on which days."""

    command: str
    version: str
    days: tuple[str, ...]
    runs: int


def made_by(runs: Iterable[Run]) -> tuple[Made, ...]:
    """The commands that runs were made by, in order of their days."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        made = (run.facts.get("source", {}).get("command", ""), run.facts.get("iclkit", ""))
        found.setdefault(made, {})[run.id] = run.facts.get("date", "")[:10]
    commands = [
        Made(command, version, tuple(sorted({day for day in own.values() if day})), len(own))
        for (command, version), own in found.items()
    ]
    return tuple(sorted(commands, key=lambda m: (m.days, m.command, m.version)))


@dataclass(frozen=True, slots=True)
class Board:
    """All groups, the figures over all tasks, the baseline, and how the p-values are corrected.

    ``comparisons`` counts those of the tasks' tables. ``primary`` are the questions declared beforehand, as typed, and
    ``declared`` says of each when.
    ``left_out`` are runs that could not be used, with the reason of each; ``notes`` tell of them too. ``made``: the
    commands that made the runs.
    """

    groups: tuple[Group, ...]
    baseline: str
    comparisons: int
    alpha: float = ALPHA
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    overall: tuple[Overall, ...] = ()
    correction: str = "task"
    primary: tuple[str, ...] = ()
    compared: tuple[str, ...] = USUAL
    declared: Mapping[str, str] = field(default_factory=dict)
    made: tuple[Made, ...] = ()

    @property
    def _table(self) -> list[dict[str, object]]:
        return [
            {
                "task": group.task, "lm": group.lm, "k": group.k, "selector": line.name or line.selector,
                "order": line.order, "calibrate": line.calibrate, "metric": group.metric, "value": line.figure.value,
                "low": line.figure.low, "high": line.figure.high, "difference": line.diff.value if line.diff else None,
                "p": line.p if line.diff else None, "verdict": line.verdict, "seeds": len(line.seeds),
                "queries": group.queries, "tokens": line.tokens,
            }
            for group in self.groups
            for line in group.lines
        ]  # fmt: skip

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each line of the tables of single tasks."""
        return data_frame(self._table)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        return f"<p>baseline: {escape(self.baseline)}</p>{html_table(self._table)}{notes}"


def is_baseline(line: Line, baseline: str, compared: Sequence[str] = USUAL) -> bool:
    """Whether this is a line that others are compared with: by its full name, or that on the first axis."""
    return baseline == line.name or (compared[0] == "selector" and baseline == line.selector)


def baseline_of(line: Line, lines: Sequence[Line], baseline: str, compared: Sequence[str] = USUAL) -> Line | None:
    """The line that this one is compared with: same order and calibration if there is one, else the plain one."""
    bases = [b for b in lines if is_baseline(b, baseline, compared)]
    same = [b for b in bases if (b.order, b.calibrate) == (line.order, line.calibrate)]
    plain = [b for b in bases if (b.order, b.calibrate) == ("best-last", "none")]
    return next(iter([*same, *plain, *bases]), None)
