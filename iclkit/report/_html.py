"""A board as one HTML file that needs nothing else: style and script inside, numbers as JSON that is never run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iclkit.eval import Difference, Estimate
from iclkit.records import Run
from iclkit.report._condensed import condensed
from iclkit.report._methods import methods
from iclkit.report._page import fill_page, page_script, page_style, policy_hash
from iclkit.report._records import BETTER, INCONCLUSIVE, WORSE, Board, Group, Line, Overall, baseline_of
from iclkit.report._rows import Texts, pack
from iclkit.report._slices import Slice, slices
from iclkit.report._text import (
    figure,
    group_notes,
    interval,
    legend,
    lm_words,
    overall_cells,
    overall_heads,
    overall_lm_words,
    overall_notes,
    plain_words,
    points,
    signed,
    to_csv,
)

DRILL_LIMIT = 8_500_000
"""Characters of the page that the rows of single queries may take."""

_NOT_CHOSEN = {"zero", "random", "random-fixed"}


def to_html(
    board: Board, runs: Iterable[Run], texts: Texts | None = None, *, title: str = "", limit: int = DRILL_LIMIT
) -> str:
    """The page of a board, with the rows of its runs for looking at single queries.

    ``runs`` are those the board was made of. ``texts`` brings the words of queries and demonstrations (see ``Texts``);
    what is not there is shown by id. ``limit`` bounds the rows' share of the page in characters: where they do not fit,
    evenly spaced queries are kept, and the page says how many. The same runs give the same bytes.
    """
    known = {run.id: condensed(run) for run in runs}
    groups, sheets = pack(board, known, texts or {}, limit)
    data = {
        "title": title, "baseline": board.baseline, "headline": headline(board), "legend": legend(board),
        "overall": [_overall(board, one) for one in board.overall], "csv": to_csv(board), "methods": methods(board),
        "made": [{"command": m.command, "version": m.version, "days": m.days, "runs": m.runs} for m in board.made],
        "groups": [
            _group(board, group)
            | {"slices": [_slice(s) for s in slices(board, group, known, _texts_of(group, known, texts or {}))]}
            for group in board.groups
        ],
    }  # fmt: skip
    blocks = [f'<script type="application/json" id="board">{_script_safe_json(data)}</script>']
    blocks += [f'<script type="text/plain" id="rows-{n}">{text}</script>' for n, text in enumerate(groups)]
    blocks += [f'<script type="text/plain" id="sheet-{n}">{text}</script>' for n, text in enumerate(sheets)]
    style, script = page_style(), page_script()
    return fill_page(None, {"STYLE": style, "SCRIPT": script, "STYLE_HASH": policy_hash(style),
                            "SCRIPT_HASH": policy_hash(script), "DATA": "\n".join(blocks)})  # fmt: skip


def headline(board: Board) -> dict[str, str]:
    """Does choosing beat the baseline, by how much, for what cost (``answer``); the evidence in sentences (``detail``);
    and what asking the LM adds to a line that asks none (``lm``, empty where there is none).

    The answer is that over all tasks where there are several, else that of the setting that gains most. A setting is a
    group with a baseline and at least one way of choosing; drawing at random and showing nothing are none. The evidence
    counts every comparison with the baseline, as the tables do.
    """
    return _choosing(board) | {"lm": _lm_adds(board)}


def _lm_adds(board: Board) -> str:
    """Over all tasks where there are several; else of the table in which a line that asks the LM is best."""
    over = [x for x in board.overall if x.lm_adds]
    if over:
        return " ".join(f"{x.lm}: {said}" if len(over) > 1 else said for x in over if (said := overall_lm_words(x)))
    tables = [group for group in board.groups if group.lm_adds]
    if not tables:
        return ""
    best = max(tables, key=lambda group: group.lm_adds[0].figure)
    return (f"{best.title}: " if len(tables) > 1 else "") + lm_words(best.lm_adds)


def _choosing(board: Board) -> dict[str, str]:
    base = board.baseline
    settings = [(g, lines) for g in board.groups if (lines := [x for x in g.lines if x.diff and _chosen(x, base)])]
    if not settings:
        return {"answer": "Nothing can be said yet.",
                "detail": f"There is no way of choosing beside a run of {base} to compare it with."}  # fmt: skip
    lines = [line for _, found in settings for line in found]
    every = [line for group in board.groups for line in group.lines if line.diff]
    best = [(g, next(x for x in found if x.verdict == BETTER)) for g, found in settings
            if any(x.verdict == BETTER for x in found)]  # fmt: skip
    on = " on single tasks" if board.overall else ""
    tally = f"Of {_count(len(every), 'comparison')} with {base}{on}, {_verdict_counts(every)}."
    if board.overall:
        return _over_tasks(board, tally, [ratio for g, x in best if (ratio := _cost(board, g, x)) is not None])
    if not best:
        return {"answer": f"No: no way of choosing was shown to beat {base} {_where(settings)}.",
                "detail": f"{tally} {_missed([x.diff.smallest_gain for x in lines if x.diff])}".strip()}  # fmt: skip
    group, line = max(best, key=lambda pair: _diff(pair[1]).value)
    top = (f"{line.name} gains {figure(_diff(line).value)} points over {base} "
           f"({interval(_diff(line).low, _diff(line).high)}) on {group.task} with {group.lm} "
           f"and {_count(group.k, 'demonstration')}")  # fmt: skip
    costs = [ratio for g, x in best if (ratio := _cost(board, g, x)) is not None]
    cost = f", for {_times(costs, base)}" if costs else ""
    if len(settings) == 1:
        return {"answer": f"Yes: {top}{cost}.", "detail": tally}
    answer = f"Yes, {_where(settings)}." if len(best) == len(settings) else (
        f"Yes in {len(best)} of {len(settings)} settings; not shown in the others."
    )  # fmt: skip
    return {
        "answer": answer,
        "detail": f"A setting is a task, a model and k. Most: {top}{cost}. The largest of many differences is partly "
        f"luck. {tally}",
    }


def _where(settings: Sequence[object]) -> str:
    return "in the one setting" if len(settings) == 1 else f"in any of the {len(settings)} settings"


def _missed(gains: Sequence[float]) -> str:
    """What true gain could have gone unseen."""
    seen = [g for g in gains if math.isfinite(g)]
    if not seen:
        return "So few queries that any true gain could have been missed."
    low, high = points(min(seen)), points(max(seen))
    return f"A true gain of less than {low if low == high else f'{low} to {high}'} points could have been missed."


def _over_tasks(board: Board, tally: str, costs: list[float]) -> dict[str, str]:
    """The headline of a board of several tasks: the way of choosing that gains most over all their queries."""
    rows = [(o, x) for o in board.overall for x in o.lines if x.diff and _is_choosing(x.name)]
    if not rows:
        return {"answer": "Nothing can be said over all tasks yet.", "detail": tally}
    shown = [(x, x.diff) for _, x in rows if x.verdict == BETTER and x.diff]
    tasks = max(len(o.tasks) for o, _ in rows)
    if not shown:
        return {"answer": f"No: no way of choosing was shown to beat {board.baseline} over the {tasks} tasks.",
                "detail": tally}  # fmt: skip
    # of those that stand on most tasks: a larger gain on fewer is no answer for all
    line, diff = max(shown, key=lambda row: (len(row[0].tasks), row[1].value))
    new = ""
    if line.new:
        new = (f" For new tasks like these the gain is {signed(line.new.value)} points "
               f"({interval(line.new.low, line.new.high, sign=True)}).")  # fmt: skip
    cost = f" Cost: {_times(costs, board.baseline)}." if costs else ""
    return {
        "answer": f"Yes: over {len(line.tasks)} tasks {line.name} gains {figure(diff.value)} points over "
        f"{board.baseline} ({interval(diff.low, diff.high)}) with {_count(line.k, 'demonstration')}.",
        "detail": f"{len(shown)} of {len(rows)} ways of choosing and k were shown to beat {board.baseline} over the "
        f"tasks.{new}{cost} {tally}",
    }


def _is_choosing(name: str) -> bool:
    return re.split(r"[ ,]", name)[0] not in _NOT_CHOSEN


def _chosen(line: Line, baseline: str) -> bool:
    return _is_choosing(line.selector) and line.selector != baseline


def _diff(line: Line) -> Difference:
    assert line.diff is not None
    return line.diff


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _verdict_counts(lines: list[Line]) -> str:
    counts = [(sum(x.verdict == v for x in lines), v) for v in (BETTER, INCONCLUSIVE, WORSE)]
    words = {BETTER: "came out better", INCONCLUSIVE: "showed no difference", WORSE: "came out worse"}
    return ", ".join(f"{n} {words[v]}" for n, v in counts)


def _cost(board: Board, group: Group, line: Line) -> float | None:
    base = baseline_of(line, group.lines, board.baseline, board.compared)
    return line.tokens / base.tokens if base is not None and base.tokens else None


def _times(ratios: list[float], baseline: str) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    if low == high == "1.00":
        return f"as many prompt tokens as {baseline}"
    return f"{low if low == high else f'{low} to {high}'} times the prompt tokens of {baseline}"


def _group(board: Board, group: Group) -> dict[str, Any]:
    return {
        "task": group.task, "lm": group.lm, "k": group.k, "tag": group.tag, "title": group.title,
        "metric": group.metric.replace("_", " "), "queries": group.queries,
        "words": plain_words(board, group), "notes": group_notes(group),
        "lines": [_line(line) for line in group.lines],
    }  # fmt: skip


def _line(line: Line) -> dict[str, Any]:
    d = line.diff
    return {
        "name": line.name, "figure": _ends(line.figure), "diff": _ends(d) if d else None,
        "p": None if math.isnan(line.p) else line.p, "kind": line.kind, "verdict": line.verdict,
        "ranks": line.ranks, "tokens": line.tokens, "cost": line.cost, "lm": line.asks_lm, "seeds": line.seeds,
        "series": [line.selector, line.order, line.calibrate],
    }  # fmt: skip


def _overall(board: Board, overall: Overall) -> dict[str, Any]:
    return {
        "title": overall.title, "heads": overall_heads(board), "notes": overall_notes(overall),
        "rows": [{"cells": overall_cells(line), "verdict": line.verdict} for line in overall.lines],
    }  # fmt: skip


def _texts_of(group: Group, runs: Mapping[str, Run], texts: Texts) -> Mapping[str, Mapping[str, Any]]:
    return texts.get(runs[group.lines[0].runs[0]].spec.task.hash, {})


def _slice(part: Slice) -> dict[str, Any]:
    return {
        "kind": part.kind, "value": part.value, "queries": part.queries,
        "lines": [
            {"name": x.name, "figure": _ends(x.figure), "diff": _ends(x.diff) if x.diff else None,
             "p": None if math.isnan(x.q) else x.q, "kind": "explored", "verdict": x.verdict}
            for x in part.lines
        ],
    }  # fmt: skip


def _ends(value: Estimate | Difference) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in (value.value, value.low, value.high)]


def _script_safe_json(value: object) -> str:
    """JSON that no HTML parser can leave: no ``<`` in it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
