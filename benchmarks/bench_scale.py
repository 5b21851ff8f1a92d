"""How pools grow: every operation at several sizes beside what is used elsewhere on the same rows, and its exponent.

    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py [--smoke] [--rows 10000 100000] [--dim 384] [--vectors clustered]
        [--parts file pool lance-pool rivals hnsw]

Rows have 15 words with natural frequencies and a unit vector, in clusters (``--vectors random``: without structure,
the worst case of approximate indexes). The pool is written by one process; what is measured runs in a fresh one, so
that memory is its own; with ``--folder`` pools stay, and are used again. CPU seconds of one thread. The approximate
index is measured last; "in lists" is said of it. FAISS, bm25s, LanceDB and tantivy are measured on the same rows in
the same run, the last two and pools of iclkit in LanceDB where they are installed. FAISS's HNSW is a part of its own:
it takes longer to build than all else (nine minutes for a million clustered rows). An exponent of 1 means that twice
the rows take twice the time. The last lines carry the measured figures on to 10^8 rows: a calculation, no
measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _common import cost_of, emit, machine

from iclkit.embed import BaseEmbedder, FloatArray
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector

WORDS = 15
VOCABULARY = 50_000
QUERIES = 256
K = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--vectors", choices=["clustered", "random"], default="clustered")
    parser.add_argument("--folder", type=Path, help="Where pools are kept; a temporary folder when not said.")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS], help="What is measured.")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        PARTS[a.measure](a.folder, a.rows[0], a.dim, a.vectors)
        return
    if a.smoke:
        a.rows, a.dim = [4000, 8000], 64
    emit(what="machine", name=machine(), dim=a.dim, vectors=a.vectors)
    found: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in a.rows:
            place = Path(a.folder or folder, str(rows))
            place.mkdir(parents=True, exist_ok=True)
            for what in a.parts:
                if what == "lance-pool" and not find_spec("lancedb"):
                    continue
                command = [sys.executable, __file__, "--measure", what, "--rows", str(rows), "--dim", str(a.dim),
                           "--vectors", a.vectors, "--folder", str(place)]  # fmt: skip
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                    for line in child.stdout or ():
                        name, value = json.loads(line)
                        found.setdefault(name, {})[rows] = value
                        print(f"{rows:,} rows: {name} {value:.4g}", file=sys.stderr)
                if child.returncode:
                    raise SystemExit(f"{what} ended with {child.returncode} at {rows:,} rows")
    for name, values in found.items():
        emit(what=name, **{str(rows): float(f"{v:.3g}") for rows, v in values.items()}, exponent=exponent(values))
    if "pool" in a.parts:
        on_paper(found)


def exponent(values: dict[int, float]) -> float | None:
    """The slope of log figure over log rows between the two largest sizes."""
    sizes = sorted(values)[-2:]
    if len(sizes) < 2 or min(values[s] for s in sizes) <= 0:
        return None
    return round(math.log(values[sizes[1]] / values[sizes[0]]) / math.log(sizes[1] / sizes[0]), 2)


def on_paper(found: dict[str, dict[int, float]]) -> None:
    """What 10^8 rows would take, from the figures of the largest size: scans, files and reading all grow with the rows,
    what is read of lists with their root."""
    size = max(found["knn single, ms"])
    times = 1e8 / size
    linear = {"knn single, ms": "exact_ms", "files, MB": "files_mb", "open and view, s": "open_s",
              "memory with knn, MB": "memory_mb", "bm25 single, ms": "bm25_ms"}  # fmt: skip
    told_ = {short: round(found[name][size] * times) for name, short in linear.items()}
    lists = round(found["knn single in lists, ms"][size] * math.sqrt(times), 1)
    built = round(found["approximate index built, s"][size] * times * math.sqrt(times) / 3600)
    emit(what="10^8 rows, calculated", **told_, in_lists_ms=lists, lists_built_hours=built)


# ---- rows


def texts_of(rows: int) -> list[str]:
    """Words drawn by Zipf's law; the last one is the row's own."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    drawn = rng.choice(VOCABULARY, (rows, WORDS - 1), p=weights / weights.sum())
    return [" ".join(f"w{w}" for w in line) + f" n{n}" for n, line in enumerate(drawn.tolist())]


