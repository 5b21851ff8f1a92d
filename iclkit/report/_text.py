"""A board as text for files: Markdown, JSON, CSV, LaTeX."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from iclkit.eval import METRICS, Estimate, Metric
from iclkit.records import Run
from iclkit.report._axes import USUAL, axis_word
from iclkit.report._records import (
    BASE,
    BETTER,
    INCONCLUSIVE,
    NO_LM,
    Board,
    Group,
    Line,
    LMAdds,
    Overall,
    OverallLine,
)
from iclkit.text import printable

_MARKS = re.compile(r"[\\`*_\[\]|~#]")  # what Markdown reads as markup; < > & are entities
HEADS = ("rank", "{line}", "{metric}", "95 % interval", "vs {base}", "95 % interval", "{p}", "verdict", "seeds",
         "tokens")  # fmt: skip
COST_HEAD = "cost / 1,000"
"""Behind ``HEADS`` where answers of the board were paid for."""
OVERALL_HEADS = ("k", "{line}", "average rank", "vs {base}", "95 % interval", "{p}", "verdict", "new tasks", "tasks")


def figure(value: float, metric: str = "") -> str:
    """A share as per cent with one decimal, a log-probability with three."""
    if math.isnan(value) or math.isinf(value):
        return "–"
    return f"{value:.3f}" if metric == "gold_logprob" else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return "–" if math.isnan(value) or math.isinf(value) else f"{100 * value:+.1f}".replace("-", "−")


def interval(low: float, high: float, *, sign: bool = False) -> str:
    """Both ends of an interval, in per cent or, signed, in points."""
    show = signed if sign else figure
    return f"{show(low)} … {show(high)}"


def format_p(p: float) -> str:
    """A p-value as people read it."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def money(amount: float) -> str:
    """An amount of money with three digits that count.

    >>> money(0.012345), money(1234.5)
    ('0.0123', '1234')
    """
    return f"{amount:.0f}" if amount >= 1000 else f"{amount:.3g}"


def ranks(line: Line) -> str:
    """A rank, or the ranks that are open."""
    low, high = line.ranks
    return f"{low}" if low == high else f"{low}–{high}"


def p_or_q(p: float, kind: str) -> str:
    """A corrected p-value, a declared question's p-value, or the q-value of an explored comparison."""
    text = format_p(p)
    return f"q {text}" if text and kind == "explored" else text


def priced(board: Board) -> bool:
    """Whether answers of a line were paid for."""
    return any(line.cost for group in board.groups for line in group.lines)


def cells(line: Line, *, cost: bool = False) -> list[str]:
    """The table row of a line, as texts under ``HEADS``, with what 1,000 queries cost where ``cost``."""
    diff = line.diff
    return [
        ranks(line),
        line.name,
        figure(line.figure.value),
        interval(line.figure.low, line.figure.high),
        signed(diff.value) if diff else "",
        interval(diff.low, diff.high, sign=True) if diff else "",
        p_or_q(line.p, line.kind),
        f"{line.verdict} (declared)" if line.kind == "declared" else line.verdict,
        str(len(line.seeds)),
        f"{line.tokens:.0f}",
        *([money(1000 * line.cost) if line.cost else "–"] if cost else []),
    ]


def overall_cells(line: OverallLine) -> list[str]:
    """The row of a line over all tasks, as texts under ``OVERALL_HEADS``."""
    rank, diff, new = line.rank, line.diff, line.new
    return [
        str(line.k),
        line.name,
        f"{rank.value:.1f} ({rank.low:.1f} … {rank.high:.1f})" if rank else "",
        signed(diff.value) if diff else "",
        interval(diff.low, diff.high, sign=True) if diff else "",
        p_or_q(line.p, line.kind),
        f"{line.verdict} (declared)" if line.kind == "declared" else line.verdict,
        f"{signed(new.value)} ({interval(new.low, new.high, sign=True)})" if new else "",
        f"{line.better} better, {line.open} not shown, {line.worse} worse" if diff else "",
    ]


