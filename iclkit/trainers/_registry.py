"""The training methods, listed in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iclkit.errors import UnknownName
from iclkit.settings import describe_settings, read_settings
from iclkit.trainers._ceil import CEIL
from iclkit.trainers._config import PRESETS, TrainConfig
from iclkit.trainers._epr import EPR
from iclkit.trainers._llm_r import LLMR
from iclkit.trainers._method import Method
from iclkit.trainers._se2 import Se2
from iclkit.trainers._udr import UDR

METHODS: Mapping[str, type[Method[Any]]] = {method.name: method for method in (EPR, UDR, LLMR, Se2, CEIL)}


def method_class(name: str) -> type[Method[Any]]:
    """The class of a method. UnknownName for one that does not exist."""
    if name not in METHODS:
        raise UnknownName("training method", name, METHODS)
    return METHODS[name]


def make_method(config: TrainConfig) -> Method[Any]:
    """The method that a config is for."""
    return method_class(config.method)()


def preset(method: str, name: str = "small", /, **settings: Any) -> TrainConfig:
    """The config of a method under a preset, with some settings replaced.

    ``paper``: the values of the method's paper (docs/reproduction.md has them with their sources). ``small``: a 2-core
    CPU and a 135M LM in under 20 minutes. Settings may be given as texts, as on the command line. UnknownName for a
    method, preset or setting that does not exist, UsageError for a value that a setting does not take.
    """
    kind = method_class(method).config_class
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    owner = f"training method {method!r}"
    known = [setting.name for setting in describe_settings(kind) if setting.name != "preset"]
    for key in settings:
        if key not in known:
            raise UnknownName(f"setting of {owner}", key, known)
    values = read_settings(kind, settings, owner)
    return kind(**{**(kind.paper if name == "paper" else {}), "preset": name, **values})
