"""What the scoring benchmarks share: prompts from the data sets, the OpenICL loop, timing, and the machine's limits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from iclkit.lm._tokens import TokenPair

LABELS = {
    "sst2": ["negative", "positive"],
    "trec": ["description", "entity", "abbreviation", "human", "number", "location"],
    "agnews": ["world", "sports", "business", "technology"],
}
FIELDS = {
    "sst2": ("Review", "Sentiment"),
    "trec": ("Question", "Type"),
    "agnews": ("Article", "Topic"),
    "banking77": ("Query", "Intent"),
}
ROOT = Path(__file__).resolve().parent.parent


def default_data() -> Path:
    return Path(os.environ.get("ICLKIT_TEST_DATA", ROOT.parent / "shared" / "data"))


def rows_of(data: Path, task: str, split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (data / task / f"{split}.jsonl").open(encoding="utf-8")]
    random.Random(seed).shuffle(rows)
    return rows[:n]


def labels_of(data: Path, task: str) -> list[str]:
    """The labels of a task; all that its train rows have where they are too many to be named here."""
    return LABELS.get(task) or sorted({row["output"] for row in rows_of(data, task, "train", 1 << 30)})


def more_labels(labels: Sequence[str], count: int) -> list[str]:
    """The labels, and others made of their words at random, ``count`` in all."""
    words = sorted({word for label in labels for word in label.replace("_", " ").split()})
    draw, found = random.Random(0), dict.fromkeys(labels)
    while len(found) < count:
        found[" ".join(draw.sample(words, 3))] = None
    return [*found][: max(count, len(labels))]


def demo(task: str, row: dict[str, Any]) -> str:
    name, answer = FIELDS[task]
    return f"{name}: {row['input']}\n{answer}: {row['output']}\n\n"


def question(task: str, row: dict[str, Any]) -> str:
    name, answer = FIELDS[task]
    return f"{name}: {row['input']}\n{answer}:"


def nearest(pool: Sequence[dict[str, Any]], queries: Sequence[dict[str, Any]], k: int) -> np.ndarray:
    """Row numbers (q, k) of the nearest pool rows by TF-IDF cosine, best first: needs no embedder."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = TfidfVectorizer(sublinear_tf=True)
    known = tfidf.fit_transform([r["input"] for r in pool])
    scores = (tfidf.transform([r["input"] for r in queries]) @ known.T).toarray()
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def few_shot_prompts(data: Path, task: str, n: int, shots: int, *, fixed: bool = False) -> list[str]:
    """Prompts of ``n`` test queries with their nearest of 1,000 train rows, best last; or the same shots for all."""
    pool, test = rows_of(data, task, "train", 1000), rows_of(data, task, "test", n)
    picks = np.tile(np.arange(shots), (n, 1)) if fixed else nearest(pool, test, shots)
    return [
        "".join(demo(task, pool[j]) for j in row[::-1]) + question(task, query)
        for row, query in zip(picks, test, strict=True)
    ]


def openicl_loop(
    module: Any, tokenizer: Any, prompts: Sequence[str], labels: Sequence[str], rows: int = 8
) -> np.ndarray:
    """OpenICL's way: a forward per (label, prompt), batches in data order, full logits; -perplexity (q, labels)."""
    import torch

    tokenizer.padding_side = "right"
    columns = []
    for label in labels:
        column: list[float] = []
        for at in range(0, len(prompts), rows):
            texts = [f"{p} {label}" for p in prompts[at : at + rows]]
            batch = tokenizer(texts, padding=True, return_tensors="pt", truncation=True).to(module.device)
            with torch.no_grad():
                logits = module(**batch).logits
            shifted = logits[..., :-1, :].contiguous()
            wanted = batch["input_ids"][..., 1:].contiguous()
            loss = torch.nn.functional.cross_entropy(
                shifted.view(-1, shifted.size(-1)),
                wanted.view(-1),
                reduction="none",
                ignore_index=tokenizer.pad_token_id,
            ).view(wanted.size())
            real = (batch["input_ids"] != tokenizer.pad_token_id).sum(-1)
            column += (-loss.float().sum(-1) / real).tolist()
        columns.append(column)
    return np.array(columns).T