def vectors_of(rows: int, dim: int, kind: str, seed: int = 1, among: int | None = None) -> FloatArray:
    """(rows, dim) unit vectors; clustered ones about one center for every hundred rows, or for every hundred of
    ``among``: those of queries are the centers of all rows."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((rows, dim), dtype=np.float32)
    if kind == "clustered":
        centers = np.random.default_rng(99).standard_normal((max(10, (among or rows) // 100), dim), dtype=np.float32)
        found *= 0.7
        found += centers[rng.integers(0, len(centers), rows)]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


class TableEmbedder(BaseEmbedder):
    """Looks vectors up by the number at a text's end."""

    def __init__(self, dim: int, vectors: FloatArray | None = None, queries: FloatArray | None = None) -> None:
        self.name, self.fingerprint, self.dim = "table", f"table-{dim}", dim
        self._vectors, self._queries = vectors, queries

    def encode_queries(self, texts: Sequence[str], progress: Any = None) -> FloatArray:  # noqa: ARG002
        assert self._queries is not None
        return self._queries[[int(t.rpartition("n")[2]) % len(self._queries) for t in texts]]

    def encode_documents(self, texts: Sequence[str], progress: Any = None) -> FloatArray:  # noqa: ARG002
        source = self._vectors if self._vectors is not None else self._queries
        assert source is not None
        return source[[int(t.rpartition("n")[2]) % len(source) for t in texts]]


# ---- measured in processes of their own


def told(name: str, value: float) -> None:
    print(json.dumps([name, value]), flush=True)


