"""Metrics against known answers and their reference libraries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from iclkit.errors import UnknownName
from iclkit.eval._metrics import METRICS, equal_set, macro_f1
from iclkit.eval._numbers import last_number
from iclkit.eval._sql_text import bare_sql, equal_sql, sets_order

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
        ("exact_match", "cafe\u0301", "caf\u00e9", 1),
        ("accuracy", "cafe\u0301 \u2028", "caf\u00e9", 1),
        ("set_match", "CAFE\u0301，猫、dog", "dog, caf\u00e9, 猫", 1),
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


@pytest.mark.parametrize(
    ("output", "gold", "value"),
    [
        ("SELECT x FROM t WHERE a != 1", "SELECT x FROM t WHERE a <> 1", 1),
        ("SELECT x FROM t WHERE a == 1", "SELECT x FROM t WHERE a = 1", 1),
        ("SELECT x FROM t WHERE a < > 1", "SELECT x FROM t WHERE a <> 1", 0),
        ("SELECT `x` FROM `t`", "select X from T", 1),
        ("SELECT [x y] FROM t", 'SELECT "x y" FROM t', 1),
        ("SELECT t . x FROM t", 'SELECT "t"."x" FROM t', 1),
        ('SELECT "x" FROM t', "SELECT X FROM t", 1),
        ('SELECT * FROM t JOIN u ON t.a = "u"."b"', "SELECT * FROM t JOIN u ON t.a = u.b", 1),
        ("SELECT x FROM t WHERE n = ohio", 'SELECT x FROM t WHERE n = "ohio"', 0),
        ("SELECT x FROM t WHERE n IN ('A', 'b')", 'SELECT x FROM t WHERE n IN ("A", "b")', 1),
        ("SELECT x FROM t WHERE n IN ('a', 'b')", 'SELECT x FROM t WHERE n IN ("A", "b")', 0),
        ("SELECT x FROM t WHERE n LIKE 'A%'", 'SELECT x FROM t WHERE n LIKE "a%"', 0),
        ("SELECT 'It''s'", 'SELECT "It\'s"', 1),
        ("SELECT 1 -- one\n, 2", "SELECT 1, 2", 1),
        ("/* a ; comment */ SELECT 1;;", "SELECT 1", 1),
        ("SELECT '--x', '/*y*/'", "SELECT '--x', '/*y*/' -- end", 1),
        ("SELECT '--x'", "SELECT '--X'", 0),
        ("```sql\nSELECT 1\n```", "SELECT 1", 1),
        ("Here it is:\n\n```SQL\nSELECT 1;\n```\nIt gives one.", "SELECT 1", 1),
        ("```\nSELECT\n1```", "SELECT 1", 1),
        ("```SELECT\n1```", "SELECT 1", 1),
        ("```sql SELECT 1```", "SELECT 1", 1),
        ("```sql\nSELECT 1", "SELECT 1", 1),
        ("```text\na table\n```\n```sqlite\nSELECT 1\n```", "SELECT 1", 1),
        ("~~~sql\nSELECT 1\n~~~", "SELECT 1", 1),
        ("`SELECT 1`", "SELECT 1", 1),
        ("SELECT x FROM t WHERE n = 'cafe\u0301'", "SELECT x FROM t WHERE n = 'caf\u00e9'", 1),
        ("SELECT 1.50", "SELECT 1.5", 0),
        ("SELECT 1", "SELECT 2", 0),
        ("", "SELECT 1", 0),
    ],
)
def test_sql_match_sees_the_query_and_not_its_spelling(output, gold, value):
    assert equal_sql(output, gold) == value
    assert equal_sql(gold, output) == value


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT x FROM t ORDER  BY x", True),
        ("SELECT x FROM t order\nby x LIMIT 1", True),
        ("SELECT x FROM (SELECT x FROM t ORDER BY x)", False),
        ("SELECT x FROM t WHERE x = (SELECT max(y) FROM u ORDER BY 1)", False),
        ("SELECT 'order by' FROM t -- ORDER BY x", False),
        ("SELECT sum(x) OVER (ORDER BY y) FROM t", False),
        ('SELECT "order" FROM t', False),
    ],
)
def test_a_query_orders_its_rows_where_order_by_stands_outside_of_brackets_and_values(query, ordered):
    assert sets_order(query) == ordered


@given(st.text(alphabet="'\"`[](),;-/*=!<>. \nsSelectin019", max_size=60), st.text(max_size=30))
def test_any_text_is_some_sql_and_equal_to_itself(text, other):
    for each in (text, other, text + other):
        assert equal_sql(each, each) == 1
        assert equal_sql(bare_sql(each), bare_sql(each)) == 1
        sets_order(each)


def test_macro_f1_has_the_labels_of_the_task_and_no_class_for_each_invented_answer():
    outputs = ["pos", "neg", "pos", "idk1", "idk2", "idk3"]
    golds = ["pos", "neg", "pos", "neg", "pos", "neg"]
    labels = ["neg", "pos"]
    expected = f1_score(golds, outputs, labels=labels, average="macro", zero_division=0)
    assert macro_f1(outputs, golds, labels) == pytest.approx(expected) == pytest.approx(0.65)
    assert METRICS.get("macro_f1").figure(outputs, golds, labels) == pytest.approx(expected)
    assert METRICS.get("macro_f1").figure(outputs, golds) == pytest.approx(expected)  # the gold answers' own
    assert METRICS.get("macro_f1").for_labels(labels).whole(outputs, golds) == pytest.approx(expected)
    assert macro_f1([" pos\n", "neg"], ["pos", "neg"], labels) == 1  # equal as accuracy has it


@settings(deadline=None)
@given(st.lists(st.tuples(LABELS | st.sampled_from(["x", "y"]), LABELS), min_size=1, max_size=30))
def test_macro_f1_over_labels_equals_scikit_learn_over_those_that_are_seen(pairs):
    outputs, golds = zip(*pairs, strict=True)
    labels = ["a", "b", "c", "d e", "never"]
    seen = sorted({*outputs, *golds} & {*labels})
    expected = f1_score(golds, outputs, labels=seen, average="macro", zero_division=0)
    assert macro_f1(outputs, golds, labels) == pytest.approx(expected)


def test_an_unknown_metric_offers_the_nearest():
    with pytest.raises(UnknownName, match="accuracy"):
        METRICS.get("acuracy")


def test_the_figure_of_no_rows_is_nan():
    assert METRICS.get("accuracy").figure([], []) != METRICS.get("accuracy").figure([], [])