_P_HEADS = {"task": "p (Holm)", "board": "p (Holm)", "fdr": "q (BH)", "fdr-any": "q (BY)"}


def _head(names: Sequence[str], board: Board, metric: str = "") -> list[str]:
    p = "p or q" if board.primary else _P_HEADS[board.correction]
    line = " + ".join(map(axis_word, board.compared[:1] if board.compared == USUAL else board.compared))
    return [h.format(metric=metric.replace("_", " "), base=board.baseline, p=p, line=line) for h in names]


def heads(board: Board, group: Group) -> list[str]:
    """The table's head for a group."""
    return _head((*HEADS, COST_HEAD) if priced(board) else HEADS, board, group.metric)


def overall_heads(board: Board) -> list[str]:
    """The head of the table over all tasks."""
    return _head(OVERALL_HEADS, board)


def points(size: float) -> str:
    """The smallest detectable effect in points; what cannot be detected at all says so."""
    return f"{100 * size:.1f}" if math.isfinite(size) else "none"


def smallest(line: Line) -> str:
    """What a line's comparison could have shown, in words."""
    d = line.diff
    assert d is not None
    if math.isinf(d.smallest_gain) and math.isinf(d.smallest_drop):
        return "no gain or drop"
    up = f"a gain of {points(d.smallest_gain)}" if math.isfinite(d.smallest_gain) else "no gain"
    down = f"a drop of {points(d.smallest_drop)}" if math.isfinite(d.smallest_drop) else "no drop"
    return f"{up}, {down}"


def lm_words(adds: Sequence[LMAdds], *, where: str = "") -> str:
    """What asking the LM adds, for the best of its lines, in a sentence or two; empty where nothing can be said.

    ``where`` stands behind the first words: " over 3 tasks".
    """
    if not adds:
        return ""
    a = max(adds, key=lambda x: x.figure)
    d = a.diff
    name = f"{a.name} at k = {a.k}" if where and a.k else a.name
    found = (
        f"{name} is right on {figure(a.figure)} %, {a.reference}, which asks no LM, on {figure(a.reference_figure)} %"
        f" ({signed(d.value)} points, {interval(d.low, d.high, sign=True)}, p {format_p(a.p)}"
        + (f", corrected over {a.among} lines)" if a.among > 1 else ")")
    )
    if a.verdict == BETTER:
        said = f"The LM adds {figure(d.value)} points{where}: {found}."
    elif a.verdict == INCONCLUSIVE:
        said = f"That the LM adds anything is not shown{where}: {found}."
    else:
        said = f"The LM adds nothing{where}, a plain rule does better: {found}."
    if a.only_lm is not None:
        said += f" {a.only_lm} of {d.queries} queries only the LM got right, {a.only_reference} only {a.reference}."
    return said + (f" The best without an LM is {a.best[0]}: {figure(a.best[1])} %." if a.best else "")


def group_notes(group: Group) -> list[str]:
    """What a reader must know about a group's table."""
    notes = [f"{group.queries} queries, {group.pool} examples in the pool."]
    open_lines = [line for line in group.lines if line.diff and line.verdict == INCONCLUSIVE]
    by_note: dict[str, list[str]] = {}
    for line in group.lines:
        for note in line.notes:
            by_note.setdefault(note, []).append(line.name)
    if open_lines and all(smallest(line) == "no gain or drop" for line in open_lines):
        notes.append("So few queries that no true difference was sure to be declared.")
    elif open_lines:
        sizes = "; ".join(f"{line.name} {smallest(line)}" for line in open_lines)
        notes.append(f"Smallest true differences, in points, that would have been declared in 80 % of tries: {sizes}.")
    return (
        notes
        + [f"{n[0].upper()}{n[1:]}." for n in group.notes]
        + [f"{', '.join(names)}: {note}." for note, names in by_note.items()]
    )


