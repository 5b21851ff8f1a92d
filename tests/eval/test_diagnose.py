"""Diagnostics: known answers on a hand-made bench, and a naive second way."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.eval import diagnose, make_bench
from iclkit.eval._diagnose import gini
from iclkit.pool import Pool
from iclkit.predictors import Tools
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder, OverlapReranker

from .worlds import classification, generation


@pytest.fixture
def bench(home):
    return make_bench(classification(test=60))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_gini_equals_the_mean_absolute_difference(counts):
    n, total = len(counts), sum(counts)
    expected = sum(abs(a - b) for a in counts for b in counts) / (2 * n * total) if total else 0
    assert gini(np.array(counts)) == pytest.approx(expected)


@pytest.mark.parametrize("selector", ["random", "knn", "balanced"])
def test_every_figure_equals_a_plain_loop(bench, selector):
    embedder = HashEmbedder()
    found = diagnose(bench, selector, Tools(embedder=embedder), k=4)
    chooser = make_selector(selector).fit(bench.view, Kit(embedder, None, None, bench.task.labels))
    by_id = {e.id: e for e in bench.view.examples}
    picks = [[by_id[i] for i in chooser.select(q, 4).ids] for q in bench.queries]
    hits = [[e.output == g for e in p] for p, g in zip(picks, bench.golds, strict=True)]
    assert found.label_recall == pytest.approx(np.mean([any(h) for h in hits]))
    assert found.label_match == pytest.approx(np.mean([np.mean(h) for h in hits]))
    assert found.labels == pytest.approx(np.mean([len({e.output for e in p}) for p in picks]))
    count = Counter(e.id for p in picks for e in p)
    assert found.coverage == pytest.approx(len(count) / 45)
    assert found.top[0][1] == max(count.values())
    cosines = [
        embedder.encode_queries([q.text])[0] @ embedder.encode_documents([e.text])[0]
        for q, p in zip(bench.queries, picks, strict=True) for e in p
    ]  # fmt: skip
    assert found.relevance == pytest.approx(np.mean(cosines), abs=1e-5)
    pairs = [
        embedder.encode_documents([a.text])[0] @ embedder.encode_documents([b.text])[0]
        for p in picks for i, a in enumerate(p) for j, b in enumerate(p) if i != j
    ]  # fmt: skip
    assert found.redundancy == pytest.approx(np.mean(pairs), abs=1e-5)


def test_likeness_shows_in_the_figures(bench):
    random, knn = (diagnose(bench, s, Tools(embedder=HashEmbedder()), k=4) for s in ("random", "knn"))
    assert knn.relevance > random.relevance
    assert knn.label_match > random.label_match
    assert knn.words > random.words
    assert knn.majority > random.majority


def test_zero_has_no_figures_but_does_not_fail(bench):
    found = diagnose(bench, "zero", Tools())
    assert math.isnan(found.label_match)
    assert (found.coverage, found.exposure, found.top) == (0, 0, ())


def test_a_task_without_labels_has_no_label_figures(home):
    found = diagnose(make_bench(generation()), "bm25", Tools(), k=3)
    assert all(math.isnan(x) for x in (found.label_recall, found.label_match, found.majority, found.labels))
    assert math.isnan(found.relevance)
    assert 0 < found.words <= 1


def test_queries_that_get_fewer_than_k_are_counted(home):
    task = classification(test=4)
    assert diagnose(make_bench(task, Pool.of(task.train[:3])), "random", Tools(), k=5).short == 0
    double = make_bench(task, Pool.of([*task.train[:3], task.test[0]]))
    assert diagnose(double, "random", Tools(), k=4).short == 1


def test_a_selector_with_a_reranker_is_diagnosed(bench):
    tools = Tools(embedder=HashEmbedder(), reranker=OverlapReranker())
    found = diagnose(bench, "rerank,of=bm25,depth=6", tools, k=3)
    chooser = make_selector("rerank,of=bm25,depth=6").fit(bench.view, tools.kit(bench.context))
    picks = [bench.view.examples_of(s.ids) for s in chooser.select_many(bench.queries, 3)]
    hits = [[e.output == gold for e in of_query] for of_query, gold in zip(picks, bench.golds, strict=True)]
    assert found.label_recall == pytest.approx(np.mean([any(h) for h in hits]))
