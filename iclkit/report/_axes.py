"""What a run is, axis by axis: runs that differ on one axis alone can be compared, and the others name their table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """The run on every axis that it has, but for its seed: its task, the parts of its predictor, and the conditions.

    A run that shows nothing has no k, and one that asks no LM has no LM and nothing that decides how one is asked.
    """
    spec = run.spec
    task, lm, template = spec.task, spec.lm, dict(spec.parts.get("template", {}))
    chat = bool(template.pop("chat", False))
    found = {
        "task": Axis(canonical_json([task.name, task.hash, task.queries]), task.name),
        "selector": _selector(run),
        "order": Axis(spec.order, spec.order),
        "calibrate": Axis(_calibration(run), _calibration(run)),
        "pool": Axis(spec.pool.hash, f"of {spec.pool.size} ({spec.pool.hash[-4:]})"),
    }
    if lm is not None:
        found |= {
            "lm": Axis(lm.fingerprint, lm.name),
            "template": Axis(canonical_json(template), _template_label(template)),
            "chat": Axis(str(chat), "chat" if chat else "plain"),
        }
    if spec.k:
        found["k"] = Axis(f"{spec.k:06}", str(spec.k))
    found["on_leak"] = _axis(spec.on_leak)
    found |= {axis: _axis(spec.parts.get(axis)) for axis in (_OF_AN_LM if lm is not None else ())}
    found |= {"sample": _axis(task.sample), "rows": _axis(task.rows or None)}
    found |= {axis: _axis(value) for axis, value in spec.parts.items() if axis not in _NAMED}
    return found | {axis: _axis(value) for axis, value in spec.conditions.items()}


_OF_AN_LM = ("budget", "normalize", "answer_tokens", "stop")
_NAMED = ("selector", "lm", "embedder", "reranker", "template", "k", "seed", "order", "calibrate", "prior", *_OF_AN_LM)
"""Parts that ``axes`` places by themselves, or together with others; any other part is an axis of its own."""
_WORDS = {"lm": "LM", "on_leak": "leaks", "answer_tokens": "answer tokens", "stop": "stops"}


def axis_word(axis: str) -> str:
    """An axis as it is called in a title."""
    return _WORDS.get(axis, axis)


def check_axes(names: Sequence[str], runs: Iterable[Run] = ()) -> tuple[str, ...]:
    """The axes to compare along: those of ``AXES`` and the conditions of the runs. UsageError for what is neither."""
    known = dict.fromkeys([*AXES, *(name for run in runs for name in run.spec.conditions)])
    for name in names:
        if name not in known:
            raise UsageError(f"cannot compare along {name!r}; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names)) or USUAL


def _axis(value: Any) -> Axis:
    return Axis(canonical_json(value), _label(value))


def _label(value: Any) -> str:
    if value is None:
        return "unset"
    text = canonical_json(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}… {digest(value, 2)}"


def _template_label(template: dict[str, Any]) -> str:
    text = " ⏎ ".join(f"{template.get('instruction', '')}\n{template.get('demo', '')}".strip().splitlines())
    text = f"{text[:36]}…" if len(text) > 37 else text
    return f"“{text}”"


def _selector(run: Run) -> Axis:
    """What chose the demonstrations, or answered by itself, with the models that its choice is by."""
    spec = run.spec
    name = str(run.facts.get("selector") or Spec(spec.selector.name, spec.selector.settings))
    models = [model for model in (spec.embedder, spec.reranker) if model is not None]
    key = [name, *(x for m in models for x in (m.name, m.fingerprint)), spec.selector.content]
    return Axis(canonical_json(key), name, " ".join(model.name for model in models))


def _calibration(run: Run) -> str:
    """The calibration by name; with what tells two of one name apart."""
    kind = run.spec.calibrate
    if kind == "batch" and run.spec.prior is None and run.spec.task.queries > _ONE_CHUNK:
        return "batch of 64"  # early runs took a prior from each chunk of their rows
    return f"given {digest(run.spec.prior, 3)}" if kind == "given" else kind


def seed_scope(run: Run) -> SeedScope:
    """What the run's seed stands for: the selector's own declaration, or ``query`` at least where the order is random.

    A selector that is not installed here counts as ``task``, which claims least.
    """
    spec = run.spec
    if spec.lm is None:  # it has settings of its own, and no seed of the run's
        return "none"
    try:
        scope: SeedScope = make_selector(Spec(spec.selector.name, spec.selector.settings)).needs.seed_scope
    except IclkitError:
        scope = "task"
    drawn: SeedScope = "query" if spec.order == "random" and spec.k > 1 else "none"
    return max(scope, drawn, key=_STRENGTH.__getitem__)
