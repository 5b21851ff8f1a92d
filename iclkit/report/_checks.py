"""Which runs a board can trust: what follows from answers and gold answers is taken anew, and what disagrees is named.

A run is a folder of files that anyone can edit. A figure is only as good as the values it is made of, so a stored value
is never more than a claim where the metric can say for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from iclkit import __version__
from iclkit.eval import LeftOut
from iclkit.records import Run
from iclkit.report._condensed import REMEDY, condensed, made_by, rows_of


def usable_runs(runs: Iterable[Run]) -> tuple[list[Run], list[LeftOut], list[str]]:
    """Runs whose values can be trusted, those that cannot with the reason, and what a reader must know of the former.

    Values of a run that another version has made are replaced by this version's where they differ, and a note says so.
    """
    kept, lost = list[Run](), list[LeftOut]()
    anew, recorded = Counter[tuple[str, str]](), dict[str, None]()
    for run in map(condensed, runs):
        rows = rows_of(run)
        if rows.wrong:
            lost.append(LeftOut(run.id, rows.wrong))
            continue
        kept.append(run)
        anew[rows.metric.name, made_by(run)] += bool(rows.anew)
        if not rows.metric.repeatable:
            recorded[rows.metric.name] = None
    notes = [f"values of {name} are as they were recorded: a board cannot take them anew" for name in recorded]
    notes += [
        f"{count} run{'s' * (count != 1)} of iclkit {version}: {name} is by the rules of {__version__}, and was another"
        for (name, version), count in anew.items()
        if count
    ]
    return kept, lost, notes


def same_queries(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs that answered the queries that most of them did, in order and with equal gold answers; and the others.

    Where no more than half agree, nobody knows which are right, and none is kept.
    """
    answers = {run.id: rows_of(run).answers for run in runs}
    asked = {name: (own.queries, own.golds) for name, own in answers.items()}
    most, count = Counter(asked.values()).most_common(1)[0]
    if 2 * count <= len(asked):
        most = ((), ())
    reason = f"its queries or gold answers are not those of the other runs of its task; {REMEDY}"
    return [run for run in runs if asked[run.id] == most], [
        LeftOut(run.id, reason) for run in runs if asked[run.id] != most
    ]
