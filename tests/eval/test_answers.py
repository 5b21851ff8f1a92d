"""Where a written answer ends, and which rows a limit takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from iclkit import evaluate
from iclkit.datasets import make_task, sample_rows
from iclkit.errors import UsageError
from iclkit.eval import Grid, cautions, cost, make_bench, plan
from iclkit.eval._advise import pilot_bench
from iclkit.pool import Pool
from iclkit.predictors import Tools
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.report import leaderboard
from iclkit.testing import FakeLM, ScriptedLM

from .worlds import LABELS, classification, copying_lm, generation


@pytest.fixture(autouse=True)
def _own_home(home):
    return home


def sums(**more):
    """A reasoning task whose answers are single numbers."""
    rows = [Example(f"{n} plus {n}?", str(2 * n)) for n in range(40)]
    return make_task("sums", rows[:30], rows[30:], kind="reasoning", **more)


def traced(task):
    """Its pool with traces that a model wrote instead of the bare numbers."""
    return Pool.of(
        Example(e.input, f"Take {e.output} halves.\nAdd them up, one after the other, with care.\n#### {e.output}")
        for e in task.train
    )


TRACE = "First I look at the numbers.\nThen I add them up, which takes me a while.\nSo it is {}"


def solving(context):
    query = context.rsplit("Input: ", 1)[-1]
    return TRACE.format(2 * int(query.split()[0])) + "\n\nInput: 1 plus 1?\nAnswer: 2"


@pytest.mark.parametrize("pool", [None, traced])
@pytest.mark.parametrize("selector", ["zero", "random"])
def test_a_trace_is_read_to_its_end_though_the_train_answers_are_single_numbers(pool, selector):
    task = sums()
    run = evaluate(task, selector, ScriptedLM(reply=solving), k=3, pool=pool and pool(task))
    assert [r.output for r in run.rows] == [TRACE.format(r.gold) for r in run.rows]
    assert {r.metrics["number_match"] for r in run.rows} == {1.0}
    assert "cut" not in run.facts


def test_an_evidence_and_answer_reply_is_read_to_its_end():
    train = [Example(f"who {n}?", f"[{n}, {n + 1}]\nAnswer: name{n}") for n in range(30)]
    plain = [Example(e.input, e.output.split("Answer: ")[1]) for e in train]
    task = make_task("who", plain, [Example(f"who {n}?", f"name{n}") for n in range(90, 99)], kind="generation")
    assert task.template.stop == ("\n",)
    lm = ScriptedLM(reply=lambda c: f"[1, 2]\nAnswer: name{c.rsplit('who ', 1)[1].split('?')[0]}\n\nInput: x")
    run = evaluate(task, "random", lm, k=2, pool=Pool.of(train))
    assert [r.output for r in run.rows] == [f"[1, 2]\nAnswer: {r.gold}" for r in run.rows]


def test_an_exact_answer_that_holds_a_blank_line_is_not_cut_at_it():
    rows = [Example(f"poem {n}", f"line {n}\n\nline {n + 1}") for n in range(40)]
    task = make_task("poems", rows[:30], rows[30:], kind="generation")

    def reply(context):
        n = int(context.rsplit("poem ", 1)[1].split("\n")[0])
        return f" line {n}\n\nline {n + 1}\n\nInput: poem 7\nOutput: and so on"

    run = evaluate(task, "random", ScriptedLM(reply=reply), k=2)
    assert {r.metrics["exact_match"] for r in run.rows} == {1.0}
    assert run.spec.stop == ("\n\nInput:",)


def test_the_bound_holds_the_longest_answer_that_may_be_shown_with_room_for_any_script():
    class Bytes(FakeLM):
        """A tokenizer that makes a token of every byte of what is not ASCII."""

        def count_tokens(self, text):
            return len(text.encode())

    long = "पचास हज़ार रुपये और कुछ पैसे"
    rows = [Example(f"say {n}", "ab" if n else long) for n in range(30)]
    task = make_task("hindi", rows, rows[:3], kind="generation")
    run = evaluate(task, "zero", Bytes(), k=0)
    assert run.spec.answer_tokens >= 1.25 * len(long.encode())
    small = evaluate(task, "zero", Bytes(context_size=120), k=0)
    assert small.spec.answer_tokens == 60  # at most half of what the LM reads


def test_what_the_user_says_of_an_answers_end_is_done(tmp_path):
    lm = ScriptedLM(reply=lambda context: " one two three four five six ### seven")
    run = evaluate(generation(), "random", lm, k=2, answer_tokens=4)
    assert {r.output for r in run.rows} == {"one two three four"}
    stopped = evaluate(generation(), "random", lm, k=2, stop=["###"])
    assert {r.output for r in stopped.rows} == {"one two three four five six"}
    bounded = evaluate(replace(generation(), max_answer_tokens=2), "random", lm, k=2)
    assert {r.output for r in bounded.rows} == {"one two"}
    assert len({run.id, stopped.id, bounded.id, evaluate(generation(), "random", lm, k=2).id}) == 4


def test_answers_that_end_by_length_are_counted_and_warned_of_from_five_per_cent_on():
    def reply(context):
        long = int(context.rsplit("say ", 1)[1].split("\n")[0]) < 102
        return " it is" + " really" * 90 if long else " it is 1"

    run = evaluate(generation(), "random", ScriptedLM(reply=reply), k=2)
    bound = run.spec.answer_tokens
    assert run.facts["cut"] == 2
    assert run.rows[0].notes == (f"the answer ended by length, after {bound} tokens",)
    (said,) = cautions([run])
    assert said.startswith(f"2 of 20 answers ended by length, after {bound} tokens")
    assert "--answer-tokens" in said
    assert said in leaderboard([run]).groups[0].lines[0].notes
    few = replace(run, facts=run.facts | {"cut": 1})
    assert cautions([few]) == []


def test_runs_with_other_bounds_are_not_put_into_one_line():
    runs = [evaluate(generation(), s, copying_lm(), k=2, answer_tokens=n) for s in ("random", "bm25") for n in (4, 40)]
    board = leaderboard(runs)
    assert sorted(len(g.lines) for g in board.groups) == [2, 2]
    assert sorted(g.tag for g in board.groups) == ["answer tokens 4", "answer tokens 40"]


def test_the_bounds_of_an_answer_are_no_part_of_a_run_that_chooses_among_labels():
    runs = [evaluate(classification(test=3), "random", FakeLM(), k=2, **m) for m in ({}, {"answer_tokens": 7})]
    assert runs[0].id == runs[1].id
    assert (runs[0].spec.answer_tokens, runs[0].spec.stop) == (None, None)


# -- limits ----------------------------------------------------------------------------------------------------------


def by_label():
    task = classification(test=150)
    return replace(task, test=tuple(sorted(task.test, key=lambda e: e.output)))


def test_a_limit_draws_from_the_whole_of_a_file_that_is_sorted_by_label():
    bench = make_bench(by_label(), limit=30)
    assert len(Counter(bench.golds)) == len(LABELS)
    assert list(bench.golds) == sorted(bench.golds)  # in their old order
    smaller = make_bench(by_label(), limit=10)
    assert {q.id for q in smaller.queries} < {q.id for q in bench.queries}
    assert make_bench(by_label(), limit=30, seed=1).queries != bench.queries
    head = make_bench(by_label(), first=30)
    assert set(head.golds) == {"animal"}
    assert [q.id for q in head.queries] == [q.id for q in by_label().queries()[:30]]


def test_a_limit_of_a_task_and_of_a_bench_draw_the_same_rows():
    task = by_label()
    loaded = replace(task, test=tuple(sample_rows(task.test, 20, seed=5)))
    assert [q.id for q in make_bench(loaded).queries] == [q.id for q in make_bench(task, limit=20, seed=5).queries]


@pytest.mark.parametrize("arguments", [{"limit": 3, "first": 3}, {"limit": 0}, {"first": 0}, {"first": -1}])
def test_limits_that_make_no_sense_are_refused(arguments):
    with pytest.raises(UsageError, match=r"limit|first"):
        make_bench(classification(), **arguments)


def test_what_was_drawn_is_part_of_a_run_and_all_rows_or_the_first_are_what_they_always_were():
    task = classification(test=40)
    specs = {
        name: evaluate(make_bench(task, **m), "random", FakeLM(), k=2).spec
        for name, m in {
            "all": {},
            "more": {"limit": 99},
            "drawn": {"limit": 20},
            "again": {"limit": 20, "seed": 1},
            "head": {"first": 20},
        }.items()
    }
    assert specs["all"] == specs["more"]
    assert (specs["drawn"].task.sample, specs["again"].task.sample) == (0, 1)
    assert (specs["head"].task.sample, specs["all"].task.sample) == (None, None)
    runs = [evaluate(make_bench(task, **m), "random", FakeLM(), k=2) for m in ({"limit": 20}, {"first": 20})]
    assert len(leaderboard(runs).groups) == 2


def test_a_pilot_draws_its_queries_and_is_another_run_than_that_of_test_rows(tmp_path):
    task = classification(train=150, test=50)
    bench = pilot_bench(task, 50)
    counts = Counter(bench.golds)
    assert len(counts) == 3  # every third row has the same label: evenly spaced rows would all be animals
    pilot, real = (evaluate(b, "random", FakeLM(), k=2, out=tmp_path) for b in (bench, make_bench(task)))
    assert pilot.id != real.id
    assert {r.query_id for r in pilot.rows} == {q.id for q in bench.queries}


def test_the_price_of_a_plan_does_not_stumble_over_a_bad_row():
    task = classification(test=16)
    task = replace(task, test=tuple(replace(e, input="word " * 400, id="") if n % 4 else e for n, e in
                                    enumerate(task.test)))  # fmt: skip
    found = cost(plan([make_bench(task)], Tools(FakeLM(context_size=200)), Grid(("random",), (2,), 1))).cost
    assert (found.prompts, found.requests) == (16, 48)
    assert found.tokens_asked == 3 * found.tokens_computed > 0


def test_rows_of_the_pool_that_a_calibration_asks_are_in_the_price():
    benches = [make_bench(classification(train=45, test=10))]
    plain, pool = (
        cost(plan(benches, Tools(FakeLM()), Grid(("random",), (2,), 1, calibrations=(c,)))).cost
        for c in ("none", "pool")
    )
    assert (pool.prompts - plain.prompts, pool.requests - plain.requests) == (45, 135)


def test_a_grid_passes_the_end_of_answers_and_the_prior_on(tmp_path):
    grid = Grid(("random",), (2,), 1, answer_tokens=4, stop=("#",))
    (job,) = plan([make_bench(generation())], Tools(FakeLM()), grid)
    run = job.run(tmp_path)
    assert (run.id, run.spec.answer_tokens, run.spec.stop) == (job.run_id, 4, ("#",))
    prior = tuple((label, 1 / 3) for label in LABELS)
    jobs = plan(
        [make_bench(classification(test=4))],
        Tools(FakeLM()),
        Grid(("random",), (2,), 1, calibrations=("none", "given"), prior=prior),
    )
    assert [job.run(tmp_path).spec.prior for job in jobs] == [None, dict(prior)]
    with pytest.raises(UsageError, match="given"):
        Grid(("random",), prior=prior)


def test_templates_keep_their_own_stops_where_these_cut_nothing():
    task = replace(generation(), template=Template("Input: {input}\nOutput: {output}", stop=("END",)))
    assert evaluate(task, "zero", FakeLM(), k=0).spec.stop == ("END", "\n")
