from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.lm import ModelShape, break_even

SMALL = ModelShape(135e6, 30, 576)


def test_the_worked_example_of_a_small_model():
    found = break_even(SMALL, fixed_tokens=4000, selected_tokens=160, query_tokens=20)
    # 4000 fixed tokens against 160 chosen ones: 1.08 T and half as much again for attention, once
    assert found.once == pytest.approx(2 * 135e6 * 4000 + 2 * 30 * 576 * 4000**2)
    assert found.fixed == pytest.approx(5.4e9 + 5.53e9, rel=0.01)
    assert found.queries == pytest.approx(42, abs=2)
    assert str(found).endswith(f"from {round(found.queries)} queries on")
    alike = break_even(SMALL, fixed_tokens=160, selected_tokens=160, query_tokens=20)
    assert str(alike).endswith("from the first query on")


def test_attention_overtakes_the_weights_at_parameters_over_layers_times_width():
    n = round(SMALL.parameters / (SMALL.layers * SMALL.width))
    assert SMALL.read(n) == pytest.approx(2 * 2 * SMALL.parameters * n, rel=1e-3)


@settings(max_examples=200)
@given(new=st.integers(0, 300), cut=st.integers(0, 300))
def test_reading_in_two_parts_costs_what_reading_at_once_does(new, cut):
    cut = min(cut, new)
    assert SMALL.read(cut) + SMALL.read(new - cut, known=cut) == pytest.approx(SMALL.read(new))


@settings(max_examples=200)
@given(fixed=st.integers(0, 3000), selected=st.integers(0, 300), query=st.integers(0, 100), more=st.integers(1, 500))
def test_beyond_the_break_even_the_fixed_prompt_is_cheaper_and_before_it_is_not(fixed, selected, query, more):
    found = break_even(SMALL, fixed_tokens=fixed, selected_tokens=selected, query_tokens=query)
    if found.queries is None:
        assert found.once + more * found.fixed >= more * found.selected
        return
    for queries in (found.queries + more, max(0.0, found.queries - more)):
        cheaper = found.once + queries * found.fixed < queries * found.selected
        assert cheaper == (queries > found.queries)


@settings(max_examples=200)
@given(fixed=st.integers(0, 3000), selected=st.integers(0, 300), near=st.integers(0, 300), query=st.integers(0, 100))
def test_what_a_query_shows_of_its_own_after_the_fixed_part_is_read_each_time(fixed, selected, near, query):
    found = break_even(SMALL, fixed_tokens=fixed, selected_tokens=selected, query_tokens=query, near_tokens=near)
    longer = break_even(SMALL, fixed_tokens=fixed, selected_tokens=0, query_tokens=query + near)
    assert (found.once, found.fixed) == (longer.once, longer.fixed)
    assert found.selected == SMALL.read(selected + query)
    if near >= selected and fixed:
        assert found.queries is None


def test_no_fixed_prompt_pays_when_each_query_shows_nothing():
    found = break_even(SMALL, fixed_tokens=100, selected_tokens=0, query_tokens=20)
    assert found.queries is None
    assert "however many" in str(found)
    with pytest.raises(UsageError, match="0 or more"):
        break_even(SMALL, fixed_tokens=-1, selected_tokens=0, query_tokens=1)
