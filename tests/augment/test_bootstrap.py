from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.augment import bootstrap, with_labeled
from iclkit.errors import UsageError
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing import ScriptedLM

TEMPLATE = Template("Q: {input}\nA: {output}")
TRAIN = [Example(f"number {n}", str(n)) for n in range(10)]


def solving(wrong=()):
    def reply(context):
        n = re.findall(r"number (\d+)", context)[-1]
        return f" it says so. {'nothing' if int(n) in wrong else n}"

    return ScriptedLM(reply=reply)


def last_word(output, gold):
    return float(output.split()[-1] == gold)


@settings(max_examples=200)
@given(
    wrong=st.sets(st.integers(0, 9)),
    most=st.integers(0, 12),
    seed=st.integers(0, 9),
    shots=st.integers(0, 12),
    shuffle=st.booleans(),
)
def test_the_first_that_the_metric_accepts_are_kept_as_one_by_one(wrong, most, seed, shots, shuffle):
    lm = solving(wrong)
    made = bootstrap(lm, TEMPLATE, TRAIN, last_word, most=most, shots=shots, seed=seed, shuffle=shuffle, cue="Well,")
    inputs = [e.input for e in made.examples]
    right = [e.input for e in TRAIN if int(e.output) not in wrong]
    if shuffle:
        assert {*inputs} <= {*right}
        assert len(inputs) == min(most, len(right))
    else:
        assert inputs == right[:most]
    assert all(e.output.startswith("Well, it says so.") for e in made.examples)
    assert made.calls == len(lm.generated) == len(made.examples) + len(made.rejected)
    for request in lm.generated:  # the teacher never sees the example it has to solve
        *shown, asked = re.findall(r"number (\d+)", request.context)
        assert asked not in shown
        assert len(shown) == min(shots, 9)
    assert made == bootstrap(
        solving(wrong), TEMPLATE, TRAIN, last_word, most=most, shots=shots, seed=seed, shuffle=shuffle, cue="Well,"
    )


def test_what_fails_is_tried_again_at_temperature_one_with_another_seed_and_reported():
    lm = solving(wrong={1, 2})
    made = bootstrap(lm, TEMPLATE, TRAIN[:4], last_word, most=4, rounds=2, seed=5)
    assert [e.input for e in made.examples] == ["number 0", "number 3"]
    assert [(r.temperature, r.seed) for r in lm.generated] == [(0.0, 5)] * 4 + [(1.0, 6)] * 2
    assert made.reasons == {"not accepted by the metric": 4}
    meta = made.examples[0].meta
    assert meta["generated_from"] == [TRAIN[0].id]
    assert (meta["generated"], meta["generated_score"], meta["generated_gold"]) == ("bootstrap", 1.0, "0")


def test_labeled_ones_fill_up_without_repeating_what_has_a_trace():
    made = bootstrap(solving(wrong={0}), TEMPLATE, TRAIN, last_word, most=3)
    filled = with_labeled(made, TRAIN, 8, seed=1)
    assert filled[:3] == [*made.examples]
    assert len({str(e.input) for e in filled}) == len(filled) == 8
    assert filled == with_labeled(made, TRAIN, 8, seed=1) != with_labeled(made, TRAIN, 8, seed=2)
    never = bootstrap(solving(), TEMPLATE, TRAIN, lambda *_: 0.0)
    assert never.examples == ()
    assert all("generated" not in e.meta for e in with_labeled(never, TRAIN, 4))


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="rounds"):
        bootstrap(solving(), TEMPLATE, TRAIN, last_word, rounds=0)