def overall_notes(overall: Overall) -> list[str]:
    """What a reader must know about the table over all tasks."""
    notes = [f"{len(overall.tasks)} tasks: {', '.join(overall.tasks)}."]
    notes += [
        f"{line.name} at k = {line.k}: {signed(d.value)} ({interval(d.low, d.high, sign=True)}, p {format_p(d.p)}) "
        f"with each task weighed alike."
        for line in overall.lines
        if (d := line.by_task)
    ]
    some = sorted({line.name for line in overall.lines if len(line.tasks) < len(overall.tasks)})
    return [*notes, f"Not on all tasks: {', '.join(some)}."] if some else notes


def overall_lm_words(overall: Overall) -> str:
    """What asking the LM adds over all tasks."""
    return lm_words(overall.lm_adds, where=f" over {len(overall.tasks)} tasks")


def _correction(board: Board) -> str:
    """How p-values are corrected, in one sentence."""
    said = f"better or worse is said at {{}} ≤ {board.alpha:g}. Intervals are not corrected."
    if board.primary:
        where = "the figures over all tasks" if board.overall else "their tables"
        questions = "; ".join(f"{question}: {when}" for question, when in board.declared.items())
        return (
            f"Declared questions ({questions}) are tested on {where} first, corrected among themselves "
            f"(Holm), whatever else is on the board; the rest is explored, with q-values (false discovery rate, "
            f"Benjamini & Hochberg); {said.format('p or q')}"
        )
    if board.correction == "task":
        sizes = sorted({g.comparisons for g in board.groups if g.comparisons})
        return (
            "p is corrected (Holm) over the comparisons of one task"
            + (", and over those of the table over all tasks" if board.overall else "")
            + f"{'' if len(sizes) != 1 or len(board.groups) > 1 else f' ({sizes[0]})'}; {said.format('p')}"
        )
    if board.correction == "board":
        return f"p is corrected (Holm) over the {board.comparisons} comparisons of this board; {said.format('p')}"
    by = "Benjamini & Hochberg" if board.correction == "fdr" else "Benjamini & Yekutieli, under any dependence"
    return f"q is the false discovery rate ({by}) over all comparisons of this board; {said.format('q')}"


def legend(board: Board) -> list[str]:
    """How to read the tables."""
    lines = [line for group in board.groups for line in group.lines]
    said = [
        "Figures in per cent, differences in points, each with a 95 % interval over queries, and over seeds where a "
        "seed draws once for all queries.",
        f"Every line is compared with {board.baseline or 'nothing'} on the same queries; {_correction(board)}",
        "Rank: the ranks that pairwise comparisons leave open; lines that share a rank are tied, which says nothing of "
        "a difference.",
    ]
    if board.overall:
        said.append(
            "All tasks: the difference over all queries of these tasks; new tasks: the mean over tasks with the "
            "interval for tasks like these (Student, tasks as a sample). The average rank is a description, not a test."
        )
    if any(line.verdict == NO_LM for line in lines):
        said.append(
            f"{NO_LM[0].upper()}{NO_LM[1:]}: what a plain rule makes of the same examples. It is not compared with "
            f"{board.baseline or 'a baseline'}; every line that asks the LM is compared with the first there is of "
            f"neighbors' vote, logistic regression and majority label, corrected (Holm) among themselves."
        )
    if priced(board):
        said.append("Cost: money that 1,000 queries took; what the cache knew cost nothing.")
    if any(line.scope == "query" and len(line.seeds) > 1 for line in lines):
        said.append("Seeds of selectors that draw anew for each query are repeats of one line, not treatments.")
    if any(len(line.seeds) == 1 and line.scope == "none" for line in lines):
        said.append("One seed: the seed makes no difference to that selector, so one run stands for all.")
    return [*said, *[f"{n[0].upper()}{n[1:]}." for n in board.notes]]


@dataclass(frozen=True, slots=True)
class Curve:
    """How figures change with k on one task and LM: a row per selector, None where it was not run."""

    title: str
    metric: str
    ks: tuple[int, ...]
    rows: Mapping[str, tuple[Estimate | None, ...]]

    def table(self) -> list[list[str]]:
        """Head and rows as texts: figure and interval for each k."""
        body = [
            [name, *("" if e is None else f"{figure(e.value)} ({interval(e.low, e.high)})" for e in row)]
            for name, row in self.rows.items()
        ]
        return [["selector", *(f"k = {k}" for k in self.ks)], *body]


