"""What a seed draws is declared by each selector, and the declaration is true."""

from __future__ import annotations

import numpy as np
import pytest

from iclkit import Example, Pool, Query
from iclkit.selectors import SELECTORS, Kit, make_selector
from iclkit.testing import HashEmbedder

DRAWN_BY_TASK = {
    "random-fixed",
    "kmeans",
    "diverse",
    "vote-k-confidence",
    "globale",
    "locale",
    "pvi-filter",
    "pvi-weight",
}
DRAWN_BY_QUERY = {"random", "balanced", "mdl"}
COMPOSITES = {"filter", "hybrid", "borda", "rrf", "rerank"}
WITHOUT_MODELS = ("random", "balanced", "random-fixed", "kmeans", "diverse", "knn", "mmr", "bm25", "vote-k", "zero")


@pytest.mark.parametrize("name", sorted({*SELECTORS.names()} - COMPOSITES - {"fixed"}))
def test_every_selector_declares_what_its_seed_draws(name):
    wanted = "task" if name in DRAWN_BY_TASK else "query" if name in DRAWN_BY_QUERY else "none"
    assert make_selector(name).needs.seed_scope == wanted


def test_a_composite_claims_no_more_than_its_parts():
    for name in sorted(COMPOSITES):
        made = make_selector(name)
        scopes = [part.needs.seed_scope for part in made.parts_]
        assert made.needs.seed_scope == max(scopes, key=("none", "query", "task").index)
    assert make_selector("hybrid").needs.seed_scope == "task"


@pytest.fixture
def view(tmp_path):
    pool = Pool.open(tmp_path / "pool.db")
    rng = np.random.default_rng(0)
    words = ["rain", "sun", "snow", "wind", "goal", "match", "coach", "vote", "law", "bank"]
    pool.add([Example(" ".join(rng.choice(words, 6)), "ab"[i % 2]) for i in range(60)])
    return pool.view()


@pytest.mark.parametrize("name", WITHOUT_MODELS)
def test_the_declaration_is_what_the_picks_do(name, view):
    """none: no seed changes a pick. task: picks change together. query: they change, and each query by itself."""
    queries = [Query(f"rain and goal {i}", id=f"q{i}") for i in range(12)]

    def picks(seed):
        kit = Kit(embedder=HashEmbedder(16), labels=("a", "b"), seed=seed)
        return [s.ids for s in make_selector(name).fit(view, kit).select_many(queries, 4)]

    by_seed = [picks(seed) for seed in range(4)]
    scope = make_selector(name).needs.seed_scope
    assert (len({tuple(p) for p in map(tuple, by_seed)}) == 1) == (scope == "none")
    if scope == "query":
        assert all(len({tuple(p) for p in run}) > 6 for run in by_seed)  # each query has a draw of its own
    if scope == "task" and name == "random-fixed":
        assert all(len({tuple(p) for p in run}) == 1 for run in by_seed)
