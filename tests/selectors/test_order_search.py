from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query
from iclkit.selectors import Kit, SelectorCost, make_selector
from iclkit.selectors._order_search import distinct_orders, global_entropy, local_entropy, with_replacements
from iclkit.testing import FakeLM, ScriptedLM

LABELS = ("good", "very bad", "so so")
POOL = Pool.of(Example(f"input number {n} of the pool", LABELS[n % 3]) for n in range(12)).view()
TEMPLATE = Template("Text: {input}\nKind: {output}")


def fitted(spec, lm=None, **kit):
    return make_selector(spec).fit(POOL, Kit(lm=lm or FakeLM(), template=TEMPLATE, labels=LABELS, **kit))


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["globale", "locale"]),
    seed=st.integers(0, 10**6),
    k=st.integers(2, 3),
    probes=st.integers(1, 6),
    normalize=st.sampled_from(["sum", "mean"]),
    order=st.sampled_from(["best-last", "best-first", "edges"]),
)
def test_the_search_equals_trying_one_order_after_the_other(name, seed, k, probes, normalize, order):
    spec = f"{name},probe=pool,probes={probes},normalize={normalize}"
    selection = fitted(spec, seed=seed, order=order).select(Query("x"), k)
    drawn = make_selector("random-fixed").fit(POOL, Kit(seed=seed)).select(Query("x"), k + probes).ids
    rows = [POOL.examples_of([i])[0] for i in drawn]
    best, best_value = None, -math.inf
    for ranked in permutations(rows[:k]):
        said, unsure = [], []
        for probe in rows[k:]:
            text = assemble(TEMPLATE, Query(probe.input), ranked, order=order).text
            scores = [FakeLM()._score(text, " " + label) for label in LABELS]
            raw = [s.logprob / (s.tokens if normalize == "mean" else 1) for s in scores]
            p = [math.exp(v) / sum(math.exp(u) for u in raw) for v in raw]
            said.append(raw.index(max(raw)))
            unsure.append(-sum(q * math.log(q) for q in p))
        shares = [said.count(n) / len(said) for n in range(3) if n in said]
        value = -sum(s * math.log(s) for s in shares) if name == "globale" else sum(unsure) / len(unsure)
        if round(value, 6) > best_value:
            best, best_value = ranked, round(value, 6)
    assert [*selection.ids] == [e.id for e in best]
    assert selection.picks[0].score == pytest.approx(best_value, abs=1e-5)


def test_the_order_found_is_the_order_shown_under_the_policy_it_was_found_with():
    def logprob(context, continuation):
        good = context.index(demos[1]) < context.index(demos[0]) < context.index(demos[2])
        return -1.0 if good else -9.0 * LABELS.index(continuation.strip())

    fixed = make_selector("random-fixed").fit(POOL, Kit()).select(Query("x"), 3).ids
    texts = {i: POOL.examples_of([i])[0] for i in fixed}
    demos = [e.input for e in texts.values()]
    for policy in ("best-last", "best-first", "edges"):
        one = fitted("locale,probe=pool", ScriptedLM(logprob), order=policy)
        ranked = [texts[i] for i in one.select(Query("x"), 3).ids]
        shown = assemble(TEMPLATE, Query("x"), ranked, order=policy).text
        assert shown.index(demos[1]) < shown.index(demos[0]) < shown.index(demos[2])
    with pytest.raises(UsageError, match="'random' loses it"):
        fitted("locale", order="random")


def test_the_search_is_made_once_for_all_queries_and_in_two_calls():
    lm = FakeLM()
    one = fitted("globale,probe=pool,probes=5", lm)
    first = one.select_many([Query("x"), Query("y")], 4)
    assert len({s.ids for s in first}) == 1
    assert len(lm.scored) == one.cost(4).per_task == 24 * 5 * 3
    one.select(Query("z"), 4)
    assert len(lm.scored) == 24 * 5 * 3
    assert fitted("globale").cost(4) == SelectorCost(per_task=24 * (1 + 100 * 3))
    assert fitted("globale").cost(2) == SelectorCost(per_task=2 * (1 + 100 * 3))


