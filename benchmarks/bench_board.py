"""The board and its page out of 10,000 queries by 20 selectors, with texts: seconds, megabytes.

    OMP_NUM_THREADS=1 python benchmarks/bench_board.py [--smoke] [--keep FILE]
    OMP_NUM_THREADS=1 python benchmarks/bench_board.py --memory [board] [commands] [--stored FOLDER]

Bounds: board and page under 10 seconds of CPU together, page under 10 MB. The runs are drawn: right or wrong by chance,
picks at random from a pool of 10,000 rows (the worst case for compression), sentences of words as frequent as Zipf's
law says. ``--memory`` writes runs of 5,000 queries into folders, 25 and then 50 of them, and says what memory and time
``iclkit leaderboard`` takes for them, with and without the page; then what ``iclkit eval --html`` takes to make 5 and
20 runs of 2,000 queries with a toy LM, ``iclkit runs export`` to hand as many to MLflow, and ``iclkit demo`` (ten runs)
for 50 and 200 queries with toy models.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from _common import cost_of

from iclkit import cli
from iclkit.eval import RunStore
from iclkit.lm import OnDone
from iclkit.records import Example, PoolPart, Query, Row, Run, RunSpec, Score, ScoreRequest, Spec, TaskPart
from iclkit.report import leaderboard, to_html
from iclkit.testing import FakeLM, HashEmbedder

LABELS = ("world", "sports", "business", "technology")
TASK = TaskPart("drawn", "drawn", "classification", "accuracy", LABELS, 0)
K = 8
PARTS = ("board", "commands")


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    letters = np.array([*"abcdefghijklmnopqrstuvwxyz"])
    words = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 10, 20_000)]
    chance = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), (count, 25), p=chance / chance.sum())
    return [" ".join(words[i] for i in row) for row in drawn]


def make_runs(queries: int, selectors: int) -> tuple[list[Run], dict[str, dict[str, dict[str, str]]]]:
    rng = np.random.default_rng(0)
    pool, asked = drawn_texts(rng, queries)
    texts = {e.id: {"input": e.text, "output": e.output} for e in pool} | {q.id: {"input": q.text} for q in asked}
    return [*draw_runs(rng, pool, asked, selectors)], {"drawn": texts}


def drawn_texts(rng: np.random.Generator, queries: int) -> tuple[list[Example], list[Query]]:
    pool = [Example(text, LABELS[i % 4]) for i, text in enumerate(sentences(rng, queries))]
    return pool, [Query(text) for text in sentences(rng, queries)]


def draw_runs(rng: np.random.Generator, pool: list[Example], asked: list[Query], selectors: int) -> Iterator[Run]:
    queries = len(asked)
    chance = rng.beta(2, 2, queries)
    names = [("random", seed) for seed in range(3)] + [(f"mmr,trade_off=0.{n:02}", 0) for n in range(10, 9 + selectors)]
    for name, seed in names:
        right = rng.random(queries) < chance
        picks = rng.integers(0, len(pool), (queries, K))
        scores = np.sort(rng.random((queries, K)))[:, ::-1]
        rows = []
        for i, query in enumerate(asked):
            shown = tuple(dict.fromkeys(pool[p].id for p in picks[i]))
            gold = LABELS[i % 4]
            rows.append(
                Row(query.id, gold, gold if right[i] else LABELS[(i + 1) % 4],
                    {"accuracy": float(right[i]), "gold_logprob": float(np.log(chance[i]))},
                    tuple(zip(shown, scores[i].tolist(), strict=False)), shown[::-1], prompt_tokens=400 + i % 90)
            )  # fmt: skip
        selector, _, setting = name.partition(",trade_off=")
        parts = {
            "selector": Spec(selector, {"trade_off": setting} if setting else {}).identity(),
            "lm": {"name": "drawn", "fingerprint": "drawn"}, "template": {"demo": "Article: {input}\nTopic: {output}"},
            "k": K, "seed": seed, "order": "best-last", "budget": None, "normalize": "sum", "calibrate": "none",
        }  # fmt: skip
        spec = RunSpec(replace(TASK, queries=queries), PoolPart("p", len(pool)), Spec("prompt"), parts)
        yield Run(spec, tuple(rows), {}, {"done": True, "leaks": {}})


def store_runs(out: Path, queries: int, count: int) -> None:
    """Runs as ``iclkit eval`` keeps them, each with the texts that it shows."""
    rng = np.random.default_rng(0)
    pool, asked = drawn_texts(rng, queries)
    by_id = {example.id: example for example in pool}
    for run in draw_runs(rng, pool, asked, count - 2):
        with RunStore(out).open(run.spec, [(row.query_id, row.gold) for row in run.rows]) as folder:
            folder.append(run.rows)
            folder.facts = {"leaks": {}}
            shown = dict.fromkeys(i for row in run.rows for i in row.shown)
            folder.save(done=True, texts=[*asked, *(by_id[i] for i in shown)])


class ToyLM(FakeLM):
    """One that does not hold what it was asked."""

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        found = super().score(requests, on_done)
        self.scored.clear()
        return found


def with_toys(arguments: list[str]) -> None:
    """A command with a toy LM and a toy embedder in the place of all models."""
    lm, embedder = ToyLM(4096), HashEmbedder()
    with ExitStack() as stack:
        for name, made in (
            ("iclkit.models.must_be_fetched", lambda *_: False),
            ("iclkit.models.resolve", lambda *_, **__: Path()),
            ("iclkit.lm.load_lm", lambda *_, **__: lm),
            ("iclkit.embed.load_embedder", lambda *_, **__: embedder),
        ):
            stack.enter_context(patch(name, made))
        cli.main(arguments)


def say_cost(what: str, command: list[str]) -> None:
    begun = time.perf_counter()
    code, seconds, peak = cost_of(command)
    wall = time.perf_counter() - begun
    print(
        f"{what}: exit code {code}, peak {peak:,.0f} MB, {seconds:.1f} s of CPU, {wall:.1f} s",
        flush=True,
    )


def measure_commands(base: Path) -> None:
    """Commands that make or hand on several runs: a process each, on runs of 2,000 queries."""
    toys = [sys.executable, __file__, "--toys"]
    pool, asked = drawn_texts(np.random.default_rng(0), 2_000)
    task = base / "drawn"
    task.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", pool), ("test", [Example(q.text, LABELS[i % 4]) for i, q in enumerate(asked)])):
        lines = [json.dumps({"input": e.text, "output": e.output}) + "\n" for e in rows]
        (task / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for made in (*base.glob("made-*"), *base.glob("demo-*"), *base.glob("mlflow-*")):  # of a call before
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    for count in (5, 20):
        out, page = str(base / f"made-{count}"), str(base / "made.html")
        words = ["eval", str(task), "-s", "random", "--seeds", str(count), "--predictor", "none", "--out", out]
        say_cost(f"eval --html, {count} runs x 2,000 queries", [*toys, *words, "--html", page, "--json"])
    for count in (5, 20):
        stored = base / f"export-{count}"
        if not stored.exists():
            store_runs(stored, 2_000, count)
        words = ["runs", "export", str(stored), "--to", "mlflow", "--at", f"sqlite:///{base / f'mlflow-{count}.db'}"]
        say_cost(f"runs export, {count} runs x 2,000 queries", [sys.executable, "-m", "iclkit", *words, "--json"])
    for limit in (50, 200):
        words = ["demo", "--limit", str(limit), "--out", str(base / f"demo-{limit}"), "--json"]
        say_cost(f"demo, {limit} queries", [*toys, *words])


def measure_memory(parts: Sequence[str], kept: Path | None) -> None:
    with ExitStack() as stack:
        base = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for count in (25, 50) if "board" in parts else ():
            if not (base / str(count)).exists():
                store_runs(base / str(count), 5_000, count)
            for more in ([], ["--html", str(base / "board.html")]):
                command = [sys.executable, "-m", "iclkit", "leaderboard", str(base / str(count)), "--json", *more]
                say_cost(f"{count} runs x 5,000 queries{', page' * bool(more)}", command)
        if "commands" in parts:
            measure_commands(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="1,000 queries by 5 selectors")
    parser.add_argument("--keep", type=Path, help="write the page here")
    parser.add_argument(
        "--memory",
        nargs="*",
        metavar="PART",
        choices=PARTS,
        help="memory of iclkit leaderboard over "
        "stored runs (board), and of commands that make or hand on runs (commands); both when not said",
    )
    parser.add_argument("--stored", type=Path, help="with --memory: keep the runs here, and use those that are there")
    parser.add_argument("--toys", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.toys is not None:
        with_toys(args.toys)
        return
    if args.memory is not None:
        measure_memory(args.memory or PARTS, args.stored)
        return
    queries, selectors = (1_000, 5) if args.smoke else (10_000, 20)
    runs, texts = make_runs(queries, selectors)
    wall, start = time.perf_counter(), time.process_time()
    board = leaderboard(runs)
    middle = time.process_time()
    page = to_html(board, runs, texts)
    end, wall = time.process_time(), time.perf_counter() - wall
    size = len(page.encode())
    print(f"{queries:,} queries x {selectors} selectors ({len(runs)} runs)")
    print(f"board {middle - start:.1f} s, page {end - middle:.1f} s of CPU, {wall:.1f} s in all; {size / 1e6:.1f} MB")
    print(
        "RESULT "
        + json.dumps(
            {
                "board_s": round(middle - start, 2),
                "page_s": round(end - middle, 2),
                "wall_s": round(wall, 2),
                "bytes": size,
            }
        )
    )
    if args.keep:
        args.keep.write_text(page, encoding="utf-8", newline="\n")
    assert end - start < 10, "board and page take 10 seconds or more"
    assert size < 10_000_000, "the page has 10 MB or more"


if __name__ == "__main__":
    main()
