from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.augment import Document, recycle
from iclkit.errors import UsageError
from iclkit.testing import ScriptedLM


def document(n, start=0):
    return Document(
        tuple(f"Person{i} lives in City{i}. The job of Person{i} is baking." for i in range(start, start + n))
    )


def asking(context):
    """A rule-made question about the one paragraph that is shown."""
    (who,) = {*re.findall(r"Person\d+", context)}
    return f" Where does {who} live?\nAnswer: City{who[6:]}\n\n"


@settings(max_examples=100)
@given(n=st.integers(0, 8), k=st.integers(0, 6), seed=st.integers(0, 99))
def test_questions_come_from_single_paragraphs_and_name_them(n, k, seed):
    lm, doc = ScriptedLM(reply=asking), document(n)
    made = recycle(lm, [doc], k=k, seed=seed)
    assert len(made.examples) == min(n, k) == made.calls == len(lm.generated)
    for example, request in zip(made.examples, lm.generated, strict=True):
        number = example.meta["generated_paragraph"]
        answer = example.output.removeprefix(f"[{number}]\nAnswer: ")
        assert example.output == f"[{number}]\nAnswer: {answer}"
        paragraph = doc.paragraphs[number - 1]
        assert paragraph in request.context
        assert sum(p in request.context for p in doc.paragraphs) == 1
        assert answer in paragraph
        assert example.meta["generated_from"] == [doc.id]


def test_demonstrations_depend_on_document_and_seed_alone():
    lm, docs = ScriptedLM(reply=asking), [document(6), document(5, start=20)]
    both = recycle(lm, docs, k=3, seed=1)
    assert both.examples == (*recycle(lm, docs[:1], k=3, seed=1).examples, *recycle(lm, docs[1:], k=3, seed=1).examples)
    assert both.examples != recycle(lm, docs, k=3, seed=2).examples


def test_what_cannot_be_read_is_reported_and_another_paragraph_is_drawn():
    bad = {
        "Person0": " no idea",
        "Person1": " Why?\nAnswer:",
        "Person2": " Why?\nAnswer: " + "so " * 16,
        "Person3": " Wh",
    }

    def reply(context):
        return next((v for k, v in bad.items() if k in context), None) or asking(context)

    made = recycle(ScriptedLM(reply=reply), [document(7)], k=3)
    assert {e.meta["generated_paragraph"] for e in made.examples} == {5, 6, 7}
    short = recycle(ScriptedLM(reply=reply), [document(5)], k=3)
    assert len(short.examples) == 1
    assert short.reasons == {
        "no question and answer": 2,
        "a question without an answer": 1,
        "an answer of more than 15 words": 1,
    }
    assert short.calls == 5
    cut = recycle(ScriptedLM(reply=lambda _: " Why? Answer: because of"), [document(1)], max_tokens=5)
    assert cut.reasons == {"cut off": 1}


def test_an_answer_that_its_paragraph_does_not_hold_can_be_refused():
    lm = ScriptedLM(reply=lambda c: " Who?\nAnswer: person1!\n")
    made = recycle(lm, [document(3)], k=3, verbatim=True)
    assert [e.meta["generated_paragraph"] for e in made.examples] == [2]
    assert made.reasons == {"an answer that is not in the paragraph": 2}
    assert len(recycle(lm, [document(3)], k=3).examples) == 3


def test_a_chat_model_is_asked_in_its_own_template():
    lm = ScriptedLM(reply=lambda _: "Question: Who?\nAnswer: she\n")
    made = recycle(lm, [document(1)], chat=True)
    assert lm.generated[0].context.startswith("<|user|>\nRead the paragraph.")
    assert lm.generated[0].context.endswith("<|assistant|>\n")
    assert (made.examples[0].input, made.examples[0].output) == ("Who?", "[1]\nAnswer: she")


def test_paragraphs_of_one_sentence_are_left_out():
    doc = Document.of("Only one here.\n\nOne here. Two here!\n\n\n  \nA heading")
    assert doc.paragraphs == ("Only one here.", "One here. Two here!", "A heading")
    made = recycle(ScriptedLM(reply=lambda _: " Q?\nAnswer: a\n"), [doc], k=3)
    assert [e.meta["generated_paragraph"] for e in made.examples] == [2]


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="k is -1"):
        recycle(ScriptedLM(), [], k=-1)


def test_sentences_and_lengths_are_counted_in_scripts_without_spaces():
    paragraph = "橋は1904年に開通した。それまでは渡し船があった。"
    lm = ScriptedLM(reply=lambda _: " 橋はいつ開通した？\nAnswer: 1904年\n\n")
    assert [e.output for e in recycle(lm, [Document((paragraph,))], k=1, evidence=False).examples] == ["1904年"]
    long = ScriptedLM(reply=lambda _: f" 橋は？\nAnswer: {paragraph}\n\n")
    assert recycle(long, [Document((paragraph,))], k=1).reasons == {"an answer of more than 15 words": 1}
