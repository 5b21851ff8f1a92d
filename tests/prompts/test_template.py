from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.errors import DataError, UsageError
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query, clean_text


def query_text(template, query):
    return assemble(template, query, []).text


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(text=texts, output=texts)
def test_braces_json_and_code_in_the_data_are_plain_text(text, output):
    shown = Template("I: {input}|O: {output}").render_demo(Example(text, output))
    assert shown == f"I: {clean_text(text)}|O: {clean_text(output)}"


def test_fields_are_found_under_their_names_however_those_are_typed():
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    for name in (decomposed, composed):
        for field in (decomposed, composed):
            assert Template(f"{{{field}}}: {{output}}").render_demo(Example({name: "x"}, "y")) == "x: y"


def test_a_field_name_in_the_data_is_not_filled_in():
    assert Template().render_demo(Example("{output} {{x}}", "{input}")) == "Input: {output} {{x}}\nOutput: {input}"


def test_doubled_braces_in_a_template_are_literal():
    template = Template('{{"q": "{input}", "a": "{output}"}}')
    assert template.render_demo(Example("x", "y")) == '{"q": "x", "a": "y"}'
    assert query_text(template, Query("x")) == '{"q": "x", "a": "'
    assert Template("{{{input}}} {output}").render_demo(Example("x", "y")) == "{x} y"


def test_instruction_and_separator_are_plain_text():
    prompt = assemble(Template(instruction='Answer as {"label": …}', separator="\n{}\n"), Query("x"), [])
    assert prompt.text == 'Answer as {"label": …}\n{}\nInput: x\nOutput:'


@pytest.mark.parametrize(
    ("demo", "ends", "prefix"),
    [
        ("Label: {output}", "Label:", " "),
        ("Label:{output}", "Label:", ""),
        ("Answer:\n{output}", "Answer:\n", ""),
        ("Q {input} \t{output} end", "Q the text", " \t"),
        ("{input}{output}", "the text", ""),
    ],
)
def test_blanks_before_the_answer_go_to_the_continuation(demo, ends, prefix):
    query = Query("the text")
    template = Template(demo)
    assert query_text(template, query) == ends
    assert template.answer_prefix == prefix
    whole = template.render_demo(Example(query.input, "ANSWER"))
    assert whole.startswith(query_text(template, query) + template.answer_prefix + "ANSWER")


def test_named_fields_are_placed_and_a_missing_one_is_named():
    template = Template("P: {premise}\nH: {hypothesis}\nL: {output}")
    assert template.fields == ("premise", "hypothesis", "output")
    assert query_text(template, Query({"premise": "a", "hypothesis": "b"})) == "P: a\nH: b\nL:"
    with pytest.raises(DataError, match=r"no field 'hypothesis'.*it has: premise"):
        query_text(template, Query({"premise": "a"}))
    with pytest.raises(DataError, match=r"no field 'premise'.*it has: input"):
        template.render_demo(Example("text", "y"))


def test_input_stands_for_the_whole_of_a_mapping():
    assert Template("{input}={output}").render_demo(Example({"a": "1", "b": "2"}, "3")) == "1\n2=3"


def test_choices_are_lettered_lines_and_the_answer_may_be_the_letter():
    example = Example("2+2?", "4", choices=("3", "4"))
    by_letter = Template("{input}\n{choices}\nAnswer: {letter}")
    assert by_letter.render_demo(example) == "2+2?\nA. 3\nB. 4\nAnswer: B"
    assert query_text(by_letter, Query("1+1?", choices=("2", "5"))) == "1+1?\nA. 2\nB. 5\nAnswer:"
    assert [by_letter.answer(c, ("2", "5")) for c in ("2", "5")] == ["A", "B"]
    assert Template().answer("4", ("3", "4")) == "4"
    with pytest.raises(DataError, match=r"not one of the choices"):
        by_letter.render_demo(Example("2+2?", "5", choices=("3", "4")))


@pytest.mark.parametrize("demo", ["no answer {input}", "{output} and {output}", "{output} {letter}"])
def test_a_template_has_exactly_one_answer(demo):
    with pytest.raises(UsageError, match=r"one \{output\}"):
        Template(demo)


@pytest.mark.parametrize("demo", ["{ input } {output}", "{output} }", "{", "{0} {output}"])
def test_a_lone_brace_is_refused_with_the_remedy(demo):
    with pytest.raises(UsageError, match="literal one"):
        Template(demo)


def test_parse_takes_paragraphs_without_fields_as_instruction():
    template = Template.parse("Label the review.\n\nBe brief.\n\nReview: {input}\n\nSentiment: {output}\n")
    assert template.instruction == "Label the review.\n\nBe brief."
    assert template.demo == "Review: {input}\n\nSentiment: {output}"
    with pytest.raises(UsageError, match="names its fields"):
        Template.parse("nothing here")


def test_stops_default_to_the_separator_of_a_plain_template():
    assert Template().stop_strings == ("\n\n",)
    assert Template(chat=True).stop_strings == ()
    assert Template(stop=("###",)).stop_strings == ("###",)
