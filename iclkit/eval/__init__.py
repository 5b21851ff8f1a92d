"""Did it help: runs, metrics and the statistics that judge them."""

from iclkit.eval._advise import Advice, Finding, advise, decide
from iclkit.eval._diagnose import Diagnosis, diagnose
from iclkit.eval._evaluate import Bench, Settings, cautions, evaluate, make_bench, prompt_of, seed_matters, task_pool
from iclkit.eval._explain import (
    DemonstrationEffect,
    DemonstrationInfluence,
    Explanation,
    Suspect,
    explain,
    influences,
    suspects,
    with_runner_up,
)
from iclkit.eval._labels import (
    Bin,
    LabelScore,
    calibration_error,
    confidences,
    label_log_likelihood,
    label_probabilities,
    label_scores,
    reliability,
)
from iclkit.eval._metrics import METRICS, Metric
from iclkit.eval._plan import Cost, Grid, PlannedRun, break_evens, cost, dry_run, plan
from iclkit.eval._runs import LeftOut, RunSpec, load_run, load_runs, load_texts
from iclkit.eval._stats import Difference, Estimate, bootstrap_macro_f1, difference, estimate, holm, rank_intervals

__all__ = [
    "METRICS",
    "Advice",
    "Bench",
    "Bin",
    "Cost",
    "DemonstrationEffect",
    "DemonstrationInfluence",
    "Diagnosis",
    "Difference",
    "Estimate",
    "Explanation",
    "Finding",
    "Grid",
    "LabelScore",
    "LeftOut",
    "Metric",
    "PlannedRun",
    "RunSpec",
    "Settings",
    "Suspect",
    "advise",
    "bootstrap_macro_f1",
    "break_evens",
    "calibration_error",
    "cautions",
    "confidences",
    "cost",
    "decide",
    "diagnose",
    "difference",
    "dry_run",
    "estimate",
    "evaluate",
    "explain",
    "holm",
    "influences",
    "label_log_likelihood",
    "label_probabilities",
    "label_scores",
    "load_run",
    "load_runs",
    "load_texts",
    "make_bench",
    "plan",
    "prompt_of",
    "rank_intervals",
    "reliability",
    "seed_matters",
    "suspects",
    "task_pool",
    "with_runner_up",
]
