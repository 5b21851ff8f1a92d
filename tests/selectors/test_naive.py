"""Selectors against second implementations that are as plain as can be: loops, sets and full recomputation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.pool import Pool
from iclkit.pool._terms import TermIndex, Terms, words
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.selectors._coverage import coverage_order
from iclkit.selectors._facility import facility_order
from iclkit.selectors._terms import nearest_by_words
from iclkit.testing import HashEmbedder, TableEmbedder

SEEDS = st.integers(0, 10**6)
WORDS = ["red", "green", "blue", "fish", "cat", "dog", "the", "a"]
LINE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
LINES = st.lists(LINE, min_size=1, max_size=9)
CASES = settings(max_examples=200, deadline=None)


def by_score(rows, score):
    """Best first; equal scores by row."""
    return sorted(rows, key=lambda r: (-score[r], r))


def excluded(seed, n):
    """None, some or nearly all of the rows."""
    rng = np.random.default_rng(seed)
    return {r for r in range(n) if rng.random() < rng.choice([0, 0.2, 0.8])}


def asked(view, gone):
    return Query("q", exclude=frozenset(view.ids[r] for r in gone))


def rows_of(view, selection):
    return [view.ids.index(i) for i in selection.ids]


@CASES
@given(seed=SEEDS, n=st.integers(1, 14), k=st.integers(1, 8))
def test_kmeans_equals_the_member_nearest_to_each_mean(world, seed, n, k):
    from sklearn.cluster import KMeans

    w, gone = world(seed, n), excluded(seed, n)
    vectors = w.kit.embedder.encode_documents([e.text for e in w.view.examples]).astype(np.float64)
    by_id = sorted(range(n), key=lambda r: w.view.ids[r])
    different = len({tuple(np.round(v, 6)) for v in vectors})
    found = KMeans(min(k, different), n_init=1, random_state=w.kit.seed).fit(vectors[by_id]).labels_
    own = {row: int(label) for row, label in zip(by_id, found, strict=True)}
    members = {label: [r for r in range(n) if own[r] == label] for label in set(own.values())}
    means = {label: np.mean([vectors[r] for r in rows], axis=0) for label, rows in members.items()}
    near = {r: round(float(vectors[r] @ means[own[r]] / np.linalg.norm(means[own[r]])), 6) for r in range(n)}
    expected = []
    for label in sorted(members, key=lambda c: (-len(members[c]), c)):
        expected += by_score([r for r in members[label] if r not in gone], near)[:1]
    expected += by_score([r for r in range(n) if r not in gone and r not in expected], near)
    selection = make_selector("kmeans").fit(w.view, w.kit).select(asked(w.view, gone), k)
    assert rows_of(w.view, selection) == expected[:k]
    np.testing.assert_allclose([p.score for p in selection], [near[r] for r in expected[:k]], atol=2e-6)


@CASES
@given(seed=SEEDS, n=st.integers(1, 14), k=st.integers(1, 10), near=st.integers(0, 6))
@pytest.mark.parametrize("fixed", ["random-fixed", "mfl"])
def test_hybrid_equals_the_nearest_of_the_rest_and_then_the_fixed_part(world, fixed, seed, n, k, near):
    w, gone = world(seed, n), excluded(seed, n)
    everything = make_selector(fixed).fit(w.view, w.kit).select(Query("d0"), n)
    prefix = rows_of(w.view, everything)[: max(0, k - near)]
    shown = [r for r in prefix if r not in gone]
    own = by_score([r for r in range(n) if r not in gone and r not in prefix], w.sim)[: k - len(shown)]
    selection = make_selector(f"hybrid,near={near},fixed={fixed}").fit(w.view, w.kit).select(asked(w.view, gone), k)
    assert rows_of(w.view, selection) == own + shown
    np.testing.assert_allclose([p.score for p in selection], [*w.sim[own], *[0] * len(shown)], atol=2e-6)


@CASES
@given(seed=SEEDS, n=st.integers(1, 14), k=st.integers(1, 8), lang=st.sampled_from(["de", "en"]), task=st.booleans())
def test_filter_equals_the_nearest_of_those_that_fit(world, seed, n, k, lang, task):
    w, gone, rng = world(seed, n), excluded(seed, n), np.random.default_rng(seed)
    examples = [
        replace(e, task=str(rng.choice(["x", "y"])), meta={} if rng.random() < 0.2 else {"language": str(x)})
        for e, x in zip(w.view.examples, rng.choice(["de", "en"], n), strict=True)
    ]
    view = Pool.of(examples).view()
    fit = [r for r, e in enumerate(examples) if e.meta.get("language") == lang and (not task or e.task == "x")]
    spec = f'filter,where={{"language":"{lang}"}}' + (",task=x" if task else "")
    if not fit:
        return
    selection = make_selector(spec).fit(view, w.kit).select(asked(view, gone), k)
    assert rows_of(view, selection) == by_score([r for r in fit if r not in gone], w.sim)[:k]


class _Coarse:
    """A reranker with many ties: a few values, by the pair's text."""

    name = fingerprint = "coarse"

    def score(self, pairs):
        return np.array([self.of(*pair) for pair in pairs], dtype=np.float32)

    @staticmethod
    def of(query, text):
        return sum(map(ord, query + text)) % 4 / 4


