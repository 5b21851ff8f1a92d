"""Did it help: runs, metrics and the statistics that judge them."""

from iclkit.eval._metrics import METRICS, Metric

__all__ = ["METRICS", "Metric"]
