"""Selectors that ask an LM, with a real one: what they ask for is what an independent forward pass says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder

pytestmark = pytest.mark.models

TEXTS = [
    ("a warm and funny film", "positive"),
    ("dull from start to end", "negative"),
    ("the actors are splendid", "positive"),
    ("a mess without a plot", "negative"),
    ("I laughed all evening", "positive"),
    ("two hours of my life lost", "negative"),
]
TEMPLATE = Template("Review: {input}\nSentiment: {output}")
QUERY = Query("a funny film without a dull minute")


@pytest.fixture(scope="module")
def lm(smollm2_path):
    from iclkit.lm import load_lm

    return load_lm(str(smollm2_path), dtype="fp32", device="cpu", cache=False)


@pytest.fixture(scope="module")
def logprob(smollm2_path):
    """Sum of log p over the tokens of a text after those of its beginning, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()

    def total(context, continuation):
        start, ids = len(tokenizer(context)["input_ids"]), tokenizer(context + continuation)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logp[p - 1, ids[p]]) for p in range(start, len(ids)))

    return total


@pytest.fixture(scope="module")
def view():
    return Pool.of(Example(text, label) for text, label in TEXTS).view()


def test_cone_scores_exactly_the_tokens_of_the_input(lm, logprob, view):
    picks = make_selector("cone").fit(view, Kit(HashEmbedder(), lm, TEMPLATE)).select(QUERY, 6).picks
    assert [p.score for p in picks] == sorted((p.score for p in picks), reverse=True)
    for pick in picks:
        demo = TEMPLATE.render_demo(view.examples_of([pick.example_id])[0])
        assert pick.score == pytest.approx(logprob(f"{demo}\n\nReview:", f" {QUERY.text}"), abs=2e-3)


def test_mdl_finds_the_list_of_lowest_entropy(lm, logprob, view):
    kit = Kit(HashEmbedder(), lm, TEMPLATE, ("positive", "negative"))
    selection = make_selector("mdl,window=4").fit(view, kit).select(QUERY, 2)
    text = "\n\n".join(TEMPLATE.render_demo(view.examples_of([i])[0]) for i in selection.ids[::-1])
    values = np.array([logprob(f"{text}\n\nReview: {QUERY.text}\nSentiment:", f" {y}") for y in kit.labels])
    p = np.exp(values) / np.exp(values).sum()  # each label is one token
    assert selection.picks[0].score == pytest.approx(float((p * np.log(p)).sum()), abs=2e-3)
    assert 0 <= -selection.picks[0].score <= math.log(2)
    plain = make_selector("mdl,window=1").fit(view, kit).select(QUERY, 2)
    assert selection.picks[0].score >= plain.picks[0].score


def test_globale_and_pvi_answer_with_a_real_lm(lm, view):
    kit = Kit(HashEmbedder(), lm, TEMPLATE, ("positive", "negative"))
    found = make_selector("globale,probe=pool").fit(view, kit).select(QUERY, 3)
    fixed = make_selector("random-fixed").fit(view, kit).select(QUERY, 3)
    assert sorted(found.ids) == sorted(fixed.ids)
    assert 0 <= found.picks[0].score <= math.log(2)
    assert len(make_selector("pvi-filter,drop=0.34,sets=1,shots=2").fit(view, kit).select(QUERY, 6)) == 4


def test_the_lm_writes_probing_inputs_of_its_own(lm, view):
    kit = Kit(HashEmbedder(), lm, TEMPLATE, ("positive", "negative"))
    one = make_selector("locale,orders=2,probe_tokens=48,min_words=2").fit(view, kit)
    assert one.select(QUERY, 2).notes == ()
