"""Words of all scripts against lower-cased runs of ``\\w``: same texts, same run, in turns, one thread, CPU seconds.

    python benchmarks/bench_words.py DATA [--repeats 7] [--json]

DATA is the folder of data sets (``train.jsonl`` with ``input``). The runs of ``\\w`` are right for English alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from iclkit.text import search_terms

_RUN = re.compile(r"\w+")


def runs(text: str) -> list[str]:
    return _RUN.findall(text.lower())


def seconds(cut: Callable[[str], list[str]], texts: list[str]) -> float:
    start = time.process_time()
    for text in texts:
        cut(text)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    found = []
    for file in sorted(a.data.glob("*/train.jsonl")):
        inputs = (json.loads(line)["input"] for line in file.open(encoding="utf-8"))
        texts = [i if isinstance(i, str) else "\n".join(i.values()) for i in inputs][:5000]
        took = [(seconds(search_terms, texts), seconds(runs, texts)) for _ in range(a.repeats)]
        ours, plain = (min(side) for side in zip(*took, strict=True))
        size = sum(map(len, texts)) / 1e6
        found.append({
            "set": file.parent.name,
            "not_ascii": sum(not t.isascii() for t in texts) / len(texts),
            "differ": sum(search_terms(t) != runs(t) for t in texts),
            "mchar_per_s": size / ours,
            "runs_mchar_per_s": size / plain,
            "time": ours / plain,
        })  # fmt: skip
    if a.json:
        json.dump(found, sys.stdout)
        return
    for f in found:
        print(f"{f['set']:22} {f['not_ascii']:6.1%} not ASCII, {f['differ']:3} texts differ, {f['mchar_per_s']:5.1f} "
              f"against {f['runs_mchar_per_s']:5.1f} million characters/s, {f['time']:.2f} of the time")  # fmt: skip


if __name__ == "__main__":
    main()
