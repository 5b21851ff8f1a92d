"""A board as text for files: Markdown, JSON, CSV, LaTeX."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from iclkit.eval import METRICS, Estimate, Metric
from iclkit.records import Run
from iclkit.report._board import BASE, Board, Group, Line
from iclkit.text import printable

_MARKS = re.compile(r"[\\`*_\[\]|~#]")  # what Markdown reads as markup; < > & are entities
HEADS = ("rank", "selector", "{metric}", "95 % interval", "vs {base}", "95 % interval", "p (Holm)", "verdict", "seeds",
         "tokens")  # fmt: skip


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


def ranks(line: Line) -> str:
    """A rank, or the ranks that are open."""
    low, high = line.ranks
    return f"{low}" if low == high else f"{low}–{high}"


def cells(line: Line) -> list[str]:
    """The table row of a line, as texts under ``HEADS``."""
    diff = line.diff
    return [
        ranks(line),
        line.name,
        figure(line.figure.value),
        interval(line.figure.low, line.figure.high),
        signed(diff.value) if diff else "",
        interval(diff.low, diff.high, sign=True) if diff else "",
        format_p(line.p),
        line.verdict,
        str(len(line.seeds)),
        f"{line.tokens:.0f}",
    ]


def heads(board: Board, group: Group) -> list[str]:
    """The table's head for a group."""
    return [h.format(metric=group.metric.replace("_", " "), base=board.baseline) for h in HEADS]


def least(group: Group) -> float | None:
    """The median of the smallest effects that the group's comparisons would have shown."""
    found = sorted(line.diff.least for line in group.lines if line.diff)
    return found[len(found) // 2] if found else None


def group_notes(group: Group) -> list[str]:
    """What a reader must know about a group's table."""
    notes = [f"{group.queries} queries, {group.pool} examples in the pool."]
    if (size := least(group)) is not None and size >= 1:
        notes.append("So few queries that no true difference was sure to be declared.")
    elif size is not None:
        notes.append(
            f"A true difference of about {100 * size:.1f} points would have been declared with a probability of 80 %."
        )
    return (
        notes
        + [f"{n[0].upper()}{n[1:]}." for n in group.notes]
        + [f"{line.name}: {note}." for line in group.lines for note in line.notes]
    )


def legend(board: Board) -> list[str]:
    """How to read the tables."""
    tests = f"{board.comparisons} comparison{'s' * (board.comparisons != 1)}"
    return [
        "Figures in per cent, differences in points, each with a 95 % interval over queries and seeds.",
        f"Every selector is compared with {board.baseline} on the same queries; p is corrected (Holm) over the {tests} "
        f"of this board, and better or worse is said at p ≤ {board.alpha:g}. Intervals are not corrected.",
        "Rank: the ranks that pairwise comparisons leave open; selectors that share a rank are tied. One seed: the "
        "seed makes no difference to that selector, so one run stands for all.",
        *[f"{n[0].upper()}{n[1:]}." for n in board.notes],
    ]


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
        families.setdefault(replace(group, k=0).title.replace(" · k = 0", ""), []).append(group)
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
    for group in board.groups:
        table = [[_markdown(h) for h in heads(board, group)], ["---"] * len(HEADS)]
        for line in group.lines:
            row = [_markdown(c) for c in cells(line)]
            table.append([f"**{c}**" for c in row] if line.verdict == "better" else row)
        parts.append(f"### {_markdown(group.title)}\n\n" + "\n".join(f"| {' | '.join(r)} |" for r in table))
        parts.append(_markdown(" ".join(group_notes(group))))
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
           "diff_high", "p", "p_holm", "verdict", "rank_low", "rank_high", "least", "seeds", "queries", "tokens",
           "calls", "seconds")  # fmt: skip


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
            diff = [d.value, d.low, d.high, d.p, line.p] if d else [""] * 5
            writer.writerow([
                *map(_cell, (group.task, group.lm)), group.k,
                *map(_cell, (line.selector, line.order, line.calibrate, group.metric)),
                line.figure.value, line.figure.low, line.figure.high, *diff, line.verdict, *line.ranks,
                d.least if d else "", len(line.seeds), group.queries, line.tokens, line.calls, line.seconds,
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
        caption = printable(f"{group.title}. {' '.join(group_notes(group))}").translate(_TEX)
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
        size = least(group)
        missed = "; with so few queries any could have been missed" if size is not None else ""
        if size is not None and size < 1:
            missed = f"; one of less than about {100 * size:.1f} points could have been missed"
        names = _list([line.name for line in by["no difference shown"]])
        said.append(f"For {names} no difference was shown{missed}.")
    return " ".join(said)


def format_figure(run: Run) -> str:
    """A run's figure in words: ``accuracy 61.3 %``."""
    metric: Metric = METRICS.get(run.spec["task"]["metric"])
    rows = [row for row in run.rows if not row.failure]
    value = metric.figure([r.output for r in rows], [r.gold for r in rows], run.spec["task"]["labels"])
    return f"{metric.name.replace('_', ' ')} {figure(value)} %"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def bar(value: Estimate, width: int = 20) -> str:
    """An interval in [0, 1] drawn in text: ``─`` from end to end with ``●`` at the figure."""
    if math.isnan(value.value):
        return " " * width
    low, mid, high = (min(width - 1, max(0, round(x * (width - 1)))) for x in (value.low, value.value, value.high))
    return "".join("●" if i == mid else "─" if low <= i <= high else " " for i in range(width))
