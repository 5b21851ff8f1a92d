"""Demonstrations that a model writes: for a query, for a label, from a long context, from traces, from real ones.

Every way returns a ``Made``: examples that carry their provenance in ``meta``, and everything that was rejected, with
the reason. ``add_generated`` puts them into a pool; ``generated`` lists them by provenance, so they can be removed.
"""

from iclkit.augment._auto import auto_icl, label_inputs, plan, write_for_labels
from iclkit.augment._bootstrap import bootstrap, with_labelled
from iclkit.augment._made import METHODS, Made, Rejected, add_generated, generated
from iclkit.augment._recycle import Document, parse_recycled, recycle, recycled_template
from iclkit.augment._synthesise import RATING_PROMPTS, above_median, rate, synthesise

__all__ = [
    "METHODS",
    "RATING_PROMPTS",
    "Document",
    "Made",
    "Rejected",
    "above_median",
    "add_generated",
    "auto_icl",
    "bootstrap",
    "generated",
    "label_inputs",
    "parse_recycled",
    "plan",
    "rate",
    "recycle",
    "recycled_template",
    "synthesise",
    "with_labelled",
    "write_for_labels",
]
