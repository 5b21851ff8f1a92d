"""A paragraph for a paper: what was compared, how it was tested, with what."""

from __future__ import annotations

from collections.abc import Sequence

from iclkit.eval import METRICS
from iclkit.report._drafts import count
from iclkit.report._records import Board


def methods(board: Board) -> str:
    """One paragraph in plain prose, and the commands that made the runs below it. States facts of this board only."""
    groups = board.groups
    lines = [line for group in groups for line in group.lines]
    tasks, lms = (list(dict.fromkeys(x)) for x in ([g.task for g in groups], [g.lm for g in groups]))
    sizes = {group.task: group.queries for group in groups}
    pools = {group.task: group.pool for group in groups}
    asking = sorted({line.name for line in lines if line.asks_lm and line.name != board.baseline})
    plain = sorted({line.name for line in lines if not line.asks_lm and line.name != board.baseline})
    ks = sorted({group.k for group in groups if group.k})
    metrics = list(dict.fromkeys(group.metric.replace("_", " ") for group in groups))
    said = [
        f"We compared {_list(asking) or 'no other line'} with {board.baseline or 'no baseline'} on "
        f"{_list([f'{t} ({sizes[t]} test queries, {pools[t]} examples in the pool)' for t in tasks])}, "
        f"with {_list(lms)}" + (f" and k = {_list([str(k) for k in ks])} demonstrations" if ks else "")
        + f". The measure is {_list(metrics)}."
    ]  # fmt: skip
    if plain:
        said.append(f"{_list(plain)}, which ask no LM, were run on the same queries and examples.")
    said += _seeds(board)
    said.append(_tests(board))
    said.append(_correction(board))
    if board.overall:
        said.append(
            "Over tasks, signs were flipped within each task and queries weighed alike; the mean over tasks has "
            "Student's interval with tasks as a sample."
        )
    if board.left_out:
        said.append(f"{count(len(board.left_out), 'run')} could not be used and {_was(len(board.left_out))} left out.")
    versions = list(dict.fromkeys(made.version for made in board.made if made.version))
    days = sorted({day for made in board.made for day in made.days})
    when = f", on {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else "") if days else ""
    said.append(f"Runs were made with iclkit {_list(versions) or '(version not recorded)'}{when}.")
    commands = [made.command for made in board.made if made.command]
    return " ".join(said) + "\n" + "".join(f"\n    {command}" for command in commands) + ("\n" if commands else "")


def _tests(board: Board) -> str:
    whole = [g.metric for g in board.groups if g.metric in METRICS.names() and METRICS.get(g.metric).whole is not None]
    said = (
        "Differences are means over the same queries; p-values are from two-sided sign-flip tests of the per-query "
        "differences (McNemar's exact test for right-or-wrong answers of one seed each), intervals are 95 % intervals "
        "from Student's t with the adjustment of Agresti and Min (2005) and are not corrected."
    )
    if "macro_f1" in whole:
        said += " Macro-F1 was compared by paired approximate randomization, with percentile intervals (10,000 draws)."
    others = sorted({name for name in whole if name != "macro_f1"})
    return said + (f" {_list(others)} was compared by a paired bootstrap of queries." if others else "")


def _seeds(board: Board) -> list[str]:
    lines = {line.name: line for group in board.groups for line in group.lines}
    said = []
    for scope, words in (
        ("query", "anew for each query, so that {} seeds are repeats"),
        ("task", "once for all queries, so that {} seeds are a sample, whose variance is part of interval and test"),
    ):
        names = sorted(name for name, line in lines.items() if line.scope == scope)
        numbers = _list([str(n) for n in sorted({len(lines[name].seeds) for name in names})])
        if names:
            verb, whose = ("draws", "its") if len(names) == 1 else ("draw", "their")
            seeds = "seed" if numbers == "1" else "seeds"
            said.append(f"{_list(names)} ({numbers} {seeds}) {verb} {words.format(whose)}.")
    if any(line.scope == "none" for line in lines.values()):
        said.append("The others do not depend on a seed and were run once.")
    return said


def _correction(board: Board) -> str:
    level = f"at the level {board.alpha:g}"
    if board.primary:
        asked = [f"{question} ({board.declared[question]})" for question in board.primary]
        return (
            f"The {'question' if len(asked) == 1 else 'questions'} {_list(asked)} {_was(len(asked))} corrected among "
            f"the declared ones alone (Holm), {level}; all other comparisons are exploratory, with q-values "
            f"(Benjamini and Hochberg)."
        )
    how = {
        "task": "p-values are corrected by Holm's method within each task"
        + (" and within the table over all tasks" if board.overall else ""),
        "board": f"p-values are corrected by Holm's method over all {board.comparisons} comparisons with the baseline"
        + (" and those over all tasks" if board.overall else ""),
        "fdr": "q-values are Benjamini and Hochberg's over all comparisons",
        "fdr-any": "q-values are Benjamini and Yekutieli's over all comparisons",
    }[board.correction]
    return f"The {how}, {level}."


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _list(names: Sequence[str]) -> str:
    return "" if not names else names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
