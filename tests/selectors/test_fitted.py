"""Fitted selectors: what they learn of a pool is shared, forgotten with the next pool, and can be copied."""

# ruff: noqa: S301  what is unpickled here was pickled here

from __future__ import annotations

import pickle

import pytest

from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import BUILTINS, Kit, make_selector
from iclkit.testing import HashEmbedder

WORDS = ["red", "green", "blue", "old", "new", "fish", "bird", "cat", "dog", "house", "river", "stone"]
EXAMPLES = [
    Example(f"{a} {b} number {n}", "xy"[n % 2]) for n, (a, b) in enumerate((a, b) for a in WORDS[:5] for b in WORDS[5:])
]
QUERIES = [Query("old fish"), Query("blue house"), Query("something else")]
ALONE = [n for n in BUILTINS if n != "fixed" and not (make_selector(n).needs.lm or make_selector(n).needs.reranker)]


@pytest.mark.parametrize("name", [*ALONE, "bm25,stemmer=english", "filter,of=[rrf,of=[bm25,knn]]"])
def test_a_fitted_selector_is_pickled_and_picks_the_same(name: str) -> None:
    kit = Kit(embedder=HashEmbedder(), labels=("x", "y"))
    fitted = make_selector(name).fit(Pool.of(EXAMPLES).view(), kit)
    before = [s.picks for s in fitted.select_many(QUERIES, 4)]
    again = pickle.loads(pickle.dumps(fitted))
    assert [s.picks for s in again.select_many(QUERIES, 4)] == before


@pytest.mark.parametrize("name", ALONE)
def test_a_selector_fitted_anew_forgets_the_first_pool(name: str) -> None:
    kit = Kit(embedder=HashEmbedder(), labels=("x", "y"))
    first, second = Pool.of(EXAMPLES).view(), Pool.of(reversed(EXAMPLES[5:])).view()
    once = make_selector(name).fit(second, kit)
    twice = make_selector(name).fit(first, kit)
    twice.select_many(QUERIES, 4)
    twice.fit(second, kit)
    assert [s.picks for s in twice.select_many(QUERIES, 4)] == [s.picks for s in once.select_many(QUERIES, 4)]


def test_the_words_of_a_pool_are_counted_once_for_all_selectors_k_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    from iclkit.pool._terms import Postings

    counted = []
    plain = Postings.of
    monkeypatch.setattr(Postings, "of", lambda texts: counted.append(rows := [*texts]) or plain(rows))
    view = Pool.of(EXAMPLES).view()
    for seed in (0, 1):
        for name in ("bm25", "bm25-coverage", "rrf,of=[bm25,random]", "bm25,b=0.5"):
            make_selector(name).fit(view, Kit(seed=seed)).select(QUERIES[0], 3)
    assert [len(rows) for rows in counted] == [len(EXAMPLES)]
    indexes = {key: made for key, made in view._derived.items() if key.startswith("terms ")}
    assert len(indexes) == 2
