"""What every selector owes its callers, as one pytest class."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from iclkit.errors import DataError, NeedError
from iclkit.pool import CandidateBatch, Pool, PoolView, Ranked, Scope
from iclkit.prompts import Template
from iclkit.records import Example, Query, Selection, meta_value
from iclkit.selectors import SELECTORS, Kit, make_selector
from iclkit.testing._embedder import HashEmbedder, OverlapReranker
from iclkit.testing._lm import FakeLM

_LINES = {
    "praise": (
        "the soup was hot, rich and made with care",
        "friendly staff and a quick table by the window on a busy Friday night",
        "best dumplings in town",
        "we came back twice in one week because the fish is that fresh",
        "a quiet garden, cold lemonade and cake: a perfect afternoon",
        "great value for a family of five",
        "the baker smiled and gave my son a warm roll",
        "I still dream of that chocolate tart with sea salt and cream",
        "fast, fair and clean",
        "our waiter knew every wine and never hurried us at all",
    ),
    "complaint": (
        "cold soup, again",
        "we waited an hour for a table that was booked in my name weeks ago",
        "the fish smelled old and the cook would not take it back",
        "rude staff, sticky floor, no paper towels anywhere in the place",
        "they charged my card twice and nobody answers the phone",
        "too loud to talk, too dark to read the menu",
        "my coat was stolen from the hall while the owner looked on",
        "dry cake and weak coffee",
        "the bill had three dishes on it that we never ordered or saw",
        "never again will I bring my family to this noisy barn of a restaurant",
    ),
    "question": (
        "do you have a table for five on Friday night?",
        "is the soup made with cream",
        "when does the kitchen close on Sundays and holidays?",
        "can I bring my dog into the garden",
        "which wine goes with the fish of the day, and is it dry?",
        "do you take cards",
        "are there any dishes without nuts, for my son?",
        "where may guests park a car near the restaurant after six in the evening?",
        "how much is the lunch menu",
        "could you send me the bill for last week by mail please?",
    ),
}

_TIE = 2e-6


class SelectorContract:
    """Subclass it in a test module and give it a ``selector`` fixture that returns a fresh selector, not fitted.

        class TestMine(SelectorContract):
            @pytest.fixture(params=["mine", "mine,weight=0.2"])
            def selector(self, request):
                return make_selector(request.param)

    Override ``kit``, ``examples`` or ``queries`` where a selector wants other material, and ``expected_size`` where it
    may show fewer than it could. Scores that agree to a millionth tie, and tied examples may stand for each other.
    """

    @pytest.fixture
    def selector(self) -> Any:
        """The selector under test."""
        pytest.fail("give the test class a `selector` fixture that returns a fresh selector")

    @pytest.fixture
    def examples(self) -> list[Example]:
        """The pool: thirty short texts with three labels."""
        return [Example(text, label) for label, texts in _LINES.items() for text in texts]

    @pytest.fixture
    def queries(self) -> list[Query]:
        """Queries, one of them without a word in common with the pool."""
        texts = ("was the fish fresh and the staff friendly", "table for two on Friday?", "qwertz", "the bill, please")
        return [Query(t) for t in texts]

    @pytest.fixture
    def kit(self) -> Kit:
        """Everything a selector may need, without models."""
        template = Template("Text: {input}\nKind: {output}")
        reranker = OverlapReranker()
        labels = tuple(_LINES)
        return Kit(HashEmbedder(), FakeLM(), template=template, labels=labels, seed=7, reranker=reranker)

    def expected_size(self, selector: Any, k: int, allowed: int) -> int:  # noqa: ARG002
        """How many picks there are for k when ``allowed`` examples may be shown."""
        return min(k, allowed)

    @pytest.fixture
    def fitted(self, selector: Any, examples: list[Example], kit: Kit) -> Any:
        """The selector, fitted on the pool."""
        return selector.fit(self._view(examples), kit)

    def test_never_shows_an_excluded_example(self, fitted: Any, queries: list[Query], examples: list[Example]) -> None:
        for query in queries:
            gone: frozenset[str] = frozenset()
            for _ in range(3):
                picks = fitted.select(_without(query, gone), 4)
                assert not gone & {*picks.ids}
                gone |= {*picks.ids}
            everything = frozenset(e.id for e in examples)
            assert fitted.select(_without(query, everything), 4).ids == ()
            last = fitted.select(_without(query, everything - {examples[5].id}), 4).ids
            assert {*last} <= {examples[5].id}

    def test_an_unknown_id_in_exclude_changes_nothing(self, fitted: Any, queries: list[Query]) -> None:
        for query in queries:
            assert fitted.select(_without(query, frozenset({"nowhere"})), 4).picks == fitted.select(query, 4).picks

    def test_gives_k_picks_without_repeats_and_ranks_them(
        self, fitted: Any, queries: list[Query], examples: list[Example]
    ) -> None:
        for k in (1, 3, 8):
            for selection in fitted.select_many(queries, k):
                assert len(selection) == self.expected_size(fitted, k, len(examples))
                assert len({*selection.ids}) == len(selection)
                assert {*selection.ids} <= {e.id for e in examples}
                assert [p.rank for p in selection] == [*range(1, len(selection) + 1)]
                assert all(np.isfinite(p.score) for p in selection)

    def test_k_of_zero_shows_nothing(self, fitted: Any, queries: list[Query]) -> None:
        assert all(s.ids == () for s in fitted.select_many(queries, 0))

    def test_k_beyond_the_pool_gives_what_there_is_and_says_so(
        self, fitted: Any, queries: list[Query], examples: list[Example]
    ) -> None:
        k = len(examples) + 5
        for selection in fitted.select_many(queries, k):
            size = self.expected_size(fitted, k, len(examples))
            assert len(selection) == size
            assert len({*selection.ids}) == size
            if size:
                assert any(f"{size} of {k}" in note for note in selection.notes)

    def test_many_queries_are_answered_as_one_by_one(self, fitted: Any, queries: list[Query]) -> None:
        one_by_one = [fitted.select(q, 5) for q in queries]
        assert fitted.select_many(queries, 5) == one_by_one
        assert fitted.select_many(queries[::-1], 5) == one_by_one[::-1]
        assert [*fitted.select_many(queries[:2], 5), *fitted.select_many(queries[2:], 5)] == one_by_one
        assert fitted.select_many([], 5) == []

    def test_queries_that_exclude_differently_do_not_disturb_each_other(
        self, fitted: Any, queries: list[Query], examples: list[Example]
    ) -> None:
        mixed = [_without(q, frozenset(e.id for e in examples[n::3])) for n, q in enumerate(queries)]
        assert fitted.select_many(mixed, 5) == [fitted.select(q, 5) for q in mixed]

    def test_the_same_seed_gives_the_same_picks(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        first, second = copy.deepcopy(selector), copy.deepcopy(selector)
        ours = first.fit(self._view(examples), kit).select_many(queries, 5)
        random.seed(3)
        np.random.seed(3)
        assert second.fit(self._view(examples), kit).select_many(queries[1:], 5) == ours[1:]

    def test_global_random_state_is_left_alone(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        view = self._view(examples)
        copy.deepcopy(selector).fit(view, kit).select_many(queries, 5)  # libraries that are loaded now may draw
        before = _global_random_state()
        selector.fit(view, kit).select_many(queries, 5)
        assert _global_random_state() == before

    def test_the_order_of_the_pool_does_not_matter(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        turned = [*examples[11:], *examples[:11]][::-1]
        ours = copy.deepcopy(selector).fit(self._view(examples), kit).select_many(queries, 6)
        theirs = copy.deepcopy(selector).fit(self._view(turned), kit).select_many(queries, 6)
        for one, other in zip(ours, theirs, strict=True):
            assert _same_up_to_ties(one, other)

    def test_rows_are_handles_and_may_have_holes(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        mixed = [_without(q, frozenset(e.id for e in examples[n::4])) for n, q in enumerate(queries)]
        ours = copy.deepcopy(selector).fit(self._view(examples), kit)
        spaced = selector.fit(self._spaced_view(examples), kit)
        for k in (3, 8):
            assert spaced.select_many([*queries, *mixed], k) == ours.select_many([*queries, *mixed], k)

    def test_a_filter_of_a_query_is_kept_and_does_not_disturb_other_queries(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        marked = [replace(e, meta={**e.meta, "third": n % 3}) for n, e in enumerate(examples)]
        fitted = selector.fit(self._view(marked), kit)
        filtered = [replace(q, where={"third": 1}) for q in queries]
        mixed = fitted.select_many([*filtered, *queries], 4)
        for selection in mixed[: len(filtered)]:
            assert {*selection.ids} <= {e.id for e in marked[1::3]}
        assert mixed == [fitted.select(q, 4) for q in (*filtered, *queries)]

    def test_candidates_are_those_that_looking_at_every_example_gives(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        marked = [replace(e, meta={**e.meta, "third": n % 3, "of": {"half": n % 2}}) for n, e in enumerate(examples)]
        asked = [*queries]
        for n, query in enumerate(queries):
            gone = frozenset(e.id for e in marked[n::4])
            asked += [
                _without(query, gone),
                replace(query, where={"third": 1}),
                replace(_without(query, gone), where={"third": n % 3, "of.half": 1}),
                replace(query, where={"third": 7}),
            ]
        ours = copy.deepcopy(selector).fit(self._spaced_view(marked), kit).select_many(asked, 4)
        monkeypatch.setattr(PoolView, "candidates", _naive_candidates)
        monkeypatch.setattr(PoolView, "index", lambda view, embedder, *_: _NaiveIndex(view, embedder))
        assert selector.fit(self._spaced_view(marked), kit).select_many(asked, 4) == ours

    def test_an_empty_pool_is_refused_in_one_line(self, selector: Any, queries: list[Query], kit: Kit) -> None:
        if selector.needs.pool:
            with pytest.raises(DataError, match="pool is empty"):
                selector.fit(self._view([]), kit)
        else:
            assert selector.fit(self._view([]), kit).select(queries[0], 3).ids == ()

    def test_what_it_needs_is_asked_for_before_the_work(self, selector: Any, examples: list[Example], kit: Kit) -> None:
        needed = [part for part in ("embedder", "lm", "reranker") if getattr(selector.needs, part)]
        if not needed:
            pytest.skip("it needs no model")
        for part in needed:
            with pytest.raises(NeedError, match=f"--{part}"):
                copy.deepcopy(selector).fit(self._view(examples), replace(kit, **{part: None}))  # type: ignore[arg-type]

    def test_fitting_asks_the_lm_nothing_and_what_it_will_cost_is_known(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        lm = FakeLM()
        fitted = selector.fit(self._view(examples), replace(kit, lm=lm))
        assert not lm.scored
        assert not lm.generated
        cost = fitted.cost(4)
        fitted.select_many(queries, 4)
        assert len(lm.scored) + len(lm.generated) <= cost.per_task + cost.per_query * len(queries)

    def test_several_threads_get_what_one_gets(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        if selector.needs.lm or selector.needs.reranker:
            pytest.skip("iclkit serve asks it in one thread")
        alone = copy.deepcopy(selector).fit(self._view(examples), kit)
        expected = [alone.select(query, 3) for query in queries]
        together = selector.fit(self._view(examples), kit)
        before = sys.getswitchinterval()
        with ThreadPoolExecutor(4) as pool:
            sys.setswitchinterval(1e-6)  # seconds: threads take turns as often as can be
            try:
                asked = [queries[n % len(queries) :] + queries[: n % len(queries)] for n in range(8)]
                found = [*pool.map(lambda several: together.select_many(several, 3), asked)]
            finally:
                sys.setswitchinterval(before)
        for n, selections in enumerate(found):
            at = n % len(queries)
            assert selections == expected[at:] + expected[:at]

    def test_as_many_picks_as_it_says_are_the_same_for_every_query(self, fitted: Any, queries: list[Query]) -> None:
        if not any(fitted.shared(k) for k in (1, 6)):
            pytest.skip("no pick of it is the same for every query")
        for k in (1, 6):
            selections = fitted.select_many(queries, k)
            same = set.intersection(*({*s.ids} for s in selections))
            assert len(same) >= min(fitted.shared(k), len(selections[0]))

    def test_it_picks_no_more_than_it_says_it_can(self, fitted: Any, queries: list[Query]) -> None:
        for k in (1, 8):
            assert fitted.capacity(k) <= k
            assert all(len(s) <= fitted.capacity(k) for s in fitted.select_many(queries, k))

    def test_a_seed_changes_nothing_unless_it_says_so(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        if selector.needs.seed_scope != "none":
            pytest.skip(f"it draws: {selector.needs.seed_scope}")
        for seed in (7, 8, 9):
            chosen = copy.deepcopy(selector).fit(self._view(examples), replace(kit, seed=seed)).select_many(queries, 5)
            drawn = [any(p.why for p in s) for s in chosen]
            assert selector.needs.random_fill or not any(drawn)
            if seed == 7:
                first = chosen
            assert all(random or s == one for s, one, random in zip(chosen, first, drawn, strict=True))

    def test_asking_before_fitting_or_for_less_than_nothing_is_an_error(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        with pytest.raises(DataError, match="fit"):
            selector.select(queries[0], 3)
        with pytest.raises(DataError, match="-1"):
            selector.fit(self._view(examples), kit).select(queries[0], -1)

    def test_its_spec_builds_it_again(
        self, selector: Any, queries: list[Query], examples: list[Example], kit: Kit
    ) -> None:
        if selector.spec.name not in SELECTORS.names():  # not published under an entry point yet
            SELECTORS.add(f"{type(selector).__module__}:{type(selector).__qualname__}", selector.spec.name)
        again: Any = make_selector(str(selector.spec))
        assert again.spec == selector.spec
        assert type(again) is type(selector)
        ours = copy.deepcopy(selector).fit(self._view(examples), kit).select_many(queries, 5)
        assert again.fit(self._view(examples), kit).select_many(queries, 5) == ours

    def make_pool(self, examples: Sequence[Example]) -> Pool:
        """A pool of examples. Override it to try selectors on pools that are kept elsewhere."""
        return Pool.of(examples)

    def _view(self, examples: Sequence[Example]) -> PoolView:
        return self.make_pool(examples).view()

    def _spaced_view(self, examples: Sequence[Example]) -> PoolView:
        """A view of the same examples, in their order, whose row handles are far apart: 3, 10, 17 …"""
        rows = list[Example]()
        for number, example in enumerate(examples):
            rows += [Example(f"not in the view {number} {n}", "none") for n in range(3 if not number else 6)]
            rows.append(example)
        view = self._view(rows)
        return view.only(view.rows[3::7])


def _naive_candidates(
    view: PoolView, queries: Sequence[Query], embedder: Any = None, *, whole_pool: bool = False
) -> CandidateBatch:
    """What ``PoolView.candidates`` gives, found by looking at every example for every query."""
    scopes = []
    for query in queries:
        hidden = [
            row
            for row, example in zip(view.rows.tolist(), view.examples, strict=True)
            if example.id in query.exclude
            or any(meta_value(example.meta, name) != value for name, value in query.where.items())
        ]
        scopes.append(Scope(frozenset(hidden)))
    return CandidateBatch(view, queries, scopes, embedder, whole_pool)


class _NaiveIndex:
    """Search that computes every score of every row and sorts."""

    approximate = None

    def __init__(self, view: PoolView, embedder: Any) -> None:
        texts = [embedder.document_text(e) for e in view.examples]
        self.rows, self.matrix = view.rows, view.text_vectors(embedder, texts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    def vectors(self, rows: Any) -> Any:
        at = {row: n for n, row in enumerate(self.rows.tolist())}
        return self.matrix[[at[int(row)] for row in rows]]

    def nearest(self, queries: Any, k: int, scopes: Sequence[Scope]) -> list[Ranked]:
        found = []
        for query, scope in zip(queries, scopes, strict=True):
            scores = np.round(np.array([v.astype(np.float64) @ query.astype(np.float64) for v in self.matrix]), 6)
            inside = [n for n, row in enumerate(self.rows.tolist()) if scope.allowed(np.array([row]))[0]]
            best = sorted(inside, key=lambda n: (-scores[n], n))[: max(k, 0)]
            found.append(Ranked(self.rows[best], scores[best].astype(np.float32)))
        return found


def _global_random_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def _without(query: Query, ids: frozenset[str]) -> Query:
    return Query(query.input, query.choices, ids, query.id)


def _same_up_to_ties(one: Selection, other: Selection) -> bool:
    """Equal scores in order, and the same ids for each score. Others may tie with the last, so its ids may differ.

    Where all scores are equal, nothing but the ids tells the picks apart: then they must be the same, in order.
    """
    scores, others = ([p.score for p in s] for s in (one, other))
    if len(scores) != len(others) or not np.allclose(scores, others, rtol=0, atol=_TIE):
        return False
    by_score = np.argsort(scores)
    breaks = np.flatnonzero(np.diff(np.array(scores)[by_score]) > _TIE) + 1
    groups = [g.tolist() for g in np.split(by_score, breaks)]
    if len(groups) == 1:
        return one.ids == other.ids
    return all(
        {one.ids[n] for n in group} == {other.ids[n] for n in group} for group in groups if len(scores) - 1 not in group
    )