def batched_scorer(
    module: Any, tokenizer: Any, prompts: Sequence[str], labels: Sequence[str], rows: int = 8
) -> np.ndarray:
    """What a competent engineer writes in 30 lines: rows sorted by length, padded on the left, and logits of the last
    positions only. Rows that are read alike, as for labels of one token, are read once. Log-probabilities (q, labels).
    """
    import torch

    heads = tokenizer([*prompts])["input_ids"]
    tails = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in labels]
    keep = max(map(len, tails))
    table = np.zeros((len(prompts), len(labels)))
    wanted: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for q, head in enumerate(heads):
        for c, tail in enumerate(tails):
            wanted.setdefault((*head, *tail[:-1]), []).append((q, c))
    order = sorted(wanted, key=len, reverse=True)
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        width = len(part[0])
        ids, mask = torch.zeros(len(part), width, dtype=torch.long), torch.zeros(len(part), width, dtype=torch.long)
        for r, row in enumerate(part):
            ids[r, width - len(row) :], mask[r, width - len(row) :] = torch.tensor(row), 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = module(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits
            logs = torch.log_softmax(logits.float(), -1).numpy()
        for r, row in enumerate(part):
            for q, c in wanted[row]:
                tail = tails[c]
                table[q, c] = sum(logs[r, keep - len(tail) + n, token] for n, token in enumerate(tail))
    return table


def lm_eval_scorer(module: Any, tokenizer: Any, rows: int = 8) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """``loglikelihood`` of the Hugging Face model of lm-evaluation-harness, over the same module; (q, labels)."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=rows, device="cpu")

    def score(prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        pairs = [(prompt, f" {label}") for prompt in prompts for label in labels]
        requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
        return np.array([s for s, _ in lm.loglikelihood(requests, disable_tqdm=True)]).reshape(len(prompts), -1)

    return score


def padded_rows(pairs: Sequence[TokenPair]) -> tuple[Any, Any]:
    """Token ids (n, longest), padded on the right, and their mask, as a plain loop feeds them."""
    import torch

    ids = torch.zeros(len(pairs), max(len(p.ids) for p in pairs), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.ids)] = torch.tensor(pair.ids)
        mask[row, : len(pair.ids)] = 1
    return ids, mask


def load_module(folder: str, dtype: str) -> tuple[Any, Any]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval(), tokenizer


def timed(
    call: Callable[[], Any], clock: Callable[[], float] = time.process_time, device: str = "cpu"
) -> tuple[float, Any]:
    """Seconds by the clock, on a GPU wall seconds until its work is done, and what the call returned."""
    clock = clock if device == "cpu" else time.perf_counter
    start = clock()
    out = call()
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    return clock() - start, out


def matmul_peak(
    rows: int = 2048, hidden: int = 576, wide: int = 1536, dtype: str = "bf16", device: str = "cpu"
) -> float:
    """Best measured FLOP/s of a matmul of the model's shape (F.linear and, on CPU, oneDNN's packed linear)."""
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    x = torch.randn(rows, hidden, dtype=kind, device=device)
    w = torch.randn(wide, hidden, dtype=kind, device=device)
    calls: list[Callable[[], Any]] = [lambda: torch.nn.functional.linear(x, w)]
    if device == "cpu":
        packed = torch.ops.mkldnn._reorder_linear_weight(w)
        calls.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    best = 0.0
    with torch.inference_mode():
        for call in calls:
            call()
            for _ in range(5):
                start = time.process_time() if device == "cpu" else time.perf_counter()
                for _ in range(5):
                    call()
                if device != "cpu":
                    torch.cuda.synchronize()
                end = time.process_time() if device == "cpu" else time.perf_counter()
                best = max(best, 5 * 2 * rows * hidden * wide / (end - start))
    return best


def matrix_parameters(config: Any) -> int:
    """Parameters of the layers' matrices: each costs 2 FLOP per token."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * size * 2 * (config.num_attention_heads + config.num_key_value_heads)
    return int(config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size))


_LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def cost_of(command: Sequence[str | Path]) -> tuple[int, float, float]:
    """Exit code, seconds of CPU and peak MB of a command.

    A small process starts it: what Linux calls the peak of a process begins with the memory of the one that started it.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, *map(str, command)], stdout=subprocess.PIPE, text=True, check=True
    )
    code, seconds, peak = json.loads(done.stdout)
    return code, seconds, peak


def machine() -> str:
    import torch

    name = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
        name += ", ".join(["", *(f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {f}" in flags)])
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}{gpu}; torch {torch.__version__}"


def emit(**facts: Any) -> None:
    print("RESULT " + json.dumps(facts), flush=True)
