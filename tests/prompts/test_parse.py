from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.prompts import Template, open_prompt, parse_continuation, parse_demonstrations
from iclkit.records import Example

WORDS = st.lists(st.sampled_from(["red", "blue", "fish", "{x}", "a.b", "(c)", "cat,", "7"]), min_size=1, max_size=6)
TEXT = WORDS.map(" ".join)
TEMPLATES = [
    Template(),
    Template("Text: {input}\nKind: {output}", separator="\n\n###\n\n"),
    Template("{input} => {output}", separator="\n"),
    Template("Q: {question}\nC: {context}\n\nA: {output} ."),
    Template("[{input}]\n{output}"),
]


def read_back(template: Template, text: str) -> list[Example | None]:
    return [b.example() for b in parse_demonstrations(template, text)]


@settings(max_examples=300)
@given(template=st.sampled_from(TEMPLATES), rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5))
def test_what_a_template_writes_it_reads_back(template, rows):
    named = "question" in template.fields
    examples = [Example({"question": a, "context": b} if named else a, c) for a, b, c in rows]
    text = template.separator.join(map(template.render_demo, examples))
    assert read_back(template, text) == examples


def test_a_model_may_space_words_as_it_likes_and_forget_the_blank_line():
    text = "Input:  red fish\n  Output:blue\nInput: two\nlines\nOutput: x\n\n\n\n"
    assert read_back(Template(), text) == [Example("red fish", "blue"), Example("two\nlines", "x")]


def test_an_attempt_that_lacks_something_is_a_failure_that_keeps_its_text():
    blocks = parse_demonstrations(
        Template(), "Input: one\nOutput: 1\n\nSure, here is more!\n\nInput: two\n\nInput: \nOutput: 3"
    )
    assert [b.complete for b in blocks] == [True, False, False, False]
    assert [b.asks for b in blocks] == [True, False, False, False]
    assert "Sure" in blocks[1].text
    assert [b.example() for b in blocks[1:]] == [None] * 3


def test_an_input_counts_once_the_answer_is_asked_for():
    (block,) = parse_demonstrations(Template("Text: {input}\nKind: {output}"), "Text: red fish\nKind:")
    assert block.asks
    assert not block.complete
    assert block.fields["input"] == "red fish"


def test_a_letter_is_read_as_the_choice_it_names():
    template = Template("Question: {input}\n{choices}\nAnswer: {letter}")
    one = Example("which?", "blue", choices=("red", "blue"))
    assert read_back(template, template.render_demo(one)) == [one]
    assert read_back(template, "Question: which?\nA. red\nB. blue\nAnswer: D") == [None]


def test_an_open_prompt_ends_where_a_new_input_begins_and_what_follows_is_read_back():
    one = Example("red", "1")
    assert open_prompt(Template(instruction="Count."), [one]) == "Count.\n\nInput: red\nOutput: 1\n\nInput:"
    assert open_prompt(Template("{input} => {output}"), [one]) == "red => 1\n\n"
    assert open_prompt(Template(chat=True, system="Be brief."), []) == "Be brief.\n\nInput:"
    (block,) = parse_continuation(Template(), " blue\nOutput: 2")
    assert block.example() == Example("blue", "2")
    fields = Template("Q: {question}\nC: {context}\nA: {output}")
    assert open_prompt(fields, [Example({"question": "q", "context": "c"}, "a")]).endswith("A: a\n\nQ:")


def test_fields_that_touch_cannot_be_told_apart():
    with pytest.raises(UsageError, match="without words between"):
        parse_demonstrations(Template("{a}{b}: {output}"), "x")
