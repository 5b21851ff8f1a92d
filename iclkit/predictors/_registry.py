"""From a name with settings to a predictor."""

from __future__ import annotations

from iclkit.errors import UsageError
from iclkit.predictors._base import BasePredictor
from iclkit.predictors._prompt import PromptPredictor, Settings
from iclkit.predictors._protocol import Predictor
from iclkit.predictors._tools import Tools
from iclkit.prompts import Template
from iclkit.records import Spec
from iclkit.registry import Registry, parse_spec
from iclkit.selectors import Selector, make_selector
from iclkit.settings import read_settings

PREDICTORS = Registry(
    "predictor",
    "iclkit.predictors",
    {
        "knn-vote": "iclkit.predictors._neighbors:KNNVote",
        "logreg": "iclkit.predictors._logistic:LogisticRegression",
        "majority": "iclkit.predictors._majority:Majority",
    },
)
"""Predictors by name that are no prompt to an LM: ours, and those of the entry point group ``iclkit.predictors``."""


def make_predictor(
    what: str | Spec | Selector,
    tools: Tools,
    settings: Settings | None = None,
    template: Template | None = None,
) -> Predictor:
    """A predictor by name with settings (``knn-vote,k=16``), or an LM with a selector (``mmr,trade_off=0.3``).

    ``settings`` and ``template`` (None: the task's) are for prompts; other predictors have settings of their own.
    UnknownName for a name that is neither; UsageError for a setting that does not fit.
    """
    if not isinstance(what, str | Spec):
        return PromptPredictor(what, tools, settings or Settings(), template)
    if not is_predictor(what):
        return PromptPredictor(make_selector(what), tools, settings or Settings(), template)
    spec = parse_spec(what) if isinstance(what, str) else what
    cls, owner = PREDICTORS.get(spec.name), f"predictor {spec.name!r}"
    if not (isinstance(cls, type) and issubclass(cls, BasePredictor)):
        raise UsageError(f"{owner} is {cls!r}; it must be a class made of iclkit.predictors.BasePredictor")
    predictor: BasePredictor = cls(**read_settings(cls, spec.settings, owner))
    return predictor.use(tools)


def is_predictor(what: str | Spec) -> bool:
    """Whether a name is that of a predictor, and not of a selector that an LM is prompted with."""
    name = what.partition(",")[0].strip() if isinstance(what, str) else what.name
    return name in PREDICTORS.names()
