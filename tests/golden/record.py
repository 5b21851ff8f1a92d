"""What must not change by accident: picks, rows, run ids, keys of caches, vectors and ledgers, boards, trained weights.

``python -m tests.golden.record`` compares with ``golden.json`` and prints what differs; ``--write`` records anew, which
a change that means to change a figure does, and says so in the changelog. Made with fakes and models of a few thousand
random weights, in under a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..faults.worlds import fresh, make_models, rows, worlds

FILE = Path(__file__).with_name("golden.json")
VARIANTS = ("mmr,trade_off=0.2,candidates=5", "bm25,tokenizer=trigrams,b=0.2", "dpp,sort=picks,candidates=10",
            "set-bsr,weights=idf,sort=picks", "many-labels,min_labels=3", "rrf,of=[bm25,mmr,trade_off=0.3,random]",
            "hybrid,near=2,fixed=mfl,of=bm25", "filter,of=[rrf,of=[bm25,knn],depth=40]")  # fmt: skip

_NOISE = 2e-6  # float32 vectors and sums of their products, by processor


def short(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def picks() -> dict[str, Any]:
    """Ids and scores of every built-in selector (and some variants), two k, two seeds."""
    from iclkit.pool import Pool
    from iclkit.records import Example, Query
    from iclkit.selectors import BUILTINS, Kit, make_selector
    from iclkit.testing import FakeLM, HashEmbedder

    examples = [Example(r["input"], r["output"]) for r in rows("train", 40)]
    queries = [Query(r["input"]) for r in rows("test", 4)]
    made: dict[str, Any] = {}
    for name in (*BUILTINS, *VARIANTS):
        if name == "fixed":
            continue
        for seed in (0, 1):
            kit = Kit(embedder=HashEmbedder(), lm=FakeLM(), reranker=None, labels=("animal", "food"), seed=seed)
            selector = make_selector(name)
            if selector.needs.reranker:
                continue
            selector.fit(Pool.of(examples).view(), kit)
            for k in (2, 5):
                chosen = selector.select_many(queries, k)
                made[f"{name} k={k} seed={seed}"] = [
                    [short([p.example_id for p in s]), short(s.notes), [float(f"{p.score:.9g}") for p in s]]
                    for s in chosen
                ]
    return made


def words_and_numbers(text: str) -> list[Any]:
    """A fingerprint of lines of JSON without their decimal numbers, and these, since processors round differently."""
    numbers: list[float] = []

    def decimal(number: str) -> str:
        numbers.append(float(f"{float(number):.9g}"))
        return ""

    return [short([json.loads(line, parse_float=decimal) for line in text.splitlines()]), numbers]


def runs(folder: Path) -> dict[str, Any]:
    """Ids and rows of runs with a scripted LM, and the board of them."""
    from iclkit import evaluate
    from iclkit.datasets import make_task
    from iclkit.prompts import Template
    from iclkit.records import Example
    from iclkit.report import leaderboard, to_json
    from iclkit.testing import HashEmbedder, ScriptedLM

    def vote(context: str, continuation: str) -> float:
        *demos, query = context.split("\n\n")
        word = query.split("\n")[0].split()[-1]
        votes = sum(d.endswith(continuation) and d.split("\n")[0].endswith(f" {word}") for d in demos)
        return float(votes) - 5 - (0.5 if continuation.endswith("food") else 0)

    train, test = ([Example(r["input"], r["output"]) for r in rows(s, n)] for s, n in (("train", 40), ("test", 70)))
    task = make_task("golden", train, test, template=Template("Text: {input}\nKind: {output}"))
    made = []
    for selector in ("zero", "random", "knn", "bm25"):
        for calibration in ("none", "contextual"):
            lm = ScriptedLM(vote, name="voting")
            made.append(evaluate(task, selector, lm, k=3, embedder=HashEmbedder(), out=folder, calibrate=calibration))
    lines = {r.id: words_and_numbers((folder / r.id / "rows.jsonl").read_text()) for r in made}
    board = json.loads(to_json(leaderboard(made)))
    figures = [
        [line["selector"], round(line["figure"]["value"], 6), line["verdict"]]
        for group in board["groups"]
        for line in group["lines"]
    ]
    return {"rows": lines, "board": sorted(map(repr, figures))}


def commands(folder: Path) -> dict[str, Any]:
    """Whole commands on tiny models: cache keys and values, vector and ledger keys, study facts, trained weights."""
    from ..faults.children import call

    made: dict[str, Any] = {}
    lm, encoder = make_models(folder / "models")
    for world in worlds(lm, encoder):
        if not world.name.startswith(("eval", "train", "tune", "pool embed")):
            continue
        work, home = fresh(world, folder / "world")
        outcome = call([*world.words], work, home)
        if outcome.code:
            raise SystemExit(f"{world.name}: {outcome.err}")
        made[world.name] = found = {}
        if (home / "lm-cache.db").exists():
            with sqlite3.connect(home / "lm-cache.db") as cache:
                found["cache keys"] = short(sorted(key for (key,) in cache.execute("SELECT key FROM entry")))
        for pool in [*work.glob("*.db"), *home.glob("pools/*.db")]:
            with sqlite3.connect(pool) as data:
                found["vector keys"] = short(
                    sorted(
                        data.execute(
                            "SELECT e.fingerprint, e.side, hex(t.hash) FROM vectors v JOIN embedders e"
                            " ON e.number = v.embedder JOIN texts t ON t.number = v.text"
                        )
                    )
                )
        for ledger in work.glob("*.work/ledger.db"):
            with sqlite3.connect(ledger) as data:
                found["ledger scopes"] = short(sorted(data.execute("SELECT mark FROM scopes")))
                found["ledger rows"] = data.execute("SELECT count(*) FROM scores").fetchone()[0]
        found["weights"] = _sums(work / "made")
        if (work / "best.json").exists():
            best = json.loads((work / "best.json").read_text())
            found["study"] = short([best["demonstrations"], best["search"]["values"], best["study"]["name"]])
    return made


def _sums(folder: Path) -> dict[str, list[float]]:
    """Per weight file the sum and the sum of squares: a few digits of them, since processors round differently."""
    from safetensors.numpy import load_file

    sums = {}
    for file in sorted(folder.rglob("*.safetensors")):
        weights = [w.astype("float64") for w in load_file(file).values()]
        sums[str(file.relative_to(folder))] = [float(f"{sum((w**n).sum() for w in weights):.5g}") for n in (1, 2)]
    return sums


def record() -> dict[str, Any]:
    """Everything, anew."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="iclkit-golden-") as where:
        os.environ["ICLKIT_HOME"] = str(Path(where) / "home")
        return {"picks": picks(), "runs": runs(Path(where) / "runs"), "commands": commands(Path(where))}


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two records differ, as paths; decimal numbers by more than what processors round differently."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in {**old, **new} for d in differences(old.get(key), new.get(key), f"{at}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for n, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{at}/{n}")]
    if isinstance(old, float) and isinstance(new, float):
        return [] if math.isclose(old, new, rel_tol=_NOISE, abs_tol=_NOISE) else [f"{at}: {old} -> {new}"]
    return [] if old == new else [f"{at}: {old} -> {new}"]


def written(record: Any) -> str:
    """A record as JSON, a line for each entry."""
    if not isinstance(record, dict):
        return json.dumps(record)
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {written(record[key])}" for key in sorted(record)) + "\n}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    new = json.loads(json.dumps(record()))
    if given.write:
        FILE.write_text(written(new) + "\n")
        return 0
    found = differences(json.loads(FILE.read_text()), new)
    print("\n".join(found) or "nothing has changed")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
