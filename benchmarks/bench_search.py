"""Search in a pool against what is used elsewhere, over the same vectors, in one run: CPU seconds, one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_search.py [--smoke] [--rows 10000 100000] [--queries 256] [-k 8]
        [--repeats 5] [--embedder NAME | --embedder none]

Search alone, on unit rows in clusters: FAISS flat as it comes (its BLAS threshold of 128,000 keeps batches from BLAS),
FAISS with the threshold that iclkit sets, and iclkit, which also breaks ties, honours masks and gives a query the same
bits in any batch. Then whole selectors on a pool of real sentences, encoding included: ours, and the loops of
LangChain's SemanticSimilarityExampleSelector and of DSPy's KNN, which handle one query at a time. Their own classes are
used where they are installed, else the same steps written out here ("as …"). All use one encoder in one dtype.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _common import default_data, emit, machine, rows_of, timed

from iclkit.embed import load_embedder
from iclkit.pool import Pool, Scope
from iclkit.pool._index import FlatIndex, faiss_module
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector

DEFAULT_THRESHOLD = 128_000  # of faiss-cpu 1.15; a fresh process has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("-k", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--embedder", default="all-minilm-l6-v2")
    parser.add_argument("--data", type=default_data().__class__, default=default_data())
    parser.add_argument("--smoke", action="store_true")
    a = parser.parse_args()
    if a.smoke:
        a.rows, a.queries, a.repeats = [5000], 32, 2
    import torch

    torch.set_num_threads(1)
    faiss_module().omp_set_num_threads(1)
    emit(what="machine", name=machine(), faiss=faiss_module().__version__)
    for rows in a.rows:
        search_alone(rows, a.queries, a.k, a.repeats)
    if a.embedder != "none" and a.data.is_dir():
        whole_selectors(a)


def turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each call, taken in turn so that noise hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(timed(call)[0])
    return times


def search_alone(rows: int, count: int, k: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((256, 384))
    vectors = centres[rng.integers(0, 256, rows)] + 0.7 * rng.standard_normal((rows, 384))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[rng.choice(rows, count, replace=False)] + 0.05 * rng.standard_normal((count, 384))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    ours, faiss = FlatIndex.of(vectors), faiss_module()
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    own = faiss.cvar.distance_compute_blas_threshold
    free, excluding = [Scope()] * count, [Scope(frozenset(range(n, rows, 1000))) for n in range(count)]

    def as_it_comes() -> Any:
        faiss.cvar.distance_compute_blas_threshold = DEFAULT_THRESHOLD
        try:
            return flat.search(queries, k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = own

    calls = {
        "faiss, default threshold": as_it_comes,
        "faiss, threshold 20": lambda: flat.search(queries, k),
        "iclkit": lambda: ours.nearest(queries, k, free),
        "iclkit, exclusions": lambda: ours.nearest(queries, k, excluding),
        "iclkit, one by one": lambda: [ours.nearest(q[None], k, free[:1]) for q in queries],
    }
    same = np.mean([{*r.rows} == {*f} for r, f in zip(calls["iclkit"](), as_it_comes()[1], strict=True)])
    report("search", calls, count, repeats, "faiss, default threshold", rows=rows, same_picks=float(same))


def report(
    what: str, calls: dict[str, Callable[[], Any]], queries: int, repeats: int, baseline: str, **facts: Any
) -> None:
    times = turns(calls, repeats)
    base = min(times[baseline])
    for name, seconds in times.items():
        emit(
            what=what,
            name=name,
            queries_per_s=round(queries / min(seconds), 1),
            microseconds=round(1e6 * min(seconds) / queries, 1),
            median_microseconds=round(1e6 * statistics.median(seconds) / queries, 1),
            ratio=round(base / min(seconds), 2),
            baseline=baseline,
            **facts,
        )


def whole_selectors(a: argparse.Namespace) -> None:
    embedder = load_embedder(a.embedder, threads=1)
    size = 2000 if a.smoke else 10_000
    train = [r for t in ("sst2", "trec") for r in rows_of(a.data, t, "train", size)][:size]
    texts = [r["input"] for t in ("sst2", "trec") for r in rows_of(a.data, t, "test", (a.queries + 1) // 2)][
        : a.queries
    ]
    with Pool.of(Example(r["input"], r["output"]) for r in train) as pool:
        view = pool.view()
        vectors = np.array(view.vectors(embedder))
        table = dict(zip([e.text for e in view.examples], vectors, strict=True))
        kit = Kit(embedder=embedder)
        knn = make_selector("knn").fit(view, kit)
        queries = [Query(t) for t in texts]

        def encode(asked: Sequence[str]) -> np.ndarray:
            known = [table.get(t) for t in asked]
            return np.stack(known) if all(v is not None for v in known) else embedder.encode_queries(asked)  # type: ignore[arg-type]

        peers: dict[str, Callable[[str], list[str]]] = dict(
            [langchain(view.examples, encode, a.k), dspy(view.examples, encode, a.k)]
        )
        expected = [{view.examples_of([i])[0].text for i in s.ids} for s in knn.select_many(queries, a.k)]
        for name, select in peers.items():
            same = np.mean([set(select(t)) == e for t, e in zip(texts, expected, strict=True)])
            emit(what="same picks as iclkit", name=name, share=float(same))
        calls: dict[str, Callable[[], Any]] = {n: lambda f=f: [f(t) for t in texts] for n, f in peers.items()}
        calls["iclkit select_many"] = lambda: knn.select_many(queries, a.k)
        calls["iclkit one by one"] = lambda: [knn.select(q, a.k) for q in queries]
        calls["encoding alone, batched"] = lambda: embedder.encode_queries(texts)
        calls["encoding alone, one by one"] = lambda: [embedder.encode_queries([t]) for t in texts]
        for peer in peers:
            report("select with encoding", calls, len(texts), a.repeats, peer, rows=len(view))
        # the same loops with the queries' vectors at hand: what choosing itself costs
        table.update(zip(texts, embedder.encode_queries(texts), strict=True))
        known = np.stack([table[t] for t in texts])
        calls = {n: lambda f=f: [f(t) for t in texts] for n, f in peers.items()}
        calls["iclkit search"] = lambda: view.index(embedder).nearest(known, a.k, [Scope()] * len(known))
        for peer in peers:
            report("choosing alone", calls, len(texts), a.repeats, peer, rows=len(view))


def langchain(examples: Sequence[Example], encode: Any, k: int) -> tuple[str, Callable[[str], list[str]]]:
    """LangChain's selector over a FAISS store, or its steps: one query vector as a list, a search, copies of dicts."""
    rows = [{"text": e.text, "label": e.output} for e in examples]
    try:
        from langchain_community.vectorstores import FAISS
        from langchain_core.embeddings import Embeddings
        from langchain_core.example_selectors import SemanticSimilarityExampleSelector
    except ImportError:
        flat = faiss_module().IndexFlatL2(len(encode([examples[0].text])[0]))
        flat.add(np.concatenate([encode([e.text]) for e in examples]))

        def steps(text: str) -> list[str]:
            vector = np.array([encode([text])[0].tolist()], dtype=np.float32)
            _, found = flat.search(vector, k)
            return [dict(rows[i])["text"] for i in found[0]]

        return "as LangChain", steps

    class Ours(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [v.tolist() for v in encode(texts)]

        def embed_query(self, text: str) -> list[float]:
            return list(encode([text])[0].tolist())

    selector = SemanticSimilarityExampleSelector.from_examples(rows, Ours(), FAISS, k=k, input_keys=["text"])
    return "LangChain", lambda text: [e["text"] for e in selector.select_examples({"text": text})]


def dspy(examples: Sequence[Example], encode: Any, k: int) -> tuple[str, Callable[[str], list[str]]]:
    """DSPy's KNN, or its steps: one product of the matrix with the query, and a full sort."""
    try:
        from dspy import Embedder as Embeds
        from dspy import Example as Shown
        from dspy.predict import KNN
    except ImportError:
        matrix = np.concatenate([encode([e.text]) for e in examples])

        def steps(text: str) -> list[str]:
            scores = np.dot(matrix, encode([text])[0])
            return [examples[i].text for i in scores.argsort()[-k:][::-1]]

        return "as DSPy", steps

    trainset = [Shown(text=e.text, label=e.output).with_inputs("text") for e in examples]

    def plain(texts: Any) -> np.ndarray:
        return encode([t.removeprefix("text: ") for t in ([texts] if isinstance(texts, str) else texts)])

    knn = KNN(k=k, trainset=trainset, vectorizer=Embeds(plain, caching=False))
    return "DSPy", lambda text: [e.text for e in knn(text=text)]


if __name__ == "__main__":
    main()
