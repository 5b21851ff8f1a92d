"""Twice the input is at most about twice the work, in every room: function calls and bytes held, never time.

Calls are counted by the interpreter, those of functions written in C among them; bytes by ``tracemalloc``, which sees
the arrays of NumPy. A loop in a loop shows in the first, a matrix of all pairs in the second.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclkit import evaluate
from iclkit.datasets import check_task, find_leaks, make_task, read_examples
from iclkit.eval import Bench, RunStore, diagnose, explain, influences, load_runs, make_bench
from iclkit.integrations import tracking
from iclkit.pool import FieldKey, Pool, migrate
from iclkit.predictors import Tools
from iclkit.records import Example, PoolPart, Query, Row, Run, RunSpec, Spec, TaskPart
from iclkit.report import leaderboard, read_runs, run_texts, write_harness
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder

EMBEDDER = HashEmbedder(8)
WORDS = np.array([f"word{n}" for n in range(400)])


def examples(rows: int, seed: int = 0) -> list[Example]:
    """Eight words of four hundred each; every tenth says what the one before does."""
    drawn = np.random.default_rng(seed).choice(WORDS, (rows, 8))
    texts = [" ".join(words) for words in drawn.tolist()]
    return [Example(texts[n - 1] + "!" if n % 10 == 9 else t, "xy"[n // 10 % 2], f"task{n // 10 % 3}", id=f"e{n}")
            for n, t in enumerate(texts)]  # fmt: skip


def calls_and_bytes(work: Callable[[], object]) -> tuple[int, int]:
    """Calls made, and the most bytes held at a time."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    tracemalloc.start()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return calls, peak


def grows(make: Callable[[int], Callable[[], object]], size: int, calls: float = 2.2, held: float = 2.4) -> None:
    """The work on twice the size is about twice that on the size. What is imported or prepared once comes first."""
    make(size)()
    small, large = (calls_and_bytes(make(n)) for n in (size, 2 * size))
    assert large[0] <= calls * small[0], f"calls: {small[0]:,} for {size}, {large[0]:,} for {2 * size}"
    assert large[1] <= held * small[1] + 100_000, f"bytes: {small[1]:,} for {size}, {large[1]:,} for {2 * size}"


def filled(rows: int) -> Pool:
    pool = Pool.of(examples(rows))
    pool.embed(EMBEDDER)
    return pool


POOL: dict[str, Callable[[Pool, Path], object]] = {
    "view": lambda pool, _: setattr(pool, "_snapshot", None) or pool.view(),
    "view of a task": lambda pool, _: pool.view(task="task1").examples,
    "dedupe": lambda pool, _: pool.dedupe(apply=False),
    "dedupe near": lambda pool, _: pool.dedupe(near=0.85),
    "stats": lambda pool, _: pool.stats(),
    "check": lambda pool, _: pool.check(),
    "remove half": lambda pool, _: pool.remove(pool.ids[::2]),
    "annotate all": lambda pool, _: pool.annotate(pool.ids, {"seen": True}),
    "export and read": lambda pool, out: (pool.export(out / "a.jsonl"), read_examples(out / "a.jsonl")),
    "add again": lambda pool, _: pool.add(examples(len(pool))),
}


@pytest.mark.parametrize("name", POOL)
def test_what_is_done_to_a_pool(name: str, tmp_path: Path) -> None:
    def make(rows: int) -> Callable[[], object]:
        pool = filled(rows)
        return lambda: POOL[name](pool, tmp_path)

    grows(make, 150)


def test_looking_up_what_was_removed_from_a_large_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclkit.pool._sqlite.LARGE", 5)

    def make(rows: int) -> Callable[[], object]:
        pool = Pool.open(tmp_path / f"{rows}.db")
        pool.add(examples(rows))
        view, gone = pool.view(), [e.id for e in examples(rows)[::2]]
        pool.remove(gone)
        return lambda: [view.row_of(i) for i in gone]

    grows(make, 150)


