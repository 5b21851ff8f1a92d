"""Settings that no selector can work with, and plug-ins that misbehave, are one line."""

from __future__ import annotations

import pytest

from iclkit.errors import UsageError
from iclkit.registry import Registry
from iclkit.selectors import SELECTORS, make_selector


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="trade_off is a finite number"):
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
