"""LangChain's own templates, filled by a selector."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import Chooser, Kit, make_selector
from iclkit.testing import HashEmbedder

pytest.importorskip("langchain_core", reason="langchain-core is not installed: pip install 'iclkit[langchain]'")

from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    PromptTemplate,
)

from iclkit.integrations.langchain import ExampleSelector

ROWS = [
    {"question": "how do I reset my password", "answer": "Use the link on the login page."},
    {"question": "where is my parcel", "answer": "See the tracking page."},
    {"question": "can I have my money back", "answer": "Yes, within 30 days."},
]


def tickets(**given: object) -> ExampleSelector:
    return ExampleSelector.from_examples(
        ROWS, "knn", 2, input_keys=["question"], output_key="answer", embedder=HashEmbedder(), **given
    )  # type: ignore[arg-type]


def test_a_few_shot_prompt_shows_the_nearest_last() -> None:
    prompt = FewShotPromptTemplate(
        example_selector=tickets(),
        example_prompt=PromptTemplate.from_template("Q: {question}\nA: {answer}"),
        suffix="Q: {question}\nA:",
        input_variables=["question"],
    )
    text = prompt.format(question="where is my parcel now")
    assert text.endswith("Q: where is my parcel\nA: See the tracking page.\n\nQ: where is my parcel now\nA:")
    assert text.count("Q:") == 3


def test_variables_that_are_no_input_do_not_disturb(chooser: Chooser) -> None:
    selector = ExampleSelector(chooser, input_keys=["text"], output_key="team")
    plain = selector.select_examples({"text": "parcel late"})
    assert selector.select_examples({"text": "parcel late", "today": "Monday", "history": ["…"]}) == plain
    assert {*plain[0]} >= {"text", "team"}
    with pytest.raises(UsageError, match="no value for 'text'; given are today"):
        selector.select_examples({"today": "Monday"})


def test_the_folder_of_a_saved_selector_is_taken(world) -> None:
    shown = ExampleSelector(world.kept, input_keys=["text"]).select_examples({"text": "refund card twice"})
    assert [e["text"] for e in shown] == [
        world.chooser.view.examples_of([i])[0].input for i in reversed(world.chooser.select("refund card twice").ids)
    ]


def test_braces_in_a_demonstration_are_text() -> None:
    code = {"question": "how do I write a dict", "answer": 'd = {"a": {1}}'}
    rows = [*ROWS, code]
    kit = {"input_keys": ["question"], "output_key": "answer", "embedder": HashEmbedder()}
    chat = FewShotChatMessagePromptTemplate(
        example_selector=ExampleSelector.from_examples(rows, "knn", 1, **kit),
        example_prompt=ChatPromptTemplate.from_messages([("human", "{question}"), ("ai", "{answer}")]),
        input_variables=["question"],
    )
    assert [m.content for m in chat.format_messages(question="write a dict")] == [*code.values()]
    text = FewShotPromptTemplate(
        example_selector=ExampleSelector.from_examples(rows, "knn", 1, escape_braces=True, **kit),
        example_prompt=PromptTemplate.from_template("{question} -> {answer}"),
        suffix="{question} ->",
        input_variables=["question"],
    )
    assert text.format(question="write a dict") == f"{code['question']} -> {code['answer']}\n\nwrite a dict ->"


def test_an_added_example_is_shown_and_kept_in_the_pool(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add([Example(r["question"], r["answer"]) for r in ROWS])
        fitted = make_selector("knn").fit(pool.view(), Kit(embedder=HashEmbedder()))
        selector = ExampleSelector(fitted, 1, input_keys=["question"], output_key="answer")
        new = {"question": "do you ship to Norway", "answer": "Yes."}
        selector.add_example(new)
        assert selector.select_examples({"question": "ship to Norway"}) == [new]
        assert len(pool) == 4
    memory = tickets()
    asyncio.run(memory.aadd_example(new))
    assert asyncio.run(memory.aselect_examples({"question": "ship to Norway"}))[-1] == new


def test_a_variable_can_be_a_filter(chooser: Chooser) -> None:
    selector = ExampleSelector(chooser, 8, input_keys=["text"], where_keys=["lang"])
    assert {e["lang"] for e in selector.select_examples({"text": "parcel late", "lang": "de"})} == {"de"}
    assert {e["lang"] for e in selector.select_examples({"text": "parcel late", "lang": "en"})} == {"en"}


def test_keys_that_cannot_be_the_pools_are_refused_when_it_is_made(chooser: Chooser) -> None:
    with pytest.raises(UsageError, match="inputs of the pool are texts, and there are 2 input keys"):
        ExampleSelector(chooser, input_keys=["question", "context"])
    fields = Pool.of([Example({"question": "a", "context": "b"}, "c")])
    fitted = make_selector("bm25").fit(fields.view(), Kit())
    with pytest.raises(UsageError, match="fields question, context, and the input keys are question"):
        ExampleSelector(fitted, input_keys=["question"])
    assert ExampleSelector(fitted, 1).select_examples({"question": "x", "context": "b"})[0]["output"] == "c"


def test_what_is_no_selector_is_refused() -> None:
    with pytest.raises(UsageError, match="a selector is a Chooser, a fitted selector or the folder"):
        ExampleSelector(object())  # type: ignore[arg-type]
