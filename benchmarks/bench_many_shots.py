"""Prompts of hundreds to thousands of demonstrations: what assembling, counting, planning and reading them cost.

    OMP_NUM_THREADS=1 python benchmarks/bench_many_shots.py [--shots 500 1000 2000 5000] [--read 500 1000 2000]

A Llama of a few thousand random weights that reads 262,144 tokens, with the tokenizer of SmolLM2, so that everything
but the arithmetic is as large as it would be. Milliseconds of CPU, with the garbage collector switched off (a full pass
of it over a process with torch takes 250 ms, wherever it falls), and exponents between the smallest and the largest
size: 1 is linear. ``first``: the first prompt, of which no line is known. ``next``: a prompt with other demonstrations
of the same pool, in another order. ``labels``: token ids of that prompt with each of 6 labels behind it. ``plan``:
planning 6 labels for 16 queries behind the same demonstrations, ``tokens`` what they take after sharing, ``apart`` what
they would take without. ``read``: scoring these; attention, which grows with the square, is part of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_eval_overhead import WORDS

from iclkit.lm import ScoreRequest
from iclkit.lm._load import load_torch
from iclkit.lm._plan import make_plan
from iclkit.models import home
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query

LABELS = ("description", "entity", "abbreviation", "human", "number", "location")
CONTEXT = 1 << 18


def long_lm(folder: Path) -> Path:
    """A Llama of a few thousand random weights that reads long prompts; SmolLM2 must have been fetched."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(home() / "models" / "smollm2-135m")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pool(count: int) -> list[Example]:
    """Sentences of 12 words, no two alike."""
    return [
        Example(" ".join([str(n), *(WORDS[(n * 7 + i * i + n // 9) % len(WORDS)] for i in range(12))]),
                LABELS[n % len(LABELS)]) for n in range(count)
    ]  # fmt: skip


def milliseconds(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    gc.disable()
    start = time.process_time()
    out = call()
    spent = time.process_time() - start
    gc.enable()
    return round(1000 * spent, 1), out


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    return round(math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0]), 2)


def one_size(
    folder: Path, examples: Sequence[Example], queries: Sequence[Query], shots: int, *, read: bool
) -> dict[str, float]:
    """The row of a number of demonstrations, by a tokenizer that knows none of their lines."""
    lm = load_torch(str(folder), dtype="fp32", device="cpu", threads=1)
    template = Template("Question: {input}\nType: {output}")

    def prompt(query: Query, shown: Sequence[Example]) -> str:
        return assemble(template, query, shown, budget=CONTEXT, count_tokens=lm.count_tokens).text

    row: dict[str, float] = {}
    row["first"], _ = milliseconds(lambda: prompt(queries[0], examples[:shots]))
    other = examples[shots // 2 : shots // 2 + shots][::-1]
    row["next"], text = milliseconds(lambda: prompt(queries[1], other))
    requests = [ScoreRequest(text, f" {label}") for label in LABELS]
    row["labels"], _ = milliseconds(lambda: lm.encode_scores(requests))
    prompts = [prompt(query, examples[:shots]) for query in queries]
    pairs = lm.encode_scores([ScoreRequest(p, f" {label}") for p in prompts for label in LABELS])
    row["plan"], plan = milliseconds(lambda: make_plan(pairs, 2048))
    row["tokens"], row["apart"] = plan.tokens_computed, sum(len(pair.ids) - 1 for pair in pairs[:: len(LABELS)])
    if read:
        row["read"], _ = milliseconds(lambda: list(lm.score_encoded(pairs)))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", nargs="+", type=int, default=[500, 1000, 2000, 5000])
    parser.add_argument("--read", nargs="*", type=int, default=[500, 1000, 2000], help="sizes that are read as well")
    args = parser.parse_args()
    examples = pool(2 * max(args.shots))
    queries = [Query(f"{WORDS[n]} what is the {WORDS[-n]}?") for n in range(16)]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as where:
        folder = long_lm(Path(where) / "lm")
        for shots in args.shots:
            row = one_size(folder, examples, queries, shots, read=shots in args.read)
            for name, value in row.items():
                found.setdefault(name, []).append(value)
            print("RESULT " + json.dumps({"shots": shots, **row}), flush=True)
    sizes = {"read": [s for s in args.shots if s in args.read]}
    growth = {k: exponent(sizes.get(k, args.shots), v) for k, v in found.items() if len(v) > 1}
    print("RESULT " + json.dumps({"exponents": growth}))


if __name__ == "__main__":
    main()
