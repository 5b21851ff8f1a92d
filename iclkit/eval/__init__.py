"""Did it help: runs, metrics and the statistics that judge them."""

from iclkit.eval._evaluate import Bench, Settings, evaluate, make_bench, seed_matters, task_pool
from iclkit.eval._metrics import METRICS, Metric
from iclkit.eval._stats import Difference, Estimate, bootstrap_macro_f1, difference, estimate, holm, rank_intervals
from iclkit.eval._store import load_run, load_runs, load_texts

__all__ = [
    "METRICS",
    "Bench",
    "Difference",
    "Estimate",
    "Metric",
    "Settings",
    "bootstrap_macro_f1",
    "difference",
    "estimate",
    "evaluate",
    "holm",
    "load_run",
    "load_runs",
    "load_texts",
    "make_bench",
    "rank_intervals",
    "seed_matters",
    "task_pool",
]
