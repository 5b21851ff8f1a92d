"""Selectors from work on translation: n-gram recall of the source, and both sides of a pair."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder, TableEmbedder

LINE = st.lists(st.sampled_from(["the", "red", "fish", "swims", "a"]), max_size=7).map(" ".join)
CASES = settings(max_examples=250, deadline=None)


def ngrams(text, n):
    words = text.split()
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def naive_recall(counts, text):
    """Order by order, as for BLEU but of the source: counts[n] is what is still worth what."""
    scores, halved, anything = [], 1, False
    for n in range(1, 5):
        total = sum(counts[n].values())
        if not total:
            break
        held = ngrams(text, n)
        shared = sum(min(worth, held[gram]) for gram, worth in counts[n].items())
        anything = anything or shared > 0
        halved *= 1 if shared else 2
        scores.append(shared / total if shared else 1 / (halved * total))
    return 100 * math.prod(scores) ** (1 / len(scores)) if anything else 0.0


@CASES
@given(lines=st.lists(LINE, min_size=1, max_size=8), query=LINE, k=st.integers(1, 9), least=st.sampled_from([0, 1, 30]))
def test_r_bm25_equals_counting_ngrams_one_pick_after_the_other(lines, query, k, least):
    view = Pool.of(Example(line, f"y{n}") for n, line in enumerate(lines)).view()
    by_bm25 = [view.ids.index(i) for i in make_selector("bm25").fit(view, Kit()).select(Query(query), len(lines)).ids]
    selection = make_selector(f"r-bm25,least={least}").fit(view, Kit()).select(Query(query), k)
    counts, left, rest = {n: ngrams(query, n) for n in range(1, 5)}, list(by_bm25), False
    alone = [naive_recall(counts, line) for line in lines]
    assert len(selection) == min(k, len(lines))
    for pick in selection:
        row = view.ids.index(pick.example_id)
        recall = {r: naive_recall(counts, lines[r]) for r in left}
        assert pick.score == pytest.approx(alone[row], abs=2e-6)
        rest = rest or max(recall.values()) < least
        if rest:
            assert row == left[0]
        else:
            equal = [r for r in left if recall[r] > max(recall.values()) - 1e-6]
            assert row == equal[0]
            for n, own in counts.items():
                for gram in own:
                    own[gram] *= 0.1 if ngrams(lines[row], n)[gram] else 1
        left.remove(row)
    shared = [bool({*query.split()} & {*lines[view.ids.index(p.example_id)].split()}) for p in selection]
    assert [p.why for p in selection] == ["" if words else "random" for words in shared]


def test_r_bm25_looks_at_bm25s_best_alone_and_names_rows_of_the_pool():
    view = Pool.of(Example(f"{'red ' * (n % 7)}fish {n}", "y") for n in range(60)).view()
    best = make_selector("bm25").fit(view, Kit()).select(Query("red red fish"), 10).ids
    for k in (3, 10):
        assert {*make_selector("r-bm25,candidates=10").fit(view, Kit()).select(Query("red red fish"), k).ids} <= {*best}


def test_what_was_shown_counts_a_tenth_so_the_missing_words_come_next():
    lines = ["the red fish", "the red fish today", "swims fast", "a dog"]
    view = Pool.of(Example(line, "y") for line in lines).view()
    ids = make_selector("r-bm25").fit(view, Kit()).select(Query("the red fish swims"), 2).ids
    assert [view.ids.index(i) for i in ids] == [0, 2]
    gone = make_selector("r-bm25,fade=0").fit(view, Kit()).select(Query("the red fish"), 3).ids
    assert [view.ids.index(i) for i in gone[:2]] == [0, 1]  # all was shown: the rest in BM25's order
    ids = make_selector("r-bm25,fade=1").fit(view, Kit()).select(Query("the red fish swims"), 2).ids
    assert [view.ids.index(i) for i in ids] == [0, 1]


@CASES
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), k=st.integers(1, 14), share=st.sampled_from([0, 0.3, 0.5, 1]))
def test_mix_equals_the_weighted_sum_of_two_cosines(seed, n, k, share):
    rng = np.random.default_rng(seed)
    table = {"q": rng.standard_normal(4), "out 0": rng.standard_normal(4), "out 1": rng.standard_normal(4)}
    table |= {f"d{i}": rng.standard_normal(4) for i in range(n)}
    examples = [Example(f"d{i}", f"out {rng.integers(2)}") for i in range(n)]
    gone = frozenset(e.id for e in examples if rng.random() < 0.2)
    view = Pool.of(examples).view()

    def cosine(a, b):
        return table[a] @ table[b] / np.linalg.norm(table[a]) / np.linalg.norm(table[b])

    score = [round(share * cosine("q", e.text) + (1 - share) * cosine("q", e.output), 6) for e in examples]
    expected = sorted((r for r in range(n) if view.ids[r] not in gone), key=lambda r: (-score[r], r))[:k]
    one = make_selector(f"mix-knn,share={share}").fit(view, Kit(embedder=TableEmbedder(table)))
    selection = one.select(Query("q", exclude=gone), k)
    np.testing.assert_allclose([p.score for p in selection], [score[r] for r in expected], atol=2e-6)
    got = [view.ids.index(i) for i in selection.ids]
    assert all(abs(score[a] - score[b]) < 3e-6 for a, b in zip(got, expected, strict=True))


def test_with_all_of_the_share_mix_is_knn():
    view = Pool.of(Example(f"the {n} fish", f"der {n} Fisch") for n in range(9)).view()
    kit, query = Kit(embedder=HashEmbedder()), Query("the 4 fish")
    mixed = make_selector("mix-knn,share=1").fit(view, kit).select(query, 5)
    plain = make_selector("knn").fit(view, kit).select(query, 5)
    assert mixed.ids == plain.ids
    np.testing.assert_allclose([p.score for p in mixed], [p.score for p in plain], atol=2e-6)


@pytest.mark.parametrize("spec", ["mix-knn,share=1.5", "r-bm25,fade=2", "r-bm25,candidates=0", "r-bm25,least=-1"])
def test_settings_are_checked(spec):
    with pytest.raises(UsageError, match=r"give|choose from"):
        make_selector(spec)