def curves(board: Board) -> list[Curve]:
    """One curve per task and LM that were run with more than one k."""
    families: dict[str, list[Group]] = {}
    for group in board.groups:
        families.setdefault(group.title.replace(f" · k = {group.k}", "", 1), []).append(group)
    found = []
    for title, groups in families.items():
        groups.sort(key=lambda g: g.k)
        names = dict.fromkeys(line.name for g in reversed(groups) for line in g.lines)
        rows = {
            name: tuple(next((x.figure for x in g.lines if x.name == name), None) for g in groups) for name in names
        }
        if len(groups) > 1:
            found.append(Curve(title, groups[0].metric, tuple(g.k for g in groups), rows))
    return found


def _markdown(text: str) -> str:
    """A text as Markdown shows it: on one line, nothing in it a tag, a link, a table border or an emphasis."""
    return _MARKS.sub(r"\\\g<0>", html.escape(" ".join(printable(text).split()), quote=False))


def to_markdown(board: Board) -> str:
    """Every group as a table, figures by k, then how to read them."""
    parts = []
    for overall in board.overall:
        rows = [[_markdown(h) for h in overall_heads(board)], ["---"] * len(OVERALL_HEADS)]
        for one in overall.lines:
            row = [_markdown(c) for c in overall_cells(one)]
            rows.append([f"**{c}**" if c else "" for c in row] if one.verdict == "better" else row)
        parts.append(f"### {_markdown(overall.title)}\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in rows))
        parts.append(_markdown(" ".join([*overall_notes(overall), overall_lm_words(overall)]).strip()))
    for group in board.groups:
        names, cost = heads(board, group), priced(board)
        table = [[_markdown(h) for h in names], ["---"] * len(names)]
        for line in group.lines:
            row = [_markdown(c) for c in cells(line, cost=cost)]
            table.append([f"**{c}**" for c in row] if line.verdict == "better" else row)
        parts.append(f"### {_markdown(group.title)}\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in table))
        parts.append(_markdown(" ".join([*group_notes(group), lm_words(group.lm_adds)]).strip()))
    for curve in curves(board):
        head, *body = curve.table()
        table = [head, ["---"] * len(head), *([_markdown(c) for c in row] for row in body)]
        parts.append(f"### {_markdown(curve.title)}: by k\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in table))
    return "\n\n".join([*parts, "\n".join(f"- {_markdown(text)}" for text in legend(board))]) + "\n"


def to_json(board: Board) -> str:
    """The whole board; numbers that do not exist are null."""
    return json.dumps(_plain(asdict(board)), ensure_ascii=False, indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


COLUMNS = ("task", "lm", "k", "selector", "order", "calibrate", "metric", "value", "low", "high", "diff", "diff_low",
           "diff_high", "p", "p_corrected", "p_kind", "verdict", "rank_low", "rank_high", "smallest_gain",
           "smallest_drop", "seeds", "queries", "tokens", "calls", "seconds", "cost")  # fmt: skip


def _cell(text: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula. Figures stay numbers, negative ones too."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r") else text


def to_csv(board: Board) -> str:
    """One line per line of the board, numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in board.groups:
        for line in group.lines:
            d = line.diff
            diff = [d.value, d.low, d.high, d.p, line.p, line.kind] if d else [""] * 6
            effects = [d.smallest_gain, d.smallest_drop] if d else ["", ""]
            writer.writerow([
                *map(_cell, (group.task, group.lm)), group.k,
                *map(_cell, (line.selector, line.order, line.calibrate, group.metric)),
                line.figure.value, line.figure.low, line.figure.high, *diff, line.verdict, *line.ranks,
                *effects, len(line.seeds), group.queries, line.tokens, line.calls, line.seconds,
                line.cost,
            ])  # fmt: skip
    return out.getvalue()


_TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                      "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "…": "to", "·": r"$\cdot$"})  # fmt: skip


def to_latex(board: Board) -> str:
    """A booktabs table per group; better selectors in bold, with the interval of the difference."""
    parts = []
    for group in board.groups:
        rows = []
        for line in group.lines:
            rank, name, value, ends, diff, diff_ends, p, verdict, *_ = (
                printable(c).translate(_TEX) for c in cells(line)
            )
            name = rf"\textbf{{{name}}}" if verdict == "better" else name
            gain = f"{diff} ({diff_ends})" if line.verdict != BASE and line.diff else "--"
            rows.append(f"{rank} & {name} & {value} ({ends}) & {gain} & {p.replace('< ', '$<$')} \\\\")
        metric, base = (name.translate(_TEX) for name in (group.metric, board.baseline))
        head = f"Rank & Selector & {metric} & vs {base} & $p$"
        caption = (
            printable(f"{group.title}. {' '.join([*group_notes(group), lm_words(group.lm_adds)])}")
            .strip()
            .translate(_TEX)
        )
        top = "\\begin{table}\n\\centering\n\\begin{tabular}{rlrrr}\n\\toprule"
        end = f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{caption}}}\n\\end{{table}}\n"
        parts.append("\n".join([top, rf"{head} \\", r"\midrule", *rows, end]))
    return "\n".join(parts)


def plain_words(board: Board, group: Group) -> str:
    """What was found in a group, in sentences that a reader without statistics can act on."""
    base = [line for line in group.lines if line.verdict == BASE]
    if not base:
        return f"Nothing can be said about choosing: there is no run of {board.baseline} to compare with."
    first = base[0]
    said = [
        f"With {group.k} demonstration{'s' * (group.k != 1)} drawn at random, {group.lm} is right on "
        f"{figure(first.figure.value)} % of {group.queries} queries "
        f"(95 % interval {interval(first.figure.low, first.figure.high)})."
    ]
    by = {v: [line for line in group.lines if line.verdict == v] for v in ("better", "worse", "no difference shown")}
    if by["better"]:
        best = by["better"][0]
        assert best.diff is not None
        said.append(
            f"Choosing helped: {_list([line.name for line in by['better']])} "
            f"{'beats' if len(by['better']) == 1 else 'beat'} {board.baseline}, {best.name} by "
            f"{signed(best.diff.value)} points ({interval(best.diff.low, best.diff.high, sign=True)})."
        )
    else:
        said.append(f"No way of choosing was shown to beat {board.baseline}.")
    if by["worse"]:
        said.append(f"{_list([line.name for line in by['worse']]).capitalize()} did worse than {board.baseline}.")
    if by["no difference shown"]:
        gains = [line.diff.smallest_gain for line in by["no difference shown"] if line.diff]
        seen = [g for g in gains if math.isfinite(g)]
        missed = "; with so few queries any could have been missed"
        if seen:
            low, high = points(min(seen)), points(max(seen))
            span = low if low == high else f"{low} to {high}"
            missed = f"; a true gain of less than {span} points could have been missed"
        names = _list([line.name for line in by["no difference shown"]])
        said.append(f"For {names} no difference was shown{missed}.")
    return " ".join([*said, lm_words(group.lm_adds)]).strip()


def format_figure(run: Run) -> str:
    """A run's figure in words: ``accuracy 61.3 %``."""
    metric: Metric = METRICS.get(run.spec.task.metric)
    rows = [row for row in run.rows if not row.failure]
    value = metric.figure([r.output for r in rows], [r.gold for r in rows], run.spec.task.labels)
    return f"{metric.name.replace('_', ' ')} {figure(value)} %"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def bar(value: Estimate, width: int = 20) -> str:
    """An interval in [0, 1] drawn in text: ``─`` from end to end with ``●`` at the figure."""
    if math.isnan(value.value):
        return " " * width
    low, mid, high = (min(width - 1, max(0, round(x * (width - 1)))) for x in (value.low, value.value, value.high))
    return "".join("●" if i == mid else "─" if low <= i <= high else " " for i in range(width))
