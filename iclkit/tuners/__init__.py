"""One prompt for a whole task: which demonstrations, in which order, under which instruction. A search by Optuna.

Importing this room loads neither Optuna nor torch; its functions do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iclkit.tuners._instructions import read_instructions, write_instructions
    from iclkit.tuners._plot import search_plot
    from iclkit.tuners._samplers import (
        SAMPLERS,
        BestOfNSampler,
        EaseSampler,
        EvolutionSampler,
        OrderedSetSampler,
        RandomSetSampler,
        SetSampler,
        TPESetSampler,
        arm_of,
        distributions,
        make_sampler,
    )
    from iclkit.tuners._space import Arm, BlockFeatures, PositionFeatures, SearchSpace, is_order_sensitive
    from iclkit.tuners._study import storage_for, without_password
    from iclkit.tuners._tune import (
        TUNE_PRESETS,
        SearchPrice,
        TuneProblem,
        TuneResult,
        TuneSettings,
        curves,
        make_problem,
        make_space,
        price_search,
        tune,
        tune_preset,
    )

_HOME = {
    "_instructions": ("read_instructions", "write_instructions"),
    "_plot": ("search_plot",),
    "_samplers": (
        "SAMPLERS",
        "BestOfNSampler",
        "EaseSampler",
        "EvolutionSampler",
        "OrderedSetSampler",
        "RandomSetSampler",
        "SetSampler",
        "TPESetSampler",
        "arm_of",
        "distributions",
        "make_sampler",
    ),
    "_space": ("Arm", "BlockFeatures", "PositionFeatures", "SearchSpace", "is_order_sensitive"),
    "_study": ("storage_for", "without_password"),
    "_tune": (
        "TUNE_PRESETS",
        "SearchPrice",
        "TuneResult",
        "TuneProblem",
        "TuneSettings",
        "curves",
        "make_problem",
        "make_space",
        "price_search",
        "tune",
        "tune_preset",
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = [  # noqa: PLE0604, RUF100
    "SAMPLERS",
    "TUNE_PRESETS",
    "Arm",
    "BestOfNSampler",
    "BlockFeatures",
    "EaseSampler",
    "EvolutionSampler",
    "OrderedSetSampler",
    "PositionFeatures",
    "RandomSetSampler",
    "SearchPrice",
    "SearchSpace",
    "SetSampler",
    "TPESetSampler",
    "TuneProblem",
    "TuneResult",
    "TuneSettings",
    "arm_of",
    "curves",
    "distributions",
    "is_order_sensitive",
    "make_problem",
    "make_sampler",
    "make_space",
    "price_search",
    "read_instructions",
    "search_plot",
    "storage_for",
    "tune",
    "tune_preset",
    "without_password",
    "write_instructions",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'iclkit.tuners' has no attribute {name!r}")
    return getattr(import_module(f"iclkit.tuners.{_MODULE[name]}"), name)
