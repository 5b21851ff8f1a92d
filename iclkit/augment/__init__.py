"""Demonstrations that a model writes: for a query, for a label, from a long context, from traces, from real ones.

Every method returns an ``AugmentResult``: examples with their provenance in ``meta``, and the attempts that were
rejected, with the reason. ``add_to_pool`` adds the examples to a pool; ``generated`` lists them by provenance, so that
they can be removed. A prompt that the LM refuses or answers with nothing is one rejected attempt, never an example.
"""

from iclkit.augment._auto import auto_icl, label_inputs, plan, write_for_labels
from iclkit.augment._bootstrap import bootstrap, with_labeled
from iclkit.augment._recycle import Document, recycle
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
    "plan",
    "rate_examples",
    "recycle",
    "synthesize",
    "with_labeled",
    "write_for_labels",
]
