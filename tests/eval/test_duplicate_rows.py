"""Test rows that stand twice in a file, with equal and with different answers: each is a row of its own everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iclkit.datasets import load_task, make_task
from iclkit.errors import DataError, RequestError
from iclkit.eval import (
    Bench,
    diagnose,
    evaluate,
    explain,
    load_run,
    load_texts,
    make_bench,
    predictor_of,
    with_runner_up,
)
from iclkit.predictors import Settings, Tools, make_predictor
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.report import leaderboard
from iclkit.testing import FakeLM, HashEmbedder, ScriptedLM

from .worlds import LABELS, copying_lm, rows

TEMPLATE = Template("Text: {input}\nKind: {output}")
SAME, OTHER = "number 5-2 a fox and a pie", "number 6-2 a saw and a bun"


def task_folder(folder: Path) -> Path:
    """Test rows 2 and 4 are equal; rows 3 and 5 have one input and different answers."""
    folder.mkdir()
    plain = rows(70, 3)
    test = [
        plain[0],
        Example(SAME, "animal"),
        Example(OTHER, "tool"),
        Example(SAME, "animal"),
        Example(OTHER, "animal"),
    ]
    for split, examples in (("train", rows(45, 1)), ("test", [*test, *plain[5:]])):
        lines = [json.dumps({"input": e.input, "output": e.output}) for e in examples]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def bench(tmp_path: Path, home: Path) -> Bench:
    return make_bench(load_task(str(task_folder(tmp_path / "twice")), template=TEMPLATE))


def predictor(lm: Any) -> Any:
    return make_predictor("knn", Tools(lm, HashEmbedder()), Settings(k=3))


def test_every_row_has_an_id_an_answer_and_a_place_of_its_own(bench: Bench) -> None:
    assert len({q.id for q in bench.queries}) == len(bench.queries) == 70
    assert [bench.golds[i] for i in (1, 2, 3, 4)] == ["animal", "tool", "animal", "animal"]
    assert [place.split("test.jsonl, ")[1] for place in bench.places] == [f"line {n}" for n in range(1, 71)]
    drawn = make_bench(bench.task, limit=30)
    at = {q.id: n for n, q in enumerate(bench.queries)}
    assert drawn.places == tuple(bench.places[at[q.id]] for q in drawn.queries)


def test_a_bench_made_by_hand_tells_its_rows_apart(bench: Bench) -> None:
    query = replace(bench.queries[1], id="x")
    made = replace(bench, queries=(query, query, query), golds=("animal", "tool", "food"), places=())
    assert [q.id for q in made.queries] == ["x", "x#2", "x#3"]
    assert [row.gold for row in evaluate(made, predictor(copying_lm())).rows] == ["animal", "tool", "food"]
    with pytest.raises(DataError, match="3 queries and 1 right answers"):
        replace(made, golds=("animal",))


def test_each_row_is_judged_against_its_own_answer_and_a_resumed_run_writes_the_same_bytes(
    bench: Bench, tmp_path: Path
) -> None:
    whole = evaluate(bench, predictor(copying_lm()), out=tmp_path / "whole")
    assert [whole.rows[i].metrics["accuracy"] for i in (1, 3)] == [float(whole.rows[1].output == "animal")] * 2
    assert sum(whole.rows[i].metrics["accuracy"] for i in (2, 4)) == float(whole.rows[2].output in ("tool", "animal"))
    evaluate(bench, predictor(copying_lm()), out=tmp_path / "cut")
    file = tmp_path / "cut" / whole.id / "rows.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 3])
    evaluate(bench, predictor(copying_lm()), out=tmp_path / "cut")
    assert file.read_bytes() == data == (tmp_path / "whole" / whole.id / "rows.jsonl").read_bytes()


class Refusing(ScriptedLM):
    """Refuses the third prompt about ``OTHER`` that it is asked in one call."""

    def score(self, requests: Any, on_done: Any = None) -> Any:
        about = [n for n, r in enumerate(requests) if f"Text: {OTHER}\nKind:" == r.context.split("\n\n")[-1]]
        if len(about) > len(LABELS):
            raise RequestError(about[-1], "filtered")
        return super().score(requests, on_done)


def test_of_two_equal_rows_one_may_fail_with_its_own_line_and_is_asked_again_alone(
    bench: Bench, tmp_path: Path
) -> None:
    good = copying_lm()
    run = evaluate(bench, predictor(Refusing(good._logprob, name="scripted")), out=tmp_path)
    failed = [n for n, row in enumerate(run.rows) if row.failure]
    assert failed == [4]
    assert "test.jsonl, line 5: filtered" in run.rows[4].failure
    board = leaderboard([run])
    assert (board.groups[0].queries, board.groups[0].notes) == (
        69, ("1 query failed in one run or another and count in none of these figures",),
    )  # fmt: skip
    again = evaluate(bench, predictor(good), out=tmp_path)
    assert not any(row.failure for row in again.rows)
    assert again.rows[:4] == run.rows[:4]


def test_explain_and_diagnose_take_each_row_by_itself(bench: Bench, tmp_path: Path) -> None:
    run = evaluate(bench, predictor(copying_lm()), out=tmp_path)
    texts = load_texts(tmp_path / run.id)
    found = explain(run, texts, copying_lm(), run.rows[1:5])
    assert [(e.query.text, e.row.gold) for e in found] == [
        (SAME, "animal"), (OTHER, "tool"), (SAME, "animal"), (OTHER, "animal"),
    ]  # fmt: skip
    assert found[0].logprob == found[2].logprob
    assert found[1].logprob != found[3].logprob
    tools = Tools(copying_lm(), HashEmbedder())
    more = with_runner_up(found[3], run, bench, tools)
    assert more.next is not None
    assert predictor_of(run, tools).settings.k == 3
    diagnosis = diagnose(bench, "knn", tools, k=3)
    alone = [diagnose(replace(bench, queries=(q,), golds=(g,), places=()), "knn", tools, k=3)
             for q, g in zip(bench.queries, bench.golds, strict=True)]  # fmt: skip
    assert diagnosis.queries == 70
    assert diagnosis.label_match == pytest.approx(sum(d.label_match for d in alone) / 70)


def test_a_board_counts_every_row_once(bench: Bench, tmp_path: Path) -> None:
    runs = [evaluate(bench, make_predictor(s, Tools(copying_lm(), HashEmbedder()), Settings(k=3)), out=tmp_path)
            for s in ("random", "knn")]  # fmt: skip
    (group,) = leaderboard([load_run(tmp_path / run.id) for run in runs]).groups
    right = {run.spec.selector.name: sum(r.metrics["accuracy"] for r in run.rows) / 70 for run in runs}
    assert group.queries == 70
    assert {line.name: line.figure.value for line in group.lines} == pytest.approx(right)


def test_rows_that_stand_twice_and_in_the_pool_are_all_counted_and_kept_from_what_gives_them_away(home: Path) -> None:
    train = [*rows(45, 1), Example(SAME, "animal")]
    bench = make_bench(make_task("leaky", train, [Example(SAME, "animal")] * 3, template=TEMPLATE))
    assert bench.leaks["queries"] == 3
    assert all(train[-1].id in query.exclude for query in bench.queries)
    assert all(train[-1].id not in row.shown for row in evaluate(bench, predictor(FakeLM())).rows)
