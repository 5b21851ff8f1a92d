"""What the shown sets hold: demonstrations that are of the query's kind, and what the LM makes of them.

    python benchmarks/measure_sets.py RUNS TASK -k 3 [--kind meta.sql_template] [--precision fp32]
    python benchmarks/measure_sets.py - TASK -k 3 [--kind meta.sql_template] --embedder NAME --select SPEC…

RUNS holds runs of ``iclkit eval`` on TASK, a folder of a data set, named as ``compare_retrievers.py`` reads them. The
second way has selectors choose and asks no LM. Two rows are of one kind when ``--kind`` has the same value for both:
``output``, or a place in ``meta``. Shares are in per cent of the queries, with 95 % intervals over these. A query whose
kind the pool lacks can have no demonstration of it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from compare_retrievers import PRECISIONS, chosen_by

from iclkit.datasets import load_task
from iclkit.embed import load_embedder
from iclkit.eval import estimate, load_runs
from iclkit.pool import Pool
from iclkit.records import Example, Row, Run, meta_value
from iclkit.selectors import Kit, make_selector


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", type=Path, help="- with --select.")
    ap.add_argument("task", type=Path)
    ap.add_argument("-k", type=int, default=3)
    ap.add_argument("--kind", default="output")
    ap.add_argument("--select", nargs="+", default=[], metavar="SPEC", help="Selectors, e.g. ceil,trade_off=0.01")
    ap.add_argument("--embedder", default="all-minilm-l6-v2")
    ap.add_argument("--precision", choices=PRECISIONS, help="This one alone.")
    args = ap.parse_args()
    task = load_task(args.task)

    def kind(example: Example) -> object:
        return example.output if args.kind == "output" else meta_value(example.meta, args.kind.removeprefix("meta."))

    pool = {e.id: kind(e) for e in task.train}
    asked = {q.id: kind(e) for q, e in zip(task.queries(), task.test, strict=True)}
    known = {*pool.values()}
    print(f"{len(pool)} examples of {len(known)} kinds; the pool has the kind of "
          f"{share(asked.values(), lambda of: of in known)} % of the {len(asked)} queries\n")  # fmt: skip
    print("| chosen by | LM | right, % | shown that are of the query's kind, % | one of them is, % of queries "
          "| kinds in a set, mean | right where none is | right where one is | right where more are |")  # fmt: skip
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    if args.select:
        kit = Kit(embedder=load_embedder(args.embedder), template=task.template)
        for spec in args.select:
            chosen = make_selector(spec).fit(Pool.of(task.train).view(), kit).select_many(task.queries(), args.k)
            shown = {q.id: [pool[p.example_id] for p in picks] for q, picks in zip(task.queries(), chosen, strict=True)}
            print(f"| {spec} | – | – | " + " | ".join(kinds_of(shown, asked)) + " | – | – | – |")
        return
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for run in load_runs(args.runs):
        if is_meant(run, task.name, args.k, args.precision) and run.spec.lm:
            rows[chosen_by(run.spec)[0], Path(run.spec.lm.name).name] += run.rows
    for (by, lm), some in sorted(rows.items(), key=lambda item: -mean_of(item[1], task.metric)):
        shown = {row.query_id: [pool[e] for e in row.shown] for row in some}
        right = {row.query_id: row.metrics[task.metric] for row in some}
        same = {q: min(2, kinds.count(asked[q])) for q, kinds in shown.items()}
        ends = [share([r for q, r in right.items() if same[q] == count], float) for count in (0, 1, 2)]
        print(f"| {by} | {lm} | " + " | ".join([share(right.values(), float), *kinds_of(shown, asked), *ends]) + " |")


def is_meant(run: Run, task: str, k: int, precision: str | None) -> bool:
    """Whether a run is finished, of this task, with k demonstrations and an LM in this precision."""
    spec = run.spec
    numbers = spec.lm.fingerprint.split("|") if spec.lm else []
    return (
        bool(run.facts["done"]) and spec.task.name == task and spec.k == k and (not precision or precision in numbers)
    )


def mean_of(rows: list[Row], metric: str) -> float:
    """The mean metric."""
    return float(np.mean([row.metrics[metric] for row in rows]))


def kinds_of(shown: Mapping[str, list[object]], asked: Mapping[str, object]) -> list[str]:
    """What the sets hold."""
    same = [[kind == asked[query] for kind in kinds] for query, kinds in shown.items()]
    return [
        share(same, lambda some: float(np.mean(some))),
        share(same, any),
        f"{np.mean([len(set(kinds)) for kinds in shown.values()]):.2f}",
    ]


def share(of: Iterable[object], value: Callable[..., float]) -> str:
    """Per cent, with its interval."""
    values = np.array([[float(value(one)) for one in of]])
    if not values.size:
        return "–"
    e = estimate(values)
    return f"{100 * e.value:.1f} ({100 * e.low:.1f}–{100 * e.high:.1f})"


if __name__ == "__main__":
    main()