def cpu(call: Callable[[], Any], times: int = 1) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def memory(field: str = "RssAnon") -> float:
    """MB of this process that are not mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_pool(folder: Path, rows: int, dim: int, kind: str) -> None:
    """A pool in a file."""
    measure_kept(folder / "demos.db", "", rows, dim, kind)


def measure_lance_pool(folder: Path, rows: int, dim: int, kind: str) -> None:
    """A pool that iclkit keeps in LanceDB."""
    measure_kept(folder / "in-lance" / "demos.lance", "in LanceDB: ", rows, dim, kind)


def measure_kept(path: Path, what: str, rows: int, dim: int, kind: str) -> None:
    """Write the pool in a child process, then measure it here. What is told begins with ``what``."""

    def told(name: str, value: float) -> None:
        print(json.dumps([f"{what}{name}", value]), flush=True)

    path.parent.mkdir(exist_ok=True)
    child = None if path.exists() else os.fork()
    if child == 0:
        texts = texts_of(rows)
        with Pool.open(path) as pool:
            told("add, s", cpu(lambda: pool.add(Example(t, "xy"[n % 2], id=f"e{n}") for n, t in enumerate(texts))))
            told(
                "embed (vectors looked up), s", cpu(lambda: pool.embed(TableEmbedder(dim, vectors_of(rows, dim, kind))))
            )
        sys.stdout.flush()
        os._exit(0)
    if child:
        os.waitpid(child, 0)
    files = path.rglob("*") if path.is_dir() else path.parent.iterdir()
    told("files, MB", sum(f.stat().st_size for f in files if f.is_file()) / 1e6)
    queries = [Query(t, id=str(n)) for n, t in enumerate(texts_of(max(rows, QUERIES))[:QUERIES])]
    embedder = TableEmbedder(dim, queries=vectors_of(QUERIES, dim, kind, seed=2, among=rows))
    kit = Kit(embedder=embedder)
    pool = Pool.open(path)
    pool.drop_index(embedder)
    told("open and view, s", cpu(lambda: pool.view()))
    told("memory of the view, MB", memory())
    view = pool.view()
    knn, words = make_selector("knn"), make_selector("bm25")
    told("knn fit and first query, s", cpu(lambda: knn.fit(view, kit).select(queries[0], K)))
    told("memory with knn, MB", memory())
    told("knn single, ms", 1e3 * cpu(lambda: [knn.select(q, K) for q in queries[:20]]) / 20)
    told("knn batch of 128, ms", 1e3 * cpu(lambda: knn.select_many(queries[:128], K)) / 128)
    told("bm25 words counted, s", cpu(lambda: words.fit(view, kit).select(queries[0], K)))
    again = Pool.open(path)
    told("bm25 fit from the file, s", cpu(lambda: words.fit(again.view(), kit).select(queries[0], K)))
    words.select_many(queries, K)
    told("bm25 single, ms", 1e3 * cpu(lambda: [words.select(q, K) for q in queries[:50]]) / 50)
    told("bm25 batch of 128, ms", 1e3 * cpu(lambda: words.select_many(queries[:128], K)) / 128)
    mmr = make_selector("mmr").fit(view, kit)
    told("mmr single, ms", 1e3 * cpu(lambda: [mmr.select(q, K) for q in queries[:10]]) / 10)

    def add_one(number: int, name: str) -> None:
        pool.add([Example(f"w1 w2 one more n{number}", "x")])
        make_selector(name).fit(pool.view(), kit).select(queries[1], K)

    for name in ("knn", "bm25"):
        add_one(rows, name)
        told(f"one row added, then {name}, s", cpu(lambda name=name: add_one(rows + 1 + len(name), name)))
    gone = pool.view().ids_at(pool.view().rows[:: max(1, rows // 1000)][:1000])
    told("1,000 rows removed, s", cpu(lambda: pool.remove(gone)))
    told("view and knn after that, s", cpu(lambda: knn.fit(pool.view(), kit).select(queries[2], K)))
    told("peak memory, MB", memory("VmHWM"))
    exact = knn.select_many(queries, K)
    info = None

    def build() -> None:
        nonlocal info
        info = pool.build_index(embedder)

    told("approximate index built, s", cpu(build))
    assert info is not None
    for level in info.levels:
        told(f"its recall@{level.k} on rows of the pool", level.recall)
        told(f"lists looked at for {level.k} rows", level.probes)
    near = make_selector("knn").fit(pool.view(), kit)
    found = near.select_many(queries, K)
    told(
        "recall@8 of the queries",
        float(np.mean([len({*a.ids} & {*b.ids}) / K for a, b in zip(found, exact, strict=True)])),
    )
    told("knn single in lists, ms", 1e3 * cpu(lambda: [near.select(q, K) for q in queries[:100]]) / 100)
    told("knn batch of 128 in lists, ms", 1e3 * cpu(lambda: near.select_many(queries[:128], K)) / 128)
    add_one(rows + 20, "knn")
    told("one row added, then knn in lists, s", cpu(lambda: add_one(rows + 21, "knn")))
    again = Pool.open(path)
    told("open, view and first query in lists, s", cpu(lambda: knn.fit(again.view(), kit).select(queries[3], K)))
    if rows <= 100_000:
        told("near-duplicates, s", cpu(lambda: pool.dedupe(near=0.9, apply=False)))


def measure_file(folder: Path, rows: int, dim: int, kind: str) -> None:  # noqa: ARG001
    """A file of rows, read and added by the command, which is a process of its own."""
    file, pool = folder / "rows.jsonl", folder / "added.db"
    with file.open("w") as out:
        for n, text in enumerate(texts_of(rows)):
            out.write(json.dumps({"input": text, "output": "xy"[n % 2]}) + "\n")
    code, seconds, peak = cost_of([sys.executable, "-m", "iclkit", "pool", "add", pool, file])
    if code:
        raise SystemExit(f"iclkit pool add ended with {code}")
    told("pool add of a file, s", seconds)
    told("pool add of a file, peak MB", peak)
    for name in (file, pool):
        name.unlink()


def measure_rivals(folder: Path, rows: int, dim: int, kind: str) -> None:
    """FAISS, bm25s, and LanceDB and tantivy where they are installed."""
    vectors, queries = vectors_of(rows, dim, kind), vectors_of(QUERIES, dim, kind, seed=2, among=rows)
    measure_faiss(vectors, queries)
    if find_spec("lancedb"):
        measure_lance(folder, vectors, queries)
    del vectors
    texts = texts_of(rows)
    if find_spec("tantivy"):
        measure_tantivy(texts)
    if find_spec("bm25s"):
        measure_bm25s(texts)


def measure_faiss(vectors: FloatArray, queries: FloatArray) -> None:
    import faiss

    faiss.omp_set_num_threads(1)
    rows, dim = vectors.shape
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    told("FAISS flat single, ms", 1e3 * cpu(lambda: [flat.search(q[None], K) for q in queries[:20]]) / 20)
    told("FAISS flat batch of 128, ms", 1e3 * cpu(lambda: flat.search(queries[:128], K)) / 128)
    faiss.cvar.distance_compute_blas_threshold = 20
    told("FAISS flat with BLAS, batch, ms", 1e3 * cpu(lambda: flat.search(queries[:128], K)) / 128)
    _, exact = flat.search(queries, K)

    lists = max(16, int(4 * math.sqrt(rows)))
    ivf: Any = faiss.index_factory(dim, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)

    def build_ivf() -> None:
        ivf.train(vectors[np.random.default_rng(3).permutation(rows)[: 40 * lists]])
        ivf.add(vectors)

    told("FAISS IVF build, s", cpu(build_ivf))
    for probes in (1, 16, 64, 256):
        ivf.nprobe = probes
        told(f"FAISS IVF recall at {probes} lists", recall_of(ivf.search(queries, K)[1], exact))
        single = 1e3 * cpu(lambda: [ivf.search(q[None], K) for q in queries[:100]]) / 100
        told(f"FAISS IVF single at {probes} lists, ms", single)
    told("FAISS IVF batch of 128 at the most lists, ms", 1e3 * cpu(lambda: ivf.search(queries[:128], K)) / 128)


def measure_hnsw(folder: Path, rows: int, dim: int, kind: str) -> None:  # noqa: ARG001
    """FAISS's graph, which takes long to build."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, queries = vectors_of(rows, dim, kind), vectors_of(QUERIES, dim, kind, seed=2, among=rows)
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    _, exact = flat.search(queries, K)
    del flat
    graph = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
    told("FAISS HNSW build, s", cpu(lambda: graph.add(vectors)))
    for width in (64, 256):
        graph.hnsw.efSearch = width
        told(f"FAISS HNSW recall at {width}", recall_of(graph.search(queries, K)[1], exact))
        single = 1e3 * cpu(lambda: [graph.search(q[None], K) for q in queries[:100]]) / 100
        told(f"FAISS HNSW single at {width}, ms", single)


