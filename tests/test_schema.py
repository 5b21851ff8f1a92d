"""JSON values against type annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.errors import DataError
from iclkit.schema import read_as


@dataclass(frozen=True)
class Inner:
    name: str
    weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    by_name: Mapping[str, float]
    note: str | None = None


class Loose(TypedDict):
    kind: Literal["a", "b"]
    size: int
    more: NotRequired[dict[str, str]]


RIGHT: dict[str, Any] = {"inner": [{"name": "x", "weights": [["w", 1], ["v", 0.5]]}], "by_name": {"q": 2.5}}


def test_a_right_value_becomes_the_dataclass() -> None:
    made = read_as(Outer, RIGHT, "f")
    assert made == Outer((Inner("x", (("w", 1), ("v", 0.5))),), {"q": 2.5})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"inner": 5}, "f: inner should be a list, and is 5"),
        ({"inner": [{"name": None}]}, r"f: inner\[0\].name should be a text, and is null"),
        ({"inner": [{}]}, r"f: inner\[0\].name should be there, and is missing"),
        ({"inner": [{"name": "x", "weights": [["w", "1"]]}]}, r"weights\[0\]\[1\] should be a number, and is \"1\""),
        ({"inner": [{"name": "x", "weights": [["w"]]}]}, r"weights\[0\] should be a list of 2, and is a list of 1"),
        ({"by_name": {"q": True}}, "by_name.q should be a number, and is true"),
        ({"by_name": {"a\x1b[2J\n" + "b" * 9000: "no"}}, r"by_name\[\"a\\u001b\[2J\\nb+\"\] should be a number"),
        ({"by_name": {"q": 10**400}}, "by_name.q should be a number, and is a number beyond 64 bits"),
        ({"by_name": []}, "by_name should be an object, and is a list of 0"),
        ({"note": 5}, "note should be a text or null, and is 5"),
        ({"note": ["x" * 9000]}, "note should be a text or null, and is a list of 1"),
        ({"other": 1}, "other should be absent"),
    ],
)
def test_a_wrong_value_is_named_by_its_place_in_a_short_line(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        read_as(Outer, RIGHT | change, "f")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", [None, 5, 2.5, "x", True, [], [1], {}, {"inner": {}}])
def test_a_value_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="f: "):
        read_as(Outer, value, "f")


def test_a_typed_dict_takes_more_than_it_knows_and_no_less() -> None:
    assert read_as(Loose, {"kind": "a", "size": 1, "x": [None]}, "f") == {"kind": "a", "size": 1, "x": [None]}
    for wrong in ({"kind": "c", "size": 1}, {"kind": ["a"], "size": 1}, {"kind": "a"}, {"kind": "a", "size": 1.0},
                  {"kind": "a", "size": True}, {"kind": "a", "size": 1, "more": {"x": 1}}):  # fmt: skip
        with pytest.raises(DataError, match="f: "):
            read_as(Loose, wrong, "f")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["inner", "name", "note", "x"]), inner),
    max_leaves=8,
)


@given(JSON)
def test_whatever_comes_is_taken_or_refused_in_one_line(value: Any) -> None:
    try:
        made = read_as(Outer, value, "f")
    except DataError as error:
        told = str(error)
    else:
        told = ""
        assert isinstance(made, Outer)
    assert "\n" not in told
