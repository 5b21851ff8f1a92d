"""Latency of ``iclkit serve`` on loopback, beside the endpoint that one writes with sentence-transformers and numpy.

    OMP_NUM_THREADS=1 python benchmarks/bench_serve.py [--smoke] [--rows 10000] [--requests 1000] [--workers 1 2]
        [--embedder NAME] [--alone] [--picks]

kNN, k = 4, over a pool of ``--rows`` questions and reviews; every request is another text, so that no cache
answers, and they are mixed, so that all numbers of clients get texts of the same lengths. Each client sends its next
request when it has its answer (closed loop). Milliseconds at the 50th, 95th and 99th percentile of all requests, and of
the slowest in the first round, in which all clients ask at once; requests per second; and CPU milliseconds of the
server per request, which depend less on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from _common import default_data, emit, machine, rows_of

EMBEDDER = "all-minilm-l6-v2"
WRITTEN = (str, str.upper, str.title, str.swapcase)  # other texts of the same tokens, once all have been asked
OWN = """
import json, sys
import numpy as np, uvicorn
from iclkit.models import resolve
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

folder, model = sys.argv[1], SentenceTransformer(str(resolve(sys.argv[2], "embedder", pull=False)))
texts, vectors = json.load(open(folder + "/texts.json")), np.load(folder + "/vectors.npy")

def choose(text, k):
    scores = vectors @ model.encode(text, normalize_embeddings=True, show_progress_bar=False)
    best = np.argsort(-scores)[:k]
    return [{"input": texts[n], "score": float(scores[n])} for n in best]

async def select(request):
    asked = await request.json()
    return JSONResponse({"picks": await run_in_threadpool(choose, asked["input"], asked["k"])})

uvicorn.run(Starlette(routes=[Route("/select", select, methods=["POST"])]), port=int(sys.argv[3]), log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="iclkit serve --workers, one after the other"
    )
    parser.add_argument("--alone", action="store_true", help="without the endpoint beside it")
    parser.add_argument("--embedder", default=EMBEDDER, help="with settings behind it, such as ,dtype=bf16")
    parser.add_argument("--picks", action="store_true", help="no server: compare picks with the embedder as it is")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--smoke", action="store_true")
    a = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    if a.smoke:
        a.rows, a.requests, a.clients = 200, 40, [1, 10]
    texts = sorted({r["input"] for r in mixed(a.data, "test", 3000)})
    random.Random(0).shuffle(texts)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), a.data, a.rows, a.embedder)
        if a.picks:
            compare_picks(Path(folder), a.embedder, texts[:500])
            return
        tokens, seconds = encoder_alone(a.embedder, texts[:50])
        emit(what="encoder alone, one thread", texts=50, tokens=tokens, ms=round(seconds * 1e3))
        commands = {
            f"iclkit serve --workers {n}": [
                sys.executable, "-m", "iclkit", "serve", f"{folder}/kept", "--workers", str(n), "--port",
            ]
            for n in a.workers
        }  # fmt: skip
        if not a.alone:
            own = [sys.executable, "-c", OWN, folder, a.embedder.split(",")[0]]
            commands["sentence-transformers, numpy, starlette"] = own
        for name, command in commands.items():
            port = free_port()
            command.append(str(port))
            asked = (written(text) for written in WRITTEN for text in texts)
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
                try:
                    wait_for(port, server)
                    asyncio.run(load(port, [next(asked) for _ in range(50)], 5))
                    for clients in a.clients:
                        before, start = cpu_seconds(server.pid), time.perf_counter()
                        first, later = asyncio.run(load(port, [next(asked) for _ in range(a.requests)], clients))
                        took, spent = time.perf_counter() - start, cpu_seconds(server.pid) - before
                        p50, p95, p99 = (round(float(p), 1) for p in np.percentile(first + later, [50, 95, 99]) * 1e3)
                        emit(
                            server=name, rows=a.rows, clients=clients, p50_ms=p50, p95_ms=p95, p99_ms=p99,
                            first_round_ms=round(max(first) * 1e3, 1), per_s=round(a.requests / took),
                            cpu_ms=round(spent / a.requests * 1e3, 2),
                        )  # fmt: skip
                finally:
                    server.terminate()
    emit(what="machine", name=machine(), load=[round(x, 1) for x in os.getloadavg()])


def mixed(data: Path, split: str, rows: int) -> list[dict[str, Any]]:
    """Rows of two sets, questions and reviews, in turn."""
    sets = [rows_of(data, task, split, rows) for task in ("trec", "sst2")]
    return [row for together in zip_longest(*sets) for row in together if row is not None][:rows]


def prepare(folder: Path, data: Path, rows: int, name: str) -> None:
    """The pool with a kept selector, and the same texts and vectors as plain files."""
    from iclkit import Kit, Pool, load_embedder, make_selector
    from iclkit.records import Example

    embedder = load_embedder(name)
    with Pool.open(folder / "demos.db") as pool:
        pool.add(Example(r["input"], r["output"]) for r in mixed(data, "train", rows))
        view = pool.view()
        make_selector("knn").fit(view, Kit(embedder=embedder)).save(folder / "kept", k=4)
        np.save(folder / "vectors.npy", view.vectors(embedder))
        (folder / "texts.json").write_text(json.dumps([e.text for e in view.examples]))


def encoder_alone(name: str, texts: list[str]) -> tuple[int, float]:
    """Tokens of these texts, special ones apart, and seconds to encode them at once with one thread: best of ten."""
    from iclkit import load_embedder

    embedder = load_embedder(name, threads=1)

    def timed() -> float:
        start = time.perf_counter()
        embedder.encode_queries(texts)
        return time.perf_counter() - start

    return sum(len(tokens) for tokens, _ in embedder.encode_tokens(texts)), min(timed() for _ in range(10))


def compare_picks(folder: Path, name: str, texts: list[str]) -> None:
    """For how many texts the four picks are those of the embedder without its settings."""
    from iclkit import Kit, Pool, load_embedder, make_selector

    with Pool.open(folder / "demos.db") as pool:
        one, other = (
            [s.ids for s in make_selector("knn").fit(pool.view(), Kit(embedder=load_embedder(n))).select_many(texts, 4)]
            for n in (name, name.split(",")[0])
        )
    pairs = [*zip(one, other, strict=True)]
    emit(
        what=f"picks with {name}", texts=len(texts), same_first=sum(a[0] == b[0] for a, b in pairs),
        same_four=sum({*a} == {*b} for a, b in pairs), same_order=sum(a == b for a, b in pairs),
    )  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server takes connections."""
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
        try:
            asyncio.run(load(port, ["is it up"], 1))
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the server did not start")


async def load(port: int, texts: list[str], clients: int) -> tuple[list[float], list[float]]:
    """Seconds of the first request of each client and of all others; ``clients`` connections that are kept open share
    the texts."""
    left, first, later = iter(texts), list[float](), list[float]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n, text in enumerate(left):
            body = json.dumps({"input": text, "k": 4}).encode()
            start = time.perf_counter()
            writer.write(b"POST /select HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise SystemExit(f"refused: {head[:200]!r}")
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(size)
            (later if n else first).append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return first, later


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
