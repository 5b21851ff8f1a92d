"""Who won: runs in, a Board of plain numbers out. Nothing here prints, reads a file or asks the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from iclkit.errors import DataError, UsageError
from iclkit.eval import LeftOut
from iclkit.records import Run
from iclkit.report._axes import check_axes
from iclkit.report._checks import same_queries, usable_runs
from iclkit.report._condensed import condensed
from iclkit.report._drafts import (
    Draft,
    Pair,
    Table,
    compare_lines,
    count,
    distinct_runs,
    make_draft,
    rank_lines,
    tables_of,
    tags_of,
)
from iclkit.report._lm_adds import lm_pairs, of_table, over_tasks, same_reference
from iclkit.report._overall import PooledLine, finish, pool
from iclkit.report._questions import Primary, Question, UnansweredQuestion, answer
from iclkit.report._records import (
    ALPHA,
    BASE,
    BASELINES,
    BETTER,
    INCONCLUSIVE,
    NO_LM,
    NONE,
    WORSE,
    Board,
    Group,
    baseline_of,
    is_baseline,
    made_by,
)


def leaderboard(
    runs: Iterable[Run],
    baseline: str | None = None,
    alpha: float = ALPHA,
    *,
    left_out: Iterable[LeftOut] = (),
    primary: Sequence[str] = (),
    declared: Mapping[str, str] | None = None,
    correction: str = "task",
    compare: Sequence[str] = (),
) -> Board:
    """Group runs by all that must be equal to be compared, join seeds, and compare every line with its baseline.

    ``compare``: the axes along which lines differ (see ``AXES``); by default selector, order and calibration. A run
    without some axis (zero-shot has no k) stands in every table that agrees with it on the others. ``baseline``: the
    line that the others are compared with, by its name on the first axis. ``primary``: questions declared beforehand,
    ``NAME`` or ``NAME@K``, of the figures over all tasks where there are several, or of one with `` on TASK`` behind
    it; ``declared`` says when, by question (see ``RunStore.declared``). See ``answer`` for ``correction``.
    A line that asks no LM is compared with the baseline only where that asks none either; the lines that ask one are
    compared with it (``lm_adds``), which takes nothing from the other comparisons.

    Runs that are not finished are left out and noted, and so are those of ``left_out``, which could not be read, and
    those whose values are not what their answers are worth (see ``usable_runs``). DataError when nothing is left.
    ``read_runs`` gives the runs of folders without holding their rows.
    """
    runs, lost = distinct_runs(map(condensed, runs)), list(left_out)
    compared, questions = check_axes(compare, runs), [Primary.parse(text) for text in primary]
    base_name = baseline or BASELINES.get(compared[0], "")
    done = [r for r in runs if r.facts.get("done", True) and r.rows]
    left = len(runs) - len(done)
    notes = [f"{count(left, 'unfinished run')} {'is' if left == 1 else 'are'} left out"] if left else []
    trusted, wrong, more = usable_runs(done)
    lost += wrong
    tables = list[Table]()
    for table in tables_of(trusted, compared):
        alike, odd = same_queries(table.runs)
        lost += [one for one in odd if one not in lost]
        if alike:
            tables.append(replace(table, runs=alike))
    if not tables:
        why = f"; {count(len(lost), 'run')} cannot be used, the first: {lost[0].reason}" if lost else ""
        raise DataError(f"no finished run to rank; finish them with the same iclkit eval command{why}")
    notes += [*more, *(f"run {one.run} is left out: {one.reason}" for one in lost)]
    every = [make_draft(table, tag) for table, tag in zip(tables, tags_of(tables), strict=True)]
    drafts = [draft for draft in every if draft.golds]
    notes += [f"{d.group.title} is left out: each of its queries failed in one run or another" for d in every
              if not d.golds]  # fmt: skip
    if not drafts:
        raise DataError(f"nothing to rank: {'; '.join(notes)}")
    if baseline and not any(is_baseline(d.line, baseline, compared) for draft in drafts for d in draft.lines):
        there = sorted({d.line.name for draft in drafts for d in draft.lines})
        raise UsageError(
            f"no line is called {baseline!r}, so nothing can be compared with it; there are {', '.join(there)}"
        )
    pairs = [pair for draft in drafts for pair in _pairs(draft, base_name, compared)]
    if not pairs and len({line.name for d in drafts for line in (x.line for x in d.lines)}) > 1:
        names = sorted({line.name for d in drafts for line in (x.line for x in d.lines)})
        what = f"no run of {base_name!r} beside the others" if base_name else "no baseline is named"
        notes.append(
            f"{what}: nothing is compared" + ("" if base_name == "random" else f"; there are {', '.join(names)}")
        )
    pooled, skipped = pool(drafts, pairs)
    notes += skipped
    _mark_primary(questions, pairs, pooled)
    asked = [Question(p.diff.p, p.draft.group.task, p.primary) for p in pairs]
    asked += [Question(x.diff.p, f"all tasks {x.title}", x.primary) for x in pooled]
    answers = answer(asked, correction, alpha)
    for pair, corrected in zip(pairs, answers, strict=False):
        pair.answer = corrected
    for line, corrected in zip(pooled, answers[len(pairs) :], strict=True):
        line.answer = corrected
    beside = lm_pairs(drafts)
    groups = tuple(
        replace(
            _finished(draft, pairs, alpha, [is_baseline(d.line, base_name, compared) for d in draft.lines]),
            lm_adds=of_table(draft, beside, alpha),
        )
        for draft in drafts
    )
    overall = finish(pooled, drafts, groups, alpha)
    added = pool(drafts, same_reference(beside))[0]
    overall = tuple(
        replace(one, lm_adds=over_tasks([line for line in added if line.title == one.lm], alpha)) for one in overall
    )
    when = {str(q): _when(q, (declared or {}).get(str(q), ""), pairs, trusted) for q in questions}
    return Board(groups, base_name, len(pairs), alpha, tuple(notes), tuple(lost), overall, correction,
                 tuple(primary), compared, when,
                 made_by(run for table in tables for run in table.runs))  # fmt: skip


def _when(question: Primary, date: str, pairs: Sequence[Pair], runs: Sequence[Run]) -> str:
    """When a question was declared, and how many of the runs that answer it were finished by then."""
    if not date:
        return "no record of when"
    own = {run for pair in pairs if question.matches(pair.line.line.name, pair.draft.group.k, pair.draft.group.task)
           for run in pair.line.line.runs}  # fmt: skip
    at = datetime.fromisoformat(date)
    before = sum(run.id in own and not _later(run, at) for run in runs)
    return f"declared on {date[:10]}, " + (f"after {before} of its {len(own)} runs" if before else "before its runs")


def _later(run: Run, date: datetime) -> bool:
    """Whether a run is known to have been finished at that time or later."""
    try:
        return datetime.fromisoformat(str(run.facts.get("date", ""))) >= date
    except (ValueError, TypeError):  # no date, or one without a time zone
        return False


def _mark_primary(primary: Sequence[Primary], pairs: Sequence[Pair], pooled: Sequence[PooledLine]) -> None:
    """Mark the comparisons that were declared: of the task that is named; else of the figures over all tasks where a
    line has them, else of its table.

    UnansweredQuestion for one that nothing here answers.
    """
    for question in primary:
        over_all = [line for line in pooled if question.matches(line.name, line.k, "")]
        own = [p for p in pairs if question.matches(p.line.line.name, p.draft.group.k, p.draft.group.task)]
        if not over_all and not own:
            names = sorted({f"{p.line.line.name}@{p.draft.group.k}" for p in pairs})
            raise UnansweredQuestion(
                str(question),
                f"nothing here answers --primary {question}; there are {', '.join(names) or 'no comparisons'}",
            )
        for one in over_all or own:
            one.primary = True


def _pairs(draft: Draft, baseline: str, compared: Sequence[str]) -> list[Pair]:
    lines = [d.line for d in draft.lines]
    found = []
    for d in draft.lines:
        base = baseline_of(d.line, lines, baseline, compared)
        if base is not None and not is_baseline(d.line, baseline, compared) and (d.line.asks_lm or not base.asks_lm):
            found.append(compare_lines(draft, d, draft.lines[lines.index(base)]))
    return found


def _finished(draft: Draft, pairs: Sequence[Pair], alpha: float, is_base: Sequence[bool]) -> Group:
    """The group of a draft with the verdicts of its pairs; ``is_base`` marks the baselines among its lines."""
    own = {id(p.line): p for p in pairs if p.draft is draft}
    lines = []
    for d, rank, base in zip(draft.lines, rank_lines(draft), is_base, strict=True):
        pair = own.get(id(d))
        verdict = BASE if base else NONE if d.line.asks_lm else NO_LM
        if pair is None or pair.answer is None:
            lines.append(replace(d.line, verdict=verdict, ranks=rank))
            continue
        corrected, diff = pair.answer, pair.at_level(pair.answer.level)
        verdict = INCONCLUSIVE if corrected.p > alpha else BETTER if diff.value > 0 else WORSE
        lines.append(replace(d.line, diff=diff, p=corrected.p, kind=corrected.kind, verdict=verdict, ranks=rank))
    lines.sort(key=lambda line: (-line.figure.value, line.name))
    return replace(draft.group, lines=tuple(lines), comparisons=len(own))
