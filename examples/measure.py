"""Does choosing help? Random, BM25 and nearest neighbors on the bundled set, with intervals and tests."""

import sys

from iclkit import evaluate, leaderboard, load_embedder, load_lm, load_task
from iclkit.eval import make_bench
from iclkit.report import to_markdown

queries = int(sys.argv[1]) if len(sys.argv) > 1 else 24
bench = make_bench(load_task("support"), limit=queries)  # compares pool and test rows for leaks, once
lm, embedder = load_lm("smollm2-135m", workers=1), load_embedder("all-minilm-l6-v2")
# one seed of random here, to be quick: `iclkit eval` takes three
runs = [evaluate(bench, name, lm, embedder=embedder, k=2) for name in ("random", "bm25", "knn")]
print(to_markdown(leaderboard(runs)))
