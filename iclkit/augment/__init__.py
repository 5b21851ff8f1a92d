"""Demonstrations that a model writes: for a query, for a label, from a long context, from traces, from real ones.

Every method returns an ``AugmentResult``: examples that carry their provenance in ``meta``, and everything that was
rejected, with the reason. ``add_to_pool`` puts them into a pool; ``generated`` lists them by provenance, so that they
can be removed.
"""

from iclkit.augment._auto import auto_icl, label_inputs, plan, write_for_labels
from iclkit.augment._bootstrap import bootstrap, with_labelled
from iclkit.augment._recycle import Document, parse_recycled, recycle, recycled_template
from iclkit.augment._result import METHODS, AugmentResult, Rejected, add_to_pool, generated
from iclkit.augment._synthesize import RATING_PROMPTS, above_median, rate_examples, synthesize

__all__ = [
    "METHODS",
    "RATING_PROMPTS",
    "AugmentResult",
    "Document",
    "Rejected",
    "above_median",
    "add_to_pool",
    "auto_icl",
    "bootstrap",
    "generated",
    "label_inputs",
    "parse_recycled",
    "plan",
    "rate_examples",
    "recycle",
    "recycled_template",
    "synthesize",
    "with_labelled",
    "write_for_labels",
]
