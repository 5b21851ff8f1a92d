"""One prompt for all, on real data: samplers at equal LM-call budgets, against selectors that cost nothing to find.

For each set and seed, every sampler searches with the same questions and the same number of trials; the lists found are
selector files, evaluated with ``iclkit.eval`` beside random, balanced and knn. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from _common import default_data

from iclkit import evaluate
from iclkit.datasets import load_task
from iclkit.embed import load_embedder
from iclkit.eval import difference, estimate, load_run, make_bench
from iclkit.lm import load_lm
from iclkit.tuners import TuneSettings, make_problem, tune, write_instructions

SETS = ("larger_animal", "trec", "sst2", "object_counting", "antonyms", "sentence_similarity")
SEARCHES = {
    "ease": ("ease,warmup=8", 0),
    "ease + instruction": ("ease,warmup=8", 8),
    "best-of-n": ("best-of-n", 0),
    "evolution": ("evolution", 0),
    "tpe": ("tpe,startup=8", 0),
}
PLAIN = ("random", "balanced", "knn")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, default=Path("runs-tune"))
    ap.add_argument("--data", type=Path, default=default_data())
    ap.add_argument("--sets", nargs="*", default=SETS)
    ap.add_argument("--lm", default="smollm2-135m")
    ap.add_argument("-k", type=int, default=4)
    ap.add_argument("--trials", type=int, default=20)
    ap.add_argument("--validation", type=int, default=20)
    ap.add_argument("--confirm", type=int, default=20)
    ap.add_argument("--seeds", type=int, default=3)
    ap.add_argument("--test", type=int, default=50)
    ap.add_argument("--table", action="store_true", help="only print what is there")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        lm = load_lm(args.lm, workers=1, threads=1)
        embedder = load_embedder("all-minilm-l6-v2")
        for name in args.sets:
            for seed in range(args.seeds):
                search(name, seed, lm, embedder, args)
            judge(name, lm, embedder, args)
            table(args)
    table(args)


def search(name: str, seed: int, lm, embedder, args: argparse.Namespace) -> None:  # type: ignore[no-untyped-def]
    task = load_task(args.data / name)
    for label, (sampler, written) in SEARCHES.items():
        file = args.out / f"{name}-{label.replace(' + ', '-')}-{seed}.json"
        if file.exists():
            continue
        start = time.time()
        settings = TuneSettings(args.k, args.trials, sampler, seed, args.validation, args.confirm, top=2)
        problem = make_problem(task, lm, settings, report=lambda _: None)
        if written:
            from dataclasses import replace

            words = write_instructions(lm, task.template, problem.view.examples, written, seed=seed)
            problem = replace(problem, instructions=("", *words))
        eyes = embedder if sampler.startswith("ease") else None
        found = tune(problem, settings, embedder=eyes, storage=f"journal:{args.out}/{name}.journal")
        found.file.write(file)
        (file.with_suffix(".time")).write_text(json.dumps({"seconds": time.time() - start}))
        print(f"{name} {seed} {label}: {found.validation.value:.3f}, confirmed {found.confirmation.value:.3f}, "
              f"{time.time() - start:.0f} s", flush=True)  # fmt: skip


def judge(name: str, lm, embedder, args: argparse.Namespace) -> None:  # type: ignore[no-untyped-def]
    bench = make_bench(load_task(args.data / name), limit=args.test)
    index = args.out / f"{name}.runs.json"
    runs = json.loads(index.read_text()) if index.exists() else {}
    for label in (*SEARCHES, *PLAIN):
        if label == "balanced" and not bench.task.labels:
            continue
        for seed in range(1 if label == "knn" else args.seeds):
            if f"{label} {seed}" in runs:
                continue
            chooser = str(args.out / f"{name}-{label.replace(' + ', '-')}-{seed}.json") if label in SEARCHES else label
            run = evaluate(bench, chooser, lm, k=args.k, seed=seed, embedder=embedder, out=args.out / "runs")
            runs[f"{label} {seed}"] = run.id
            index.write_text(json.dumps(runs))


def table(args: argparse.Namespace) -> None:
    print("| set | metric | " + " | ".join((*SEARCHES, *PLAIN)) + " |")
    print("|---|---|" + "---:|" * (len(SEARCHES) + len(PLAIN)))
    pooled: dict[str, list[np.ndarray]] = {}
    spent: dict[str, list[dict[str, float]]] = {}
    for name in args.sets:
        index = args.out / f"{name}.runs.json"
        if not index.exists():
            continue
        ids, cells, metric = json.loads(index.read_text()), [], ""
        for label in (*SEARCHES, *PLAIN):
            runs = [load_run(args.out / "runs" / i) for key, i in ids.items() if key.rpartition(" ")[0] == label]
            if not runs:
                cells.append("–")
                continue
            metric = runs[0].spec.task.metric
            x = np.array([[row.metrics[metric] for row in run.rows] for run in runs])
            e = estimate(x)
            cells.append(f"{100 * e.value:.1f} ({100 * e.low:.0f}–{100 * e.high:.0f})")
            pooled.setdefault(label, []).append(np.broadcast_to(x.mean(axis=0), x.shape[1:]))
            spent.setdefault(label, []).append({
                "prompt": float(np.mean([row.prompt_tokens for run in runs for row in run.rows])),
                "asked": float(np.mean([run.usage.get("tokens_asked", 0) / len(run.rows) for run in runs])),
                "computed": float(np.mean([run.usage.get("tokens_computed", 0) / len(run.rows) for run in runs])),
                "seconds": float(np.mean([run.usage.get("lm_s", 0) / len(run.rows) for run in runs])),
            })  # fmt: skip
        print(f"| {name} | {metric} | " + " | ".join(cells) + " |")
    print("\nEASE minus each, mean over the sets where both are, same queries (95 % interval, p):")
    for label in (*SEARCHES, *PLAIN):
        if label != "ease" and label in pooled and len(pooled[label]) == len(pooled["ease"]):
            d = difference(np.concatenate(pooled["ease"])[None], np.concatenate(pooled[label])[None])
            print(f"- {label}: {100 * d.value:+.1f} ({100 * d.low:+.1f} … {100 * d.high:+.1f}), p = {d.p:.3f}")
    print("\nPer test query: prompt tokens, tokens computed, LM seconds")
    for label, rows in spent.items():
        mean = {key: np.mean([r[key] for r in rows]) for key in rows[0]}
        print(f"- {label}: {mean['prompt']:.0f}, {mean['computed']:.0f}, {mean['seconds']:.3f}")
    found = [json.loads(p.read_text()) for p in sorted(args.out.glob("*.json")) if not p.name.endswith(".runs.json")]
    for sampler in dict.fromkeys(f["search"]["sampler"] for f in found):
        own = [f["spent"] for f in found if f["search"]["sampler"] == sampler]
        asked, computed = (np.mean([s.get(k, 0) for s in own]) for k in ("tokens_asked", "tokens_computed"))
        print(f"- search {sampler}: {asked:,.0f} tokens asked, {computed:,.0f} computed, {len(own)} searches")


if __name__ == "__main__":
    main()
