"""What a command costs before it answers: CPU seconds and memory of whole processes, over an embedded pool.

    OMP_NUM_THREADS=1 python benchmarks/bench_startup.py [--smoke] [--rows 2000] [--repeats 5] [--data DIR]

``iclkit select`` with the quick encoder and the kept term index, the same with the embedder loaded in full, and the
lines that a competent engineer writes with sentence-transformers or bm25s over the same texts (vectors kept in a .npy
file). Runs take turns; the median is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import default_data, emit, machine, rows_of

QUERY = "Who was president in 1913 ?"
EMBEDDER = "all-minilm-l6-v2"
IN_FULL = """
import sys
import iclkit.embed
from iclkit.pool import Pool
from iclkit.records import Query
from iclkit.selectors import Kit, make_selector
view = Pool.open(sys.argv[1]).view()
chosen = make_selector("knn").fit(view, Kit(iclkit.embed.load_embedder(sys.argv[3]))).select(Query(sys.argv[4]), 3)
print([view.examples_of([i])[0].text for i in chosen.ids])
"""
SENTENCE_TRANSFORMERS = """
import json, sys
import numpy as np
from iclkit.models import resolve
from sentence_transformers import SentenceTransformer
texts, vectors = json.load(open(sys.argv[2] + "/texts.json")), np.load(sys.argv[2] + "/vectors.npy")
model = SentenceTransformer(str(resolve(sys.argv[3], "embedder", pull=False)))
query = model.encode(sys.argv[4], normalize_embeddings=True)
print([texts[n] for n in np.argsort(-(vectors @ query))[:3]])
"""
BM25S = """
import json, sys
import bm25s
texts = json.load(open(sys.argv[2] + "/texts.json"))
index = bm25s.BM25()
index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
rows, _ = index.retrieve(bm25s.tokenize(sys.argv[4], stopwords=None, show_progress=False), k=3, show_progress=False)
print([texts[n] for n in rows[0]])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.prepare:
        prepare(a.prepare, a.data, a.rows)
        return
    if a.smoke:
        a.rows, a.repeats = 200, 1
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder, "demos.db")
        # by a process of its own: what this one holds would count as the memory of those it starts
        run([sys.executable, __file__, "--prepare", str(pool), "--rows", str(a.rows), "--data", str(a.data)])
        select = [sys.executable, "-m", "iclkit", "select", str(pool), QUERY, "-k", "3", "-s"]
        given = [str(pool), folder, EMBEDDER, QUERY]
        commands = {
            "iclkit --help": [sys.executable, "-m", "iclkit", "--help"],
            "iclkit select -s random": [*select, "random"],
            "iclkit select -s bm25": [*select, "bm25"],
            "iclkit select -s knn": [*select, "knn"],
            "iclkit select -s mmr": [*select, "mmr"],
            "knn, embedder loaded in full": [sys.executable, "-c", IN_FULL, *given],
            "sentence-transformers and numpy": [sys.executable, "-c", SENTENCE_TRANSFORMERS, *given],
            "bm25s, index made anew": [sys.executable, "-c", BM25S, *given],
        }
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(a.repeats + 1):
            for name, command in commands.items():
                cost = run(command)
                if turn:  # the first leaves notes, indexes and pages in memory behind
                    costs[name].append(cost)
        for name, spent in costs.items():
            seconds, megabytes = (statistics.median(column) for column in zip(*spent, strict=True))
            emit(what=name, rows=a.rows, cpu_s=round(seconds, 2), rss_mb=round(megabytes))
    emit(what="machine", name=machine())


def prepare(pool: Path, data: Path, rows: int) -> None:
    """The pool, embedded, and the same texts and vectors as plain files."""
    import numpy as np

    from iclkit.embed import load_embedder
    from iclkit.pool import Pool
    from iclkit.records import Example

    with Pool.open(pool) as store:
        store.add(Example(r["input"], r["output"]) for r in rows_of(data, "trec", "train", rows))
        vectors = store.view().vectors(load_embedder(EMBEDDER))
        np.save(pool.parent / "vectors.npy", vectors)
        (pool.parent / "texts.json").write_text(json.dumps([e.text for e in store]))


def run(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a process and its peak memory in MB."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.read() if process.stderr else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ended with {process.returncode}: {said[-400:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
