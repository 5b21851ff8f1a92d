"""Selectors made of selectors: fusion, filter, hybrid, rerank."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError, NeedError, UnknownName, UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.registry import parse_specs
from iclkit.selectors import Kit, make_selector, selector_info
from iclkit.selectors._fusion import BordaSelector, average_ranks, borda_points, reciprocal_ranks
from iclkit.testing import FakeLM, HashEmbedder, OverlapReranker

LINES = ["the red fish swims", "a dog barks", "ein Hund bellt", "my blue fish", "the cat sleeps", "red grass", "a bird"]
EXAMPLES = [
    Example(t, "y", task="b" if n == 6 else "a", meta={"lang": "de" if "Hund" in t else "en"})
    for n, t in enumerate(LINES)
]
VIEW = Pool.of(EXAMPLES).view()
KIT = Kit(embedder=HashEmbedder(), seed=5, reranker=OverlapReranker())


def lists_of(seed, n, how_many):
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(how_many):
        rows = rng.permutation(n)[: rng.integers(0, n + 1)]
        lists.append((rows, np.sort(rng.integers(0, 4, len(rows)) / 2)[::-1]))
    return lists


def naive_ranks(scores):
    """Mean 1-based position of all that tie, by counting."""
    return [np.mean([n + 1 for n, other in enumerate(scores) if other == s]) for s in scores]


@settings(max_examples=250)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 10), how_many=st.integers(1, 4))
def test_fusion_points_equal_counting(seed, n, how_many):
    lists = lists_of(seed, n, how_many)
    rrf, borda = defaultdict(float), defaultdict(float)
    longest = max(len(rows) for rows, _ in lists)
    for rows, scores in lists:
        for row, rank in zip(rows.tolist(), naive_ranks(scores), strict=True):
            rrf[row] += 1 / (60 + rank)
            borda[row] += longest + 1 - rank
    for points, naive in ((reciprocal_ranks(lists, n, 60), rrf), (borda_points(lists, n), borda)):
        np.testing.assert_allclose(points, [naive.get(r, -np.inf) for r in range(n)], atol=1e-12)
    for _, scores in lists:
        np.testing.assert_allclose(average_ranks(scores), naive_ranks(scores))


def test_fusing_a_list_with_itself_gives_the_list():
    for name in ("rrf", "borda"):
        fused = make_selector(f"{name},of=[knn,knn]").fit(VIEW, KIT).select(Query("red fish"), 5)
        assert fused.ids == make_selector("knn").fit(VIEW, KIT).select(Query("red fish"), 5).ids


def test_what_only_random_fill_names_gets_no_points_and_comes_last():
    fused = make_selector("rrf,of=[bm25,bm25,b=0]").fit(VIEW, KIT).select(Query("red fish"), 7)
    assert [p.why for p in fused] == ["", "", "", "random", "random", "random", "random"]
    assert {VIEW.ids.index(p.example_id) for p in fused if not p.why} == {0, 3, 5}


def test_settings_inside_the_brackets_belong_to_the_name_before_them():
    fused = make_selector("rrf,of=[bm25,mmr,trade_off=0.3,candidates=4,knn],c=10")
    assert [str(p.spec) for p in fused.parts_] == [
        "bm25,b=0.75,k1=1.5,stemmer=,tokenizer=words",
        "mmr,candidates=4,trade_off=0.3",
        "knn",
    ]
    assert fused.c == 10
    nested = make_selector("filter,of=[rrf,of=[bm25,knn],c=1]")
    assert nested.parts_[0].c == 1
    assert [s.name for s in parse_specs('["bm25", "knn"]')] == ["bm25", "knn"]
    with pytest.raises(UsageError, match="no name"):
        parse_specs("[]")


def test_needs_and_costs_are_those_of_the_parts():
    assert make_selector("rrf,of=[bm25,random]").needs.embedder is False
    assert make_selector("rrf,of=[bm25,knn]").needs.embedder is True
    assert make_selector("filter,of=[mdl,window=3]").needs.lm is True
    assert selector_info(BordaSelector)["needs"] == ["embedder"]
    with pytest.raises(NeedError, match="--embedder"):
        make_selector("hybrid").fit(VIEW, Kit())
    kit = Kit(embedder=HashEmbedder(), lm=FakeLM(), labels=("x", "y"))
    fused = make_selector("rrf,of=[knn,mdl,window=3]").fit(VIEW, kit)
    assert fused.cost(4).per_query == 6


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("rrf,of=knn", UsageError, "two or more"),
        ("rrf,of=[knn,bm52]", UnknownName, "Did you mean 'bm25'"),
        ("rrf,c=-1", UsageError, "0 or more"),
        ("borda,depth=0", UsageError, "1 or more"),
        ("filter,of=[knn,bm25]", UsageError, "one selector"),
        ("filter,where={lang:de}", UsageError, "give a JSON object"),
        ("filter,where=[1]", UsageError, "JSON object"),
        ("hybrid,near=-1", UsageError, "0 or more"),
        ("hybrid,of=[knn,bm25]", UsageError, "one selector"),
        ("rerank,of=[knn,bm25]", UsageError, "one selector"),
    ],
)
def test_settings_are_checked_when_it_is_built(spec, error, says):
    with pytest.raises(error, match=says):
        make_selector(spec)


def test_a_filter_sees_nothing_but_its_part_not_even_for_statistics():
    one = make_selector('filter,of=bm25,where={"lang":"en"},task=a').fit(VIEW, KIT)
    part = Pool.of(e for e in EXAMPLES if e.meta["lang"] == "en" and e.task == "a").view()
    alone = make_selector("bm25").fit(part, KIT)
    assert one.select(Query("red fish"), 4).ids == alone.select(Query("red fish"), 4).ids
    assert [p.score for p in one.select(Query("red fish"), 2)] == [p.score for p in alone.select(Query("red fish"), 2)]
    assert "5 of 9 demonstrations: 5 of the 5 examples that fit were allowed" in one.select(Query("fish"), 9).notes
    assert str(make_selector(str(one.spec)).spec) == str(one.spec)
    with pytest.raises(DataError, match="none of the pool's 7 examples"):
        make_selector('filter,where={"lang":"fr"}').fit(VIEW, KIT)


def test_hybrid_shows_the_fixed_part_first_and_alike_and_the_nearest_last():
    one = make_selector("hybrid,near=2").fit(VIEW, KIT)
    fixed = make_selector("random-fixed").fit(VIEW, KIT).select(Query("any"), 3).ids
    for text in ("red fish", "dog barks", "qwertz"):
        ids = one.select(Query(text), 5).ids
        assert ids[2:] == fixed
        own = make_selector("knn").fit(VIEW, KIT).select(Query(text, exclude=frozenset(fixed)), 2).ids
        assert ids[:2] == own
    gone = Query("red fish", exclude=frozenset(fixed[:1]))
    assert one.select(gone, 5).ids[3:] == fixed[1:]
    assert len(one.select(gone, 5)) == 5
    assert one.select(Query("x"), 1).ids == make_selector("knn").fit(VIEW, KIT).select(Query("x"), 1).ids


def test_rerank_orders_the_candidates_by_the_reranker():
    one = make_selector("rerank,of=knn,depth=4").fit(VIEW, KIT)
    candidates = make_selector("knn").fit(VIEW, KIT).select(Query("the red fish"), 4).ids
    score = {i: OverlapReranker().score([("the red fish", VIEW.examples_of([i])[0].text)])[0] for i in candidates}
    assert one.select(Query("the red fish"), 3).ids == tuple(sorted(candidates, key=lambda i: -score[i])[:3])
    with pytest.raises(NeedError, match="--reranker"):
        one.fit(VIEW, Kit(embedder=HashEmbedder()))