def recall_of(found: Any, exact: Any) -> float:
    """The share of the exact nearest that were found."""
    return float(np.mean([len({*a} & {*b}) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def measure_bm25s(texts: Sequence[str]) -> None:
    import bm25s

    index = bm25s.BM25()
    cut = [t.split() for t in texts]
    told("bm25s build, s", cpu(lambda: index.index(cut, show_progress=False)))
    told("bm25s single, ms", 1e3 * cpu(lambda: [index.retrieve([c], k=K, show_progress=False) for c in cut[:50]]) / 50)
    told("bm25s batch of 128, ms", 1e3 * cpu(lambda: index.retrieve(cut[:128], k=K, show_progress=False)) / 128)


def measure_lance(folder: Path, vectors: FloatArray, queries: FloatArray) -> None:
    """A table on disk: flat, then with an IVF-PQ index whose finds are compared again by their whole vectors."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    rows, dim = vectors.shape
    kind = pa.list_(pa.float32(), dim)

    def batches(first: int, part: FloatArray) -> Any:
        for at in range(0, len(part), 1 << 14):
            some = part[at : at + (1 << 14)]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), type=kind)
            numbers = pa.array(range(first + at, first + at + len(some)))
            yield pa.record_batch([numbers, flat], names=["id", "vector"])

    def table(first: int, part: FloatArray) -> Any:
        schema = pa.schema({"id": pa.int64(), "vector": kind})
        return pa.RecordBatchReader.from_batches(schema, batches(first, part))

    def ask(query: FloatArray, *, exact: bool = False, probes: int = 1) -> list[int]:
        found: Any = store.search(query)  # typed as what searches words, too
        asked = found.distance_type("dot").limit(K).select(["id", "_distance"])
        asked = asked.bypass_vector_index() if exact else asked.nprobes(probes).refine_factor(10)
        return list(asked.to_arrow()["id"].to_pylist())

    database, start = lancedb.connect(str(folder / "lance")), time.process_time()
    store = database.create_table("pool", table(0, vectors))
    told("LanceDB add, s", time.process_time() - start)
    told("LanceDB flat single, ms", 1e3 * cpu(lambda: [ask(q, exact=True) for q in queries[:10]]) / 10)
    lists = max(16, int(math.sqrt(rows)))
    config = IvfPq(distance_type="dot", num_partitions=lists, num_sub_vectors=dim // 8)
    told("LanceDB index built, s", cpu(lambda: store.create_index("vector", config=config)))
    exact = [{*ask(q, exact=True)} for q in queries[:50]]
    for probes in (1, 16, 64, 256):
        found = [ask(q, probes=probes) for q in queries[:50]]
        told(
            f"LanceDB recall at {probes} lists",
            float(np.mean([len({*a} & b) / K for a, b in zip(found, exact, strict=True)])),
        )
        single = 1e3 * cpu(lambda probes=probes: [ask(q, probes=probes) for q in queries[:50]]) / 50
        told(f"LanceDB single at {probes} lists, ms", single)
    told("LanceDB add one, then a query, s", cpu(lambda: (store.add(table(rows, vectors[:1])), ask(queries[0]))))
    told("LanceDB 1,000 rows removed, s", cpu(lambda: store.delete("id < 1000")))
    told("LanceDB memory, MB", memory())


def measure_tantivy(texts: Sequence[str]) -> None:
    import tantivy

    schema = tantivy.SchemaBuilder().add_text_field("text").add_integer_field("n", stored=True).build()
    index = tantivy.Index(schema)
    writer = index.writer(heap_size=1 << 28, num_threads=1)

    def build() -> None:
        for n, text in enumerate(texts):
            writer.add_document(tantivy.Document(text=[text], n=n))
        writer.commit()
        index.reload()

    told("tantivy build, s", cpu(build))
    searcher = index.searcher()
    asked = [index.parse_query(t, ["text"]) for t in texts[:128]]
    told("tantivy single, ms", 1e3 * cpu(lambda: [searcher.search(q, K) for q in asked]) / len(asked))


PARTS = {
    "file": measure_file,
    "pool": measure_pool,
    "lance-pool": measure_lance_pool,
    "rivals": measure_rivals,
    "hnsw": measure_hnsw,
}

if __name__ == "__main__":
    main()