@CASES
@given(seed=SEEDS, n=st.integers(1, 14), k=st.integers(1, 8), depth=st.integers(1, 10))
def test_rerank_equals_sorting_the_candidates_by_score(world, seed, n, k, depth):
    w, gone = world(seed, n), excluded(seed, n)
    read = by_score([r for r in range(n) if r not in gone], w.sim)[: max(k, depth)]
    score = {r: _Coarse.of("q", f"d{r}") for r in read}
    one = make_selector(f"rerank,depth={depth}").fit(w.view, replace(w.kit, reranker=_Coarse()))
    selection = one.select(asked(w.view, gone), k)
    assert rows_of(w.view, selection) == by_score(read, score)[:k]
    assert [p.score for p in selection] == [score[r] for r in rows_of(w.view, selection)]


def covered(parts, rows):
    """What a set is worth: for each part of the query its best example."""
    return sum(max(parts[r][p] for r in rows) for p in range(len(parts[rows[0]]))) if rows else -math.inf


def assert_greedy(parts, order, candidates):
    """Each pick adds as much as any could, in rounds; the last digits may decide between equals."""
    current = []
    for at, row in enumerate(order):
        left = [r for r in candidates if r not in order[:at]]
        if current and max(covered(parts, [*current, r]) for r in left) <= covered(parts, current) + 1e-5:
            best = max(covered(parts, [r]) for r in left)
            if covered(parts, [row]) >= best - 1e-5:
                current = []  # a new round
        assert covered(parts, [*current, row]) >= max(covered(parts, [*current, r]) for r in left) - 1e-5
        current.append(row)


@CASES
@given(lines=LINES, query=LINE, k=st.integers(1, 6), sort=st.sampled_from(["picks", "relevance"]), idf=st.booleans())
def test_set_bsr_equals_token_by_token_recall(lines, query, k, sort, idf):
    view = Pool.of(Example(line, f"y{n}") for n, line in enumerate(lines)).view()
    embedder, n = HashEmbedder(24), len(lines)
    vector = {word: embedder.encode_tokens([word])[0][1][0].astype(np.float64) for word in WORDS}
    words = query.split()
    candidates = [*range(n)]  # fewer than the setting: all are looked at
    rarity = [math.log((n + 1) / (sum(word in line.split() for line in lines) + 1)) for word in words]
    weights = [x / sum(rarity) for x in rarity] if idf and sum(rarity) > 0 else [1 / len(words)] * len(words)
    parts = [
        [w * max(float(vector[a] @ vector[b]) for b in line.split()) for a, w in zip(words, weights, strict=True)]
        for line in lines
    ]
    spec = f"set-bsr,sort={sort},weights={'idf' if idf else 'uniform'}"
    selection = make_selector(spec).fit(view, Kit(embedder=embedder)).select(Query(query), k)
    rows = rows_of(view, selection)
    assert len(rows) == min(k, n)
    np.testing.assert_allclose([p.score for p in selection], [sum(parts[r]) for r in rows], atol=1e-5)
    if sort == "picks":
        assert_greedy(parts, rows, candidates)
    else:
        picks = make_selector(spec.replace("relevance", "picks")).fit(view, Kit(embedder=embedder))
        assert set(rows) == set(rows_of(view, picks.select(Query(query), k)))
        scores = [round(p.score, 9) for p in selection]  # what differs in the last bits ties
        assert scores == sorted(scores, reverse=True)


@CASES
@given(lines=LINES, query=LINE, k=st.integers(1, 6), depth=st.integers(1, 9))
def test_bm25_coverage_equals_word_by_word_weights(lines, query, k, depth):
    view = Pool.of(Example(line, f"y{n}") for n, line in enumerate(lines)).view()
    n, mean = len(lines), sum(len(line.split()) for line in lines) / len(lines)

    def weight(word, line):
        often, holders = line.split().count(word), sum(word in other.split() for other in lines)
        rarity = math.log(1 + (n - holders + 0.5) / (holders + 0.5))
        return rarity * often / (often + 1.5 * (0.25 + 0.75 * len(line.split()) / mean))

    parts = [[weight(word, line) for word in sorted(set(query.split()))] for line in lines]
    total = [sum(weight(word, line) for word in query.split()) for line in lines]
    one = make_selector(f"bm25-coverage,candidates={depth}").fit(view, Kit())
    selection = one.select(Query(query), k)
    rows = rows_of(view, selection)
    assert len(rows) == min(k, n)
    np.testing.assert_allclose([p.score for p in selection], [sum(parts[r]) for r in rows], atol=1e-5)
    size = max(k, depth)
    border = sorted(total, reverse=True)[size - 1] if size < n else 0
    assert all(total[r] >= border - 1e-5 for r in rows)
    unclear = Counter(abs(t - border) < 1e-5 for t in total)[True] if size < n else 0
    if unclear <= 1:  # else it is open which of the equals at the border are candidates
        assert_greedy(parts, rows, [r for r in range(n) if total[r] >= border - 1e-5])
    assert [p.why for p in selection] == ["random" if sum(parts[r]) == 0 else "" for r in rows]


