"""The lines that ask no language model: if they are as good as the LM with demonstrations, you may not need one."""

from iclkit import evaluate, load_embedder, load_task
from iclkit.eval import make_bench

bench = make_bench(load_task("support"))
embedder = load_embedder("all-minilm-l6-v2")
for name in ("majority", "knn-vote,k=8", "logreg"):
    run = evaluate(bench, name, embedder=embedder)
    right = sum(row.metrics["accuracy"] for row in run.rows)
    print(f"{name:<14} {right:.0f} of {len(run.rows)}")
