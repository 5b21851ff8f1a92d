"""What answers queries: an LM with demonstrations, or anything else that a board may compare it with."""

from iclkit.predictors._base import BasePredictor
from iclkit.predictors._calibrate import (
    CALIBRATIONS,
    OVER_ROWS,
    content_free_inputs,
    content_free_query,
    label_shares,
)
from iclkit.predictors._chooser import chooser, pool_context
from iclkit.predictors._prompt import (
    CUT,
    NO_ANSWER,
    PromptPredictor,
    Settings,
    display_name,
)
from iclkit.predictors._protocol import Prediction, Predictor, TaskContext
from iclkit.predictors._registry import PREDICTORS, is_predictor, make_predictor
from iclkit.predictors._stages import PromptInput, Shape, leave_one_out, recorded_prompt
from iclkit.predictors._tools import Tools

__all__ = [
    "CALIBRATIONS",
    "CUT",
    "NO_ANSWER",
    "OVER_ROWS",
    "PREDICTORS",
    "BasePredictor",
    "Prediction",
    "Predictor",
    "PromptInput",
    "PromptPredictor",
    "Settings",
    "Shape",
    "TaskContext",
    "Tools",
    "chooser",
    "content_free_inputs",
    "content_free_query",
    "display_name",
    "is_predictor",
    "label_shares",
    "leave_one_out",
    "make_predictor",
    "pool_context",
    "recorded_prompt",
]
