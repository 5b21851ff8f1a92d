"""A setting is declared in one line, and what the line does not allow is refused in one line."""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

from iclkit.errors import UnknownName, UsageError
from iclkit.records import Json
from iclkit.settings import (
    check_settings,
    describe_settings,
    read_settings,
    recorded_settings,
    required_setting,
    setting,
)

if TYPE_CHECKING:
    from iclkit.pool import PoolView

OWNER = "selector 'toy'"


@dataclass
class Toy:
    trade_off: float = setting(0.5, "1: relevance only, 0: diversity only", ge=0, le=1)
    candidates: int = setting(30, "how many are looked at", ge=1)
    scale: float = setting(1.0, "of the kernel", gt=0)
    sort: str = setting("relevance", "order of the picks", choices=("relevance", "picks"))
    tokenizer: str = setting("words", "how texts are cut", choices=lambda: ("words", "chars"))
    near: Literal["gold", "share"] = setting("gold", "what is compared")
    exact: bool = setting(False, "search exactly")
    budget: int | None = setting(None, "in tokens", ge=1)
    ks: tuple[int, ...] = setting((8,), "sizes", ge=0)
    drop: float = setting(0.0, "share that is left out", ge=0, lt=1)
    plain: int = 3

    def __post_init__(self) -> None:
        check_settings(self, OWNER)


@dataclass
class Rates:
    rates: tuple[float, ...] = setting((), "rates", gt=0)


@dataclass(frozen=True, slots=True)
class Frozen:
    rate: float = setting(1.0, "a rate")

    def __post_init__(self) -> None:
        check_settings(self, "config")


@dataclass
class Composite:
    of: str = required_setting("the selectors")
    pool_: PoolView | None = None

    def __post_init__(self) -> None:
        check_settings(self, OWNER)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trade_off": 1.5}, "trade_off is 1.5; give a number from 0 to 1 (default 0.5)"),
        ({"trade_off": float("nan")}, "trade_off is nan; give a number from 0 to 1 (default 0.5)"),
        ({"trade_off": "high"}, "trade_off is high; give a number from 0 to 1 (default 0.5)"),
        ({"trade_off": True}, "trade_off is true; give a number from 0 to 1 (default 0.5)"),
        ({"candidates": 0}, "candidates is 0; give a whole number of 1 or more (default 30)"),
        ({"candidates": 2.0}, "candidates is 2.0; give a whole number of 1 or more (default 30)"),
        ({"candidates": True}, "candidates is true; give a whole number of 1 or more (default 30)"),
        ({"scale": 0}, "scale is 0; give a finite number above 0 (default 1.0)"),
        ({"scale": float("inf")}, "scale is inf; give a finite number above 0 (default 1.0)"),
        ({"sort": "best"}, "sort is best; choose from relevance, picks (default relevance)"),
        ({"tokenizer": ""}, "tokenizer is ''; choose from words, chars (default words)"),
        ({"near": "far"}, "near is far; choose from gold, share (default gold)"),
        ({"exact": 1}, "exact is 1; give true or false (default false)"),
        ({"budget": 0}, "budget is 0; give a whole number of 1 or more, or none (default none)"),
        ({"ks": (4, -1)}, "ks is 4+-1; give whole numbers of 0 or more, joined by + (default 8)"),
        ({"drop": 1.0}, "drop is 1.0; give a number of 0 or more and below 1 (default 0.0)"),
        ({"plain": "x"}, "plain is x; give a whole number (default 3)"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        Toy(**given)
    assert str(error.value) == f"{OWNER}: {said}"


def test_what_is_allowed_is_taken_as_it_is() -> None:
    toy = Toy(trade_off=1.0, candidates=1, scale=1e-9, sort="picks", near="share", exact=True, budget=5, ks=())
    assert (toy.trade_off, toy.candidates, toy.sort, toy.budget, toy.ks) == (1.0, 1, "picks", 5, ())
    assert Toy() == Toy()


def test_a_whole_number_is_good_for_a_number_and_becomes_one() -> None:
    made = Frozen(rate=2)
    assert repr(made.rate) == "2.0"
    with pytest.raises(FrozenInstanceError):
        made.rate = 3.0  # type: ignore[misc]


def test_texts_and_json_become_values_of_their_types() -> None:
    given: dict[str, Json] = {
        "trade_off": "0.25",
        "candidates": 5,
        "sort": "picks",
        "exact": "true",
        "budget": "null",
        "ks": [1, 2],
    }
    values = read_settings(Toy, given, OWNER)
    assert values == {"trade_off": 0.25, "candidates": 5, "sort": "picks", "exact": True, "budget": None, "ks": (1, 2)}
    assert read_settings(Toy, {"trade_off": 1}, OWNER) == {"trade_off": 1.0}
    for text in ("[4, 8]", "4+8", "4,8"):
        assert read_settings(Toy, {"ks": text}, OWNER) == {"ks": (4, 8)}
    assert read_settings(Toy, {"ks": "4"}, OWNER) == {"ks": (4,)}
    assert read_settings(Toy, {"ks": "[]"}, OWNER) == {"ks": ()}
    assert read_settings(Rates, {"rates": "1e+2,0.5+1"}, OWNER) == {"rates": (100.0, 0.5, 1.0)}
    assert read_settings(Rates, {"rates": "1e+2"}, OWNER) == {"rates": (100.0,)}
    assert read_settings(Composite, {"of": 7}, OWNER) == {"of": "7"}, "a text stays one where it looks like a number"


def test_an_unknown_setting_is_refused_and_the_nearest_offered() -> None:
    with pytest.raises(UnknownName, match=r"no setting of selector 'toy' named 'tradeoff'. Did you mean 'trade_off'"):
        read_settings(Toy, {"tradeoff": 0.5}, OWNER)
    with pytest.raises(UsageError, match="candidates is many; give a whole number of 1 or more"):
        read_settings(Toy, {"candidates": "many"}, OWNER)


def test_the_table_has_each_setting_with_its_meaning_and_what_it_takes() -> None:
    rows = {info.name: info for info in describe_settings(Toy)}
    assert rows["trade_off"].meaning == "1: relevance only, 0: diversity only"
    assert rows["trade_off"].allowed == "a number from 0 to 1"
    assert rows["tokenizer"].allowed == "words, chars"
    assert [*rows] == [
        "trade_off", "candidates", "scale", "sort", "tokenizer", "near", "exact", "budget", "ks", "drop", "plain",
    ]  # fmt: skip
    assert rows["plain"].meaning == ""


def test_a_setting_without_a_default_says_so_and_types_known_to_checkers_alone_are_left_alone() -> None:
    rows = {info.name: info for info in describe_settings(Composite)}
    assert rows["of"].default is MISSING
    assert Composite("bm25").pool_ is None


def test_a_setting_that_came_later_is_recorded_only_where_it_is_not_at_its_default() -> None:
    @dataclass
    class Grown:
        old: int = setting(1, "was always there")
        new: int = setting(0, "came later", added=True)

    assert recorded_settings(Grown()) == {"old": 1}
    assert recorded_settings(Grown(new=2)) == {"old": 1, "new": 2}
