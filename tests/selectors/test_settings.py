"""Settings that no selector can work with, and plug-ins that misbehave, are one line."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from iclkit.errors import UsageError
from iclkit.records import Spec
from iclkit.registry import Registry, parse_spec
from iclkit.selectors import BUILTINS, SELECTORS, make_selector, selector_help
from iclkit.settings import describe_settings


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"trade_off is .*; give a number from 0 to 1"):
        make_selector(f"mmr,trade_off={value}")


class _Entry:
    name, value = "leaver", "leaver:Leaver"

    def load(self) -> None:
        raise SystemExit(0)


def test_a_plug_in_that_ends_the_program_when_it_loads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclkit.registry.entry_points", lambda group: [_Entry()])
    with pytest.raises(UsageError, match=r"'leaver' is installed .* SystemExit"):
        Registry("selector", "iclkit.selectors", {}).get("leaver")


def test_a_plug_in_that_ends_the_program_when_it_is_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> None:
        raise SystemExit(0)

    monkeypatch.setattr(SELECTORS, "get", lambda name: leave)
    with pytest.raises(UsageError, match="ends the program when it is made"):
        make_selector("leaver")


def test_a_plug_in_that_is_no_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SELECTORS, "get", lambda name: 5)
    with pytest.raises(UsageError, match="no class that makes selectors"):
        make_selector("five")


OUTSIDE = {
    "a number from 0 to 1": 1.5,
    "a number from 0 to 100": -1,
    "a number of 0 or more and below 1": 1,
    "a finite number of 0 or more": -1,
    "a finite number above 0": 0,
    "a whole number of 0 or more": -1,
    "a whole number of 1 or more": 0,
    "true or false": "perhaps",
}
SETTINGS = [(name, info) for name in BUILTINS for info in describe_settings(SELECTORS.get(name))]


@pytest.mark.parametrize(("name", "info"), SETTINGS, ids=lambda value: getattr(value, "name", value))
def test_every_setting_says_what_it_means_and_refuses_what_it_does_not_take(name: str, info: Any) -> None:
    assert info.meaning
    make_selector(Spec(name, {info.name: info.default}))
    if info.allowed == "a text":
        return
    wrong = OUTSIDE.get(info.allowed, "no-such-choice")
    with pytest.raises(UsageError, match=rf"^selector '{name}': {info.name} is .*; (give|choose from) ") as error:
        make_selector(f"{name},{info.name}={wrong}")
    assert info.allowed in str(error.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("knn,metric=l2", "no setting of selector 'knn' named 'metric'"),
        ("bm25,stemmer=klingon", "no stemmer named 'klingon'"),
        ("bm25-coverage,stemmer=klingon", "no stemmer named 'klingon'"),
        ("rrf,of=knn", "selector 'rrf': of is knn; give two or more selectors"),
        ("hybrid,of=[knn,bm25]", r"selector 'hybrid': of is \[knn,bm25\]; give one selector"),
        ("rrf,of=[knn,mmr,trade_off=2]", "selector 'mmr': trade_off is 2"),
        ("filter,where=[1]", r"selector 'filter': where is \[1\]; give a JSON object"),
    ],
)
def test_what_several_settings_or_parts_must_fulfil_is_checked_when_the_selector_is_made(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_selector(spec)


@pytest.mark.parametrize("name", BUILTINS)
def test_every_class_says_what_it_does_when_to_use_it_what_it_costs_and_how_to_name_it(name: str) -> None:
    cls = SELECTORS.get(name)
    about, line = selector_help(cls), (cls.__doc__ or "").strip().splitlines()[0]
    assert about["name"] == name
    assert cls.summary
    assert cls.summary != line
    for beginning in ("Use it ", "Cost: "):
        assert f"\n    {beginning}" in cls.__doc__
    words = shlex.split(str(about["example"]))
    spec = words[words.index("--selector") + 1]
    assert parse_spec(spec).name == name
    make_selector(spec)
