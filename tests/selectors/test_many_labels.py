from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.records import Query
from iclkit.selectors import label_recall, make_selector
from iclkit.selectors._many_labels import label_cover_order


@settings(max_examples=300)
@given(labels=st.text("abcd", max_size=12), k=st.integers(0, 12), cap=st.integers(0, 3), least=st.integers(0, 5))
def test_cap_and_floor_hold_and_the_rest_stays_nearest(labels, k, cap, least):
    taken = label_cover_order(labels, k, cap, least)
    count = Counter(labels[t] for t in taken)
    most = sum(min(c, cap or c) for c in Counter(labels).values())
    assert taken == sorted(set(taken))
    assert len(taken) == min(k, most)
    assert not cap or max(count.values(), default=0) <= cap
    assert len(count) >= min(least, k, len(set(labels)))
    # a label that is shown is shown by its nearest ones
    for label, shown in count.items():
        assert [t for t in taken if labels[t] == label] == [n for n, c in enumerate(labels) if c == label][:shown]


@settings(max_examples=200)
@given(labels=st.text("abcd", min_size=1, max_size=8), k=st.integers(1, 6), least=st.integers(0, 4))
def test_the_floor_moves_as_little_as_it_can(labels, k, least):
    nearest = set(range(min(k, len(labels))))
    missing = max(0, min(least, k, len(set(labels))) - len({labels[n] for n in nearest}))
    assert len(nearest - set(label_cover_order(labels, k, 0, least))) == missing


def test_without_cap_and_floor_it_is_knn(world):
    for seed in range(10):
        w = world(seed, 30)
        ours, knn = (make_selector(n).fit(w.view, w.kit).select(w.query, 7) for n in ("many-labels", "knn"))
        assert ours.ids == knn.ids


def test_a_cap_that_leaves_too_few_says_so(world):
    w = world(2, 30, labels=3)
    selection = make_selector("many-labels,per_label_cap=1").fit(w.view, w.kit).select(w.query, 8)
    assert len(selection) == 3
    assert selection.notes == ("3 of 8 demonstrations: at most 1 of a label are shown",)
    with pytest.raises(UsageError, match="per_label_cap"):
        make_selector("many-labels,per_label_cap=-1")


def test_label_recall_is_the_accuracy_of_an_oracle_reader_and_grows_with_k(world):
    w = world(4, 60, labels=8)
    rng = np.random.default_rng(0)
    queries = [Query(f"d{n}", exclude=frozenset([w.view.ids[n]])) for n in range(60)]
    gold = [e.output for e in w.view.examples]
    one, recalls = make_selector("many-labels").fit(w.view, w.kit), []
    for k in range(1, 12):
        shown = [[w.view.examples_of([i])[0].output for i in s.ids] for s in one.select_many(queries, k)]
        oracle = [g if g in s else rng.choice(s) for g, s in zip(gold, shown, strict=True)]
        recalls.append(label_recall(shown, gold))
        assert recalls[-1] == np.mean([o == g for o, g in zip(oracle, gold, strict=True)])
    assert recalls == sorted(recalls)
    assert label_recall([], []) == 0
