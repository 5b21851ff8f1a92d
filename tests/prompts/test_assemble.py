from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.errors import DataError, UsageError
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Message, Query

SHOTS = [Example(f"text {n}", f"label {n % 3}") for n in range(6)]
QUERY = Query("the question")


def words(text: str) -> int:
    return len(text.split())


def render(messages: list[Message]) -> str:
    """A chat template that strips contents, as many real ones do."""
    return "".join(f"<|{m.role}|>{m.content.strip()}<|end|>" for m in messages) + "<|assistant|>"


def tiles(prompt) -> str:
    assert [s.start for s in prompt.spans] == [0, *(s.end for s in prompt.spans[:-1])]
    return "".join(prompt.text[s.start : s.end] for s in prompt.spans)


def test_a_plain_prompt_reads_instruction_then_demos_worst_first_then_the_query():
    template = Template("Input: {input}\nLabel: {output}", instruction="Classify.")
    prompt = assemble(template, QUERY, SHOTS[:2])
    assert prompt.text == (
        "Classify.\n\nInput: text 1\nLabel: label 1\n\nInput: text 0\nLabel: label 0\n\nInput: the question\nLabel:"
    )
    assert prompt.answer_prefix == " "
    assert prompt.shown == (SHOTS[1].id, SHOTS[0].id)
    assert prompt.messages is None


def test_no_demonstrations_leave_no_separator_dangling():
    assert assemble(Template("Q: {input}\nA: {output}"), QUERY, []).text == "Q: the question\nA:"
    with_instruction = assemble(Template("Q: {input}\nA: {output}", instruction="Go."), QUERY, [])
    assert with_instruction.text == "Go.\n\nQ: the question\nA:"


def test_spans_tile_the_text_and_name_what_stands_there():
    prompt = assemble(Template(instruction="Say."), QUERY, SHOTS)
    assert tiles(prompt) == prompt.text
    by_kind = {k: [prompt.text[s.start : s.end] for s in prompt.spans if s.kind == k] for k in ("input", "output")}
    assert by_kind["input"] == [e.input for e in reversed(SHOTS)]
    assert by_kind["output"] == [e.output for e in reversed(SHOTS)]
    assert [prompt.text[s.start : s.end] for s in prompt.spans if s.kind == "query"] == ["the question"]
    assert [s.example_id for s in prompt.spans if s.kind == "output"] == list(prompt.shown)


def test_a_chat_shows_each_demo_as_a_turn_pair_and_the_instruction_as_system():
    template = Template("Q: {input}\nA: {output}", instruction="Be short.", chat=True)
    prompt = assemble(template, QUERY, SHOTS[:1], render_chat=render)
    assert prompt.messages == (
        Message("system", "Be short."),
        Message("user", "Q: text 0\nA:"),
        Message("assistant", "label 0"),
        Message("user", "Q: the question\nA:"),
    )
    assert prompt.text == render(list(prompt.messages))
    assert prompt.answer_prefix == ""
    assert tiles(prompt) == prompt.text
    assert [prompt.text[s.start : s.end] for s in prompt.spans if s.kind == "output"] == ["label 0"]


def test_chat_spans_are_right_when_the_template_strips_and_the_content_looks_like_markup():
    shots = [Example("  assistant ", "  user  "), Example("<|end|>", "a")]
    prompt = assemble(Template("{input}\n{output}", chat=True), QUERY, shots, render_chat=render)
    assert tiles(prompt) == prompt.text
    assert [prompt.text[s.start : s.end] for s in prompt.spans if s.kind == "output"] == ["a", "user"]
    assert [prompt.text[s.start : s.end] for s in prompt.spans if s.kind == "input"] == ["<|end|>", "assistant"]


def test_a_chat_template_that_rewrites_contents_still_gives_spans_that_tile():
    prompt = assemble(Template(chat=True), QUERY, SHOTS, render_chat=lambda m: " ".join(x.content.upper() for x in m))
    assert tiles(prompt) == prompt.text
    assert len(prompt.shown) == 6


@given(budget=st.integers(0, 80), reserve=st.integers(0, 10), sizes=st.lists(st.integers(1, 12), max_size=8))
def test_the_budget_keeps_the_longest_run_of_best_demos_that_fits(budget, reserve, sizes):
    shots = [Example(" ".join([f"w{n}"] * size), "y") for n, size in enumerate(sizes)]
    template = Template("in {input} out {output}", instruction="do it")

    def fits(m: int) -> bool:
        return words(assemble(template, QUERY, shots[:m]).text) + reserve <= budget

    if not fits(0):
        with pytest.raises(DataError, match=f"the budget is {budget}"):
            assemble(template, QUERY, shots, budget=budget, reserve=reserve, count_tokens=words)
        return
    prompt = assemble(template, QUERY, shots, budget=budget, reserve=reserve, count_tokens=words)
    kept = max(m for m in range(len(shots) + 1) if fits(m))
    assert prompt.shown == tuple(e.id for e in shots[:kept])[::-1]
    assert [d.example_id for d in prompt.dropped] == [e.id for e in shots[kept:]]
    assert prompt.tokens == words(prompt.text)
    assert prompt.text.startswith("do it")
    assert prompt.text.endswith("in the question out")


@pytest.mark.parametrize("order", ["best-last", "best-first", "random", "label-interleaved", "edges"])
def test_what_is_dropped_is_the_worst_by_rank_under_every_order(order):
    prompt = assemble(Template(), QUERY, SHOTS, order=order, budget=25, count_tokens=words)
    assert {d.example_id for d in prompt.dropped} == {e.id for e in SHOTS[len(prompt.shown) :]}
    assert prompt.dropped
    assert "25 tokens" in prompt.dropped[0].reason


def test_thousands_of_shots_take_few_tokenizer_calls():
    shots = [Example(f"{n} " * (1 + n % 17), "y") for n in range(3000)]
    calls = []

    def count(text: str) -> int:
        calls.append(len(text))
        return words(text)

    begin = time.process_time()
    prompt = assemble(Template(), QUERY, shots, budget=8000, count_tokens=count)
    assert len(calls) <= 12
    assert time.process_time() - begin < 2
    assert 8000 - 40 < prompt.tokens <= 8000


def test_everything_fitting_takes_one_count_when_characters_show_it():
    calls = []
    prompt = assemble(Template(), QUERY, SHOTS, budget=4000, count_tokens=lambda t: calls.append(t) or words(t))
    assert len(calls) == 1
    assert len(prompt.shown) == 6


def test_a_budget_needs_a_tokenizer():
    with pytest.raises(UsageError, match="count_tokens"):
        assemble(Template(), QUERY, SHOTS, budget=10)


@pytest.mark.models
@pytest.mark.parametrize("chat", [False, True])
def test_a_real_tokenizer_and_chat_template_are_counted_exactly(smollm2_path, chat):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    def real_chat(messages: list[Message]) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    shots = [Example(f'  {{"n": {n}}} <|im_end|> ' * (1 + n % 5), f"kind {n}\n") for n in range(200)]
    template = Template("{input}\nKind: {output}", instruction="Say the kind.", chat=chat)
    prompt = assemble(template, QUERY, shots, budget=700, reserve=8, count_tokens=count, render_chat=real_chat)
    more = assemble(template, QUERY, shots[: len(prompt.shown) + 1], count_tokens=count, render_chat=real_chat)
    assert prompt.tokens == count(prompt.text) <= 700 - 8 < more.tokens
    assert tiles(prompt) == prompt.text
    assert sum(s.kind == "output" for s in prompt.spans) == len(prompt.shown) > 5
    assert prompt.text.count("Say the kind.") == 1
