from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import NeedError, UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.selectors import Kit, SelectorCost, make_selector
from iclkit.selectors._label_scorer import entropy
from iclkit.selectors._mdl import ordered_subsets
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM

LABELS = ("label 0", "label 1", "a third")


def naive_entropy(lm, text, normalize):
    """- sum p log p over the labels, one score at a time."""
    raw = [lm._score(text, " " + label) for label in LABELS]
    values = [math.exp(s.logprob / (s.tokens if normalize == "mean" else 1)) for s in raw]
    return -sum(v / sum(values) * math.log(v / sum(values)) for v in values)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    k=st.integers(1, 5),
    window=st.integers(1, 6),
    normalize=st.sampled_from(["mean", "sum"]),
    prefer=st.sampled_from(["lowest", "highest"]),
    order=st.sampled_from(["best-last", "best-first"]),
)
def test_mdl_equals_asking_about_one_subset_after_the_other(world, seed, n, k, window, normalize, prefer, order):
    w = world(seed, n, exclude=(0,) if n > 1 else ())
    kit = replace(w.kit, lm=FakeLM(), labels=LABELS, order=order)
    spec = f"mdl,candidates=4,window={window},normalize={normalize},prefer={prefer}"
    selection = make_selector(spec).fit(w.view, kit).select(w.query, k)
    nearest = make_selector("knn").fit(w.view, kit).select(w.query, max(k, 4)).ids
    lists = ordered_subsets(nearest, k, window, "mdl", kit.seed, w.query.id)
    texts = {e.id: f"Input: {e.input}\nOutput: {e.output}" for e in w.view.examples}
    best, best_value = None, None
    for positions in lists:
        ids = [nearest[p] for p in positions]
        shown = ids if order == "best-first" else ids[::-1]
        text = "\n\n".join([*(texts[i] for i in shown), "Input: q\nOutput:"])
        value = round(naive_entropy(FakeLM(), text, normalize) * (1 if prefer == "lowest" else -1), 6)
        if best_value is None or value < best_value:
            best, best_value = ids, value
    assert [*selection.ids] == best


@settings(max_examples=200)
@given(n=st.integers(0, 12), k=st.integers(1, 12), window=st.integers(1, 8), salt=st.integers(0, 9))
def test_the_plain_list_comes_first_and_the_others_are_ordered_subsets(n, k, window, salt):
    ids = [f"id{i}" for i in range(n)]
    lists = ordered_subsets(ids, k, window, salt)
    assert lists.shape == (window, min(k, n))
    assert lists[0].tolist() == [*range(min(k, n))]
    assert all(len({*row}) == len(row) and all(0 <= p < n for p in row) for row in lists.tolist())
    assert ordered_subsets(ids, k, window + 1, salt)[:-1].tolist() == lists.tolist()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), k=st.integers(1, 13))
def test_a_window_of_one_is_knn(world, seed, n, k):
    w = world(seed, n)
    kit = replace(w.kit, lm=FakeLM())
    ids = make_selector("knn").fit(w.view, kit).select(w.query, k).ids
    kit = replace(kit, labels=LABELS)
    assert make_selector("mdl,window=1").fit(w.view, kit).select(w.query, k).ids == ids
    same = replace(kit, lm=ScriptedLM(logprob=lambda *_: -1.0))  # an LM that cannot tell: ties go to the plain list
    assert make_selector("mdl,normalize=sum").fit(w.view, same).select(w.query, k).ids == ids


def test_entropy_lies_between_zero_and_that_of_the_uniform():
    rng = np.random.default_rng(0)
    for n in range(1, 6):
        values = entropy(rng.standard_normal((50, n)) * 10)
        assert (values >= 0).all()
        assert (values <= math.log(n) + 1e-12).all()
    assert entropy(np.array([0.0, -np.inf, -1e9])) == 0
    assert entropy(np.array([-700.0, -700.0])) == pytest.approx(math.log(2))


def test_the_list_that_makes_the_lm_sure_is_chosen_and_all_labels_of_all_queries_go_in_one_call():
    calls = []

    class Counting(ScriptedLM):
        def score(self, requests, on_done=None):
            calls.append(len(requests))
            return super().score(requests, on_done)

    # sure only when the demonstration nearest to the query (shown last) is "gold"
    lm = Counting(logprob=lambda c, y: -9.0 if "gold\nOutput: x\n\nInput: q\n" in c and y == " y" else -1.0)
    view = Pool.of([Example("gold", "x"), *(Example(f"q {n}", "xy"[n % 2]) for n in range(6))]).view()
    one = make_selector("mdl,window=40,candidates=7").fit(view, Kit(HashEmbedder(), lm, labels=("x", "y")))
    queries = [Query("q", id="1"), Query("q", id="2")]
    assert all(s.ids[0] == view.ids[0] for s in one.select_many(queries, 2))
    assert calls == [2 * 40 * 2]
    assert one.cost(2) == SelectorCost(per_query=80)


def test_a_query_brings_its_own_choices():
    template = Template("{input}\n{choices}\nAnswer: {letter}")
    pool = [Example(f"q{n}", f"good {n}", choices=(f"bad {n}", f"good {n}")) for n in range(5)]
    seen = []

    def logprob(context, continuation):
        seen.append(continuation)
        return -1.0

    one = make_selector("mdl,window=2").fit(
        Pool.of(pool).view(), Kit(HashEmbedder(), ScriptedLM(logprob), template=template)
    )
    assert len(one.select(Query("q", ("one", "two", "three")), 2)) == 2
    assert seen == [" A", " B", " C"] * 2


def test_a_task_without_labels_is_refused():
    view = Pool.of(Example(f"q{n}", f"text {n}") for n in range(9)).view()
    with pytest.raises(NeedError, match="task with labels"):
        make_selector("mdl").fit(view, Kit(HashEmbedder(), FakeLM())).select(Query("q"), 2)


@pytest.mark.parametrize("spec", ["mdl,window=0", "mdl,candidates=0", "mdl,prefer=best", "mdl,normalize=no"])
def test_settings_out_of_range_are_refused(spec):
    with pytest.raises(UsageError, match="mdl"):
        make_selector(spec)


def test_an_lm_that_is_sure_of_itself_is_still_asked_which_subset_makes_it_surest():
    sure = ScriptedLM(logprob=lambda context, label: -1e-12 if label == " yes" else -18.0 - len(context) % 11)
    view = Pool.of(Example("word " * (n + 1), "yes" if n % 2 else "no") for n in range(9)).view()
    kit = Kit(embedder=HashEmbedder(), lm=sure, labels=("yes", "no"))
    best = make_selector("mdl,window=12,candidates=9").fit(view, kit).select(Query("word two"), 2)
    every = [make_selector(f"mdl,window={w},candidates=9").fit(view, kit) for w in range(1, 13)]
    assert best.picks[0].score == max(s.select(Query("word two"), 2).picks[0].score for s in every)
    assert best.picks[0].score > every[0].select(Query("word two"), 2).picks[0].score