def test_the_lm_writes_the_probing_inputs_and_its_labels_are_thrown_away():
    words = "one two three four five six"
    reply = (
        f" {words}\nKind: good\n\nText: too short\nKind: good\n\nText: {words} seven\nKind: rare\n\nText: cut off by"
    )
    lm = ScriptedLM(reply=lambda _: reply)
    one = fitted("globale,orders=3", lm)
    assert one.select(Query("x"), 3).notes == ()
    assert all(r.context.endswith("\n\nText:") for r in lm.generated)
    assert {r.seed for r in lm.generated} == {0, 1, 2}
    probed = {r.context.rpartition("Text: ")[2] for r in lm.scored}
    assert probed == {f"{words}\nKind:", f"{words} seven\nKind:"}
    assert len(lm.scored) == 3 * 2 * 3


def test_an_lm_that_writes_nothing_usable_is_replaced_by_the_pool_and_the_user_is_told():
    one = fitted("globale", ScriptedLM(reply=lambda _: " hm"))
    assert any("the LM wrote none" in note for note in one.select(Query("x"), 3).notes)
    short = make_selector("globale").fit(Pool.of(POOL.examples[:3]).view(), Kit(lm=FakeLM(), labels=LABELS))
    selection = short.select(Query("x"), 3)
    assert len(selection) == 3
    assert any("no input to probe with" in note for note in selection.notes)


def test_an_lm_that_always_says_the_same_is_worth_nothing_and_ties_go_to_the_plain_order():
    fixed = make_selector("random-fixed").fit(POOL, Kit()).select(Query("x"), 4)
    lm = ScriptedLM(logprob=lambda _, y: -float(len(y)))
    one = fitted("globale,probe=pool", lm).select(Query("x"), 4)
    assert one.ids == fixed.ids
    assert {p.score for p in one} == {0.0}


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 5))
def test_entropies_are_bounded_and_do_not_depend_on_the_names_of_labels(seed, probes, labels):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((probes, labels)) * 3
    turned = values[:, rng.permutation(labels)]
    for worth in (global_entropy, local_entropy):
        assert -1e-12 <= worth(values) <= math.log(labels) + 1e-12
        assert worth(values) == pytest.approx(worth(turned))
        assert worth(values) == pytest.approx(worth(values - 7))


@settings(max_examples=200)
@given(st.integers(0, 7), st.integers(1, 30), st.integers(0, 99))
def test_orders_are_distinct_permutations_the_plain_one_first(n, most, seed):
    orders = [tuple(o) for o in distinct_orders(n, most, seed).tolist()]
    assert orders[0] == tuple(range(n))
    assert len(orders) == len({*orders}) == min(most, math.factorial(n))
    assert all(sorted(o) == [*range(n)] for o in orders)
    assert orders == [tuple(o) for o in distinct_orders(n, most, seed).tolist()]


def test_an_excluded_row_is_replaced_where_it_stands():
    allowed = np.array([True, False, True, False, True, True])
    assert with_replacements(np.array([2, 1, 0]), np.array([3, 4, 5]), allowed.__getitem__).tolist() == [2, 4, 0]
    assert with_replacements(np.array([1, 3, 0]), np.array([5]), allowed.__getitem__).tolist() == [5, 0]


@pytest.mark.parametrize("spec", ["globale,orders=0", "locale,probe=none", "globale,normalize=x"])
def test_settings_out_of_range_are_refused(spec):
    with pytest.raises(UsageError, match=spec[:6]):
        make_selector(spec)


@pytest.mark.parametrize(
    "written", ["明日の天気はとてもいいです", "می\u200cخواهم به خانه بروم امروز", "यह फ़िल्म बहुत अच्छी है"]
)
def test_inputs_written_in_any_script_are_probed_with(written):
    lm = ScriptedLM(reply=lambda _: f" {written}\nKind: good\n\n")
    assert fitted("globale", lm=lm).select(Query("x"), 2).notes == ()
    assert written in {r.context.split("Text: ")[-1].split("\n")[0] for r in lm.scored}
