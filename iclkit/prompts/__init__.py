"""How demonstrations are shown: templates, order policies, and assembly under a token budget."""

from __future__ import annotations

from iclkit.prompts._answers import answer_stops, best_option
from iclkit.prompts._assemble import assemble
from iclkit.prompts._orders import ORDERS, order_picks
from iclkit.prompts._parse import ParsedDemonstration, open_prompt, parse_continuation, parse_demonstrations
from iclkit.prompts._requests import (
    NORMALIZATIONS,
    answer_options,
    answer_requests,
    infer_labels,
    log_probs,
    log_softmax,
    template_of,
)
from iclkit.prompts._template import Piece, Template

__all__ = [
    "NORMALIZATIONS",
    "ORDERS",
    "ParsedDemonstration",
    "Piece",
    "Template",
    "answer_options",
    "answer_requests",
    "answer_stops",
    "assemble",
    "best_option",
    "infer_labels",
    "log_probs",
    "log_softmax",
    "open_prompt",
    "order_picks",
    "parse_continuation",
    "parse_demonstrations",
    "template_of",
]