class _Sigmoid:
    """A reranker that gives probabilities, most of them tiny."""

    name = fingerprint = "sigmoid"

    def score(self, pairs):
        return np.array([10.0 ** -(3 + (7 * int(text[1:])) % 23) for _, text in pairs], dtype=np.float32)


def test_rerank_tells_tiny_probabilities_apart(world):
    w = world(5, 23)
    one = make_selector("rerank,depth=23").fit(w.view, replace(w.kit, reranker=_Sigmoid()))
    assert rows_of(w.view, one.select(Query("q"), 23)) == sorted(range(23), key=lambda r: (7 * r) % 23)


@pytest.mark.parametrize("name", ["rrf", "borda"])
def test_fusion_keeps_ranks_apart_however_deep_the_lists(name):
    n = 1500
    view = Pool.of(Example(f"d{i}", "y") for i in range(n)).view()
    angle = np.linspace(0, 1.5, n)
    order = np.random.default_rng(0).permutation(n)
    table = {f"d{i}": (np.cos(angle[place]), np.sin(angle[place])) for place, i in enumerate(order.tolist())}
    kit = Kit(embedder=TableEmbedder({"q": (1.0, 0.0), **table}))
    knn = make_selector("knn").fit(view, kit).select(Query("q"), n).ids
    # the reranked list is the same, so fusing the two must change nothing
    selection = make_selector(f"{name},of=[knn,mmr,trade_off=1.0,candidates={n}],depth={n}").fit(view, kit)
    fused = selection.select(Query("q"), n)
    assert fused.ids == knn
    assert len({p.score for p in fused}) > 0.95 * n


def test_bm25_tells_words_that_every_text_holds_apart_by_how_often_they_are_said():
    texts = ["the " * (1 + n % 7) + "z " * (6 - n % 7) for n in range(140_000)]
    keys = np.arange(len(texts), dtype=np.uint64)
    index = TermIndex(Terms.of(texts, words), 1.5, 0.75)
    rows, scores = nearest_by_words(index, "the", 3, np.empty(0, np.int64), lambda: keys)
    assert scores.max() < 1e-5
    assert rows.tolist() == [6, 13, 20]


def test_the_smallest_gain_is_still_a_gain():
    assert coverage_order(np.array([[5.0, 0.0], [0.0, 2e-7], [0.0, 5e-7]]), 2) == [0, 2]
    assert coverage_order(np.array([[2e-10, 0.0], [3e-10, 0.0], [0.0, 1e-10]]), 2) == [1, 2]
    # a ring of pairs, each a little apart: all gains after the first of each pair are tiny
    near = np.concatenate([np.arange(20) / 20 + gap for gap in np.linspace(0, 1e-3, 20)]) * 2 * np.pi
    order, gains = facility_order(np.stack([np.cos(near), np.sin(near)], axis=1), 200)
    for size in range(100, 200, 10):
        covered = np.cos(near[:, None] - near[order[:size]]).max(axis=1)
        every = np.maximum(np.cos(near[:, None] - near) - covered, 0).sum(axis=1)
        assert every[order[size]] >= every.max() - 2e-9
        assert gains[size] == pytest.approx(every.max(), abs=2e-9)


def test_a_long_query_is_covered_as_exactly_as_a_short_one():
    words, other = [f"w{n}" for n in range(400)], np.random.default_rng(1)
    view = Pool.of(Example(" ".join(other.choice(words, 30).tolist()), f"y{n}") for n in range(20)).view()
    embedder = HashEmbedder(24)
    selection = make_selector("set-bsr").fit(view, Kit(embedder=embedder)).select(Query(" ".join(words)), 20)
    asked = embedder.encode_tokens(words)
    for pick in selection:
        ((_, held),) = embedder.encode_tokens([view.examples_of([pick.example_id])[0].text])
        exact = np.mean([(held.astype(float) @ v[0].astype(float)).max() for _, v in asked])
        assert pick.score == pytest.approx(exact, abs=1e-6)
