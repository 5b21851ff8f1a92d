"""Did it help: runs, metrics and the statistics that judge them."""

from iclkit.eval._evaluate import Bench, Settings, evaluate, make_bench, seed_matters, task_pool
from iclkit.eval._metrics import METRICS, Metric
from iclkit.eval._stats import Difference, Estimate, bootstrap_macro_f1, difference, estimate, holm, rank_intervals
from iclkit.eval._store import load_run, load_runs, load_texts
from iclkit.eval._sweep import Cost, Grid, Job, cost, plan

__all__ = [
    "METRICS",
    "Bench",
    "Cost",
    "Difference",
    "Estimate",
    "Grid",
    "Job",
    "Metric",
    "Settings",
    "bootstrap_macro_f1",
    "cost",
    "difference",
    "estimate",
    "evaluate",
    "holm",
    "load_run",
    "load_runs",
    "load_texts",
    "make_bench",
    "plan",
    "rank_intervals",
    "seed_matters",
    "task_pool",
]
