"""From a name with settings to a selector, and the table of all of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from iclkit.errors import UnknownName, UsageError
from iclkit.records import Json, Spec
from iclkit.registry import Registry, parse_spec, parse_specs
from iclkit.selectors._adapt import adapt
from iclkit.selectors._base import BaseSelector, PaperSetup, Selector, selector_help
from iclkit.settings import describe_settings, read_settings

_BUILTINS = {
    "zero": "_zero:ZeroSelector",
    "random": "_random:RandomSelector",
    "random-fixed": "_random:RandomFixedSelector",
    "fixed": "_fixed:FixedSelector",
    "balanced": "_balanced:BalancedSelector",
    "bm25": "_bm25:BM25Selector",
    "r-bm25": "_rbm25:RBM25Selector",
    "knn": "_knn:KNNSelector",
    "mix-knn": "_mix:MixKNNSelector",
    "mmr": "_mmr:MMRSelector",
    "skill-knn": "_skill_knn:SkillKNNSelector",
    "field-knn": "_skill_knn:FieldKNNSelector",
    "dpp": "_dpp:DPPSelector",
    "ceil": "_ceil:CEILSelector",
    "se2": "_se2:Se2Selector",
    "set-bsr": "_coverage:SetBSRSelector",
    "cosine-coverage": "_coverage:CosineCoverageSelector",
    "bm25-coverage": "_coverage:BM25CoverageSelector",
    "many-labels": "_many_labels:ManyLabelsSelector",
    "kmeans": "_facility:KMeansSelector",
    "mfl": "_facility:FacilitySelector",
    "diverse": "_facility:DiverseSelector",
    "vote-k": "_votek:VoteKSelector",
    "vote-k-confidence": "_votek:VoteKConfidenceSelector",
    "hybrid": "_hybrid:HybridSelector",
    "rrf": "_fusion:RRFSelector",
    "borda": "_fusion:BordaSelector",
    "filter": "_filter:FilterSelector",
    "rerank": "_rerank:RerankSelector",
    "mdl": "_mdl:MDLSelector",
    "cone": "_cone:ConESelector",
    "globale": "_order_search:GlobalESelector",
    "locale": "_order_search:LocalESelector",
    "pvi-filter": "_pvi:PVIFilterSelector",
    "pvi-weight": "_pvi:PVIWeightSelector",
}
SELECTORS = Registry("selector", "iclkit.selectors", {k: f"iclkit.selectors.{v}" for k, v in _BUILTINS.items()})
BUILTINS = tuple(_BUILTINS)
"""The names of the selectors that come with iclkit, simple ones first."""


def make_selector(spec: str | Spec | object) -> Selector:
    """The selector of a spec such as ``"mmr,trade_off=0.3"``, or of a selector file's path; not fitted, nothing loaded.

    An object in place of a spec is taken as the selector; one that is not derived from ``BaseSelector`` is completed
    (see ``ForeignSelector``), as is what a plug-in's spec makes. UnknownName for a name or a setting that is not known
    (the nearest is offered), UsageError for a value of the wrong kind or for an object that cannot select.
    """
    if not isinstance(spec, str | Spec):
        return adapt(spec, Spec(type(spec).__name__))
    if isinstance(spec, str):
        spec = Spec(spec) if spec.endswith(".json") and "=" not in spec else parse_spec(spec)
    if spec.name.endswith(".json"):
        spec = Spec("fixed", {"file": spec.name, **spec.settings})
    factory: Any = SELECTORS.get(spec.name)
    if not callable(factory):
        raise UsageError(f"selector {spec.name!r} is no class that makes selectors, but {type(factory).__name__}")
    values = _read_settings(factory, spec)
    try:
        selector: object = factory(**values)
    except SystemExit as error:  # a plug-in must not end the program, nor with what exit code
        raise UsageError(f"selector {spec.name!r} ends the program when it is made (exit {error.code})") from error
    return adapt(selector, spec)


def paper_setup(text: str) -> tuple[str, PaperSetup | None]:
    """A spec with its paper's settings where it has none of its own, and the rest of that set-up.

    Settings that are the defaults anyway are not named. The spec as it is, and None, for a selector without a set-up.
    Errors as for ``make_selector``.
    """
    selector = make_selector(text)
    setup = selector.paper if isinstance(selector, BaseSelector) else None
    if setup is None:
        return text, None
    spec, there = parse_spec(text), selector.spec.settings
    new = {key: value for key, value in setup.settings.items() if there.get(key) != value}
    return str(Spec(spec.name, {**new, **spec.settings}, spec.version)), setup


def import_selectors(text: str) -> str:
    """A spec that a user typed, with each ``module:Class`` in it loaded and replaced by the name the class has.

    Runs record that name, so that they are the same runs once the class is published under an entry point. UsageError
    for what does not load. Specs that stand in files are never passed through here: they must not import code.
    """
    if ":" not in text or text.endswith(".json"):
        return text
    spec = parse_spec(text)
    name = _imported(spec.name)
    settings = {
        key: f"[{','.join(import_selectors(str(part)) for part in parse_specs(value))}]"
        if isinstance(value, str) and value.startswith("[") and ":" in value
        else value
        for key, value in spec.settings.items()
    }
    return text if name == spec.name and settings == spec.settings else str(Spec(name, settings))


def move_files(spec: Spec, moved: Callable[[str], str]) -> Spec:
    """A spec with the selector files that it names, at any depth, under other names.

    A selector file is known as ``make_selector`` knows it: by the ``.json`` at its end.
    """

    def value(given: Json) -> Json:
        if not isinstance(given, str) or ".json" not in given:
            return given
        if given.startswith("["):
            return f"[{','.join(str(move_files(part, moved)) for part in parse_specs(given))}]"
        if not given.endswith(".json"):
            return given
        return moved(given) if "=" not in given else str(move_files(parse_spec(given), moved))

    name = moved(spec.name) if spec.name.endswith(".json") else spec.name
    return Spec(name, {key: value(given) for key, given in spec.settings.items()}, spec.version)


def _imported(name: str) -> str:
    if ":" not in name:
        return name
    cls: Any = SELECTORS.add(name)
    if not (isinstance(cls, type) and issubclass(cls, BaseSelector) and cls.name):
        return name
    SELECTORS.add(name, cls.name)
    return cls.name


def _read_settings(factory: Any, spec: Spec) -> dict[str, Any]:
    """The spec's settings as the factory takes them: fields of a dataclass, or the parameters of any other callable."""
    owner, parameters = f"selector {spec.name!r}", inspect.signature(factory).parameters
    if (
        is_dataclass(factory)
        and isinstance(factory, type)
        and {*parameters} == {info.name for info in describe_settings(factory)}
    ):
        return read_settings(factory, spec.settings, owner)
    values = dict[str, Any]()
    for key, value in spec.settings.items():
        if key not in parameters:
            raise UnknownName(f"setting of {owner}", key, parameters)
        values[key] = (
            value if isinstance(value, str) or not isinstance(parameters[key].default, str) else json.dumps(value)
        )
    return values


def selectors_table() -> str:
    """The Markdown tables of the built-in selectors, made from what their classes declare: one of the selectors, and
    one of their settings."""
    about = [selector_help(SELECTORS.get(name)) for name in BUILTINS]
    rows = [
        "| selector | chooses | needs | LM calls per query | LM calls per task | source |",
        "|---|---|---|---|---|---|",
    ]
    for one in about:
        needs = ", ".join(map(str, _list(one["needs"]))) or "–"
        calls = (one["lm_calls_per_query"], one["lm_calls_per_task"])
        rows.append(_row(f"`{one['name']}`", one["summary"], needs, *calls, one["source"]))
    rows += ["", "| selector | setting | default | meaning | what it takes |", "|---|---|---|---|---|"]
    for one in about:
        for info in _list(one["settings"]):
            assert isinstance(info, dict)
            default = f"`{json.dumps(info['default'], ensure_ascii=False)}`" if "default" in info else "–"
            rows.append(_row(f"`{one['name']}`", f"`{info['name']}`", default, info["meaning"], info["allowed"]))
    return "\n".join(rows)


def _row(*cells: Json) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _list(value: Json) -> list[Json]:
    assert isinstance(value, list)
    return value
