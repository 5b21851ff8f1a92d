"""A prompt that the LM refuses or answers with nothing costs one attempt: it is counted, and makes no example."""

from __future__ import annotations

import numpy as np
import pytest

from iclkit.augment import (
    Document,
    auto_icl,
    bootstrap,
    label_inputs,
    plan,
    rate_examples,
    recycle,
    synthesize,
    write_for_labels,
)
from iclkit.errors import RequestError, RunError
from iclkit.prompts import Template
from iclkit.records import Example, Query
from iclkit.testing import ScriptedLM

TEMPLATE = Template("Q: {input}\nA: {output}")
TRAIN = [Example(f"number {n}", str(n % 2)) for n in range(8)]
DOCUMENTS = [Document((f"Paragraph {n} is here. It has two sentences.",)) for n in range(4)]


class Picky(ScriptedLM):
    """Refuses requests in whose context a word stands, and writes nothing to others."""

    def __init__(self, refused="", silent="", reply=lambda _: " yes\nA: 1\nAnswer: so"):
        super().__init__(reply=lambda c: "" if silent and silent in c else reply(c))
        self.refused = refused

    def generate(self, requests, on_done=None):
        return self._each(requests, super().generate, on_done)

    def score(self, requests, on_done=None):
        return self._each(requests, super().score, on_done)

    def _each(self, requests, ask, on_done):
        results = []
        for n, request in enumerate(requests):
            if self.refused and self.refused in request.context:
                raise RequestError(n, "filtered by the server")
            results += ask([request])
            if on_done:
                on_done([(n, results[-1])])
        return results


METHODS = {
    "answer": lambda lm: label_inputs(lm, TEMPLATE, ["number 3", "number 4"]),
    "auto-icl": lambda lm: auto_icl(lm, TEMPLATE, [Query("number 3"), Query("number 4")], questions=1),
    "bootstrap": lambda lm: bootstrap(lm, TEMPLATE, TRAIN, lambda out, gold: 1.0, most=8, shots=0),
    "recycle": lambda lm: recycle(lm, DOCUMENTS, k=1),
}


@pytest.mark.parametrize("how", ["refused", "silent"])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_rejected_as_no_answer_and_the_others_are_examples(method, how):
    mark = "Paragraph 3" if method == "recycle" else "number 3"
    result = METHODS[method](Picky(**{how: mark}))
    assert result.reasons["no answer"] == 1
    assert len(result.examples) == len(METHODS[method](Picky()).examples) - 1 > 0
    (rejected,) = [r for r in result.rejected if r.reason == "no answer"]
    assert mark in rejected.text
    assert ("filtered by the server" in rejected.text) == (how == "refused")


def test_labels_of_an_lm_that_refuses_the_input_are_no_answer():
    result = label_inputs(Picky(refused="number 3"), TEMPLATE, ["number 3", "number 4"], labels=("0", "1"))
    assert [e.input for e in result.examples] == ["number 4"]
    assert result.reasons == {"no answer": 1}


def test_inputs_of_a_refused_label_are_not_made_up():
    result = write_for_labels(Picky(refused="A: odd", reply=lambda c: f" {len(c)}"), TEMPLATE, ["odd", "one"])
    assert {e.output for e in result.examples} == {"one"}
    assert result.reasons == {"no answer": 2, "repeats another": 1}


@pytest.mark.parametrize("method", METHODS)
def test_an_lm_that_refuses_everything_stops_with_its_reason(method):
    mark = "Paragraph" if method == "recycle" else "number"
    with pytest.raises(RunError, match=r"scripted refused all of . prompts: filtered by the server"):
        METHODS[method](Picky(refused=mark))


def test_a_summary_that_is_refused_leaves_the_template_as_it_is():
    assert plan(Picky(refused="number"), TEMPLATE, TRAIN) == TEMPLATE


def test_an_example_that_nobody_rates_is_not_kept():
    lm = Picky(refused="number 3")
    ratings = rate_examples(lm, TEMPLATE, TRAIN)
    assert np.isnan(ratings).tolist() == [n == 3 for n in range(8)]
    undecided = ScriptedLM(lambda *_: -2.0)
    assert np.isnan(rate_examples(undecided, TEMPLATE, TRAIN)).all()
    numbers = iter(range(100))
    lm = ScriptedLM(lambda *_: -2.0, reply=lambda _: f" new {next(numbers)}\nA: 1")
    assert synthesize(lm, TEMPLATE, TRAIN, count=4).reasons == {"not rated: no answer": 4}


def test_an_lm_that_only_ranks_rates_by_the_number_that_it_writes():
    lm = ScriptedLM(lambda _, number: -abs(int(number) - 4.0))
    lm.scoring = "generate"
    assert rate_examples(lm, TEMPLATE, TRAIN).tolist() == [4.0] * 8


def test_no_stop_stands_in_what_may_be_written():
    train = [Example(f"number {n}", f"first\n\nthen {n}") for n in range(8)]
    lm = Picky()
    bootstrap(lm, TEMPLATE, train, lambda out, gold: 1.0)
    synthesize(lm, TEMPLATE, train, count=2, ratings=0)
    label_inputs(lm, TEMPLATE, ["number 3"])
    assert [*dict.fromkeys(r.stop for r in lm.generated)] == [("\n\nQ:",), ("\n\n",)]
