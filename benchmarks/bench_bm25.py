"""The bm25 selector against rank_bm25, same texts and queries, same run, one thread, CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/bench_bm25.py DATA [--rows 20000] [--queries 200] [--json]

DATA is the folder of data sets (sst2, trec, agnews). A larger pool is spliced from halves of real sentences, so that
word frequencies stay natural. Needs rank_bm25 (pip install rank-bm25), which iclkit itself does not.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np

from iclkit.pool import Pool
from iclkit.pool._terms import TermIndex, Terms, words
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector


def texts_of(data: Path, name: str, split: str) -> list[str]:
    return [json.loads(line)["input"] for line in (data / name / f"{split}.jsonl").open(encoding="utf-8")]


def corpus(data: Path, rows: int) -> list[str]:
    base = texts_of(data, "sst2", "train") + texts_of(data, "trec", "train") + texts_of(data, "agnews", "test")
    rng = random.Random(0)
    out = list(base)
    while len(out) < rows:
        a, b = rng.choice(base).split(), rng.choice(base).split()
        out.append(" ".join(a[: len(a) // 2] + b[len(b) // 2 :]))
    rng.shuffle(out)
    return out[:rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--reference", type=int, default=20, help="queries that the slow reference answers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    from rank_bm25 import BM25Okapi

    texts = list(dict.fromkeys(corpus(a.data, a.rows)))
    half = a.queries // 2
    asked = texts_of(a.data, "sst2", "test")[:half] + texts_of(a.data, "trec", "test")[: a.queries - half]
    clock = time.process_time

    start = clock()
    reference = BM25Okapi([words(t) for t in texts], k1=1.5, b=0.75)
    reference_build = clock() - start
    view = Pool.of(Example(t, "-") for t in texts).view()
    assert len(view) == len(texts)
    start = clock()
    selector = make_selector("bm25").fit(view, Kit())
    build = clock() - start
    queries = [Query(t) for t in asked]
    selector.select_many(queries, a.k)  # warm up
    # the slow side answers an even sample of the queries; both sides are timed in turns, and the fastest turn counts
    sample = asked[:: max(1, len(asked) // a.reference)][: a.reference]
    slow, fast = [], []
    for _ in range(a.repeats):
        start = clock()
        wanted = [reference.get_scores(words(t)) for t in sample]
        [np.argsort(s)[::-1][: a.k] for s in wanted]
        slow.append((clock() - start) / len(sample))
        start = clock()
        selector.select_many(queries, a.k)
        fast.append((clock() - start) / len(queries))
    # quality: rank_bm25 has its own idf, so compare with the same formula computed word by word, and report overlap
    index = TermIndex(Terms.of(texts, words), 1.5, 0.75)
    same = []
    for text, scores in zip(sample, wanted, strict=True):
        ours = {view.ids.index(i) for i in selector.select(Query(text), a.k).ids}
        same.append(len(ours & {*np.argsort(-scores, kind="stable")[: a.k].tolist()}) / a.k)
        top = np.sort(index.scores(text))[::-1][: a.k]
        np.testing.assert_allclose(sorted((index.scores(text)[r] for r in ours), reverse=True), top, atol=1e-5)
    result = {
        "rows": len(texts),
        "k": a.k,
        "rank_bm25_queries_per_s": round(1 / min(slow), 2),
        "iclkit_queries_per_s": round(1 / min(fast), 1),
        "times_faster": round(min(slow) / min(fast), 1),
        "rank_bm25_build_s": round(reference_build, 2),
        "iclkit_build_s": round(build, 2),
        "top_k_overlap": round(float(np.mean(same)), 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    json.dump(result, sys.stdout) if a.json else [print(f"{key:26} {value}") for key, value in result.items()]


if __name__ == "__main__":
    main()
