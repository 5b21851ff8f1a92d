from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError, UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query
from iclkit.selectors import Kit, SelectorCost, make_selector
from iclkit.selectors._cone import input_requests
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 14), k=st.integers(1, 8), instruction=st.sampled_from(["", "Do it."])
)
def test_cone_equals_asking_about_one_candidate_after_the_other(world, seed, n, k, instruction):
    w = world(seed, n, exclude=(0,) if n > 1 else ())
    kit = replace(w.kit, lm=FakeLM(), template=Template("Text: {input}\nKind: {output}", instruction=instruction))
    selection = make_selector("cone,candidates=5").fit(w.view, kit).select(w.query, k)
    nearest = make_selector("knn").fit(w.view, kit).select(w.query, max(k, 5)).ids
    head = instruction + "\n\n" if instruction else ""
    scores = {}
    for i in nearest:
        e = w.view.examples_of([i])[0]
        scores[i] = FakeLM()._score(f"{head}Text: {e.input}\nKind: {e.output}\n\nText:", " q").logprob
    assert [*selection.ids] == sorted(nearest, key=lambda i: (-round(scores[i], 6), nearest.index(i)))[:k]
    assert [p.score for p in selection] == [scores[i] for i in selection.ids]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["a", "red", "fish,", "(x)"]), min_size=1, max_size=6).map(" ".join))
def test_exactly_the_characters_of_the_input_are_scored_and_the_score_is_additive(text):
    template, demo = Template("Text: {input}\nKind: {output}", instruction="Say."), Example("red", "x")
    prompt = assemble(template, Query(text), [demo])
    (request,) = input_requests(prompt)
    assert request.context == "Say.\n\nText: red\nKind: x\n\nText:"
    assert request.continuation == " " + text
    lm, total, context = FakeLM(), 0.0, request.context
    for token in re.findall(r"\s*(?:\w+|[^\w\s])", request.continuation):
        total += lm._score(context, token).logprob
        context += token
    assert lm.score([request])[0].logprob == pytest.approx(total)


def test_each_field_is_scored_where_it_stands_and_empty_ones_are_not():
    template = Template("P: {premise}\nH: {hypothesis}\nA: {output}")
    prompt = assemble(template, Query({"premise": "red fish", "hypothesis": "fish"}), [])
    assert [(r.context, r.continuation) for r in input_requests(prompt)] == [
        ("P:", " red fish"),
        ("P: red fish\nH:", " fish"),
    ]
    empty = assemble(template, Query({"premise": "", "hypothesis": "fish"}), [])
    assert [r.continuation for r in input_requests(empty)] == [" fish"]


def test_the_candidate_that_contains_the_query_wins_with_a_copying_lm():
    """The LM knows word pairs that stand in the context: a copy-bigram model."""

    def copying(context, continuation):
        seen = context.split()
        pairs, words = {*pairwise(seen)}, continuation.split()
        return sum(0.0 if pair in pairs else -5.0 for pair in pairwise(words))

    texts = ["blue dog runs home", "the red fish swims fast", "fast swims fish red the", "red the fast fish swims"]
    view = Pool.of(Example(t, "x") for t in texts).view()
    one = make_selector("cone").fit(view, Kit(HashEmbedder(), ScriptedLM(copying)))
    first = one.select(Query("the red fish swims fast"), 2).picks[0]
    assert first.example_id == view.ids[1]
    assert first.score == 0


def test_the_label_set_changes_nothing():
    view = Pool.of(Example(f"text {n}", f"y{n % 2}") for n in range(8)).view()
    with_labels = make_selector("cone").fit(view, Kit(HashEmbedder(), FakeLM(), labels=("y0", "y1")))
    without = make_selector("cone").fit(view, Kit(HashEmbedder(), FakeLM()))
    assert with_labels.select(Query("text 3"), 4).picks == without.select(Query("text 3"), 4).picks


@pytest.mark.parametrize("text", ["", " ", {"premise": "", "hypothesis": ""}])
def test_an_empty_query_costs_nothing_and_shows_the_nearest(text):
    lm, view = FakeLM(), Pool.of(Example(f"text {n}", "x") for n in range(5)).view()
    template = Template("{premise} {hypothesis}: {output}") if isinstance(text, dict) else Template()
    selection = make_selector("cone").fit(view, Kit(HashEmbedder(), lm, template)).select(Query(text), 3)
    assert selection.ids == make_selector("knn").fit(view, Kit(HashEmbedder())).select(Query(text), 3).ids
    assert lm.scored == []
    assert "the query is empty" in selection.notes[0]


def test_a_chat_is_scored_inside_the_users_turn():
    lm = FakeLM()
    kit = Kit(HashEmbedder(), lm, template=Template(chat=True))
    make_selector("cone").fit(Pool.of([Example("red", "x")]).view(), kit).select(Query("fish"), 1)
    (request,) = lm.scored
    assert request.continuation == " fish"
    assert request.context.endswith("<|user|>\nInput:")
    assert "<|assistant|>\nx<|end|>" in request.context


def test_a_chat_template_that_hides_the_query_is_refused():
    class Shouting(FakeLM):
        def render_chat(self, messages):
            return super().render_chat(messages).upper()

    kit = Kit(HashEmbedder(), Shouting(), template=Template(chat=True))
    one = make_selector("cone").fit(Pool.of([Example("red", "x")]).view(), kit)
    with pytest.raises(DataError, match="hides where the query stands"):
        one.select(Query("fish"), 1)


def test_all_candidates_of_all_queries_go_in_one_call_and_the_cost_is_said():
    lm = FakeLM()
    view = Pool.of(Example(f"text {n}", "x") for n in range(8)).view()
    one = make_selector("cone,candidates=5").fit(view, Kit(HashEmbedder(), lm))
    one.select_many([Query("a"), Query("b")], 2)
    assert len(lm.scored) == 2 * one.cost(2).per_query == 10
    assert one.cost(100) == SelectorCost(per_query=8)
    with pytest.raises(UsageError, match="cone"):
        make_selector("cone,candidates=0")
