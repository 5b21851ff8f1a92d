"""Encoding short texts: this encoder against sentence-transformers, same texts, in one run: CPU seconds, one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_embed.py [--smoke] [--model all-minilm-l6-v2] [--texts 512] [--repeats 3]
        [--fidelity 4000]

Half the texts are film reviews (sst2), half questions (trec). sentence-transformers runs as it is used elsewhere:
fp32, batches of 32 and 1; and in bf16. All texts are different, so that encoding equal ones once is no advantage here.
--fidelity N compares fp32 and bf16 on N pool rows and 500 queries of banking77 and sst2: cosine with the fp32 vector,
and how many nearest neighbours stay.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import default_data, emit, machine, rows_of, timed

from iclkit import models
from iclkit.embed import load_embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fidelity", type=int, default=0)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--smoke", action="store_true")
    a = parser.parse_args()
    if a.smoke:
        a.texts, a.repeats = 64, 1
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    emit(what="machine", name=machine())
    folder = str(models.resolve(a.model, "embedder"))
    texts = list(dict.fromkeys(r["input"] for t in ("sst2", "trec") for r in rows_of(a.data, t, "train", a.texts // 2)))
    theirs = {
        d: SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, d)})
        for d in ("float32", "bfloat16")
    }
    ours = {d: load_embedder(a.model, dtype=d, device="cpu") for d in ("fp32", "bf16")}

    def encode(model: Any, batch: int) -> Callable[[], np.ndarray]:
        return lambda: model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)

    one = texts[: max(8, len(texts) // 8)]
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "sentence-transformers fp32, batches of 32": (len(texts), encode(theirs["float32"], 32)),
        "sentence-transformers bf16, batches of 32": (len(texts), encode(theirs["bfloat16"], 32)),
        "sentence-transformers fp32, one by one": (
            len(one),
            lambda: [theirs["float32"].encode(t, normalize_embeddings=True, show_progress_bar=False) for t in one],
        ),
        "iclkit fp32": (len(texts), lambda: ours["fp32"].encode_documents(texts)),
        "iclkit bf16": (len(texts), lambda: ours["bf16"].encode_documents(texts)),
        "iclkit bf16, one by one": (len(one), lambda: [ours["bf16"].encode_documents([t]) for t in one]),
    }
    exact = np.asarray(calls["sentence-transformers fp32, batches of 32"][1](), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(a.repeats + 1):
        for name, (_, call) in calls.items():
            seconds, out = timed(call)
            if turn:  # the first is to warm up
                times[name].append(seconds)
            elif "one by one" not in name:
                cosine = (np.asarray(out, dtype=np.float32) * exact).sum(1)
                emit(
                    what="cosine with sentence-transformers fp32",
                    name=name,
                    mean=float(cosine.mean()),
                    min=float(cosine.min()),
                )
    base = len(texts) / min(times["sentence-transformers fp32, batches of 32"])
    for name, (count, _) in calls.items():
        speeds = sorted(count / s for s in times[name])
        emit(
            what="embed",
            name=name,
            texts_per_s=round(speeds[-1], 1),
            median=round(statistics.median(speeds), 1),
            ratio=round(speeds[-1] / base, 2),
        )
    if a.fidelity:
        fidelity(a.data, ours, a.fidelity)


def fidelity(data: Path, ours: dict[str, Any], rows: int, k: int = 8) -> None:
    for task in ("banking77", "sst2"):
        pool, test = rows_of(data, task, "train", rows), rows_of(data, task, "test", 500)
        known, asked = ([r["input"] for r in some] for some in (pool, test))
        labels, gold = (np.array([r["output"] for r in some]) for some in (pool, test))
        vectors = {d: (e.encode_documents(known), e.encode_queries(asked)) for d, e in ours.items()}
        near = {d: np.argsort(-(q @ p.T), axis=1, kind="stable")[:, :k] for d, (p, q) in vectors.items()}
        cosine = (vectors["fp32"][0] * vectors["bf16"][0]).sum(1)
        pairs = list(zip(near["fp32"], near["bf16"], strict=True))
        emit(
            what="fidelity of bf16",
            task=task,
            rows=len(pool),
            cosine_mean=float(cosine.mean()),
            cosine_min=float(cosine.min()),
            same_nearest=float(np.mean([a[0] == b[0] for a, b in pairs])),
            same_nearest_8=float(np.mean([len({*a} & {*b}) / k for a, b in pairs])),
            label_of_nearest={d: float((labels[n[:, 0]] == gold).mean()) for d, n in near.items()},
            label_among_8={d: float((labels[n] == gold[:, None]).any(1).mean()) for d, n in near.items()},
        )


if __name__ == "__main__":
    main()
