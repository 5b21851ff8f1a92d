"""What a run is, axis by axis: runs that differ on one axis alone can be compared, and the others name their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iclkit.errors import IclkitError, UsageError
from iclkit.records import Run, SeedScope, Spec, canonical_json, digest
from iclkit.selectors import make_selector

AXES = ("task", "lm", "k", "selector", "order", "calibrate", "template", "chat")
"""What a user can compare along; the rest (pool, limits, rows asked) must be equal or makes another table."""
USUAL = ("selector", "order", "calibrate")
"""The axes that make the lines of a table unless the user names others."""
_ONE_CHUNK = 95  # queries that early runs calibrated together
_STRENGTH: dict[SeedScope, int] = {"none": 0, "query": 1, "task": 2}


@dataclass(frozen=True, slots=True)
class Axis:
    """A run's place on one axis: ``key`` says what is equal, ``label`` is what a person reads.

    ``detail`` tells places of one label apart: the embedder of a selector.
    """

    key: str
    label: str
    detail: str = ""


def axes(run: Run) -> dict[str, Axis]:
    """The run on every axis that it has, but for its seed: a run that shows nothing has no k, and one that asks no LM
    has no LM and nothing that decides how one is asked."""
    spec = run.spec
    task, lm, template = spec["task"], spec["lm"], dict(spec["template"])
    chat = bool(template.pop("chat", False))
    name, embedder = _selector_name(run), spec["embedder"] or {}
    found = {
        "task": Axis(canonical_json([task["name"], task["hash"], task["queries"]]), task["name"]),
        "selector": Axis(canonical_json([name, embedder.get("name", "")]), name, embedder.get("name", "")),
        "order": Axis(spec["order"], spec["order"]),
        "calibrate": Axis(_calibration(run), _calibration(run)),
        "pool": Axis(spec["pool"]["hash"], f"of {spec['pool']['size']} ({spec['pool']['hash'][-4:]})"),
    }
    if lm is not None:
        found |= {
            "lm": Axis(lm["fingerprint"], lm["name"]),
            "template": Axis(canonical_json(template), _template_label(template)),
            "chat": Axis(str(chat), "chat" if chat else "plain"),
        }
    if spec["k"]:
        found["k"] = Axis(f"{spec['k']:06}", str(spec["k"]))
    of_lm = ("budget", "normalise", "answer_tokens", "stop") if lm is not None else ()
    for axis in ("on_leak", *of_lm):
        value = spec.get(axis)
        found[axis] = Axis(canonical_json(value), _label(value))
    for axis in ("sample", "rows"):
        value = task.get(axis)
        found[axis] = Axis(canonical_json(value), _label(value))
    return found


_WORDS = {"lm": "LM", "on_leak": "leaks", "normalise": "normalize", "answer_tokens": "answer tokens", "stop": "stops"}


def axis_word(axis: str) -> str:
    """An axis as it is called in a title."""
    return _WORDS.get(axis, axis)


def check_axes(names: Sequence[str]) -> tuple[str, ...]:
    """The axes to compare along; UsageError for a name that is none."""
    for name in names:
        if name not in AXES:
            raise UsageError(f"cannot compare along {name!r}; choose from {', '.join(AXES)}")
    return tuple(dict.fromkeys(names)) or USUAL


def _label(value: Any) -> str:
    if value is None:
        return "unset"
    text = canonical_json(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}… {digest(value, 2)}"


def _template_label(template: dict[str, Any]) -> str:
    text = " ⏎ ".join(f"{template.get('instruction', '')}\n{template.get('demo', '')}".strip().splitlines())
    text = f"{text[:36]}…" if len(text) > 37 else text
    return f"“{text}”"


def _selector_name(run: Run) -> str:
    selector = run.spec["selector"]
    return str(run.facts.get("selector") or Spec(selector["name"], selector["settings"]))


def _calibration(run: Run) -> str:
    """The calibration by name; with what tells two of one name apart."""
    kind: str = run.spec.get("calibrate", "none")
    if kind == "batch" and "prior" not in run.spec and run.spec["task"]["queries"] > _ONE_CHUNK:
        return "batch of 64"  # early runs took a prior from each chunk of their rows
    return f"given {digest(run.spec['prior'], 3)}" if kind == "given" else kind


def seed_scope(run: Run) -> SeedScope:
    """What the run's seed stands for: the selector's own declaration, or ``query`` at least where the order is random.

    A selector that is not installed here counts as ``task``, which claims least.
    """
    selector, k = run.spec["selector"], run.spec["k"]
    if "predictor" in run.spec:  # it has settings of its own, and no seed of the run's
        return "none"
    try:
        scope: SeedScope = make_selector(Spec(selector["name"], selector["settings"])).needs.seed_scope
    except IclkitError:
        scope = "task"
    drawn: SeedScope = "query" if run.spec["order"] == "random" and k > 1 else "none"
    return max(scope, drawn, key=_STRENGTH.__getitem__)
