"""What it costs to choose: batches against a loop over single queries, search against plain FAISS, strategies alone.

    OMP_NUM_THREADS=1 python benchmarks/bench_select.py DATA [--rows 10000] [--queries 256] [--only search,...] [--json]

DATA is the folder of data sets. One thread, CPU seconds, both sides of a comparison in turns in one run, the fastest
turn counts. Parts: ``search`` (vectors given), ``path`` (with encoding, needs the model all-minilm-l6-v2; the loop is
what LangChain's and DSPy's selectors do: encode one query, search, next; LangChain itself is timed where it is
installed), ``strategies`` (microseconds per query of every selector that asks no LM).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from iclkit.embed import Embedder, as_embedder
from iclkit.pool import Pool, PoolView, Scope
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector

clock = time.process_time


def fastest(turns: int, *sides: Callable[[], Any]) -> list[float]:
    """CPU seconds of each side: one turn to warm up, then the sides in turns."""
    for side in sides:
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(turns):
        for side, seen in zip(sides, times, strict=True):
            start = clock()
            side()
            seen.append(clock() - start)
    return [min(seen) for seen in times]


def texts_of(data: Path, names: list[str], split: str, n: int) -> list[str]:
    found = [json.loads(line)["input"] for name in names for line in (data / name / f"{split}.jsonl").open("rb")]
    return list(dict.fromkeys(found))[:n]


class Given:
    """An embedder whose vectors are there already: what is left is the choosing."""

    def __init__(self, texts: list[str], dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((200, dim))
        vectors = centres[rng.integers(0, 200, len(texts))] + rng.standard_normal((len(texts), dim))
        self.vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.row = {t: n for n, t in enumerate(texts)}
        self.name, self.fingerprint, self.dim = "given", f"given-{dim}-{seed}", dim

    def encode_queries(self, texts: Any, progress: Any = None) -> np.ndarray:  # noqa: ARG002
        return self.vectors[[self.row[t] for t in texts]]

    encode_documents = encode_queries


def bench_search(view: PoolView, embedder: Embedder, queries: list[str], k: int, turns: int) -> dict[str, Any]:
    vectors, targets = view.vectors(embedder), embedder.encode_queries(queries)
    plain = faiss.IndexFlatIP(embedder.dim)
    plain.add(np.ascontiguousarray(vectors))
    ours_threshold, default = faiss.cvar.distance_compute_blas_threshold, 128_000

    def by_default() -> tuple[np.ndarray, np.ndarray]:
        faiss.cvar.distance_compute_blas_threshold = default
        found = plain.search(targets, k)
        faiss.cvar.distance_compute_blas_threshold = ours_threshold
        return found

    index, scopes = view.index(embedder), [Scope()] * len(targets)
    slow, fast = fastest(turns, by_default, lambda: index.nearest(targets, k, scopes))
    exact = np.round(targets.astype(np.float64) @ vectors.T.astype(np.float64), 6)
    for row, best in zip(exact, index.nearest(targets, k, scopes), strict=True):
        assert view.positions(best.rows).tolist() == np.lexsort((np.arange(len(row)), -row))[:k].tolist()
    return {
        "faiss_default_us": us(slow, queries),
        "iclkit_us": us(fast, queries),
        "times_faster": round(slow / fast, 1),
    }


def bench_path(pool: list[str], queries: list[str], k: int, turns: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    from iclkit import models
    from iclkit.embed import load_embedder

    embedder = load_embedder("all-minilm-l6-v2", threads=1)
    view = Pool.of(Example(t, "-") for t in pool).view()
    vectors = view.vectors(embedder)
    model = SentenceTransformer(str(models.resolve("all-minilm-l6-v2", "embedder")), device="cpu")
    index = faiss.IndexFlatIP(embedder.dim)
    index.add(np.ascontiguousarray(vectors))
    asked = [Query(t) for t in queries]
    knn = make_selector("knn").fit(view, Kit(embedder=embedder))

    def loop() -> None:
        for text in queries:
            index.search(model.encode([text], normalize_embeddings=True, show_progress_bar=False), k)

    sides: dict[str, Callable[[], Any]] = {"loop": loop, "iclkit": lambda: knn.select_many(asked, k)}
    if chain := langchain_selector(pool, vectors, model, k):
        sides["langchain"] = lambda: [chain({"input": t}) for t in queries]
    times = dict(zip(sides, fastest(turns, *sides.values()), strict=True))
    result = {f"{name}_us": us(seconds, queries) for name, seconds in times.items()}
    return result | {f"times_faster_than_{n}": round(s / times["iclkit"], 1) for n, s in times.items() if n != "iclkit"}


def langchain_selector(pool: list[str], vectors: np.ndarray, model: Any, k: int) -> Callable[[Any], Any] | None:
    """LangChain's selector over the same vectors, or None where it is not installed."""
    try:
        from langchain_community.vectorstores import FAISS
        from langchain_core.embeddings import Embeddings
        from langchain_core.example_selectors import SemanticSimilarityExampleSelector
    except ImportError as error:
        print(f"LangChain is not timed: {error}", file=sys.stderr)
        return None

    class Model(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [self.embed_query(t) for t in texts]

        def embed_query(self, text: str) -> list[float]:
            row: list[float] = model.encode([text], normalize_embeddings=True, show_progress_bar=False)[0].tolist()
            return row

    store = FAISS.from_embeddings(
        [(t, v.tolist()) for t, v in zip(pool, vectors, strict=True)], Model(), [{"input": t} for t in pool]
    )
    return SemanticSimilarityExampleSelector(vectorstore=store, k=k, input_keys=["input"]).select_examples


def bench_strategies(view: PoolView, embedder: Embedder, queries: list[str], k: int, turns: int) -> dict[str, Any]:
    names = ["random", "random-fixed", "balanced", "bm25", "knn", "mmr", "dpp", "cosine-coverage", "bm25-coverage"]
    names += ["many-labels,min_labels=4", "vote-k", "rrf", "hybrid"]
    asked, kit = [Query(t) for t in queries], Kit(embedder=embedder)
    result = {}
    for name in names:
        start = clock()
        one = make_selector(name).fit(view, kit)
        one.select(asked[0], k)
        ready = clock() - start
        (seconds,) = fastest(turns, lambda one=one: one.select_many(asked, k))
        result[name] = {"us_per_query": us(seconds, queries), "ready_s": round(ready, 2)}
    return result


def us(seconds: float, queries: list[str]) -> int:
    return round(1e6 * seconds / len(queries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="search,strategies,path")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    faiss.omp_set_num_threads(1)
    pool = texts_of(a.data, ["banking77", "trec", "sst2"], "train", a.rows)
    queries = texts_of(a.data, ["banking77"], "test", a.queries)
    given = as_embedder(Given([*pool, *queries], 384))
    view = Pool.of(Example(t, f"label {n % 20}") for n, t in enumerate(pool)).view()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "search": lambda: bench_search(view, given, queries, a.k, a.turns),
        "strategies": lambda: bench_strategies(view, given, queries, a.k, a.turns),
        "path": lambda: bench_path(pool, queries, a.k, a.turns),
    }
    result: dict[str, Any] = {"rows": len(pool), "queries": len(queries), "k": a.k}
    result |= {name: parts[name]() for name in a.only.split(",")}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result, indent=None if a.json else 2))


if __name__ == "__main__":
    main()
