"""llama.cpp inside (``gguf:PATH``) beside the own engine on the same weights: predictions, log-probabilities, seconds.

    python benchmarks/bench_llama_cpp.py MODEL [--prompts 100] [--shots 4] [--task sst2] [--data DATA]
        [--weights F32 F16 Q8_0 Q5_0 Q4_0] [--converted]

MODEL is a folder of a Llama-shaped model with a byte-level BPE tokenizer of the kind "smollm". It is scored by the own
engine in float32; written as GGUF files with these weights, each served by llama.cpp; and with --converted read back
from the float32 file by ``--lm PATH``. Differences are those to the own engine, per label; ``gap`` is the difference of
the distance between the two labels, which decides what is predicted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _common import LABELS, ROOT, default_data, emit, few_shot_prompts

sys.path.insert(0, str(ROOT))

from iclkit.lm import LM, ScoreRequest, load_lm
from tests.gguf_files import convert_to_gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--task", default="sst2", choices=[*LABELS])
    parser.add_argument("--weights", nargs="+", default=["F32", "F16", "Q8_0", "Q5_0", "Q4_0"])
    parser.add_argument("--converted", action="store_true")
    parser.add_argument("--data", type=Path, default=default_data())
    a = parser.parse_args()
    prompts = few_shot_prompts(a.data, a.task, a.prompts, a.shots)
    labels = LABELS[a.task]
    requests = [ScoreRequest(p, f" {label}") for p in prompts for label in labels]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ICLKIT_HOME"] = folder
        paths = {w: convert_to_gguf(a.model, Path(folder) / f"{w}.gguf", w) for w in a.weights}
        one: dict[str, Any] = {"workers": 1, "threads": 1, "dtype": "fp32", "cache": False}
        ways: dict[str, Callable[[], LM]] = {"own engine, float32": lambda: load_lm(str(a.model), **one)}
        if a.converted:
            ways["own engine, GGUF converted"] = lambda: load_lm(str(paths["F32"]), **one)
        for name, path in paths.items():
            spec = f"gguf:{path},threads=1,context=2048"
            ways[f"llama.cpp, {name}"] = partial(load_lm, spec, cache=False)
        reference: list[float] = []
        for way, load in ways.items():
            lm: LM = load()
            begun = time.perf_counter()
            scores = [s.logprob for s in lm.score(requests)]
            seconds = time.perf_counter() - begun
            reference = reference or scores
            rows = [[x[at : at + len(labels)] for at in range(0, len(x), len(labels))] for x in (scores, reference)]
            picks = [[row.index(max(row)) for row in part] for part in rows]
            differences = [abs(x - y) for x, y in zip(scores, reference, strict=True)]
            gaps = [abs((row[0] - row[1]) - (own[0] - own[1])) for row, own in zip(*rows, strict=True)]
            emit(
                what="llama.cpp",
                way=way,
                prompts=len(prompts),
                same_predictions=sum(x == y for x, y in zip(*picks, strict=True)),
                largest_difference=round(max(differences), 5),
                mean_difference=round(sum(differences) / len(differences), 6),
                largest_gap=round(max(gaps), 5),
                mean_gap=round(sum(gaps) / len(gaps), 6),
                seconds=round(seconds, 1),
            )


if __name__ == "__main__":
    main()
