"""How commands grow with a pool or a task: CPU seconds and peak memory at several sizes, and their exponents.

    OMP_NUM_THREADS=1 python benchmarks/bench_growth.py [--smoke] [--rows 5000 20000] [--only TEXT ...]
        [--folder FOLDER]

Every line is a process of its own from its start to its end, on the same drawn rows: 15 words, four labels, two tasks,
a tenth said again in other case, a twentieth with one word exchanged. An exponent of 1 means that twice the rows take
twice what the command takes beyond the same command on 50 rows. Lines that end in "lance" are of a pool in LanceDB.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import cost_of, emit, machine

from iclkit import evaluate
from iclkit.datasets import load_task
from iclkit.eval import explain, influences, make_bench
from iclkit.pool import FieldKey, Pool, migrate
from iclkit.predictors import Tools
from iclkit.records import Example, Query
from iclkit.selectors import Chooser, Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder

BASE = 50
"""Rows of the start that is taken off."""
LABELS = ("world", "sports", "business", "technology")
EMBEDDER = HashEmbedder(64)
CLI = (sys.executable, "-m", "iclkit")


def drawn_examples(rows: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    words = np.array([f"w{n}" for n in range(20_000)])
    chance = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(words, (rows, 15), p=chance / chance.sum())
    made = list[Example]()
    for n, line in enumerate(drawn.tolist()):
        label = LABELS[n % 4]
        if n % 20 in (7, 13):  # as the one before, in other case
            made.append(replace(made[-1], input=made[-1].text.upper(), id=""))
        elif n % 20 == 17:  # as the one before, but for a word
            made.append(replace(made[-1], input=f"{made[-1].text.rsplit(' ', 1)[0]} {line[0]}", id=""))
        else:
            made.append(Example(" ".join(line), label, "ab"[n % 8 == 0], meta={"n": n % 10}))
    return made


def prepare(place: Path, rows: int, names: Sequence[str]) -> None:
    """What the lines of these names need: a task's folder, a pool in a file, vectors and keys, the same in LanceDB."""
    if not place.exists():
        write_rows(place, drawn_examples(rows), rows)
    lance = any(name.endswith(" lance") for name in names)
    if lance or any(name.startswith(("view", "serve", "keys")) for name in names):
        with Pool.open(place / "p.db") as pool:
            pool.embed(EMBEDDER)
            pool.view().keys(FieldKey())
    if lance and not (place / "p.lance").exists():
        migrate(place / "p.db", place / "p.lance")


