from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UnknownName
from iclkit.prompts import ORDERS, order_picks
from iclkit.records import Example

POLICIES = ["best-first", "best-last", "edges", "label-interleaved", "random"]


def shots(labels: str) -> list[Example]:
    return [Example(f"{n}", label) for n, label in enumerate(labels)]


def names(policy: str, labels: str, seed: int = 0, query_id: str = "q") -> str:
    return "".join(str(e.input) for e in order_picks(shots(labels), policy, seed=seed, query_id=query_id))


def test_the_policies_are_registered():
    assert set(POLICIES) <= set(ORDERS.names())


@pytest.mark.parametrize(("policy", "expected"), [("best-first", "01234"), ("best-last", "43210"), ("edges", "13420")])
def test_rank_one_stands_where_the_policy_says(policy, expected):
    assert names(policy, "aaaaa") == expected


def test_label_interleaved_stays_near_best_last():
    assert names("label-interleaved", "aabb") == "3120"
    assert names("label-interleaved", "abcd") == "3210"
    assert names("label-interleaved", "aab") == "120"


def adjacent(labels: list[str]) -> int:
    return sum(a == b for a, b in pairwise(labels))


@settings(max_examples=200)
@given(labels=st.text("abc", min_size=1, max_size=7))
def test_label_interleaved_has_the_fewest_equal_neighbours_any_order_can_have(labels):
    ordered = [e.output for e in order_picks(shots(labels), "label-interleaved", seed=0, query_id="q")]
    assert adjacent(ordered) == min(adjacent(list(p)) for p in permutations(labels))


@given(labels=st.text("ab", max_size=12), policy=st.sampled_from(POLICIES), seed=st.integers(0, 5))
def test_every_order_is_a_permutation(labels, policy, seed):
    assert sorted(e.id for e in order_picks(shots(labels), policy, seed=seed, query_id="q")) == sorted(
        e.id for e in shots(labels)
    )


def test_random_is_keyed_by_seed_and_query_and_keeps_the_order_of_what_remains():
    draws = {names("random", "a" * 8, seed, query) for seed in range(3) for query in "xyz"}
    assert len(draws) == 9
    assert names("random", "a" * 8) == names("random", "a" * 8)
    assert [c for c in names("random", "a" * 8) if c < "5"] == list(names("random", "a" * 5))


def test_an_unknown_order_offers_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'best-last'"):
        order_picks([], "best-lst", seed=0, query_id="q")