@pytest.mark.parametrize("name", ["knn", "bm25", "mmr", "rrf", "cosine-coverage", "random"])
@pytest.mark.parametrize("what", ["pool", "queries"])
def test_selecting(name: str, what: str) -> None:
    def make(size: int) -> Callable[[], object]:
        view = filled(size if what == "pool" else 60).view()
        queries = [Query(f"word{n} word{3 * n} word{5 * n}", exclude={"e1"}) for n in range(size // 16)]
        asked = queries if what == "queries" else queries[:5]
        return lambda: make_selector(name).fit(view, Kit(EMBEDDER, seed=1)).select_many(asked, 4)

    grows(make, 160)


@pytest.mark.parametrize("what", ["pool", "test rows"])
def test_the_search_for_leaks(what: str) -> None:
    def make(size: int) -> Callable[[], object]:
        pool, test = examples(size if what == "pool" else 100), examples(size if what == "test rows" else 60, seed=1)
        return lambda: find_leaks(pool, test + pool[:20])

    grows(make, 150)


def run_of(queries: int, number: int = 0) -> Run:
    parts: dict[str, Any] = {
        "selector": Spec(["zero", "random", "knn", "bm25"][number % 4]).identity(),
        "lm": {"name": "fake", "fingerprint": "fake-1"}, "template": {"demo": "{input} {output}"},
        "k": 8 * (number % 4 > 0), "seed": 0, "order": "best-last", "budget": None, "normalize": "sum",
        "calibrate": "none",
    }  # fmt: skip
    task = f"task{number // 4}"
    spec = RunSpec(TaskPart(task, task, "classification", "accuracy", ("no", "yes"), queries), PoolPart("p", 5),
                   Spec("prompt"), parts)  # fmt: skip
    right = np.random.default_rng(number).random(queries) < 0.6
    rows = tuple(Row(f"q{n}", "yes", "yes" if r else "no", {"accuracy": float(r)}) for n, r in enumerate(right))
    return Run(spec, rows, {}, {"done": True, "leaks": {}})


@pytest.mark.parametrize("what", ["runs", "rows"])
def test_the_board(what: str) -> None:
    def make(size: int) -> Callable[[], object]:
        runs = [run_of(30 if what == "runs" else 4 * size, n) for n in range(size if what == "runs" else 4)]
        return lambda: leaderboard(runs)

    grows(make, 8)


@pytest.mark.parametrize("what", ["runs", "rows"])
def test_reading_a_folder_of_runs(what: str, tmp_path: Path) -> None:
    def make(size: int) -> Callable[[], object]:
        out = tmp_path / str(size)
        for number in range(size if what == "runs" else 2):
            run = run_of(20 if what == "runs" else 20 * size, number)
            with RunStore(out).open(run.spec, [(r.query_id, r.gold) for r in run.rows]) as writer:
                if writer.todo:
                    writer.append(run.rows)
                    writer.save(done=True)
        return lambda: load_runs(out)

    grows(make, 4)


def stored_runs(out: Path, runs: int, rows: int) -> list[Run]:
    """Runs in a folder, whose rows are read when they are asked for."""
    for number in range(runs):
        run = run_of(rows, number)
        with RunStore(out).open(run.spec, [(r.query_id, r.gold) for r in run.rows]) as writer:
            if writer.todo:
                writer.append(run.rows)
                writer.save(done=True, texts=[Query(f"text {r.query_id}", id=r.query_id) for r in run.rows])
    return read_runs([RunStore(out)])[0]


@pytest.mark.parametrize("what", ["runs", "rows"])
def test_runs_in_the_layout_of_the_harness(what: str, tmp_path: Path) -> None:
    def make(size: int) -> Callable[[], object]:
        runs = stored_runs(tmp_path / str(size), size if what == "runs" else 2, 20 if what == "runs" else 20 * size)
        texts = run_texts([tmp_path / str(size)], runs, print)
        return lambda: write_harness(runs, tmp_path / "harness", texts, date=datetime(2026, 1, 1))

    grows(make, 4)


def test_runs_for_a_tracker_are_held_one_at_a_time(tmp_path: Path) -> None:
    held = []
    for number in (2, 2, 8):  # the first loads what stays
        runs = stored_runs(tmp_path / str(number), number, 300)
        board = leaderboard(runs)
        texts = run_texts([tmp_path / str(number)], runs, print)
        entries = tracking._entries(runs, board, texts, None)
        work = [calls_and_bytes(lambda e=entries: next(e))[1] for _ in runs]  # type: ignore[misc]
        held.append(max(work))
    assert held[2] <= 1.2 * held[1]


def bench_of(rows: int, queries: int) -> Bench:
    task = make_task("t", examples(rows), examples(queries, seed=1))
    return make_bench(task, Pool.of(task.train))


@pytest.mark.parametrize("what", ["pool", "queries"])
def test_describing_what_selectors_pick(what: str) -> None:
    def make(size: int) -> Callable[[], object]:
        bench = bench_of(size if what == "pool" else 60, 10 if what == "pool" else size // 4)
        return lambda: [diagnose(bench, name, Tools(embedder=EMBEDDER), k=4) for name in ("random", "knn", "bm25")]

    grows(make, 160)


def test_explaining_a_run() -> None:
    asked = []

    def make(size: int) -> Callable[[], object]:
        bench, lm = bench_of(60, size), FakeLM()
        run = evaluate(bench, "random", lm, k=3)
        texts: dict[str, Any] = {q.id: {"input": q.input} for q in bench.queries}
        texts |= {e.id: {"input": e.input, "output": e.output} for e in bench.view.examples}
        lm.scored.clear()

        def work() -> None:
            influences(explain(run, texts, lm))
            asked.append(len(lm.scored))

        return work

    grows(make, 20)
    assert asked[2] == 2 * asked[1]


def test_looking_for_what_hurts_in_a_task() -> None:
    def make(size: int) -> Callable[[], object]:
        task = make_task("t", examples(size), [*examples(size // 4, seed=1), *examples(3)])
        return lambda: check_task(task, len, 100)

    grows(make, 160)


def test_keys_of_a_pool() -> None:
    def make(size: int) -> Callable[[], object]:
        pool = Pool.of(examples(size))
        return lambda: (pool.view().keys(FieldKey()), [*pool.view().stored_keys()])

    grows(make, 160)


def test_moving_a_pool(tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="needs the extra lance")

    def make(size: int) -> Callable[[], object]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        with Pool.open(folder / "a.db") as pool:
            pool.add(examples(size))
            pool.embed(EMBEDDER)
            pool.view().keys(FieldKey())
            pool.remove(["e0"])
        return lambda: (migrate(folder / "a.db", folder / "b.lance"), migrate(folder / "b.lance", folder / "c.db"))

    grows(make, 200)


def test_reading_a_file_of_rows(tmp_path: Path) -> None:
    def make(size: int) -> Callable[[], object]:
        path = tmp_path / f"{size}.jsonl"
        path.write_text("".join(json.dumps({"text": e.text, "label": e.output}) + "\n" for e in examples(size)))
        pool = Pool.open(tmp_path / f"{size}.db")
        return lambda: pool.add(read_examples(path))

    grows(make, 200)


def test_work_that_grows_with_the_square_is_seen() -> None:
    def loops(size: int) -> Callable[[], object]:
        return lambda: [abs(a) for a in range(size) for _ in range(size)]

    def pairs(size: int) -> Callable[[], object]:
        return lambda: np.zeros((size, size))

    with pytest.raises(AssertionError, match="calls"):
        grows(loops, 100)
    with pytest.raises(AssertionError, match="bytes"):
        grows(pairs, 400)
