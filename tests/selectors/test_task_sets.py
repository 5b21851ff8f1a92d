"""Sets chosen once for the task: facility location, least similar, clusters, vote-k."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.selectors import Kit, SelectorCost, make_selector
from iclkit.selectors._facility import facility_order, spread_order
from iclkit.selectors._votek import _most_votes, fast_vote_order, neighbor_rows
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM, TableEmbedder


def unit_rows(seed, n, dim=6):
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def coverage(near, rows):
    return float(np.maximum(near[list(rows)].max(axis=0), -1).sum())


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), m=st.integers(1, 12))
def test_lazy_facility_location_equals_plain_greedy(seed, n, m):
    vectors = unit_rows(seed, n)
    near = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    order, gains = facility_order(vectors, m)
    assert len(set(order)) == len(order) == min(m, n)
    for size, row in enumerate(order):
        value = {r: coverage(near, [*order[:size], r]) for r in range(n) if r not in order[:size]}
        assert value[row] >= max(value.values()) - 2e-6
        before = coverage(near, order[:size]) if size else -n
        assert gains[size] == pytest.approx(value[row] - before, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 9), m=st.integers(1, 4))
def test_facility_location_reaches_the_guaranteed_share(seed, n, m):
    vectors = unit_rows(seed, n)
    near = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    best = max(coverage(near, rows) for rows in combinations(range(n), min(m, n))) + n
    assert coverage(near, facility_order(vectors, m)[0]) + n >= (1 - 1 / np.e) * best - 1e-6


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), m=st.integers(1, 12))
def test_the_least_similar_come_next(seed, n, m):
    vectors, start = unit_rows(seed, n), seed % n
    near = np.round(vectors @ vectors.T, 6)
    order, _ = spread_order(vectors, m, start)
    assert order[0] == start
    assert len(set(order)) == len(order) == min(m, n)
    for size in range(1, len(order)):
        total = {r: near[r, order[:size]].sum() for r in range(n) if r not in order[:size]}
        assert total[order[size]] <= min(total.values()) + 2e-6


def test_a_set_for_the_task_is_the_same_for_every_query_and_grows(world):
    w = world(3, 25, dim=5)
    for name in ("mfl", "diverse"):
        one = make_selector(name).fit(w.view, w.kit)
        assert one.select(Query("q"), 9).ids == one.select(Query("d3"), 9).ids
        assert one.select(Query("q"), 4).ids == one.select(Query("q"), 9).ids[:4]
        gone = frozenset(one.select(Query("q"), 9).ids[:3])
        rest = one.select(Query("q", exclude=gone), 6).ids
        assert rest == one.select(Query("q"), 9).ids[3:]


def test_kmeans_shows_one_of_each_cluster_large_ones_first():
    tight = {f"a{n}": "red fish" for n in range(5)} | {f"b{n}": "blue dog" for n in range(3)} | {"c0": "green grass"}
    view = Pool.of(Example(f"{text} {name}", "y") for name, text in tight.items()).view()
    one = make_selector("kmeans").fit(view, Kit(embedder=HashEmbedder(256)))
    shown = [view.examples_of([i])[0].text for i in one.select(Query("x"), 3).ids]
    assert [t.split()[0] for t in shown] == ["red", "blue", "green"]
    heads = one.select(Query("x"), 3).ids
    without = one.select(Query("x", exclude=frozenset(heads[:1])), 3).ids
    assert view.examples_of([without[0]])[0].text.startswith("red")
    assert without[1:] == heads[1:]


def test_kmeans_with_fewer_different_texts_than_k_still_gives_k():
    view = Pool.of(Example("same", f"y{n}") for n in range(5)).view()
    assert len(make_selector("kmeans").fit(view, Kit(embedder=HashEmbedder())).select(Query("x"), 4)) == 4


def naive_votes(neighbours, m, density):
    """The definition, with sets and whole numbers: 10 ** -h as 10 ** (votes - h)."""
    n, most = neighbours.shape
    voters = [[] for _ in range(n)]
    for v, row in enumerate(neighbours.tolist()):
        for u in row:
            voters[u].append(v)
    heard, order = [0] * n, []
    while len(order) < min(m, n):
        taken = {*order}
        score = {
            u: sum(10 ** (most - heard[v]) for v in voters[u] if v not in taken) for u in range(n) if u not in taken
        }
        order.append(min(score, key=lambda u: (-score[u], -density[u], u)))
        for v in voters[order[-1]]:
            heard[v] += 1
    return order


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 14), k=st.integers(1, 6), m=st.integers(1, 14))
def test_fast_vote_k_equals_the_definition(seed, n, k, m):
    rng = np.random.default_rng(seed)
    near = np.array([rng.permutation(np.delete(np.arange(n), v))[: min(k, n - 1)] for v in range(n)])
    density = rng.integers(0, 3, n) / 4
    assert fast_vote_order(near, m, density) == naive_votes(near, m, density)


@pytest.mark.parametrize(("n", "votes", "m"), [(50, 150, 50), (200, 150, 100), (600, 150, 60), (1500, 40, 60)])
def test_fast_vote_k_is_exact_however_far_the_votes_have_faded(n, votes, m):
    vectors = unit_rows(n, n, dim=16)
    near, density = neighbor_rows(vectors, votes), np.round(vectors @ vectors.mean(axis=0), 6)
    assert fast_vote_order(near, m, density) == naive_votes(near, m, density)


def test_votes_too_small_for_a_float_are_still_told_apart():
    # rows 0 and 1 are voted for by rows 2 to 14, all of which were heard 400 times, and row 1 once more faintly
    near = np.array([[0, 1]] * 2 + [[0, 1]] * 13 + [[1, 1]])
    heard = np.array([0, 0, *[400] * 13, 500])
    voting = np.ones(16, dtype=np.bool_)
    voting[[0, 1]] = False
    rows = np.array([0, 1])
    assert _most_votes(near, rows, voting, heard).tolist() == [1]
    heard[2] = 0  # now what is left of the others is too little for a float64 beside it
    assert _most_votes(near, rows, voting, heard).tolist() == [1]
    voting[15] = False
    assert _most_votes(near, rows, voting, heard).tolist() == [0, 1]


def test_what_vote_k_picks_of_a_small_pool_is_spread_over_it_as_random_picks_are():
    view = Pool.of(Example(f"d{n}", "y") for n in range(600)).view()
    rng = np.random.default_rng(0)
    centres, sizes = rng.standard_normal((40, 24)), rng.geometric(0.12, 40) + 1
    of = rng.choice(40, 600, p=sizes / sizes.sum())
    vectors = centres[of] + 0.6 * rng.standard_normal((600, 24))
    kit = Kit(embedder=TableEmbedder({f"d{n}": v for n, v in enumerate(vectors)}))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def distance(rows):
        return float(np.mean(1 - (unit @ unit[rows].T).max(axis=1)))

    chosen = make_selector("vote-k,budget=100").fit(view, kit).annotated_
    random = np.mean([distance(rng.choice(600, 100, replace=False)) for _ in range(20)])
    assert distance(chosen) < 1.05 * random  # of near ties all in dense places it was 1.38


def test_the_first_vote_goes_to_the_row_most_vote_for_and_its_voters_then_count_a_tenth():
    near = np.array([[1], [2], [1], [1], [5], [4]])  # row 1 has three voters, 4 and 5 one each, 2 one: row 1 itself
    assert fast_vote_order(near, 1, np.zeros(6)) == [1]
    # then 4 and 5 have one unheard voter each and tie; once 4 is taken, its vote for 5 is void, and nothing is left
    assert fast_vote_order(near, 3, np.zeros(6)) == [1, 4, 0]
    assert fast_vote_order(near, 2, np.array([0, 0, 0, 0, 0, 0.5])) == [1, 5]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 20), k=st.integers(1, 22))
def test_neighbours_leave_oneself_out(seed, n, k):
    vectors = unit_rows(seed, n)
    near = np.round(vectors @ vectors.T, 6)
    found = neighbor_rows(vectors, k)
    for v in range(n):
        others = sorted((u for u in range(n) if u != v), key=lambda u: (-near[v, u], u))
        assert found[v].tolist() == others[: min(k, n - 1)]


def test_vote_k_serves_queries_from_its_budget_alone_and_by_nearness(world):
    w = world(8, 40, dim=6)
    one = make_selector("vote-k,budget=10,neighbors=5,center=false").fit(w.view, w.kit)
    labeled = {w.view.ids[r] for r in one.annotated_}
    assert len(labeled) == 10
    selection = one.select(w.query, 15)
    assert set(selection.ids) == labeled
    assert selection.notes == ("10 of 15 demonstrations: 10 of the 10 labeled examples were allowed",)
    sims = [w.sim[w.view.ids.index(i)] for i in selection.ids]
    assert sims == sorted(sims, reverse=True)


def test_vote_k_about_the_mean_uses_one_mean_for_pool_and_query(world):
    w = world(9, 30, dim=6)
    one = make_selector("vote-k,budget=30,neighbors=5").fit(w.view, w.kit)
    mean = w.kit.embedder.encode_documents([e.text for e in w.view.examples]).mean(axis=0)
    vectors = w.kit.embedder.encode_documents([e.text for e in w.view.examples]) - mean
    target = w.kit.embedder.encode_queries(["q"])[0] - mean
    cosine = vectors @ target / np.linalg.norm(vectors, axis=1) / np.linalg.norm(target)
    np.testing.assert_allclose([p.score for p in one.select(w.query, 30)], np.sort(cosine)[::-1], atol=1e-5)


POOL = [Example(f"{'good' if n % 2 else 'bad'} number {n}", "yes" if n % 2 else "no") for n in range(24)]
TEMPLATE = Template("Text: {input}\nLabel: {output}")


def test_confident_vote_k_never_labels_the_surest_tenth_and_takes_one_of_each_bucket():
    def logprob(context: str, continuation: str) -> float:
        number = int(context.rsplit("number ", 1)[1].split("\n")[0])
        return -1.0 / (1 + number) if continuation == " yes" else -9.0  # the higher the number, the surer

    lm = ScriptedLM(logprob)
    view = Pool.of(POOL).view()
    kit = Kit(embedder=HashEmbedder(), lm=lm, template=TEMPLATE, labels=("yes", "no"))
    one = make_selector("vote-k-confidence,budget=8,seeds=3,neighbors=4").fit(view, kit)
    assert lm.scored == []  # fitting is free: the LM is asked with the first query
    assert one.cost(4) == SelectorCost(per_task=(24 - 3) * 2)
    one.select(Query("x"), 4)
    assert len(lm.scored) == (24 - 3) * 2
    seeds, rest = one.annotated_[:3].tolist(), one.annotated_[3:].tolist()
    by_confidence = [r for r in range(24) if r not in seeds]
    size = int(0.9 * 21 / 5)
    assert [by_confidence.index(r) // size for r in rest] == [0, 1, 2, 3, 4]
    one.select(Query("y"), 4)
    assert len(lm.scored) == (24 - 3) * 2


def test_confident_vote_k_reads_generations_where_there_are_no_labels():
    view = Pool.of(Example(f"text {n}", f"answer {n}") for n in range(12)).view()
    lm = FakeLM()
    kit = Kit(embedder=HashEmbedder(), lm=lm, template=TEMPLATE)
    one = make_selector("vote-k-confidence,budget=6,seeds=2,neighbors=3").fit(view, kit)
    assert len(one.select(Query("x"), 6)) == 6
    assert len(lm.generated) == len(lm.scored) == 10
    assert Counter(one.annotated_.tolist()).most_common(1)[0][1] == 1


def test_an_lm_that_says_nothing_is_least_sure():
    def reply(context: str) -> str:
        number = int(context.rsplit("text ", 1)[1].split("\n")[0])
        return "" if number % 2 else " something"

    class Strict(ScriptedLM):
        def score(self, requests, on_done=None):
            assert all(r.continuation.strip() for r in requests)  # a real LM refuses an empty continuation
            return super().score(requests, on_done)

    view = Pool.of(Example(f"text {n}", f"answer {n}") for n in range(22)).view()
    kit = Kit(embedder=HashEmbedder(), lm=Strict(reply=reply), template=TEMPLATE)
    one = make_selector("vote-k-confidence,budget=4,seeds=2,neighbors=3").fit(view, kit)
    one.select(Query("x"), 4)
    silent, talking = one.annotated_[2:].tolist()
    assert silent % 2 == 1
    assert talking % 2 == 0


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.data
@pytest.mark.parametrize(("name", "size"), [("sst2", 24), ("geoquery", 14)])
def test_confident_vote_k_with_a_real_lm_spends_what_it_says(smollm2_path, shared_data, name, size):
    from iclkit.datasets import load_task
    from iclkit.lm import load_lm

    task, lm = load_task(str(shared_data / name)), load_lm(str(smollm2_path), cache=False, workers=1)
    view = Pool.of(task.train[:size]).view()
    kit = Kit(HashEmbedder(), lm, task.template, task.labels, reserve=24)
    one = make_selector("vote-k-confidence,budget=10,seeds=4,neighbors=5").fit(view, kit)
    selections = one.select_many(task.queries()[:3], 4)
    assert lm.usage.requests <= one.cost(4).per_task
    assert len({*one.annotated_.tolist()}) == 10
    assert {i for s in selections for i in s.ids} <= {view.ids[r] for r in one.annotated_}
    rest = np.setdiff1d(np.arange(size), one.annotated_[:4])
    confidence = one._confidence(rest, one.annotated_[:4])
    assert np.ptp(confidence[np.isfinite(confidence)]) > 0.05
    assert (confidence <= 0).all()


@pytest.mark.parametrize("spec", ["vote-k,budget=0", "vote-k,neighbors=0", "vote-k-confidence,seeds=0"])
def test_settings_are_checked(spec):
    with pytest.raises(UsageError, match="1 or more"):
        make_selector(spec)
