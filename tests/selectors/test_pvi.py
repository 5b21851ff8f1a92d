from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._maths import hash_keys, shuffled_keys
from iclkit.selectors._pvi import label_percentile, lowest_per_label, null_template, pvi
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM, SelectorContract

TEMPLATE = Template("Text: {input}\nKind: {output}", instruction="Name the kind.")


class TestPVISelectors(SelectorContract):
    @pytest.fixture(params=["pvi-filter", "pvi-filter,of=bm25,drop=0.4,sets=1", "pvi-weight,weight=0.3"])
    def selector(self, request: pytest.FixtureRequest) -> Any:
        return make_selector(request.param)

    def expected_size(self, selector: Any, k: int, allowed: int) -> int:
        gone = 3 * math.floor(getattr(selector, "drop", 0) * 10)
        return min(k, allowed - gone)


def pool_of(labels):
    return Pool.of(Example(f"text {n}", label) for n, label in enumerate(labels)).view()


@settings(max_examples=200, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=8), shots=st.integers(0, 4), seed=st.integers(0, 99)
)
def test_pvi_equals_the_formula_written_out(labels, shots, seed):
    view, lm = pool_of(labels), FakeLM()
    values = pvi(view, Kit(lm=lm, template=TEMPLATE, seed=seed), shots=shots, sets=2)
    for number in range(2):
        keys = shuffled_keys(hash_keys(view.ids), "pvi", seed, number)
        shuffled = sorted(range(len(view)), key=lambda r: int(keys[r]))
        for row, example in enumerate(view.examples):
            demos = [view.examples[r] for r in shuffled if r != row][:shots][::-1]
            seen = "".join(f"Text: {d.input}\nKind: {d.output}\n\n" for d in demos)
            blind = "".join(f"Kind: {d.output}\n\n" for d in demos)
            with_input = lm._score(f"Name the kind.\n\n{seen}Text: {example.input}\nKind:", f" {example.output}")
            without = lm._score(f"Name the kind.\n\n{blind}Kind:", f" {example.output}")
            assert values[number, row] == pytest.approx(with_input.logprob - without.logprob)
            assert values[number, row] <= -without.logprob


def test_an_lm_that_ignores_the_input_has_no_pvi():
    labels_only = ScriptedLM(
        logprob=lambda c, y: -0.1 * sum(line.startswith("Kind") for line in c.split("\n")) - len(y)
    )
    assert not pvi(pool_of("aabbab"), Kit(lm=labels_only, template=TEMPLATE)).any()


def test_a_mislabeled_example_has_negative_pvi_and_is_found():
    def logprob(context, label):
        last = context.rpartition("Text: ")[2]
        return -0.7 if "Text" not in context else (-0.1 if label.strip() in last else -3.0)

    rows = [Example(f"a {'pos' if n % 2 else 'neg'} text {n}", "pos" if n % 2 else "neg") for n in range(20)]
    rows[4] = Example("a neg text 4", "pos")
    values = pvi(Pool.of(rows).view(), Kit(lm=ScriptedLM(logprob), template=TEMPLATE)).mean(axis=0)
    assert values[4] == pytest.approx(-2.3)
    assert np.delete(values, 4) == pytest.approx(0.6)
    assert lowest_per_label(values, [e.output for e in rows], 0.1).tolist() == [4]
    kit = Kit(embedder=HashEmbedder(), lm=ScriptedLM(logprob), template=TEMPLATE)
    one = make_selector("pvi-filter,drop=0.1").fit(Pool.of(rows).view(), kit)
    shown = one.select(Query("a neg text 4"), 18)
    assert rows[4].id not in shown.ids
    assert len(shown) == 18
    assert shown.notes == ("1 of the pool's 20 examples are left out for their low PVI",)


