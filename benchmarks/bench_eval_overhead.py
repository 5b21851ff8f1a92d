"""What ``evaluate`` costs beside the LM: milliseconds of CPU a row, with every answer in the cache.

    OMP_NUM_THREADS=1 python benchmarks/bench_eval_overhead.py [--smoke] [--repeats N] [--profile SELECTOR]

An LM of a few thousand random weights with the tokenizer of SmolLM2 answers once; then the same runs are made again
into an empty folder, so that no forward pass is left: what is measured is selecting, assembling, tokenizing, reading
the cache, judging and writing rows. ``characters`` is how many a row sends through the tokenizer: lines that were seen
before are remembered. Bound of ``rest``, which is all but selecting and token ids: .3 ms a row.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclkit.datasets import make_task
from iclkit.eval import evaluate, make_bench
from iclkit.lm import LM, load_lm
from iclkit.lm._load import load_codec
from iclkit.lm._tokens import PromptTokenizer
from iclkit.models import home
from iclkit.pool import Pool
from iclkit.predictors import PromptPredictor, Settings, Tools, make_predictor
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import HashEmbedder

LABELS = ("world", "sports", "business", "technology")
WORDS = ("the", "match", "market", "phone", "vote", "team", "bank", "code", "war", "win", "loss", "price", "chip",
         "law", "goal", "trade", "data", "peace", "cup", "share")  # fmt: skip


def rows(split: str, count: int) -> list[Example]:
    """Sentences of 25 words, no two alike."""
    return [
        Example(" ".join([split, str(n), *(WORDS[(n * 7 + i * i + n // 9) % len(WORDS)] for i in range(25))]),
                LABELS[n % len(LABELS)]) for n in range(count)
    ]  # fmt: skip


def tiny_lm(folder: Path) -> Path:
    """A Llama of a few thousand random weights with the tokenizer of SmolLM2, which must have been fetched."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(home() / "models" / "smollm2-135m")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def timed(owner: type, name: str) -> Iterator[list[float]]:
    """[seconds of CPU inside a method, characters of its first argument, a text or texts], while the block runs.

    What the counting itself takes is counted as inside.
    """
    seen, inner = [0.0, 0.0], getattr(owner, name)

    def outer(self: Any, items: Any, *more: Any, **settings: Any) -> Any:
        start = time.process_time()
        try:
            return inner(self, items, *more, **settings)
        finally:
            texts = [items] if isinstance(items, str) else items
            seen[1] += sum(len(item) for item in texts if isinstance(item, str))
            seen[0] += time.process_time() - start

    setattr(owner, name, outer)
    try:
        yield seen
    finally:
        setattr(owner, name, inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="300 rows")
    parser.add_argument("--profile", metavar="SELECTOR", help="print where the time goes")
    parser.add_argument("--repeats", type=int, default=5, help="the one that takes least is told")
    args = parser.parse_args()
    count = 300 if args.smoke else 1000
    template = Template("Text: {input}\nTopic: {output}")
    task = make_task("drawn", rows("train", 2000), rows("test", count), template=template)
    figures = {}
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        lm: LM = load_lm(str(tiny_lm(folder / "lm")), cache=folder / "cache.db", dtype="fp32", workers=1)
        tokenizer = load_codec(folder / "lm").tokenizer
        bench = make_bench(task, Pool.of(task.train).view())
        for name in ("zero", "random", "bm25", "knn"):
            predictor = make_predictor(name, Tools(lm, HashEmbedder()), Settings(k=0 if name == "zero" else 8))
            evaluate(bench, predictor)
            profile = cProfile.Profile(time.process_time)
            tries = []
            for number in range(args.repeats):
                with (
                    timed(PromptTokenizer, "count") as counting,
                    timed(PromptTokenizer, "pairs") as pairing,
                    timed(type(tokenizer), "__call__") as sent,
                    timed(PromptPredictor, "_select") as selecting,
                ):
                    start = time.process_time()
                    if args.profile == name:
                        profile.enable()
                    run = evaluate(bench, predictor, out=folder / "runs" / name / str(number))
                    profile.disable()
                    total = time.process_time() - start
                assert run.usage["calls"] == 0, "the cache should know every answer"
                parts = {"total": total, "select": selecting[0], "token ids": counting[0] + pairing[0]}
                parts["rest"] = total - sum(parts[name] for name in ("select", "token ids"))
                tries.append(parts)
            best = min(tries, key=lambda parts: parts["total"])  # what else the machine does only adds
            figures[name] = {part: round(1000 * seconds / count, 3) for part, seconds in best.items()}
            figures[name]["characters"] = round(sent[1] / count)
            print(f"{name:8}", figures[name], flush=True)
            if args.profile == name:
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    print("RESULT " + json.dumps({"rows": count, **figures}))


if __name__ == "__main__":
    main()
