"""Requests about answers, and what their scores say of each other."""

from __future__ import annotations

import numpy as np
import pytest

from iclkit.errors import DataError
from iclkit.prompts import (
    Template,
    answer_options,
    answer_requests,
    assemble,
    infer_labels,
    log_probs,
    log_softmax,
    template_of,
)
from iclkit.records import PoolPart, Query, Run, RunSpec, Score, ScoreRequest, Spec, TaskPart


def test_a_request_reads_what_a_demonstration_shows_after_the_prompt() -> None:
    template, query = Template("Q: {input}\nA: {output}"), Query("two")
    prompt = assemble(template, query, [])
    assert answer_requests(prompt, template, ["yes", "no"], group="g", end="\n") == [
        ScoreRequest("Q: two\nA:", " yes\n", "g"),
        ScoreRequest("Q: two\nA:", " no\n", "g"),
    ]


def test_a_letter_template_asks_for_the_letter_of_the_querys_own_choices() -> None:
    template, query = Template("{input}\n{choices}\nAnswer: {letter}"), Query("two", ("x", "y"))
    prompt = assemble(template, query, [])
    assert [r.continuation for r in answer_requests(prompt, template, ["y", "x"], query.choices)] == [" B", " A"]
    with pytest.raises(DataError, match="not one of the choices"):
        answer_requests(prompt, template, ["z"], query.choices)


def test_the_tasks_labels_go_before_the_choices_and_these_before_what_was_inferred() -> None:
    query = Query("q", ("b", "a", "b"))
    assert answer_options(query, ["l"], ["i"]) == ("l",)
    assert answer_options(query, [], ["i"]) == ("b", "a")
    assert answer_options(Query("q"), [], ["i"]) == ("i",)
    assert answer_options(Query("q")) == ()


def test_outputs_are_labels_when_each_comes_four_times_on_average() -> None:
    assert infer_labels(["b", "a", "a", "a"] * 2) == ("a", "b")
    assert infer_labels(["b", "a", "a", "a", "a", "a", "a"]) == ()
    assert infer_labels([]) == ()


def test_the_mean_divides_by_the_tokens_of_the_answer() -> None:
    scores = [Score(-6.0, 3, False), Score(-1.0, 0, True)]
    assert log_probs(scores).tolist() == [-6.0, -1.0]
    assert log_probs(scores, "mean").tolist() == [-2.0, -1.0]
    assert log_probs([], "mean").shape == (0,)


def test_log_softmax_sums_to_one_over_the_last_axis() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)) - 500
    shares = np.exp(log_softmax(values))
    assert shares.sum(axis=1) == pytest.approx(np.ones(3))
    assert log_softmax(values)[:, 0] - log_softmax(values)[:, 1] == pytest.approx(values[:, 0] - values[:, 1])


def test_a_runs_template_is_read_from_its_spec() -> None:
    parts = {"template": {"demo": "{input} {output}", "stop": ["\n"]}}
    spec = RunSpec(TaskPart("t", "h", "classification", "accuracy", (), 1), PoolPart("p", 1), Spec("prompt"), parts)
    assert template_of(Run(spec)) == Template("{input} {output}", stop=("\n",))
