from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.augment import RATING_PROMPTS, above_median, add_to_pool, generated, rate_examples, synthesize
from iclkit.errors import DataError, UsageError
from iclkit.lm import Generation
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import FakeLM, ScriptedLM

TEMPLATE = Template("Text: {input}\nKind: {output}", instruction="Name the kind.")
REAL = [Example(f"real text {n}", "good" if n % 2 else "bad") for n in range(12)]


class Author(ScriptedLM):
    """Writes what the list says, in the order asked."""

    def __init__(self, replies, **more):
        super().__init__(**more)
        self._replies = iter(replies)

    def _answer(self, request):
        return next(self._replies)


def test_each_is_written_after_its_own_real_ones_and_what_is_unfit_is_reported():
    replies = [
        " new one\nKind: good",
        " New one.\nKind: bad",
        " real text 3\nKind: good",
        " secret test row\nKind: bad",
        " other\nKind: odd",
        " hm",
        " two\nKind: bad\nText: three\nKind: bad",
    ]
    lm = Author(replies)
    made = synthesize(
        lm, TEMPLATE, REAL, count=7, shots=4, ratings=0, labels=("good", "bad"), avoid=["Secret test row"], seed=2
    )
    assert [(e.input, e.output) for e in made.examples] == [("new one", "good"), ("two", "bad")]
    assert made.reasons == {
        "repeats a real or a new input": 2,
        "an input to be avoided": 1,
        "an output that is no label": 1,
        "not an example of the template": 1,
    }
    assert made.calls == len(lm.generated) == 7
    assert len({r.context for r in lm.generated}) == 7
    for n, request in enumerate(lm.generated):
        assert request.context.count("Text: real text") == 4
        assert request.context.endswith("\n\nText:")
        assert request.seed == 2 + n
    meta = made.examples[1].meta
    assert len(meta["generated_from"]) == 4
    assert {*meta["generated_from"]} <= {e.id for e in REAL}


def test_text_that_ends_for_want_of_tokens_is_cut_off():
    class Cut(FakeLM):
        def generate(self, requests, on_done=None):
            return [Generation(" a text\nKind: goo", 5, "length") for _ in requests]

    assert synthesize(Cut(), TEMPLATE, REAL, count=2).reasons == {"cut off": 2}


@settings(max_examples=200)
@given(st.lists(st.sampled_from([1.0, 2.0, 2.0000001, 3.5, 5.0]), max_size=12))
def test_never_more_than_half_are_above_the_median(values):
    kept = above_median(np.array(values))
    assert kept.sum() * 2 <= len(values)
    middle = sorted(values)[len(values) // 2] if values else 0
    assert all(v >= middle - 1e-5 for v, keep in zip(values, kept, strict=True) if keep)
    assert all(keep for v, keep in zip(values, kept, strict=True) if v > middle + 1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_rating_is_the_expected_number_averaged_over_prompts(seed, prompts):
    lm, examples = FakeLM(name=f"fake {seed}"), REAL[:3]
    values = rate_examples(lm, TEMPLATE, examples, prompts=RATING_PROMPTS[:prompts])
    for example, value in zip(examples, values, strict=True):
        means = []
        for prompt in RATING_PROMPTS[:prompts]:
            text = f"Name the kind.\n\nText: {example.input}\nKind: {example.output}\n\n{prompt}"
            p = [math.exp(lm._score(text, f" {n}").logprob) for n in range(1, 6)]
            means.append(sum(n * q for n, q in enumerate(p, 1)) / sum(p))
        assert value == pytest.approx(sum(means) / len(means))
        assert 1 <= value <= 5


def test_the_better_half_is_kept_and_the_rest_reported():
    def logprob(context, number):
        return -abs(int(number) - (5 if "fine" in context else 1)) * 9.0

    lm = Author([f" {'fine' if n % 2 else 'poor'} text {n}\nKind: good" for n in range(8)], logprob=logprob)
    made = synthesize(lm, TEMPLATE, REAL, count=8, ratings=2)
    assert [e.input for e in made.examples] == [f"fine text {n}" for n in (1, 3, 5, 7)]
    assert all(e.meta["generated_rating"] > 4.9 for e in made.examples)
    assert made.reasons == {"rated no better than the median": 4}
    assert made.calls == 8 + 5 * 2 * 8 == len(lm.generated) + len(lm.scored)


def test_a_pool_lists_and_removes_what_was_generated_and_keeps_the_originals():
    made = synthesize(Author([f" text {n}\nKind: good" for n in range(5)]), TEMPLATE, REAL, count=5, ratings=0)
    pool = Pool.of(REAL)
    assert add_to_pool(pool, made).added == 5
    assert add_to_pool(pool, made).added == 0
    view = pool.view(where={"generated": "synthesize"})
    assert view.examples == made.examples
    assert generated(pool) == [*made.examples]
    assert generated(pool, "labels") == []
    former = [Example("a", "b", meta={"generated": "synthesise"})]  # as older pools have it
    assert generated(former) == generated(former, "synthesize") == former
    pool.remove(view.ids)
    assert [*pool] == REAL


def test_without_real_examples_or_with_settings_out_of_range_it_is_refused():
    with pytest.raises(DataError, match="no real example"):
        synthesize(FakeLM(), TEMPLATE, [])
    with pytest.raises(UsageError, match="ratings 9"):
        synthesize(FakeLM(), TEMPLATE, REAL, ratings=9)
