"""A selector file: every query sees its list in its order under its instruction; what is wrong with it is one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.errors import DataError, UsageError
from iclkit.eval import Grid, make_bench, plan
from iclkit.pool import Pool
from iclkit.predictors import Tools
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Query
from iclkit.selectors import FixedSelector, Kit, SelectorFile, make_selector
from iclkit.testing import FakeLM, SelectorContract
from iclkit.testing._contract import _LINES

POOL = [Example(f"input number {n}", ("yes", "no")[n % 2]) for n in range(9)]
TEMPLATE = Template("Text: {input}\nKind: {output}")


class TestFixed(SelectorContract):
    @pytest.fixture
    def selector(self, tmp_path):
        lines = [Example(text, label) for label, texts in _LINES.items() for text in texts]
        SelectorFile(tuple(lines[n] for n in (7, 5, 23, 12))).write(tmp_path / "best.json")
        return make_selector(str(tmp_path / "best.json"))

    def expected_size(self, selector, k, allowed):
        return min(k, 4)


def prompt_of(ids, order):
    by_id = {e.id: e for e in POOL}
    return assemble(TEMPLATE, Query("q"), [by_id[i] for i in ids], order=order)


@given(st.permutations(range(9)), st.integers(1, 9), st.sets(st.integers(0, 8)),
       st.sampled_from(["best-last", "best-first", "edges"]))  # fmt: skip
def test_the_order_found_is_the_order_shown_under_any_policy_that_is_fixed(order, size, hidden, policy):
    found = [POOL[n] for n in order[:size]]
    fitted = FixedSelector.showing(found).fit(Pool.of(POOL).view(), Kit(order=policy))
    query = Query("q", exclude=frozenset(POOL[n].id for n in hidden))
    shown = prompt_of(fitted.select(query, 9).ids, policy).shown
    assert [*shown] == [e.id for e in found if e.id not in query.exclude]
    fewer = prompt_of(fitted.select(query, 2).ids, policy).shown
    assert [*fewer] == [*shown][-2:]


@pytest.mark.parametrize("policy", ["random", "label-interleaved"])
def test_a_policy_that_would_lose_the_order_is_refused(policy):
    found = [POOL[n] for n in (0, 2, 4, 1, 3)]
    with pytest.raises(UsageError, match=f"'{policy}' does not keep it; use best-last"):
        FixedSelector.showing(found).fit(Pool.of(POOL).view(), Kit(order=policy))


def test_a_file_read_back_is_the_file_written(tmp_path):
    rich = Example({"text": "a {brace}\nline", "aspect": "é"}, "B", "task", ("A", "B"))
    one = SelectorFile((rich, POOL[1]), "Say it.", replace(TEMPLATE, stop=("\n",)), {"sampler": "ease", "k": 2})
    one.write(tmp_path / "best.json")
    again = SelectorFile.read(tmp_path / "best.json")
    assert again == one
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]


def task():
    return make_task("things", POOL[:6], POOL[6:], template=TEMPLATE, kind="classification")


def test_the_instruction_and_the_order_are_in_every_prompt_of_a_run(tmp_path):
    SelectorFile((POOL[4], POOL[1], POOL[2]), "Answer me.").write(tmp_path / "best.json")
    lm = FakeLM()
    run = evaluate(task(), str(tmp_path / "best.json"), lm, k=3)
    assert all(row.shown == (POOL[4].id, POOL[1].id, POOL[2].id) for row in run.rows)
    assert all(r.context.startswith("Answer me.\n\nText: input number 4\nKind: yes\n\n") for r in lm.scored)
    assert run.spec.parts["template"]["instruction"] == "Answer me."
    SelectorFile((POOL[4], POOL[1], POOL[2])).write(tmp_path / "plain.json")
    evaluate(
        replace(task(), template=replace(TEMPLATE, instruction="The task's.")), str(tmp_path / "plain.json"), lm, k=3
    )
    assert lm.scored[-1].context.startswith("The task's.")


def test_a_changed_file_is_another_run_and_the_same_file_is_found_again(tmp_path):
    file, bench, lm = tmp_path / "best.json", make_bench(task(), Pool.of(POOL[:6])), FakeLM()

    def run_id():
        (job,) = plan([bench], Tools(lm), Grid((str(file),), (2,)))
        assert job.run_id == evaluate(bench, str(file), lm, k=2).id
        return job.run_id

    SelectorFile((POOL[0], POOL[1])).write(file)
    first = run_id()
    assert run_id() == first
    SelectorFile((POOL[1], POOL[0])).write(file)
    assert run_id() != first
    SelectorFile((POOL[0], POOL[1]), "Words.").write(file)
    assert run_id() != first


def test_a_demonstration_is_known_by_its_content_under_another_task_name():
    renamed = [Example(e.input, e.output, "other") for e in POOL]
    fitted = FixedSelector.showing([POOL[3], POOL[0]]).fit(Pool.of(renamed).view(), Kit())
    assert fitted.select(Query("q"), 2).ids == (renamed[0].id, renamed[3].id)


def test_what_is_shown_less_is_said():
    fitted = FixedSelector.showing(POOL[:3]).fit(Pool.of(POOL).view(), Kit())
    assert fitted.select(Query("q"), 3).notes == ()
    assert "the last 2 of the file's 3" in fitted.select(Query("q"), 2).notes[0]
    assert "3 of 8 demonstrations: the file holds 3" in fitted.select(Query("q"), 8).notes[0]
    hidden = Query("q", exclude=frozenset({POOL[0].id}))
    assert "2 of 3 demonstrations: the file holds 3, and 2" in fitted.select(hidden, 3).notes[0]


GOOD = {"iclkit_selector_file": 1, "demonstrations": [{"input": "a", "output": "b"}]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "no field `iclkit_selector_file`"),
        (json.dumps({"demonstrations": []}), "no field `iclkit_selector_file`"),
        (json.dumps(GOOD | {"iclkit_selector_file": 9}), "`iclkit_selector_file` is not 1"),
        (json.dumps(GOOD | {"demonstrations": []}), "`demonstrations` is not a list"),
        (json.dumps(GOOD | {"demonstrations": ["a"]}), "demonstration 1`: expected an object"),
        (json.dumps(GOOD | {"demonstrations": [{"input": "a"}]}), "output"),
        (json.dumps(GOOD | {"demonstrations": [{"input": 3, "output": "b"}]}), "input"),
        (json.dumps(GOOD | {"demonstrations": GOOD["demonstrations"] * 2}), "holds one example twice"),
        (json.dumps(GOOD | {"demonstrations": [{"input": "a", "output": "b", "id": "x"}]}), "`id` is not that"),
        (json.dumps(GOOD | {"instruction": 3}), "`instruction`: expected a text or null"),
        (json.dumps(GOOD | {"template": {"demo": "no fields"}}), "`template` is none that can be used"),
        (json.dumps(GOOD | {"template": {"unknown": 1}}), "`template` is none that can be used"),
        (json.dumps(GOOD | {"template": "x"}), "`template` is none that can be used"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_field_and_remedy(tmp_path, content, says):
    file = tmp_path / "best.json"
    file.write_text(content)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        make_selector(str(file)).fit(Pool.of(POOL).view(), Kit())
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_demonstration_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"none\.json \(No such file"):
        make_selector(f"{tmp_path}/none.json").fit(Pool.of(POOL).view(), Kit())
    SelectorFile((POOL[0], Example("elsewhere", "yes"))).write(tmp_path / "best.json")
    with pytest.raises(
        DataError, match=r"best\.json: demonstration 2 \('elsewhere'\) is not in the pool; use the pool"
    ):
        make_selector(f"{tmp_path}/best.json").fit(Pool.of(POOL).view(), Kit())
    with pytest.raises(UsageError, match="needs a selector file"):
        make_selector("fixed").fit(Pool.of(POOL).view(), Kit())


def test_a_file_may_stand_inside_another_selector(tmp_path):
    SelectorFile((POOL[3], POOL[0])).write(tmp_path / "best.json")
    inner = make_selector(f"rrf,of=[{tmp_path}/best.json,random-fixed]").fit(Pool.of(POOL).view(), Kit())
    assert {POOL[3].id, POOL[0].id} <= {*inner.select(Query("q"), 6).ids}
