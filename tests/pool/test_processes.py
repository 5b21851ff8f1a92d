"""Several processes on one file, and processes that die: real ones."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.testing import HashEmbedder

ADD = """
import sys
from iclkit.pool import Pool
from iclkit.records import Example
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(count):
    with Pool.open(path) as pool:
        pool.add([Example(f"shared {n}", "x"), *(Example(f"{name} {n} {m}", "x") for m in range(5))])
"""
EMBED = """
import sys, time
import iclkit.pool._vectors as store
from iclkit.pool import Pool
from iclkit.testing import HashEmbedder
store.BATCH = 10
class Slow(HashEmbedder):
    def encode_documents(self, texts, progress=None):
        time.sleep(0.05)
        print(len(texts), flush=True)
        return super().encode_documents(texts)
with Pool.open(sys.argv[1]) as pool:
    pool.embed(Slow(8))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_processes_that_create_and_fill_one_pool_at_once_lose_nothing(tmp_path: Path) -> None:
    path, count = tmp_path / "p.db", 20
    finish(*(start(ADD, path, name, count) for name in "abcd"))
    with Pool.open(path) as pool:
        expected = {f"shared {n}" for n in range(count)}
        expected |= {f"{name} {n} {m}" for name in "abcd" for n in range(count) for m in range(5)}
        assert [e.text for e in pool if e.text in expected] == [e.text for e in pool]
        assert len(pool) == len(expected)
        assert pool.revision == 4 * count  # each call added something of its own
        assert pool.check() == []


def test_processes_that_embed_one_pool_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Pool.open(path) as pool:
        pool.add(Example(f"text {n}", "x") for n in range(60))
    finish(start(EMBED, path), start(EMBED, path))
    embedder = HashEmbedder(8)
    with Pool.open(path) as pool:
        assert pool.embed(embedder) == 0
        expected = embedder.encode_documents([e.text for e in pool])
        np.testing.assert_array_equal(pool.view().vectors(embedder), expected)
        assert pool.check() == []


def test_a_killed_embed_loses_at_most_one_batch_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Pool.open(path) as pool:
        pool.add(Example(f"text {n}", "x") for n in range(100))
    process = start(EMBED, path)
    assert process.stdout is not None
    begun = sum(int(process.stdout.readline()) for _ in range(4))
    process.send_signal(signal.SIGKILL)
    begun += sum(int(line) for line in process.communicate()[0].split())
    with Pool.open(path) as pool:
        left = pool.embed(HashEmbedder(8))
        assert 100 - begun <= left <= 100 - begun + 10
        assert left < 100
        assert pool.check() == []


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1])
def test_a_killed_add_adds_all_or_nothing(tmp_path: Path, moment: float) -> None:
    path = tmp_path / "p.db"
    code = """
import sys
from iclkit.pool import Pool
from iclkit.records import Example
pool = Pool.open(sys.argv[1])
rows = [Example(f"text {n}", "x") for n in range(20000)]
print("go", flush=True)
pool.add(rows)
"""
    process = start(code, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Pool.open(path) as pool:
        assert len(pool) in (0, 20000)
        assert pool.check() == []
        pool.add(Example(f"text {n}", "x") for n in range(20000))
        assert len(pool) == 20000


def test_a_writer_waits_for_another_that_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    Pool.open(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    process = start(ADD, path, "late", 1)
    time.sleep(1)
    assert process.poll() is None
    holder.execute("COMMIT")
    holder.close()
    finish(process)
    with Pool.open(path) as pool:
        assert len(pool) == 6


def test_a_reader_sees_one_state_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Pool.open(path) as pool:
        pool.add([Example("first", "x")])
        writer = start(ADD, path, "w", 30)
        while writer.poll() is None:
            view = pool.view()
            assert (len(view) - 1) % 6 == 0  # whole additions only
            assert len(view) == 1 + 6 * (view.revision - 1)
        finish(writer)
