from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.augment import auto_icl, label_inputs, plan, write_for_labels
from iclkit.augment._auto import read_list
from iclkit.errors import UsageError
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query
from iclkit.testing import FakeLM, ScriptedLM

TEMPLATE = Template("Q: {input}\nA: {output}", instruction="Add the numbers.")
QUERY = Query("two plus three")


def writing(items="one plus one\n2. four plus one\n3. two plus three!\n4. one plus one\n\nThat is all."):
    def reply(context):
        if context.endswith("\n1."):
            return " " + items
        return " five" if context.endswith("A:") else " Let us see"

    return ScriptedLM(reply=reply)


def test_new_inputs_are_written_and_answered_and_repeats_are_reported():
    lm = writing()
    made = auto_icl(lm, TEMPLATE, [QUERY], questions=4, seed=3)
    assert [(e.input, e.output) for e in made.examples] == [("one plus one", "five"), ("four plus one", "five")]
    assert made.reasons == {"not an item of a list": 1, "repeats the query": 1, "repeats another": 1}
    assert made.calls == len(lm.generated) == 1 + 2
    meta = made.examples[0].meta
    assert meta["generated"] == "auto-icl"
    assert meta["generated_for"] == QUERY.id
    assert (meta["generated_lm"], meta["generated_fingerprint"], meta["generated_seed"]) == (
        "scripted",
        "scripted-1",
        3,
    )


def test_the_helpers_prompt_is_not_the_query_prompt_and_the_answer_prompt_has_no_query_in_it():
    lm = writing()
    auto_icl(lm, TEMPLATE, [QUERY], questions=4)
    asking, *answering = [r.context for r in lm.generated]
    assert asking != assemble(TEMPLATE, QUERY, []).text
    assert QUERY.text in asking
    assert all(QUERY.text not in c for c in answering)
    assert answering[0] == "Add the numbers.\n\nQ: one plus one\nA:"


def test_the_final_prompt_shows_every_written_input_once_and_no_questions_is_zero_shot():
    made = auto_icl(writing(), TEMPLATE, [QUERY], questions=4)
    text = assemble(TEMPLATE, QUERY, made.examples).text
    assert all(text.count(f"Q: {e.input}\n") == 1 for e in made.examples)
    none = auto_icl(lm := writing(), TEMPLATE, [QUERY], questions=0)
    assert none.examples == ()
    assert lm.generated == []


@settings(max_examples=200)
@given(
    st.lists(st.text("ab c", min_size=1).map(str.strip).filter(bool), max_size=6),
    st.sampled_from(["{}. ", "{}) ", "- ", "* "]),
)
def test_a_list_is_read_whatever_its_marks(items, mark):
    text = "\n\n".join(mark.format(n) + item for n, item in enumerate(items, 1))
    assert read_list(text) == (items, [])
    assert read_list("Sure, here:\n" + text) == (items, ["Sure, here:"])


def test_labels_bound_the_answers_and_a_cue_becomes_part_of_them():
    made = label_inputs(FakeLM(), TEMPLATE, ["a", "b"], labels=("yes", "no"))
    assert made.method == "answer" == made.examples[0].meta["generated"]
    assert {e.output for e in made.examples} <= {"yes", "no"}
    made = label_inputs(ScriptedLM(reply=lambda c: " So it is 5."), TEMPLATE, ["a"], cue="Let's think.")
    assert made.examples[0].output == "Let's think. So it is 5."


def test_answers_that_do_not_agree_are_rejected():
    class Wavering(ScriptedLM):
        def _answer(self, request):
            return " five" if request.seed % 3 else " six"

    kept = label_inputs(Wavering(), TEMPLATE, ["a"], votes=3, agreement=0.6)
    assert [e.output for e in kept.examples] == ["five"]
    assert kept.calls == 3
    made = label_inputs(Wavering(), TEMPLATE, ["a"], votes=3, agreement=0.9)
    assert made.examples == ()
    assert made.reasons == {"answers do not agree": 1}
    empty = label_inputs(ScriptedLM(reply=lambda _: "  "), TEMPLATE, ["a"])
    assert empty.reasons == {"no answer": 1}
    cut = label_inputs(FakeLM(), TEMPLATE, ["a"], max_tokens=2)
    assert cut.reasons == {"cut off": 1}


def test_inputs_are_written_for_a_label_that_is_given_first():
    replies = iter([" sunny\nmore", " rain", " sunny!", " ", " much too long", " snow"])
    lm = ScriptedLM(reply=lambda _: next(replies))
    template = Template("Text: {input}\nKind: {output}", instruction="Name it.")
    made = write_for_labels(lm, template, ("good", "bad"), per_label=3, max_tokens=2)
    assert [r.context for r in lm.generated][::3] == [f"Name it.\n\nKind: {y}\nText:" for y in ("good", "bad")]
    assert [(e.input, e.output) for e in made.examples] == [("sunny", "good"), ("rain", "good"), ("snow", "bad")]
    assert made.reasons == {"repeats another": 1, "no answer": 1, "cut off": 1}
    assert len({r.seed for r in lm.generated}) == 3


def test_a_plan_stands_in_the_instruction_and_nothing_changes_without_examples():
    lm = ScriptedLM(reply=lambda _: " Count, then add.")
    planned = plan(lm, TEMPLATE, [Example("one plus one", "two")])
    assert planned.instruction == "Add the numbers.\n\nPlan: Count, then add."
    assert "one plus one\nA: two" in lm.generated[0].context
    assert plan(lm, TEMPLATE, []) == TEMPLATE
    assert plan(ScriptedLM(reply=lambda _: " "), TEMPLATE, [Example("a", "b")]) == TEMPLATE


def test_a_chat_model_is_asked_in_its_own_template():
    lm = ScriptedLM(reply=lambda c: "Sure!\n1. one plus one" if "numbered list" in c else " two")
    made = auto_icl(lm, TEMPLATE, [QUERY], questions=1, chat=True)
    assert lm.generated[0].context.endswith("one on each line.<|end|>\n<|assistant|>\n")
    assert [(e.input, e.output) for e in made.examples] == [("one plus one", "two")]


def test_named_fields_are_refused():
    with pytest.raises(UsageError, match="question, context"):
        auto_icl(FakeLM(), Template("{question} {context}: {output}"), [QUERY])
    with pytest.raises(UsageError, match="votes"):
        label_inputs(FakeLM(), TEMPLATE, ["a"], votes=0)


def test_a_list_is_read_whatever_its_numbers_look_like_and_whatever_its_items_hold():
    assert read_list("1、猫\n２．犬\n3） 鳥\n- a\u2028b") == (["猫", "犬", "鳥", "a\u2028b"], [])


def test_inputs_of_signs_alone_are_told_apart():
    lm = ScriptedLM(reply=iter_replies(["?!", "...", "?!"]))
    made = write_for_labels(lm, Template("Text: {input}\nKind: {output}"), ["odd"], per_label=3)
    assert [e.input for e in made.examples] == ["?!", "..."]
    assert made.reasons == {"repeats another": 1}


def iter_replies(texts):
    left = iter(texts)
    return lambda _: f" {next(left)}"
