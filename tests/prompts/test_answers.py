"""No answer is not the first option, and nothing that may be shown is cut by a stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.prompts import Template, answer_stops, best_option

TEXTS = st.lists(st.text(st.sampled_from("ab \n:#I"), max_size=12), max_size=5)


def test_scores_that_are_all_the_same_name_no_option():
    assert best_option([-100.0, -100.0, -100.0]) is None
    assert best_option([0.0]) == 0
    assert best_option([-1.0, -1.0, -2.0]) == 0
    assert best_option([-3.0, -1.0]) == 1


@given(TEXTS, st.booleans(), st.booleans(), st.lists(st.sampled_from(["\n", "\n\n", "##", "I"]), max_size=2))
def test_no_stop_stands_inside_an_output_that_may_be_shown(outputs, one_line, chat, own):
    template = Template("Input: {input}\nOutput: {output}", chat=chat, stop=tuple(own))
    for stop in answer_stops(template, outputs, one_line=one_line):
        assert not any(stop in output.strip() for output in outputs)


@pytest.mark.parametrize(
    ("outputs", "stops"),
    [
        (["one", "two"], ("\n\n", "\n")),
        (["one\ntwo"], ("\n\n",)),
        (["one\n\ntwo"], ("\n\nQ:",)),
        (["one\n\nQ: two"], ()),
        (["  one\n\n"], ("\n\n", "\n")),
    ],
)
def test_the_separator_gives_way_to_the_next_demonstrations_first_words(outputs, stops):
    assert answer_stops(Template("Q: {input}\nA: {output}"), outputs) == stops


def test_a_templates_own_stops_are_kept_where_they_cut_nothing():
    template = Template("Q: {input}\nA: {output}", stop=("\n", "###"))
    assert answer_stops(template, ["a"]) == ("\n", "###")
    assert answer_stops(template, ["a\nb"]) == ("###", "\n\n")
    assert answer_stops(Template("{input}: {output}", stop=("!",)), ["a"], one_line=False) == ("!",)


def test_a_reasoning_may_take_several_lines_and_a_chat_ends_by_itself():
    assert answer_stops(Template(), ["4", "5"], one_line=False) == ("\n\n",)
    assert answer_stops(Template(chat=True), ["4", "5"]) == ()
