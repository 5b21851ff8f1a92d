"""Metrics against known answers and their reference libraries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from iclkit.errors import UnknownName
from iclkit.eval._metrics import METRICS, equal_set, equal_sql, last_number, macro_f1

LABELS = st.sampled_from(["a", "b", "c", "d e"])


def judge(name, output, gold):
    return METRICS.get(name).judge(output, gold)


@pytest.mark.parametrize(
    ("name", "output", "gold", "value"),
    [
        ("accuracy", "yes", "yes", 1),
        ("accuracy", "yes", "no", 0),
        ("exact_match", " two  words\n", "two words", 1),
        ("exact_match", "Two words", "two words", 0),
        ("number_match", "So 3*4 = 12\n#### 12", "#### 12.0", 1),
        ("number_match", "the answer is 1,200 eggs", "x\n#### 1200", 1),
        ("number_match", "nothing", "#### 3", 0),
        ("number_match", "#### -5", "#### 5", 0),
        ("number_match", "#### 18\n\nQuestion: 99 more", "#### 18", 1),
        ("set_match", "Bear, eagle,dog", "dog, bear, eagle", 1),
        ("set_match", "bear, eagle", "dog, bear, eagle", 0),
        ("sql_match", "select A.x from t as A ;", "SELECT a.X FROM t AS a;", 1),
        ("sql_match", 'SELECT x FROM t WHERE n = "Ohio"', "select x from t where n='Ohio'", 1),
        ("sql_match", 'SELECT x FROM t WHERE n = "ohio"', 'SELECT x FROM t WHERE n = "Ohio"', 0),
    ],
)
def test_each_metric_gives_its_known_answer(name, output, gold, value):
    assert judge(name, output, gold) == value


@settings(deadline=None)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30))
def test_macro_f1_equals_scikit_learn(pairs):
    outputs, golds = zip(*pairs, strict=True)
    expected = f1_score(golds, outputs, average="macro", zero_division=0)
    assert macro_f1(outputs, golds) == pytest.approx(expected)


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_read_back_with_and_without_commas(number):
    assert last_number(f"it makes {number}") == number
    assert last_number(f"#### {number:,} and 7 more") == number


@given(st.lists(st.sampled_from(["cat", "dog", "owl", "eel"]), min_size=1), st.randoms())
def test_set_match_does_not_see_the_order(words, random):
    shuffled = random.sample(words, len(words))
    assert equal_set(", ".join(shuffled), ",".join(words)) == 1


@given(st.lists(st.sampled_from(["select", "a.b", "from", "'It''s'", '"x y"', "(", ")", ","]), min_size=1))
def test_sql_match_does_not_see_spacing(tokens):
    assert equal_sql("  ".join(tokens), "\n ".join(tokens)) == 1


def test_an_unknown_metric_offers_the_nearest():
    with pytest.raises(UnknownName, match="accuracy"):
        METRICS.get("acuracy")


def test_the_figure_of_no_rows_is_nan():
    assert METRICS.get("accuracy").figure([], []) != METRICS.get("accuracy").figure([], [])
