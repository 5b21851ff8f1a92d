"""One bad row costs itself: the run completes, says so, and asks again for that row alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from iclkit import evaluate
from iclkit.datasets import load_task, make_task
from iclkit.errors import DataError, ModelError, NothingAnswered, PoolError, RequestError
from iclkit.eval import METRICS, Metric, cautions, load_run, make_bench, suspects
from iclkit.eval._advise import advise
from iclkit.predictors import PromptPredictor, Settings, Tools
from iclkit.records import Row
from iclkit.report import leaderboard, to_json
from iclkit.selectors import BaseSelector, make_selector
from iclkit.testing import FakeLM, ScriptedLM

from .worlds import LABELS, classification, copying_lm, generation, leaky


@pytest.fixture(autouse=True)
def _own_home(home):
    return home


class Filtering(ScriptedLM):
    """A server that refuses prompts that hold one of some words, whatever else is asked."""

    def __init__(self, *words: str, like=None):
        like = like or copying_lm()
        super().__init__(like._logprob, like._reply)
        self.words = words

    def _refuse(self, requests):
        for i, r in enumerate(requests):
            if {*self.words} & {*r.context.split("\n\n")[-1].split()}:
                raise RequestError(i, "the server refuses this prompt (content_filter)")

    def score(self, requests, on_done=None):
        self._refuse(requests)
        return super().score(requests, on_done)

    def generate(self, requests, on_done=None):
        self._refuse(requests)
        return super().generate(requests, on_done)


def marked(count=150, bad=(7, 70)):
    """The task of things, in which some test rows hold a word that a server may refuse."""
    task = classification(test=count)
    test = [replace(e, input=e.text + " filthy", id="") if n in bad else e for n, e in enumerate(task.test)]
    return replace(task, test=tuple(test))


def test_a_refused_prompt_is_a_failed_row_and_the_others_are_what_they_are_without_it(tmp_path):
    task = marked()
    run = evaluate(task, "random", Filtering("filthy"), k=2, out=tmp_path)
    clean = evaluate(task, "random", copying_lm(), k=2)
    failed = [n for n, row in enumerate(run.rows) if row.failure]
    assert failed == [7, 70]
    assert [r for n, r in enumerate(run.rows) if n not in failed] == [
        r for n, r in enumerate(clean.rows) if n not in failed
    ]
    assert (run.rows[7].output, run.rows[7].metrics, run.rows[7].label_logprobs) == ("", {}, {})
    assert run.rows[7].shown == clean.rows[7].shown
    assert "content_filter" in run.rows[7].failure
    assert (run.facts["failed"], run.facts["done"]) == (2, True)
    assert load_run(tmp_path / run.id).rows == run.rows


def test_a_failed_row_names_the_file_and_the_line(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, examples in (("train", classification().train), ("test", marked().test)):
        lines = [json.dumps({"input": e.text, "output": e.output}) for e in examples]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    run = evaluate(load_task(folder), "random", Filtering("filthy"), k=2)
    failures = [r.failure for r in run.rows if r.failure]
    assert failures[0].endswith("test.jsonl, line 8: the server refuses this prompt (content_filter)")
    with pytest.raises(DataError, match=r"test\.jsonl, line 8: the server refuses"):
        evaluate(load_task(folder), "random", Filtering("filthy"), k=2, on_error="stop")


def test_a_rerun_asks_for_the_failed_rows_alone_and_ends_in_the_bytes_of_an_unbroken_run(tmp_path):
    task = marked()
    first = evaluate(task, "random", Filtering("filthy"), k=2, out=tmp_path / "broken")
    lm = copying_lm()
    again = evaluate(task, "random", lm, k=2, out=tmp_path / "broken")
    assert {r.context.split("\n\n")[-1].split("\n")[0] for r in lm.scored} == {
        f"Text: {task.test[n].text}" for n in (7, 70)
    }
    assert again.id == first.id
    assert "failed" not in again.facts
    evaluate(task, "random", copying_lm(), k=2, out=tmp_path / "whole")
    files = [(tmp_path / name / first.id / "rows.jsonl").read_bytes() for name in ("broken", "whole")]
    assert files[0] == files[1]
    untouched = copying_lm()
    evaluate(task, "random", untouched, k=2, out=tmp_path / "broken")
    assert untouched.scored == []


def test_a_rerun_that_still_fails_keeps_the_run_finished(tmp_path):
    task = marked()
    evaluate(task, "random", Filtering("filthy"), k=2, out=tmp_path)

    class Away(FakeLM):
        def score(self, requests, on_done=None):
            raise ModelError("the server is away")

    away = Away(name="scripted")
    with pytest.raises(ModelError, match="away"):
        evaluate(task, "random", away, k=2, out=tmp_path)
    run = load_run(next(p.parent for p in tmp_path.glob("*/run.json")))
    assert (run.facts["done"], run.facts["failed"], len(run.rows)) == (True, 2, 150)
    again = evaluate(task, "random", Filtering("filthy"), k=2, out=tmp_path)
    assert again.facts["failed"] == 2


def test_an_error_of_the_lm_itself_stops_the_run():
    class Broken(FakeLM):
        def score(self, requests, on_done=None):
            raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        evaluate(classification(test=5), "random", Broken(), k=2)


def test_a_row_over_the_context_fails_alone():
    task = classification(test=20)
    long = replace(task.test[3], input="word " * 300, id="")
    task = replace(task, test=(*task.test[:3], long, *task.test[4:]))
    run = evaluate(task, "random", FakeLM(context_size=120), k=2)
    assert [n for n, r in enumerate(run.rows) if r.failure] == [3]
    assert "instruction and query take 304 tokens" in run.rows[3].failure
    assert run.rows[3].prompt_hash == ""


def test_a_written_answer_that_is_refused_fails_alone():
    task = generation()
    run = evaluate(task, "random", Filtering("103", "110"), k=2)
    assert [n for n, r in enumerate(run.rows) if r.failure] == [3, 10]
    assert {r.metrics["exact_match"] for r in run.rows if not r.failure} == {1.0}


def judged_by(monkeypatch, judge):
    metric = Metric("picky", judge=judge)
    monkeypatch.setattr(METRICS, "get", lambda name: metric)
    return replace(generation(), metric="picky")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (ZeroDivisionError("division by zero"), "metric 'picky' raised ZeroDivisionError: division by zero"),
        (DataError("no such table: t"), "no such table: t"),
        (float("nan"), "metric 'picky' gave nan"),
        (float("inf"), "metric 'picky' gave inf"),
        ("good", "metric 'picky' raised TypeError"),
        (None, "metric 'picky' raised TypeError"),
    ],
)
def test_a_metric_that_gives_no_number_costs_its_row(monkeypatch, tmp_path, value, told):
    def judge(output, gold):
        if gold != "it is 104":
            return float(output == gold)
        if isinstance(value, Exception):
            raise value
        return value

    run = evaluate(judged_by(monkeypatch, judge), "random", copying_lm(), k=2, out=tmp_path)
    assert [n for n, r in enumerate(run.rows) if r.failure] == [4]
    assert told in run.rows[4].failure
    assert (run.rows[4].output, run.rows[4].metrics) == ("it is 104", {})  # what the LM said is kept
    mended = judged_by(monkeypatch, lambda output, gold: float(output == gold))
    again = evaluate(mended, "random", copying_lm(), k=2, out=tmp_path)
    assert {r.metrics["picky"] for r in again.rows} == {1.0}


class Particular(BaseSelector):
    """Cannot choose for some queries."""

    name = "particular"

    def select_many(self, queries, k):
        for query in queries:
            if "filthy" in query.text:
                raise DataError(f"query {query.id} is beyond me")
        return self.inner.select_many(queries, k)

    def fit(self, pool, kit):
        self.inner = make_selector("random").fit(pool, kit)
        return self

    def choose(self, candidates, k):
        raise AssertionError("select_many answers")

    @property
    def spec(self):
        return make_selector("random").spec


def test_a_selector_that_fails_at_one_query_picks_the_same_for_the_others():
    task = marked()
    run, clean = (evaluate(task, s, copying_lm(), k=2) for s in (Particular(), "random"))
    failed = [n for n, r in enumerate(run.rows) if r.failure]
    assert failed == [7, 70]
    assert [r.picks for n, r in enumerate(run.rows) if n not in failed] == [
        r.picks for n, r in enumerate(clean.rows) if n not in failed
    ]


def test_a_pool_that_cannot_be_read_is_no_matter_of_a_row():
    class Torn(Particular):
        def select_many(self, queries, k):
            raise PoolError("the pool file is damaged")

    with pytest.raises(PoolError):
        evaluate(classification(test=4), Torn(), FakeLM(), k=2)


def test_a_run_that_failed_at_every_query_is_an_error_and_can_be_mended(tmp_path):
    task = marked(5, range(5))
    with pytest.raises(NothingAnswered, match=r"none of 5 queries could be answered and judged: .*content_filter"):
        evaluate(task, "random", Filtering("filthy"), k=2, out=tmp_path)
    run = evaluate(task, "random", copying_lm(), k=2, out=tmp_path)
    assert "failed" not in run.facts
    assert len(run.rows) == 5


def test_a_calibrated_run_with_a_failed_row_becomes_the_unbroken_one_when_it_is_mended(tmp_path):
    task = marked()
    for kind in ("batch", "contextual"):
        broken = evaluate(task, "random", Filtering("filthy"), k=2, calibrate=kind, out=tmp_path / "broken")
        assert broken.facts["failed"] == 2
        again = evaluate(task, "random", copying_lm(), k=2, calibrate=kind, out=tmp_path / "broken")
        assert again.rows == evaluate(task, "random", copying_lm(), k=2, calibrate=kind).rows


def test_figures_are_compared_on_the_queries_that_every_run_answered():
    task = marked()
    runs = [
        evaluate(task, "random", Filtering("filthy"), k=2),
        evaluate(task, "bm25", copying_lm(), k=2),
        evaluate(task, "random", copying_lm(), k=2, seed=1),
    ]
    board = leaderboard(runs)
    (group,) = board.groups
    assert group.queries == 148
    assert "2 queries failed in one run or another and count in none of these figures" in group.notes
    lines = {line.selector: line for line in group.lines}
    kept = [n for n in range(150) if n not in (7, 70)]
    for name, members in (("bm25", runs[1:2]), ("random", [runs[0], runs[2]])):
        values = [[run.rows[n].metrics["accuracy"] for n in kept] for run in members]
        assert lines[name].figure.value == pytest.approx(np.mean(values))
    assert lines["bm25"].diff.queries == 148
    assert any("2 of 300 queries failed, the first with" in note for note in lines["random"].notes)
    assert not any("failed" in note for note in lines["bm25"].notes)
    assert "content_filter" in to_json(board)


def test_a_group_without_a_common_query_is_left_out_and_said():
    task = marked(4, (0, 1))
    refused = {e.text.split()[1] for n, e in enumerate(task.test) if n > 1}
    runs = [evaluate(task, "random", Filtering("filthy"), k=1), evaluate(task, "bm25", Filtering(*refused), k=1)]
    assert [r.facts["failed"] for r in runs] == [2, 2]
    with pytest.raises(DataError, match="each of its queries failed in one run or another"):
        leaderboard(runs)
    whole = evaluate(generation(), "random", copying_lm(), k=1)
    board = leaderboard([*runs, whole])
    assert [g.task for g in board.groups] == ["echo"]
    assert any("things" in note and "left out" in note for note in board.notes)


def test_a_pilot_leaves_a_failed_query_out_of_all_ways_and_says_so():
    task = classification(train=120, test=3)
    word = task.train[5].text.split()[1]
    found = advise(task, Filtering(word), prompts=400, shots=(1, 4))
    assert found.queries == 79
    assert any("1 of 80 queries failed" in reason for reason in found.reasons)
    with pytest.raises(NothingAnswered):
        advise(task, Filtering("number"), prompts=400, shots=(1, 4))


def test_suspects_leave_out_what_the_lm_does_not_take():
    task = marked(3, ())
    bench = make_bench(task)
    word = bench.view.examples[2].text.split()[1]
    predictor = PromptPredictor(make_selector("random"), Tools(Filtering(word)), Settings(k=2))
    found = suspects(bench, predictor, bench.view.examples[:6])
    assert {s.example.id for s in found} == {e.id for e in bench.view.examples[:6]} - {bench.view.examples[2].id}


def test_rows_without_a_failure_have_the_bytes_they_always_had():
    row = Row("q", "a", "a", {"accuracy": 1.0})
    assert "failure" not in row.to_json()
    assert "label_tokens" not in row.to_json()
    failed = json.loads(replace(row, failure="why", label_tokens={"a": 2}).to_json())
    assert (failed["failure"], failed["label_tokens"]) == ("why", {"a": 2})


# -- no answer is not the first label ------------------------------------------------------------------------------


def silent(**attributes):
    """An LM whose scores say nothing of the labels where the query holds a word."""

    def logprob(context, continuation):
        query = context.split("\n\n")[-1]
        return -100.0 if " filthy" in query else -1.0 - (continuation.strip() != LABELS[1])

    lm = ScriptedLM(logprob, reply=lambda context: "" if "0" in context.split("say ")[-1] else " it is 1")
    for name, value in attributes.items():
        setattr(lm, name, value)
    return lm


@pytest.mark.parametrize("calibrate", ["none", "contextual", "batch", "pool"])
def test_labels_that_all_score_the_same_are_no_answer_and_not_the_first_label(calibrate):
    task = marked(60, range(0, 60, 3))  # every row of the first label
    assert {task.test[n].output for n in range(0, 60, 3)} == {LABELS[0]}
    run = evaluate(task, "random", silent(), k=2, calibrate=calibrate)
    for n, row in enumerate(run.rows):
        assert (row.output == "") == (n % 3 == 0)
        if n % 3 == 0:
            assert (row.metrics["accuracy"], row.failure) == (0.0, "")
            assert row.notes[-1].startswith("no answer")
            assert "gold_logprob" not in row.metrics
    assert run.facts["no answer"] == 20
    assert run.facts["short"] == 0
    (said,) = cautions([run])
    assert said == "20 of 60 queries got no answer, which counts as wrong"
    assert said in leaderboard([run]).groups[0].lines[0].notes


def test_an_empty_generation_is_no_answer():
    run = evaluate(generation(), "random", silent(), k=2)
    empty = [r for r in run.rows if "0" in r.gold]
    assert empty
    assert all(r.output == "" and r.metrics["exact_match"] == 0 and r.notes[-1].startswith("no answer") for r in empty)
    assert run.facts["no answer"] == len(empty)


def test_ranks_are_not_recorded_as_log_probabilities():
    run = evaluate(classification(test=9), "random", silent(scoring="generate"), k=2)
    assert {r.output for r in run.rows} == {LABELS[1]}
    assert all(r.label_logprobs == {} and "gold_logprob" not in r.metrics for r in run.rows)
    assert "gold_logprob" not in leaderboard([run]).groups[0].lines[0].others


# -- the same input twice --------------------------------------------------------------------------------------------


def test_the_same_row_twice_is_two_rows_everywhere(tmp_path):
    task = classification(test=70)
    twice = [*task.test[:3], *task.test[:3], *task.test[3:], replace(task.test[0], output="tool", id="")]
    task = make_task("things", task.train, twice, template=task.template)
    out = tmp_path / "runs"
    runs = [evaluate(task, s, copying_lm(), k=2, out=out) for s in ("random", "bm25")]
    for run in runs:
        assert len({r.query_id for r in run.rows}) == len(run.rows) == 74
        assert run.rows[0].query_id + "#2" == run.rows[3].query_id
        assert (run.rows[0].gold, run.rows[-1].gold) == ("animal", "tool")
        assert run.rows[0].label_logprobs == run.rows[-1].label_logprobs or run is runs[0]
        file = out / run.id / "rows.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 3])
        assert evaluate(task, run.spec.selector.name, copying_lm(), k=2, out=out).rows == run.rows
        assert file.read_bytes() == whole
    (group,) = leaderboard(runs).groups
    assert group.queries == 74
    values = [[r.metrics["accuracy"] for r in run.rows] for run in runs]
    line = next(x for x in group.lines if x.selector == "bm25")
    assert line.diff.value == pytest.approx(np.mean(values[1]) - np.mean(values[0]))


def test_a_leak_is_kept_from_both_copies_of_its_query():
    task, query = leaky()
    task = replace(task, test=(task.test[0], *task.test))
    bench = make_bench(task)
    assert bench.queries[0].exclude == bench.queries[1].exclude != frozenset()
    assert query.id == bench.queries[0].id
