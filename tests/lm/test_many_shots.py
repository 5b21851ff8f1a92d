"""Prompts of very many demonstrations: the work of making and planning them grows as they do, no faster."""

from __future__ import annotations

import pytest

from iclkit.lm._plan import make_plan
from iclkit.lm._tokens import PromptTokenizer
from iclkit.prompts import ORDERS, Template, assemble
from iclkit.records import Example, Query

from .conftest import train_tokenizer

LABELS = ("good", "bad", "fine")
TEMPLATE = Template("Review: {input}\nSentiment: {output}")


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self):
        self.inner, self.characters = train_tokenizer("bpe", False), 0
        self.backend_tokenizer, self.chat_template = self.inner.backend_tokenizer, None
        self.bos_token_id, self.eos_token_id = self.inner.bos_token_id, self.inner.eos_token_id

    def __call__(self, texts, **settings):
        self.characters += sum(map(len, [texts] if isinstance(texts, str) else texts))
        return self.inner(texts, **settings)


def examples(count):
    return [Example(f"the film number {n} was thin", LABELS[n % 3]) for n in range(count)]


def work(shots, queries=4):
    """(characters tokenized, tokens computed, tokens asked) of all labels of some queries after the same shots."""
    tokenizer = Counting()
    codec = PromptTokenizer(tokenizer)
    tokenizer.characters = 0
    shown = examples(shots)
    prompts = [
        assemble(TEMPLATE, Query(f"the plot {n}"), shown, budget=10**9, count_tokens=codec.count).text
        for n in range(queries)
    ]
    plan = make_plan(codec.pairs([(p, f" {label}") for p in prompts for label in LABELS]), 2048)
    return tokenizer.characters, plan.tokens_computed, plan.tokens_asked


def test_twice_the_demonstrations_are_twice_the_work_and_not_more():
    small, large = work(1000), work(2000)
    assert all(b <= 2.1 * a for a, b in zip(small, large, strict=True))


def test_demonstrations_that_all_queries_share_are_tokenized_and_read_once():
    for shots in (500, 1000):
        characters, computed, asked = work(shots, queries=8)
        text = sum(len(TEMPLATE.render_demo(e)) + 2 for e in examples(shots))
        assert characters < 1.3 * text + 2000
        assert computed < 1.1 * asked / (8 * len(LABELS))


def test_a_budget_is_met_in_a_few_counts_of_thousands_of_demonstrations():
    counted = []

    def count(text):
        counted.append(len(text))
        return len(text.split())

    shown = examples(3000)
    prompt = assemble(TEMPLATE, Query("the plot"), shown, budget=9000, count_tokens=count)
    assert 9000 - 8 < prompt.tokens <= 9000
    assert len(counted) <= 12


@pytest.mark.parametrize("order", ORDERS.names())
def test_no_order_compares_every_demonstration_with_every_other(order):
    compared = [0]

    class Watched(str):
        def __eq__(self, other):
            compared[0] += 1
            return str.__eq__(self, other)

        def __ne__(self, other):
            return not self == other

        __hash__ = str.__hash__

    shown = [Example(f"text {n}", "a" if n < 1000 else "b") for n in range(2000)]
    for example in shown:
        object.__setattr__(example, "output", Watched(example.output))
    ORDERS.get(order)(shown, seed=0, query_id="q")
    assert compared[0] < 40 * len(shown)