def write_rows(place: Path, made: list[Example], rows: int) -> None:
    task = place / "task"
    task.mkdir(parents=True)
    for name, part in (("train", made), ("test", drawn_examples(max(rows // 10, 10), seed=1) + made[:3])):
        text = "".join(json.dumps({"input": e.text, "output": e.output}) + "\n" for e in part)
        (task / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with Pool.open(place / "p.db") as pool:
        pool.add(made)


def in_pool(*words: str) -> Callable[[Path, str], list[str]]:
    return lambda place, end: [
        *CLI,
        "pool",
        words[0],
        str(place / f"p.{end}"),
        *(w.format(place=place) for w in words[1:]),
    ]


POOL = {
    "pool add": in_pool("add", "{place}/task/train.jsonl"),
    "pool ls -n 20": in_pool("ls", "-n", "20"),
    "pool stats": in_pool("stats"),
    "pool check": in_pool("check"),
    "pool export": in_pool("export", "{place}/out.jsonl"),
    "pool export parquet": in_pool("export", "{place}/out.parquet"),
    "pool dedupe --dry-run": in_pool("dedupe", "--dry-run", "--json"),
    "pool dedupe --near --dry-run": in_pool("dedupe", "--near", "--dry-run", "--json"),
    "pool dedupe": in_pool("dedupe", "--json"),
    "pool update by metadata": in_pool("update", "--where", "n=3", "--set", "seen=yes"),
    "pool rm of a task": in_pool("rm", "--task-name", "b"),
    "keys export": lambda place, end: [*CLI, "keys", "export", str(place / f"p.{end}")],
    "pool migrate": lambda place, end: [
        *CLI, "pool", "migrate", str(place / f"p.{end}"), str(place / ("new.db" if end == "lance" else "new.lance"))
    ],
}  # fmt: skip
TASK = {
    "task check": ("task", "check"),
    "task show": ("task", "show"),
    "datasets show": ("datasets", "show"),
    "diagnose": ("diagnose", "-s", "random", "-s", "bm25", "--embedder", "none"),
}


def view(place: Path, end: str) -> None:
    """A page, the map, a question of two selectors, a row changed, and all of it again."""
    from iclkit.view._rows import Rows
    from iclkit.view._workbench import Side, Workbench

    with Pool.open(place / f"p.{end}") as pool:
        bench, table = Workbench(pool, Tools(embedder=EMBEDDER)), Rows(pool)
        for turn in range(3):
            page = table.page("", None, None, False, 0, 50)
            bench.pool_map()
            bench.ask(Query(f"w1 w2 w{turn}"), 8, [Side("bm25"), Side("knn")], "best-last")
            was = table.row(page["rows"][turn]["id"])
            table.change(was, {**was, "output": "world" if was["output"] != "world" else "sports"})


def follow(place: Path, end: str) -> None:
    """A selector that follows its pool: ten times a row is added and it is asked."""
    with Pool.open(place / f"p.{end}") as pool:
        kit = Kit(EMBEDDER)
        chooser = Chooser(make_selector("knn").fit(pool.view(), kit), pool.view(), kit, follow=True, pool=pool)
        chooser.select("w1 w2 w3")
        start = time.process_time()
        for n in range(10):
            pool.add([Example(f"w1 w2 w3 new {n}", "world")])
            chooser.select(f"w1 w2 w{n}")
        print(f"following one added row: {100 * (time.process_time() - start):.1f} ms each", file=sys.stderr)


def tell(place: Path, end: str) -> None:  # noqa: ARG001
    """A run over all test rows with a toy LM, and the effect of each demonstration in a hundred of them."""
    task = load_task(str(place / "task"))
    bench = make_bench(task, Pool.open(place / "p.db"))
    lm = FakeLM()
    run = evaluate(bench, "random", lm, k=4, out=place / "runs")
    texts = {q.id: {"input": q.input} for q in bench.queries}
    texts |= {e.id: {"input": e.input, "output": e.output} for e in bench.view.examples}
    influences(explain(run, texts, lm))


PROGRAMS: dict[str, Callable[[Path, str], None]] = {"view": view, "serve --follow": follow, "eval and explain": tell}


def lines() -> dict[str, Callable[[Path], Sequence[str]]]:
    """Every line of the table: its command, by the folder of a size."""
    found: dict[str, Callable[[Path], Sequence[str]]] = {}
    for end in ("db", "lance"):
        for name, make in POOL.items():
            found[f"{name}, {end}"] = lambda place, end=end, make=make: make(place, end)
        for name in ("view", "serve --follow"):
            found[f"{name}, {end}"] = lambda place, end=end, name=name: [
                sys.executable, __file__, "--measure", name, end, str(place)
            ]  # fmt: skip
    for name, words in TASK.items():
        found[name] = lambda place, words=words: [*CLI, *words, str(place / "task")]
    found["eval and explain"] = lambda place: [
        sys.executable,
        __file__,
        "--measure",
        "eval and explain",
        "db",
        str(place),
    ]
    return found


def measure(command: Callable[[Path], Sequence[str]], kept: Path) -> tuple[float, float]:
    """CPU seconds and peak MB on a copy, so that every command finds the same."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as work:
        place = Path(work, "copy")
        shutil.copytree(kept, place)
        code, seconds, peak = cost_of(command(place))
    if code not in (0, 1):  # 1: something was found
        raise SystemExit(f"exit code {code}: {command(place)}")
    return seconds, peak


def exponent(values: Sequence[float], base: float, sizes: Sequence[int]) -> float | None:
    less = [value - base for value in values[-2:]]
    if len(less) < 2 or min(less) <= 0.02:
        return None
    return round(math.log(less[1] / less[0]) / math.log(sizes[-1] / sizes[-2]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--only", nargs="+", default=[""], help="Lines whose names hold one of these texts.")
    parser.add_argument("--folder", type=Path, help="Where pools are kept, and used again.")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        PROGRAMS[a.measure[0]](Path(a.measure[2]), a.measure[1])
        return
    if a.smoke:
        a.rows = [100, 200]
    emit(what="machine", name=machine())
    with tempfile.TemporaryDirectory() as folder:
        base = a.folder or Path(folder)
        chosen = {name: command for name, command in lines().items() if any(text in name for text in a.only)}
        for rows in (BASE, *a.rows):
            prepare(base / str(rows), rows, [*chosen])
        for name, command in chosen.items():
            start, *found = [measure(command, base / str(rows)) for rows in (BASE, *a.rows)]
            seconds, peaks = ([one[part] for one in found] for part in (0, 1))
            emit(
                what=name, s=[round(s, 2) for s in seconds], mb=[round(p) for p in peaks],
                start=[round(start[0], 2), round(start[1])], exponent_s=exponent(seconds, start[0], a.rows),
                exponent_mb=exponent(peaks, start[1], a.rows),
            )  # fmt: skip


if __name__ == "__main__":
    main()
