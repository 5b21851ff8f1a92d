"""How demonstrations are shown: templates, order policies, and assembly under a token budget."""

from __future__ import annotations

from iclkit.prompts._answers import answer_stops, best_option
from iclkit.prompts._assemble import assemble
from iclkit.prompts._cost import BreakEven, ModelShape, break_even
from iclkit.prompts._orders import ORDERS, order_picks
from iclkit.prompts._parse import ParsedDemonstration, open_prompt, parse_continuation, parse_demonstrations
from iclkit.prompts._template import Piece, Template

__all__ = [
    "ORDERS",
    "BreakEven",
    "ModelShape",
    "ParsedDemonstration",
    "Piece",
    "Template",
    "answer_stops",
    "assemble",
    "best_option",
    "break_even",
    "open_prompt",
    "order_picks",
    "parse_continuation",
    "parse_demonstrations",
]
