"""Any object that fits and selects is a whole selector once ``make_selector`` has seen it; callers ask nothing more."""

from __future__ import annotations

import pytest

from iclkit.datasets import make_task
from iclkit.errors import UsageError
from iclkit.eval import evaluate_task
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example, Pick, Query, Selection, Spec
from iclkit.selectors import SELECTORS, Kit, Needs, SelectorCost, make_selector
from iclkit.testing import FakeLM, HashEmbedder

EXAMPLES = [Example(f"text {n}", "ab"[n % 2]) for n in range(12)]


class Latest:
    """Shows what was added last; knows nothing of iclkit's base class."""

    def fit(self, pool, kit):
        self.ids = pool.ids[::-1]
        return self

    def select(self, query, k):
        kept = [i for i in self.ids if i not in query.exclude][:k]
        return Selection(query, tuple(Pick(i, 0.0, n) for n, i in enumerate(kept, 1)), Spec("latest"))


class Outspoken(Latest):
    needs = Needs(lm=True)
    spec = Spec("outspoken", {"loud": True})

    def select_many(self, queries, k):
        self.batches = getattr(self, "batches", 0) + 1
        return [self.select(q, k) for q in queries]

    def cost(self, k):
        return SelectorCost(per_query=k)

    def shared(self, k):
        return k

    def capacity(self, k):
        return min(k, 3)

    def explain(self, query, k):
        return ["because"]

    def template_for(self, given):
        return Template("Q {input} A {output}")


def test_an_object_with_fit_and_select_is_completed():
    one = make_selector(Latest()).fit(Pool.of(EXAMPLES).view(), Kit())
    assert one.select(Query("q"), 2).ids == (EXAMPLES[-1].id, EXAMPLES[-2].id)
    assert one.select_many([Query("q"), Query("r")], 1) == [one.select(Query("q"), 1), one.select(Query("r"), 1)]
    assert (one.cost(4), one.shared(4), one.capacity(4), one.explain(Query("q"), 4)) == (SelectorCost(), 0, 4, ())
    assert one.template_for(None) == Template()
    assert one.template_for(Template("{input} {output}")) == Template("{input} {output}")
    assert one.needs == Needs(pool=False, seed_scope="task")
    assert one.spec == Spec("Latest")


def test_what_the_object_has_is_its_own():
    made = Outspoken()
    one = make_selector(made).fit(Pool.of(EXAMPLES).view(), Kit())
    one.select_many([Query("q")], 1)
    assert made.batches == 1
    assert (one.cost(4), one.shared(4), one.capacity(4)) == (SelectorCost(per_query=4), 4, 3)
    assert one.explain(Query("q"), 4) == ("because",)
    assert one.template_for(None).demo == "Q {input} A {output}"
    assert one.needs.lm
    assert one.spec.name == "outspoken"


def test_nobody_knows_what_a_foreign_object_draws_so_its_seeds_count():
    assert make_selector(Outspoken()).needs.seed_scope == "task"


def test_it_is_evaluated_like_any_other():
    task = make_task(
        "t", EXAMPLES, [Example(f"test {n}", "a") for n in range(3)], template=Template("{input}: {output}")
    )
    run = evaluate_task(task, Latest(), FakeLM(), k=2)
    assert [len(row.shown) for row in run.rows] == [2, 2, 2]


def test_a_plug_in_need_not_be_derived_from_ours_and_can_stand_inside_others(monkeypatch):
    get = SELECTORS.get
    monkeypatch.setattr(SELECTORS, "get", lambda name: Latest if name == "latest" else get(name))
    view = Pool.of(EXAMPLES).view()
    fused = make_selector("rrf,of=[latest,knn]").fit(view, Kit(HashEmbedder()))
    assert len(fused.select(Query("text 3"), 3)) == 3
    assert fused.needs.seed_scope == "task"


def test_an_object_that_cannot_select_is_refused_by_name():
    with pytest.raises(UsageError, match=r"selector 'int' is a int without fit and select"):
        make_selector(5)
