"""A run is what its parts say, can stop anywhere, and never shows what gives a query away."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from iclkit import evaluate
from iclkit.errors import DataError, LeakError, NeedError, NothingAnswered, UnknownName, UsageError
from iclkit.eval import Grid, drawn_by_seed, load_texts, make_bench, plan
from iclkit.lm import Score
from iclkit.pool import Pool
from iclkit.predictors import Tools
from iclkit.prompts import assemble
from iclkit.records import Example, Query, fold_text
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder, OverlapReranker, ScriptedLM

from .worlds import LABELS, classification, copying_lm, generation, leaky


@pytest.fixture(autouse=True)
def _own_home(home):
    return home


@pytest.mark.parametrize("selector", ["random", "balanced", "bm25", "knn", "mmr"])
def test_each_row_is_what_a_plain_loop_gives(selector):
    task, lm = classification(test=20), copying_lm()
    run = evaluate(task, selector, lm, k=4, seed=3, embedder=HashEmbedder())
    bench = make_bench(task)
    chooser = make_selector(selector).fit(bench.view, Kit(HashEmbedder(), lm, task.template, task.labels, 3))
    for row, query, example in zip(run.rows, bench.queries, task.test, strict=True):
        shown = [bench.view.examples_of([i])[0] for i in chooser.select(query, 4).ids]
        prompt = assemble(task.template, query, shown, order="best-last", seed=3)
        scores = {label: lm._score(prompt.text, " " + label).logprob for label in task.labels}
        assert row.shown == prompt.shown
        assert row.label_logprobs == scores
        assert row.greedy == tuple(label for label in task.labels if lm._score(prompt.text, " " + label).greedy)
        assert row.output == max(task.labels, key=scores.__getitem__)
        assert (row.gold, row.metrics["accuracy"]) == (example.output, row.output == example.output)
        total = sum(math.exp(s) for s in scores.values())
        assert row.metrics["gold_logprob"] == pytest.approx(scores[example.output] - math.log(total))


def test_zero_shows_nothing_and_is_one_run_for_every_k():
    task = classification(test=5)
    first, second = (evaluate(task, "zero", FakeLM(), k=k) for k in (0, 8))
    assert all(r.shown == () for r in first.rows)
    assert first.id == second.id


def test_choosing_by_likeness_beats_random_where_it_should():
    task = classification()
    accuracy = {}
    for name in ("random", "bm25"):
        rows = evaluate(task, name, copying_lm(), k=3).rows
        accuracy[name] = sum(r.metrics["accuracy"] for r in rows) / len(rows)
    assert accuracy["bm25"] > accuracy["random"] + 0.15


def test_mean_normalisation_divides_by_the_tokens_of_the_label():
    task = classification(test=3)

    class Tokens(ScriptedLM):
        def score(self, requests, on_done=None):
            found = super().score(requests, on_done)
            tokens = [3 if "animal" in r.continuation else 1 for r in requests]
            return [Score(s.logprob, n, s.greedy) for s, n in zip(found, tokens, strict=True)]

    lm = Tokens(lambda c, a: {" animal": -3.0, " food": -2.0, " tool": -2.5}[a])
    assert {r.output for r in evaluate(task, "zero", lm, normalize="mean").rows} == {"animal"}
    assert {r.output for r in evaluate(task, "zero", lm).rows} == {"food"}


def test_generated_answers_end_at_the_stop_and_are_judged():
    run = evaluate(generation(), "random", copying_lm(), k=2)
    assert [r.output for r in run.rows] == [r.gold for r in run.rows]
    assert {r.metrics["exact_match"] for r in run.rows} == {1.0}


def test_multiple_choice_scores_each_rows_own_options():
    from iclkit.datasets import make_task

    rows = [Example(f"pick {n}", "ab"[n % 2] * 2, choices=("aa", "bb")) for n in range(8)]
    tests = [Example(f"choose {n}", "cc", choices=("cc", "dd", f"e{n}")) for n in range(4)]
    task = make_task("mc", rows, tests, kind="multiple_choice")
    run = evaluate(task, "random", ScriptedLM(lambda c, a: -1.0 if a.strip() == "cc" else -2.0), k=2)
    assert [sorted(r.label_logprobs) for r in run.rows] == [["cc", "dd", f"e{n}"] for n in range(4)]
    assert {r.output for r in run.rows} == {"cc"}


def test_a_leaked_example_is_kept_from_its_query_only():
    task, query = leaky()
    bench = make_bench(task)
    double = next(e for e in bench.view.examples if fold_text(e.text) == fold_text(query.text))
    run = evaluate(bench, "bm25", FakeLM(), k=45)
    assert double.id not in run.rows[0].shown
    assert all(double.id in r.shown for r in run.rows[1:])
    assert run.facts["leaks"]["pairs"] == {"normalized": 1}


def test_leaks_stop_the_run_or_are_shown_when_asked():
    task, _ = leaky()
    with pytest.raises(LeakError, match=r"1 of 150 test rows .*--on-leak exclude"):
        evaluate(task, "bm25", FakeLM(), on_leak="stop")
    shown = evaluate(task, "bm25", FakeLM(), k=1, on_leak="ignore").rows[0].shown
    assert fold_text(make_bench(task).view.examples[-1].text) == fold_text(task.test[0].text)
    assert shown == (make_bench(task).view.ids[-1],)


def test_test_rows_that_a_model_wrote_are_refused_and_train_rows_are_not():
    task = classification()
    made = [replace(e, meta={"generated": "synthesize"}) for e in task.test[10:12]]
    mixed = replace(task, test=(*task.test[:10], *made))
    with pytest.raises(DataError, match=r"2 of 12 test rows of 'things' were written by a model .*synthesize"):
        make_bench(mixed)
    assert len(make_bench(mixed, first=10).queries) == 10
    checked = replace(mixed, test=tuple(replace(e, meta={"generated": False}) for e in mixed.test))
    assert len(make_bench(checked).queries) == 12
    made_train = replace(task, train=tuple(replace(e, meta={"generated": "recycle"}) for e in task.train))
    assert len(make_bench(made_train).view) == len(task.train)


def test_a_finished_run_is_not_redone(tmp_path):
    task = classification()
    first = evaluate(task, "random", FakeLM(), k=3, out=tmp_path)
    lm = FakeLM()
    again = evaluate(task, "random", lm, k=3, out=tmp_path)
    assert lm.scored == []
    assert (again.rows, again.usage) == (first.rows, first.usage)


@pytest.mark.parametrize("keep", [0, 1, 63, 64, 100, 149])
def test_a_run_cut_after_any_row_is_completed_to_the_same_bytes(tmp_path, keep):
    task = classification()
    run = evaluate(task, "knn", FakeLM(), k=3, embedder=HashEmbedder(), out=tmp_path)
    file = tmp_path / run.id / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:keep]) + b'{"query_id": "q')
    lm = FakeLM()
    evaluate(task, "knn", lm, k=3, embedder=HashEmbedder(), out=tmp_path)
    assert file.read_bytes() == whole
    assert len(lm.scored) == len(LABELS) * (150 - 64 * (keep >= 64))  # chunks of 64 and 86


def test_a_run_in_memory_equals_a_run_on_disk(tmp_path):
    task = classification()
    assert evaluate(task, "bm25", FakeLM(), out=tmp_path).rows == evaluate(task, "bm25", FakeLM()).rows


def test_whatever_changes_the_result_changes_the_run():
    task = classification(test=3)
    ways = [{}, {"k": 3}, {"seed": 1}, {"order": "best-first"}, {"normalize": "mean"}, {"limit": 2}, {"budget": 100}]
    ways += [{"on_leak": "ignore"}, {"pool": Pool.of(task.train[:20])}]
    ids = [evaluate(task, "random", FakeLM(), **way).id for way in ways]
    ids += [evaluate(task, s, FakeLM(), embedder=HashEmbedder(d)).id for s, d in (("knn", 8), ("knn", 9), ("bm25", 8))]
    ids += [evaluate(task, "random", FakeLM(name="other")).id, evaluate(classification(test=4), "random", FakeLM()).id]
    assert len(set(ids)) == len(ids)
    assert evaluate(task, "bm25", FakeLM()).id == evaluate(task, "bm25", FakeLM(), embedder=HashEmbedder(9)).id


def test_the_same_settings_give_the_same_rows_whatever_else_is_asked():
    task = classification()
    whole = evaluate(task, "random", FakeLM(), k=3)
    for part in (make_bench(task, limit=40), make_bench(task, first=40)):
        rows = evaluate(part, "random", FakeLM(), k=3).rows
        assert len(rows) == 40
        assert [r for r in whole.rows if r.query_id in {p.query_id for p in rows}] == list(rows)
    assert rows == whole.rows[:40]


def test_demonstrations_over_the_budget_are_dropped_and_reported():
    run = evaluate(classification(test=4), "bm25", FakeLM(), k=8, budget=60)
    assert all(r.prompt_tokens <= 60 for r in run.rows)
    assert all(r.dropped for r in run.rows)
    assert all(len(r.shown) + len(r.dropped) == 8 for r in run.rows)


def test_more_shots_than_the_pool_has_is_said(tmp_path):
    run = evaluate(classification(test=4), "random", FakeLM(4096), k=60, out=tmp_path)
    assert run.facts["short"] == 4
    assert "45 of 60" in run.facts["note"]


@pytest.mark.parametrize(
    ("selector", "order", "drawn"),
    [("random", "best-last", "query"), ("random-fixed", "best-last", "task"), ("bm25", "best-last", "none"),
     ("bm25", "random", "query"), ("zero", "best-last", "none"), ("knn", "best-last", "none"),
     ("random-fixed", "random", "task"), ("cone", "best-last", "none"), ("mdl", "best-last", "query"),
     ("rerank,of=bm25", "best-last", "query")],
)  # fmt: skip
def test_what_a_seed_draws_is_declared_or_seen(selector, order, drawn):
    bench = make_bench(classification())
    k = 0 if selector == "zero" else 4
    assert drawn_by_seed(bench, selector, Kit(embedder=HashEmbedder()), k, order) == drawn


def test_a_selector_runs_under_as_many_seeds_as_its_draws_ask_for():
    bench, names = make_bench(classification()), ("zero", "random", "random-fixed", "bm25", "knn")

    def counts(**grid):
        jobs = plan([bench], Tools(FakeLM(), HashEmbedder()), Grid(names, (4,), **grid))
        return [sum(job.name == name for job in jobs) for name in names]

    assert counts() == [1, 3, 10, 1, 1]
    assert counts(seeds=2) == [1, 2, 2, 1, 1]
    assert counts(seeds=1) == [1, 1, 1, 1, 1]
    assert counts(orders=("random",)) == [1, 3, 10, 3, 3]


def test_the_tasks_own_pool_keeps_its_vectors():
    task = classification(test=3)
    first, second = HashEmbedder(), HashEmbedder()
    evaluate(task, "knn", FakeLM(), embedder=first)
    evaluate(task, "knn", FakeLM(), embedder=second)
    assert first.calls["documents"] == 45
    assert second.calls["documents"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"predictor": "knnn"}, UnknownName, "Did you mean 'knn'"),
        ({"predictor": "knn"}, NeedError, "--embedder"),
        ({"order": "best-lost"}, UnknownName, "best-last"),
        ({"k": -1}, UsageError, "0 or more"),
        ({"limit": 0}, UsageError, "at least 1"),
        ({"on_leak": "hide"}, UsageError, "exclude, stop, ignore"),
        ({"normalize": "max"}, UsageError, "sum, mean"),
        ({"pool": Pool.of([])}, DataError, "empty"),
        ({"budget": 5}, NothingAnswered, "none of 3 queries .*budget"),
        ({"budget": 5, "on_error": "stop"}, DataError, "things test, row 1: .*budget"),
        ({"on_error": "skip"}, UsageError, "record, stop"),
        ({"answer_tokens": 0}, UsageError, "answer_tokens is 0"),
        ({"stop": ["x", ""]}, UsageError, "empty"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments, error, text):
    with pytest.raises(error, match=text) as caught:
        evaluate(classification(test=3), lm=FakeLM(), **{"predictor": "random", **arguments})
    assert "\n" not in str(caught.value)


def test_progress_counts_every_query(tmp_path):
    seen = []
    evaluate(
        classification(), "random", FakeLM(), out=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(64, 150), (150, 150)]


def test_a_run_counts_what_it_cost():
    run = evaluate(classification(test=10), "random", FakeLM(), k=2)
    assert {"select_s", "assemble_s", "score_s"} <= set(run.usage)


def test_queries_asked_twice_are_two_rows():
    from iclkit.datasets import make_task

    task = classification(test=6)
    double = make_task("double", task.train, [*task.test, *task.test], template=task.template)
    ids = [r.query_id for r in evaluate(double, "random", FakeLM(), k=2).rows]
    assert len(set(ids)) == 12
    assert ids[6] == f"{ids[0]}#2"
    assert isinstance(Query("x").id, str)


def _runnable() -> list[str]:
    from iclkit.selectors import BUILTINS

    return [name for name in BUILTINS if name != "fixed"]  # fixed needs a file: tests/selectors/test_fixed.py


@pytest.mark.parametrize("selector", _runnable())
def test_every_built_in_selector_makes_a_run_that_resumes_to_the_same_bytes(selector, tmp_path):
    task, way = classification(train=24, test=70), {"k": 3, "embedder": HashEmbedder(), "out": tmp_path}
    way["reranker"] = OverlapReranker()
    run = evaluate(task, selector, FakeLM(), **way)
    file = tmp_path / run.id / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    evaluate(task, selector, FakeLM(), **way)
    assert file.read_bytes() == whole
    assert len(run.rows) == 70
    for row, query in zip(run.rows, make_bench(task).queries, strict=True):
        assert not query.exclude & set(row.shown)


def test_metadata_of_queries_stand_with_their_texts(tmp_path):
    task = classification()
    told = replace(task, test=tuple(replace(e, meta={"language": "de"}) for e in task.test))
    run = evaluate(told, "random", FakeLM(), k=2, limit=3, out=tmp_path)
    texts = load_texts(tmp_path / run.id)
    assert all(texts[row.query_id]["meta"] == {"language": "de"} for row in run.rows)
    assert all("meta" not in texts[i] for row in run.rows for i in row.shown)
