"""Trained retrievers beside what needs no training: accuracy of finished runs, and paired differences.

    python benchmarks/compare_retrievers.py [RUNS] [--keep FILE] [-k 8] [--tasks trec] [--precision fp32]
        [--minus "se2 with se2"]

RUNS holds runs of ``iclkit eval`` with retrievers whose folders are named METHOD-TASK-SEED (of several tasks:
METHOD-TASK+TASK-SEED), and runs of random, bm25, knn with the untrained encoder, and of the predictors without an LM.
A table for each task, LM and precision. The training seeds of a method are a sample: where there are several, the
interval is over queries and seeds. p-values are corrected (Holm) over the lines of one table.

--keep FILE adds the results of each query to FILE, a line of JSON a run (its key: task, LM with its precision, k, what
chose, seed; a later run of the same key replaces the earlier one), and the tables are made of all that FILE holds: runs
of several machines and days can be set side by side after their folders are gone. Some are in kept_retrievers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit.errors import UsageError
from iclkit.eval import difference, estimate, holm, load_runs
from iclkit.records import RunSpec, SeedScope
from iclkit.selectors import make_selector

RETRIEVER = re.compile(r"(?P<method>(epr|udr|llm-r|se2|ceil)(-[a-z-]+?)??)-(?P<tasks>[a-z0-9_+]+)-(?P<seed>\d+)")
NO_LM = ("knn-vote", "logreg", "majority")
PRECISIONS = ("bf16", "fp32", "bf16-verified")
Lines = dict[str, dict[int, dict[str, float]]]
"""What chose -> seed -> query -> metric."""


@dataclass(frozen=True)
class Result:
    """What one run gave each query."""

    task: str
    sample: str
    """Fingerprint of the task and of which of its queries were asked."""
    lm: str
    """Name and precision; "" for a predictor that asks no LM."""
    k: int
    by: str
    seed: int
    trained: bool
    metric: str
    values: dict[str, float]

    @property
    def key(self) -> tuple[str, str, str, int, str, int]:
        return self.task, self.sample, self.lm, self.k, self.by, self.seed


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", type=Path, nargs="?", help="With --keep it may be left out.")
    ap.add_argument("-k", type=int, default=8)
    ap.add_argument("--keep", type=Path)
    ap.add_argument("--tasks", nargs="+", help="These alone.")
    ap.add_argument("--precision", choices=PRECISIONS, help="This one alone.")
    ap.add_argument("--minus", nargs="+", default=[], help="Lines that the others are compared with, too.")
    args = ap.parse_args()
    if not args.runs and not args.keep:
        ap.error("give RUNS, --keep FILE or both")
    results = {r.key: r for r in results_of(args.runs)} if args.runs else {}
    if args.keep:
        results = {**({r.key: r for r in read_kept(args.keep)} if args.keep.exists() else {}), **results}
        write_kept(args.keep, [results[key] for key in sorted(results)])
    tables: dict[tuple[str, str], dict[str, Lines]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    alone: dict[tuple[str, str], Lines] = defaultdict(lambda: defaultdict(dict))
    scopes: dict[str, SeedScope] = {}
    for r in results.values():
        if args.tasks and r.task not in args.tasks:
            continue
        if r.lm and (r.k != args.k or (args.precision and not r.lm.endswith(f", {args.precision}"))):
            continue
        place = r.task, r.sample
        (tables[place][r.lm] if r.lm else alone[place])[r.by][r.seed] = r.values
        scopes[r.by] = "task" if r.trained else "query"
    for place, by_lm in sorted(tables.items()):
        for lm, lines in sorted(by_lm.items()):
            rivals = ("knn, untrained", "logreg", *args.minus)
            print_table(f"**{place[0]}**, {lm}", args.k, {**lines, **alone[place]}, scopes, rivals)


def results_of(folder: Path) -> Iterator[Result]:
    """The finished runs of a folder."""
    for run in load_runs(folder):
        spec = run.spec
        if not run.facts["done"]:
            continue
        alone, task = spec.predictor.name in NO_LM, spec.task
        by, seed, trained = chosen_by(spec)
        lm = ""
        if not alone and spec.lm:
            precision = next((p for p in spec.lm.fingerprint.split("|") if p in PRECISIONS), "")
            lm = ", ".join(filter(None, (Path(spec.lm.name).name, precision)))
        values = {row.query_id: float(row.metrics[task.metric]) for row in run.rows}
        sample = f"{task.hash}|{task.queries}|{task.sample}"
        yield Result(task.name, sample, lm, 0 if alone else spec.k, by, seed, trained, task.metric, values)


def chosen_by(spec: RunSpec) -> tuple[str, int, bool]:
    """What chose the demonstrations of a run, with which seed, and whether a training of ours made it."""
    if spec.predictor.name in NO_LM:
        return spec.predictor.name, spec.seed, False
    chosen = {n: v for n, v in spec.selector.settings.items() if defaults_of(spec.selector.name).get(n) != v}
    by = ",".join([spec.selector.name, *(f"{name}={value}" for name, value in chosen.items())])
    trainee = RETRIEVER.fullmatch(Path(spec.embedder.name if spec.embedder else "").name)
    if trainee:
        by = f"{by} with {trainee['method']}"
        return by if trainee["tasks"] == spec.task.name else f"{by} of {trainee['tasks']}", int(trainee["seed"]), True
    return f"{by}, untrained" if spec.selector.name == "knn" else by, spec.seed, False


@cache
def defaults_of(selector: str) -> Mapping[str, object]:
    """The settings of a selector of which nothing is said; none where something has to be."""
    try:
        return make_selector(selector).spec.settings
    except UsageError:
        return {}


def read_kept(file: Path) -> Iterator[Result]:
    """Results of a file that ``write_kept`` wrote."""
    queries: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        given = json.loads(line)
        if "queries" in given:
            queries[given["sample"]] = given["queries"]
        else:
            values = dict(zip(queries[given["sample"]], map(float, given.pop("values").split()), strict=True))
            yield Result(**given, values=values)


def write_kept(file: Path, results: list[Result]) -> None:
    """A line of query ids for each sample of a task, then a line for each result, its values in their order."""
    queries = {r.sample: sorted(r.values) for r in results}
    lines = [json.dumps({"sample": sample, "queries": ids}) for sample, ids in sorted(queries.items())]
    for r in results:
        values = " ".join(f"{r.values[q]:g}" for q in queries[r.sample])
        lines.append(json.dumps({**{n: v for n, v in vars(r).items() if n != "values"}, "values": values}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def print_table(title: str, k: int, lines: Lines, scopes: dict[str, SeedScope], rivals: tuple[str, ...]) -> None:
    """The lines of one task and LM, best first."""
    queries = sorted(set.intersection(*(set(values) for seeds in lines.values() for values in seeds.values())))
    values = {
        name: np.array([[seeds[s][q] for q in queries] for s in sorted(seeds)], float) for name, seeds in lines.items()
    }
    rivals = tuple(r for r in rivals if r in values)
    print(f"{title}, k = {k}, {len(queries)} queries\n")
    print("| chosen by | seeds | accuracy, % |" + "".join(f" minus {r} |" for r in rivals))
    print("|---|---:|---:|" + "---:|" * len(rivals))
    columns = [differences(values, r, scopes) for r in rivals]
    for name in sorted(values, key=lambda n: -values[n].mean()):
        e = estimate(values[name], scope=scopes[name])
        cells = "".join(f" {column.get(name, '–')} |" for column in columns)
        print(f"| {name} | {len(values[name])} | {100 * e.value:.1f} ({100 * e.low:.1f}–{100 * e.high:.1f}) |{cells}")
    print()


def differences(values: dict[str, NDArray[np.float64]], rival: str, scopes: dict[str, SeedScope]) -> dict[str, str]:
    """Every line against one of them, p corrected over these comparisons."""
    names = [n for n in values if n != rival]
    pairs = [difference(values[n], values[rival], scopes=(scopes[n], scopes[rival])) for n in names]
    cells = {}
    for name, d, p in zip(names, pairs, holm([d.p for d in pairs]), strict=True):
        chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
        cells[name] = f"{100 * d.value:+.1f} ({100 * d.low:+.1f} … {100 * d.high:+.1f}), {chance}"
    return cells


if __name__ == "__main__":
    main()