def test_examples_are_judged_once_and_only_when_a_query_comes():
    lm = FakeLM()
    one = make_selector("pvi-filter,sets=2").fit(pool_of("aabb" * 5), Kit(HashEmbedder(), lm, TEMPLATE))
    assert not lm.scored
    one.select_many([Query("x"), Query("y")], 3)
    one.select(Query("z"), 3)
    assert len(lm.scored) == one.cost(3).per_task == 2 * 2 * 20
    assert make_selector("pvi-filter").needs.embedder
    assert not make_selector("pvi-filter,of=bm25").needs.embedder


def test_the_null_prompt_keeps_the_words_next_to_the_answer():
    assert null_template(Template()).demo == "Output: {output}"
    assert null_template(Template("{input} => {output} <eos>")).demo == "=> {output} <eos>"
    assert null_template(Template("Q: {input}\n{choices}\nAnswer: {letter}")).demo == "Answer: {letter}"
    assert null_template(Template("{{x}} {input}\nJSON: {output}}}")).demo == "JSON: {output}}}"


@settings(max_examples=200)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=20),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99]),
)
def test_the_lowest_of_each_label_equal_a_plain_sort(labels, seed, share):
    values = np.random.default_rng(seed).integers(0, 5, len(labels)) / 4
    gone = []
    for label in set(labels):
        rows = sorted((n for n in range(len(labels)) if labels[n] == label), key=lambda n: (values[n], -n))
        gone += rows[: int(share * len(rows) + 1e-9)]
    assert lowest_per_label(values, labels, share).tolist() == sorted(gone)
    stands = label_percentile(values, labels)
    for n, label in enumerate(labels):
        own = [values[m] for m in range(len(labels)) if labels[m] == label]
        assert stands[n] == pytest.approx(
            (sum(v < values[n] for v in own) + sum(v == values[n] for v in own) / 2) / len(own)
        )


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), k=st.integers(1, 6), drop=st.sampled_from([0.0, 0.34, 0.5]))
def test_the_filter_is_knn_on_a_pool_without_the_dropped(world, seed, n, k, drop):
    w = world(seed, n)
    kit = replace(w.kit, lm=FakeLM(), labels=tuple(sorted({e.output for e in w.view.examples})))
    values = pvi(w.view, kit, shots=2, sets=1).mean(axis=0)
    gone = {w.view.ids[r] for r in lowest_per_label(values, [e.output for e in w.view.examples], drop)}
    selection = make_selector(f"pvi-filter,drop={drop},shots=2,sets=1").fit(w.view, kit).select(w.query, k)
    everything = make_selector("knn").fit(w.view, kit).select(w.query, n)
    assert [*selection.ids] == [i for i in everything.ids if i not in gone][:k]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), k=st.integers(1, 6), weight=st.sampled_from([0.0, 0.1, 3.0]))
def test_the_weight_adds_where_an_example_stands(world, seed, n, k, weight):
    w = world(seed, n)
    kit = replace(w.kit, lm=FakeLM(), labels=tuple(sorted({e.output for e in w.view.examples})))
    stands = label_percentile(pvi(w.view, kit, shots=2, sets=1).mean(axis=0), [e.output for e in w.view.examples])
    selection = make_selector(f"pvi-weight,weight={weight},candidates=5,shots=2,sets=1").fit(w.view, kit)
    nearest = make_selector("knn").fit(w.view, kit).select(w.query, max(k, 5))
    total = {p.example_id: p.score + weight * stands[w.view.ids.index(p.example_id)] for p in nearest}
    ranked = sorted(total, key=lambda i: (-round(total[i], 6), nearest.ids.index(i)))
    assert [*selection.select(w.query, k).ids] == ranked[:k]


@pytest.mark.parametrize(
    "spec", ["pvi-filter,drop=1", "pvi-filter,sets=0", "pvi-weight,weight=-1", "pvi-weight,of=[knn,bm25]"]
)
def test_settings_out_of_range_are_refused(spec):
    with pytest.raises(UsageError, match=spec[:8]):
        make_selector(spec)
