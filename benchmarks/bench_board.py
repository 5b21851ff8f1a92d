"""The board and its page out of 10,000 queries by 20 selectors, with texts: seconds, megabytes.

    OMP_NUM_THREADS=1 python benchmarks/bench_board.py [--smoke] [--keep FILE]
    OMP_NUM_THREADS=1 python benchmarks/bench_board.py --memory [--stored FOLDER]

Bounds: board and page under 10 seconds of CPU together, page under 10 MB. The runs are drawn: right or wrong by chance,
picks at random from a pool of 10,000 rows (the worst case for compression), sentences of words as frequent as Zipf's
law says. ``--memory`` writes runs of 5,000 queries into folders, 25 and then 50 of them, and says what memory and time
``iclkit leaderboard`` takes for them, with and without the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import cost_of

from iclkit.eval import RunStore
from iclkit.records import Example, PoolPart, Query, Row, Run, RunSpec, Spec, TaskPart
from iclkit.report import leaderboard, to_html

LABELS = ("world", "sports", "business", "technology")
TASK = TaskPart("drawn", "drawn", "classification", "accuracy", LABELS, 0)
K = 8


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


def measure_memory(kept: Path | None) -> None:
    with ExitStack() as stack:
        base = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for count in (25, 50):
            if not (base / str(count)).exists():
                store_runs(base / str(count), 5_000, count)
            for more in ([], ["--html", str(base / "board.html")]):
                begun = time.perf_counter()
                command = [sys.executable, "-m", "iclkit", "leaderboard", str(base / str(count)), "--json", *more]
                code, seconds, peak = cost_of(command)
                wall = time.perf_counter() - begun
                print(
                    f"{count} runs x 5,000 queries{', page' * bool(more)}: exit code {code}, "
                    f"peak {peak:,.0f} MB, {seconds:.1f} s of CPU, {wall:.1f} s",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="1,000 queries by 5 selectors")
    parser.add_argument("--keep", type=Path, help="write the page here")
    parser.add_argument("--memory", action="store_true", help="memory of iclkit leaderboard over stored runs")
    parser.add_argument("--stored", type=Path, help="with --memory: keep the runs here, and use those that are there")
    args = parser.parse_args()
    if args.memory:
        measure_memory(args.stored)
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
