from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.errors import DataError, IclkitError, UsageError
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Message, Query, clean_text


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


def test_labels_are_filled_in_wherever_the_template_names_them():
    template = Template(
        "{input} (one of {labels}, {{not}}) => {output}", "Pick from: {labels}. {as is}", chat=True, system="{labels}!"
    ).with_labels(["no", "{maybe}"])
    assert template.instruction == "Pick from: no, {maybe}. {as is}"
    assert template.system == "no, {maybe}!"
    assert template.render_demo(Example("x", "no")) == "x (one of no, {maybe}, {not}) => no"
    assert template.with_labels(["other"]) == template


def test_labels_that_are_not_known_are_said_and_a_field_of_that_name_stays_one():
    with pytest.raises(UsageError, match="no label set"):
        Template("{input}{labels}{output}").with_labels([])
    with pytest.raises(UsageError, match="with_labels"):
        assemble(Template(instruction="{labels}"), Query("x"), [])
    with pytest.raises(DataError, match="with_labels"):
        assemble(Template("{input}{labels}{output}"), Query("x"), [])
    own = Template("{labels}: {output}").with_labels(["a"], fields=["labels"])
    assert own.render_demo(Example({"labels": "x y"}, "a")) == "x y: a"


def test_double_braces_are_literal_in_all_of_a_template_that_is_typed():
    template = Template.parse('Answer as {{"label": "…"}}, one of {labels}.\n\nText: {input} {{}}\nLabel: {output}')
    assert template.instruction == 'Answer as {"label": "…"}, one of {labels}.'
    assert template.render_demo(Example("x", "y")) == "Text: x {}\nLabel: y"


def test_a_separator_of_the_demonstrations_stands_behind_each_and_ends_an_answer():
    template = Template("{input} => {output}", "Sort.", demo_separator="\n")
    shots = [Example("a", "1"), Example("b", "2")]
    assert assemble(template, Query("c"), shots).text == "Sort.\n\nb => 2\na => 1\nc =>"
    assert template.stop_strings == ("\n",)


def test_a_chat_may_show_its_demonstrations_inside_one_turn():
    template = Template("{input} => {output}", "Sort.", chat=True, system="Be brief.", turns=False)
    messages = assemble(template, Query("c"), [Example("a", "1")]).messages
    assert messages == (Message("system", "Be brief."), Message("user", "Sort.\n\na => 1\n\nc =>"))
    with pytest.raises(UsageError, match="chat=True"):
        Template(turns=False)


def test_what_came_later_is_no_part_of_the_identity_of_older_templates():
    assert [*Template().identity()] == ["demo", "instruction", "separator", "chat", "system", "stop"]
    assert Template(demo_separator="\n").identity()["demo_separator"] == "\n"
    assert Template(chat=True, turns=False).identity()["turns"] is False


def test_a_template_is_read_from_a_text_or_a_toml_file(tmp_path):
    (tmp_path / "t.txt").write_text("Sort it.\n\nText: {input}\nLabel: {output}\n")
    assert Template.read(tmp_path / "t.txt") == Template("Text: {input}\nLabel: {output}", "Sort it.")
    (tmp_path / "t.toml").write_text('demo = "{input}: {output}"\nchat = true\nsystem = "Brief."\nstop = ["."]\n')
    assert Template.read(tmp_path / "t.toml") == Template("{input}: {output}", chat=True, system="Brief.", stop=(".",))
    for name, text, said in (("a.toml", "demo = ", "not TOML"), ("b.toml", 'demo = "{input}{output}"\nsep = ""', "sep"),
                             ("c.txt", "no field", "c.txt"), ("d.toml", 'demo = "{input}"', "d.toml")):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(IclkitError, match=said):
            Template.read(tmp_path / name)
