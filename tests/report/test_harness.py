"""Runs in lm-evaluation-harness's layout: file names, field names and figures as its readers expect them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from statistics import mean, stdev

import pytest

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.errors import DataError
from iclkit.eval import load_texts
from iclkit.prompts import Template
from iclkit.records import Example, PoolPart
from iclkit.report import write_harness
from iclkit.testing import FakeLM, ScriptedLM

from .pages import make
from .worlds import make_run, make_runs

DATE = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC).replace(tzinfo=None)
SAMPLE = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
          "prompt_hash", "target_hash", "acc"}  # fmt: skip
RESULTS = {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config",
           "git_hash", "date", "task_hashes", "model_source", "model_name", "model_name_sanitized", "start_time",
           "end_time", "total_evaluation_time_seconds"}  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def task_in(name):
    """That harness's own rule: between the first and the last underscore."""
    return name[name.find("_") + 1 : name.rfind("_")]


def test_each_selector_and_seed_is_a_model_with_results_and_samples(tmp_path):
    files = write_harness([*make_runs(20, task="a_b"), *make_runs(20, task="c")], tmp_path, date=DATE)
    folders = sorted(p.name for p in tmp_path.iterdir())
    assert folders == [f"fake__{n}" for n in ("bm25__k8__seed0", "knn__k8__seed0", "random__k8__seed0",
                                              "random__k8__seed1", "random__k8__seed2", "zero__k0__seed0")]  # fmt: skip
    names = sorted(p.name for p in (tmp_path / folders[0]).iterdir())
    assert names == ["results_2026-03-04T05-06-07.000089.json", "samples_a_b_2026-03-04T05-06-07.000089.jsonl",
                     "samples_c_2026-03-04T05-06-07.000089.jsonl"]  # fmt: skip
    assert [task_in(n) for n in names[1:]] == ["a_b", "c"]
    assert len(files) == 6 * 3


def test_results_hold_the_fields_and_the_figures_of_the_run(tmp_path):
    run = make_run("knn", [1, 1, 0, 1, 0, 0, 1, 1], task="toy")
    results = json.loads(write_harness([run], tmp_path, date=DATE)[0].read_text())
    values = [r.metrics["accuracy"] for r in run.rows]
    assert set(results) >= RESULTS
    assert results["results"]["toy"]["acc,none"] == mean(values)
    assert results["results"]["toy"]["acc_stderr,none"] == pytest.approx(stdev(values) / 8**0.5)
    assert results["n-shot"] == {"toy": 8}
    assert results["n-samples"] == {"toy": {"original": 8, "effective": 8}}
    assert results["configs"]["toy"]["metric_list"][0]["metric"] == "acc"
    assert results["configs"]["toy"]["metadata"]["iclkit_run"] == run.id


def test_samples_hold_the_prompt_and_the_score_of_every_label(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    runs, texts = make(tmp_path / "runs", ks=(2,), test=10)
    run = next(r for r in runs if r.spec.selector.name == "knn")
    samples = lines(write_harness([run], tmp_path / "out", texts, date=DATE)[1])
    old = replace(run, rows=tuple(replace(row, greedy=None) for row in run.rows))
    before = lines(write_harness([old], tmp_path / "old", texts, date=DATE)[1])
    assert {g for sample in before for _, g in sample["filtered_resps"]} == {"None"}
    by_id = next(iter(texts.values()))
    for number, (sample, row) in enumerate(zip(samples, run.rows, strict=True)):
        assert set(sample) == SAMPLE
        assert (sample["doc_id"], sample["acc"]) == (number, row.metrics["accuracy"])
        scores = [float(value) for value, _ in sample["filtered_resps"]]
        assert scores == [*row.label_logprobs.values()]
        assert [g for _, g in sample["filtered_resps"]] == [str(label in row.greedy) for label in row.label_logprobs]
        assert [r[0] for r in sample["resps"]] == sample["filtered_resps"]
        # what its readers do: the right label is the one with the index of the target
        assert (scores.index(max(scores)) == int(sample["target"])) == (row.metrics["accuracy"] == 1)
        arguments = [*sample["arguments"].values()]
        assert [a["arg_1"] for a in arguments] == [f" {label}" for label in row.label_logprobs]
        prompt = arguments[0]["arg_0"]
        assert all(a["arg_0"] == prompt for a in arguments)
        assert prompt.endswith(f"Text: {by_id[row.query_id]['input']}\nKind:")
        places = [prompt.index(by_id[i]["input"]) for i in row.shown]
        assert places == sorted(places)


def test_generated_answers_and_chats(tmp_path):
    train = [Example(f"say {n}", f"it is {n}") for n in range(9)]
    template = Template("{input}\n{output}", chat=True, system="Be brief.")
    task = make_task("echo", train, [Example("say 11", "it is 11")], kind="generation", template=template)
    lm = ScriptedLM(reply=lambda context: "it is 11")
    run = evaluate(task, "random", lm, k=2, out=tmp_path / "runs")
    texts = {task.hash: load_texts(tmp_path / "runs" / run.id)}
    results, samples = write_harness([run], tmp_path / "out", texts, date=DATE)
    sample = lines(samples)[0]
    messages = json.loads(sample["arguments"]["gen_args_0"]["arg_0"])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[-1]["content"] == "say 11"
    assert (sample["resps"], sample["filtered_resps"], sample["target"]) == ([["it is 11"]], ["it is 11"], "it is 11")
    assert json.loads(results.read_text())["configs"]["echo"]["output_type"] == "generate_until"


def test_two_runs_of_one_task_do_not_overwrite_each_other(tmp_path):
    runs = [make_run("knn", [1, 0]), make_run("knn", [0, 1], pool=PoolPart("other", 9))]
    files = write_harness(runs, tmp_path, date=DATE)
    assert len({f.parent for f in files}) == 2


def test_unfinished_runs_are_not_written(tmp_path):
    assert write_harness([replace(make_run("knn", [1]), facts={"done": False})], tmp_path, date=DATE) == []


def test_without_texts_the_prompt_is_empty_and_the_answers_are_there(tmp_path):
    sample = lines(write_harness([make_run("knn", [1, 0])], tmp_path, date=DATE)[1])[0]
    assert sample["arguments"]["gen_args_0"]["arg_0"] == ""
    assert sample["filtered_resps"] == ["no"]


def test_a_name_cannot_leave_the_folder(tmp_path):
    write_harness([make_run("knn", [1, 0], task="../../a/b")], tmp_path / "out", date=DATE)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_harness([make_run("knn", [1])], tmp_path / "out", date=DATE)


def test_multiple_choice_options_of_each_query(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    items = [Example(f"which {n}", f"b{n}", choices=(f"a{n}", f"b{n}")) for n in range(8)]
    template = Template("{input}\n{choices}\n{letter}")
    task = make_task("mc", items[:5], items[5:], kind="multiple_choice", template=template)
    run = evaluate(task, "random", FakeLM(), k=2, out=tmp_path / "runs")
    texts = {task.hash: load_texts(tmp_path / "runs" / run.id)}
    sample = lines(write_harness([run], tmp_path / "out", texts, date=DATE)[1])[0]
    assert sample["doc"]["choices"] == ["a5", "b5"]
    assert [a["arg_1"] for a in sample["arguments"].values()] == ["A", "B"]
    assert sample["target"] == "1"
