"""What it costs to choose a sequence by beam search, and what the growing prompts of its training share.

    OMP_NUM_THREADS=1 python benchmarks/bench_beam.py [--rows 10000] [--queries 64] [--shots 8] [--width 3] [--smoke]

CPU seconds per query over a pool of ``rows`` made-up questions, all queries together, the fastest of some turns. With
the model all-minilm-l6-v2 (``--embedder NAME`` for another) for the whole path: states are encoded and searched; and
with vectors that cost nothing, for the search alone. Then tokens: what one round after another of Se²'s prompts takes
read prompt by prompt and label by label, with labels read together, and with shared beginnings read once, for the
layout that is trained on (newest demonstration on the left) and for the other (newest next to the query).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from typing import Any

import numpy as np
from _common import emit, machine

from iclkit.embed import Retriever, RetrieverFormat, load_embedder
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector

_LINES = (
    "what who where when which how many long far old is was does did the a of in on for first last city river king",
    "word name year team film song book animal planet company country language inventor capital mountain",
)
WORDS = [word for line in _LINES for word in line.split()]
LABELS = ("description", "entity", "abbreviation", "human", "number", "location")


class Given:
    """An embedder that hashes texts to vectors: what is left is search and bookkeeping."""

    name, fingerprint, dim = "given", "given-1", 384

    def encode_queries(self, texts: Any, progress: Any = None) -> np.ndarray:  # noqa: ARG002
        seeds = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=4).digest(), "little") for t in texts]
        raw = np.stack([np.random.Generator(np.random.SFC64(s)).standard_normal(self.dim, np.float32) for s in seeds])
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)

    encode_documents = encode_queries


def questions(n: int, seed: int) -> list[str]:
    """Distinct questions of 6 to 14 words, as long as TREC's."""
    rng = np.random.default_rng(seed)
    found = dict[str, None]()
    while len(found) < n:
        found[" ".join(rng.choice(WORDS, rng.integers(6, 15))) + " ?"] = None
    return [*found]


def seconds(selector: str, pool: Any, kit: Kit, queries: list[Query], k: int, turns: int) -> tuple[float, int]:
    """CPU seconds per query, and texts encoded for one turn."""
    chooser: Any = make_selector(selector).fit(pool, kit)
    times, before = [], kit.embedder.texts  # type: ignore[union-attr]
    for turn in range(turns):
        start = time.process_time()
        chooser.select_many(queries, k)
        times.append((time.process_time() - start) / len(queries))
        if not turn:
            texts = kit.embedder.texts - before  # type: ignore[union-attr]
    return min(times), texts


class Counting(Retriever):
    """A retriever that counts the texts it is given."""

    texts = 0

    def encode_states(self, texts: Any, progress: Any = None) -> np.ndarray:
        self.texts += len(texts)
        return super().encode_states(texts, progress)


def shared(prompts: list[list[str]]) -> int:
    """Words left when equal beginnings are read once."""
    return len({tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)})


def growing(pool: list[str], queries: int, candidates: int, rounds: int, together: int, seed: int = 0) -> None:
    """Words of each round's prompts; ``together`` queries draw the same candidates."""
    rng = np.random.default_rng(seed)
    demos = [f"Question: {t}\nType: {LABELS[i % 6]}\n\n".split(" ") for i, t in enumerate(pool)]
    chosen: list[list[int]] = [[] for _ in range(queries)]
    for turn in range(rounds):
        left, right = list[list[str]](), list[list[str]]()
        for q in range(queries):
            if not q % together:
                drawn = rng.choice(len(pool), candidates, replace=False).tolist()
            asked = f"Question: {pool[-1 - q]}\nType:".split(" ")
            for c in drawn:
                shown = [*chosen[q], c]
                left.append([w for d in reversed(shown) for w in demos[d]] + asked)
                right.append([w for d in shown for w in demos[d]] + asked)
            chosen[q].append(int(drawn[int(rng.integers(len(drawn)))]))
        once = sum(map(len, left))
        emit(part="tokens", round=turn + 1, prompts=len(left), queries_with_equal_candidates=together,
             prompt_by_prompt=once * len(LABELS), labels_together=once, newest_left=shared(left),
             newest_right=shared(right))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--width", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--embedder", default="all-minilm-l6-v2", help="'' leaves the model out")
    parser.add_argument("--smoke", action="store_true", help="a small pool, few queries, one turn")
    args = parser.parse_args()
    if args.smoke:
        args.rows, args.queries, args.turns = 1000, 8, 1
    texts = questions(args.rows + args.queries, 0)
    examples = [Example(t, LABELS[n % 6]) for n, t in enumerate(texts[: args.rows])]
    pool, queries = Pool.of(examples).view(), [Query(t) for t in texts[args.rows :]]
    print(machine())
    for name in ("given", *filter(None, [args.embedder])):
        inner: Any = Given() if name == "given" else load_embedder(name, threads=1)
        kit = Kit(Counting(inner, RetrieverFormat(), {}))
        pool.vectors(kit.embedder)  # type: ignore[arg-type]
        facts = {"rows": args.rows, "queries": args.queries, "shots": args.shots, "embedder": name}
        near, _ = seconds("knn", pool, kit, queries, args.shots, args.turns)
        for spec in ("knn", "se2,width=1", f"se2,width={args.width}", f"se2,width={args.width},normalize=log-softmax"):
            took, count = seconds(spec, pool, kit, queries, args.shots, args.turns)
            emit(part="select", selector=spec, ms_per_query=round(1000 * took, 3), times_knn=round(took / near, 1),
                 texts_encoded_per_query=round(count / args.queries, 1), **facts)  # fmt: skip
    for together in (1, 10):
        growing(texts, 60 if not args.smoke else 10, 10, 3, together)


if __name__ == "__main__":
    main()
