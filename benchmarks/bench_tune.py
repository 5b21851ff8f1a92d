"""EASE's transport filter: the lists nearest to the validation items, with lower bounds and by solving every list.

Both find the same lists, which is checked. CPU seconds, the best of a few rounds, on made-up embeddings of the width of
all-MiniLM-L6-v2. What a whole search finds is measured by ``run_ease.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from _common import emit

from iclkit.tuners import SearchSpace
from iclkit.tuners._bandit import distinct_lists, transports

CASES = {"small": (4, 2000, 250), "paper": (5, 50_000, 1000)}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--candidates", type=int, default=100)
    ap.add_argument("--validation", type=int, default=20)
    ap.add_argument("--rounds", type=int, default=3)
    args = ap.parse_args()
    for preset, (k, domain, keep) in CASES.items():
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((args.candidates + args.validation, 384)) + 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        costs = 1 - vectors[: args.candidates] @ vectors[args.candidates :].T
        lists = distinct_lists(args.candidates, k, domain, rng)
        space, seconds = SearchSpace(args.candidates, k, costs=costs), dict[str, float]()

        def every_list(lists: np.ndarray = lists, costs: np.ndarray = costs, keep: int = keep) -> np.ndarray:
            found = [transports(costs[np.sort(part)]) for part in np.array_split(lists, max(1, len(lists) // 1000))]
            return lists[np.argsort(np.round(np.concatenate(found), 9), kind="stable")[:keep]]

        ways: dict[str, Callable[[], np.ndarray]] = {
            "with bounds": lambda space=space, lists=lists, keep=keep: space.nearest(lists, keep),
            "every list": every_list,
        }
        found = dict[str, np.ndarray]()
        for way, run in ways.items():
            took = []
            for _ in range(args.rounds):
                start = time.process_time()
                found[way] = run()
                took.append(time.process_time() - start)
            seconds[way] = min(took)
        assert (found["with bounds"] == found["every list"]).all()
        print(f"{preset}: {keep:,} of {domain:,} lists of {k}: " +
              ", ".join(f"{way} {s:.3f} s" for way, s in seconds.items()))  # fmt: skip
        emit(bench="transport", preset=preset, k=k, domain=domain, keep=keep, **seconds)


if __name__ == "__main__":
    main()
