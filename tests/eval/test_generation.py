"""Metrics of free text: against other implementations, and where they come from."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections import Counter
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.eval import METRICS, Metric
from iclkit.eval._numbers import last_number

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mats", "today"]), min_size=1, max_size=12).map(" ".join)


def judge(name: str, output: str, gold: str) -> float:
    metric = METRICS.get(name)
    assert metric.judge is not None
    return metric.judge(output, gold)


def grams(items: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def naive_chrf(output: str, gold: str) -> float:
    said, true = list(output.replace(" ", "")), list(gold.replace(" ", ""))
    precision, recall = [], []
    for n in range(1, 7):
        a, b = grams(said, n), grams(true, n)
        if a and b:
            precision.append((a & b).total() / a.total())
            recall.append((a & b).total() / b.total())
    p, r = (sum(x) / len(x) if x else 0.0 for x in (precision, recall))
    return 5 * p * r / (4 * p + r) if p + r else 0.0


def naive_bleu(output: str, gold: str) -> float:
    """Without smoothing: for pairs that share words, pairs, triples and quadruples."""
    said, true = output.split(), gold.split()
    logs = []
    for n in range(1, 5):
        a, b = grams(said, n), grams(true, n)
        logs.append(math.log((a & b).total() / a.total()))
    return math.exp(sum(logs) / 4) * min(1.0, math.exp(1 - len(true) / len(said)))


def naive_rouge(output: list[str], gold: list[str], n: int) -> float:
    a, b = grams(output, n), grams(gold, n)
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def longest_common(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


@settings(deadline=None)
@given(WORDS, WORDS)
def test_chrf_equals_a_second_implementation(output: str, gold: str) -> None:
    pytest.importorskip("sacrebleu")
    assert judge("chrf", output, gold) == pytest.approx(naive_chrf(output, gold))


@settings(deadline=None)
@given(WORDS, WORDS)
def test_bleu_equals_a_second_implementation_where_nothing_is_smoothed(before: str, after: str) -> None:
    pytest.importorskip("sacrebleu")
    output, gold = f"{before} four words in common", f"{after} four words in common today"
    assert judge("bleu", output, gold) == pytest.approx(naive_bleu(output, gold))


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_corpus_bleu_from_kept_counts_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    outputs, golds = [o for o, _ in pairs], [g for _, g in pairs]
    for _ in range(2):  # the second time from the kept counts
        expected = sacrebleu.corpus_bleu(outputs, [golds]).score / 100
        assert METRICS.get("corpus_bleu").figure(outputs, golds) == pytest.approx(expected)


def test_the_figure_of_a_sentence_metric_is_the_mean_over_sentences() -> None:
    pytest.importorskip("sacrebleu")
    outputs = ["Ein Junge posiert am Strand.", "Zwei Hunde laufen"]
    golds = ["Ein Junge posiert für ein Foto am Strand.", "Zwei Hunde laufen durch das Gras."]
    single = [judge("chrf", o, g) for o, g in zip(outputs, golds, strict=True)]
    assert METRICS.get("chrf").figure(outputs, golds) == pytest.approx(sum(single) / 2)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_rouge_equals_a_second_implementation(output: str, gold: str) -> None:
    pytest.importorskip("rouge_score")
    stems = [[w.rstrip("s") if len(w) > 3 else w for w in t.split()] for t in (output, gold)]
    stems = [[{"today": "todai"}.get(w, w) for w in t] for t in stems]
    assert judge("rouge_1", output, gold) == pytest.approx(naive_rouge(*stems, 1))
    assert judge("rouge_2", output, gold) == pytest.approx(naive_rouge(*stems, 2))
    both = len(stems[0]) + len(stems[1])
    assert judge("rouge_l", output, gold) == pytest.approx(2 * longest_common(*stems) / both)


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "token_f1"])
def test_the_gold_answer_is_worth_one_and_nothing_is_worth_nothing(name: str) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    gold = "Two dogs run through the tall grass."
    assert judge(name, gold, gold) == pytest.approx(1)
    assert judge(name, "", gold) == 0
    assert 0 < judge(name, "Two dogs run.", gold) < 1


SCRIPTS = {
    "Hindi": "यह एक बहुत अच्छी किताब है।",
    "Thai": "นี่คือหนังสือที่ดีมาก",
    "Chinese": "这是一本非常好的书。",
    "Russian": "Это очень хорошая книга.",
    "Japanese": "これはとても良い本です。",
    "Korean": "이것은 아주 좋은 책입니다.",
    "Arabic": "هذا كتاب جيد جدا.",
    "Georgian": "ეს ძალიან კარგი წიგნია.",
    "Khmer": "នេះជាសៀវភៅល្អណាស់",
    "Tamil": "இது மிகவும் நல்ல புத்தகம்.",
    "German": "Für Größe übt man schöne Sätze.",
}
FREE_TEXT = ["bleu", "corpus_bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "token_f1"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", FREE_TEXT)
def test_the_gold_answer_is_worth_one_in_every_script(name: str, script: str) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    gold = SCRIPTS[script]
    metric = METRICS.get(name)
    assert metric.figure([gold], [gold]) == pytest.approx(1)
    assert metric.figure([unicodedata.normalize("NFD", gold)], [gold]) == pytest.approx(1)
    others = [text for other, text in SCRIPTS.items() if other != script]
    assert max(metric.figure([text], [gold]) for text in others) < 0.3
    half = gold[: len(gold) // 2]
    assert 0 < metric.figure([f"{half} x y z w"], [gold]) < 1 or name == "corpus_bleu"


def test_bleu_of_chinese_is_sacrebleus_and_of_other_scripts_without_spaces_by_character() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    golds = ["这是一本非常好的书。", "我昨天在图书馆看见了他。"]
    outputs = ["这是一本很好的书。", "我昨天在图书馆见到了他。"]
    found = METRICS.get("corpus_bleu").figure(outputs, golds)
    assert found == pytest.approx(sacrebleu.corpus_bleu(outputs, [golds], tokenize="zh").score / 100)
    assert METRICS.get("corpus_bleu,tokenize=zh").figure(outputs, golds) == pytest.approx(found)
    assert METRICS.get("corpus_bleu,tokenize=13a").figure(golds, golds) == 0
    thai = (SCRIPTS["Thai"][:-3], SCRIPTS["Thai"])
    expected = sacrebleu.sentence_bleu(thai[0], [thai[1]], tokenize="char").score / 100
    assert judge("bleu", *thai) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bleu,tokenize=words", "tokenize is 'words'; choose from auto, 13a"),
        ("corpus_bleu,tokenize=flores200", "choose from"),  # would be downloaded
        ("bleu,lower=true", "unexpected keyword"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_told(name: str, told: str) -> None:
    pytest.importorskip("sacrebleu")
    with pytest.raises(UsageError, match=told):
        METRICS.get(name)


def test_a_tokenizer_that_needs_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(UsageError, match=r"ja-mecab.*pip install"):
        METRICS.get("bleu,tokenize=ja-mecab")


@given(st.text(alphabet=st.characters(max_codepoint=127)), st.text(alphabet=st.characters(max_codepoint=127)))
def test_rouge_of_ascii_text_is_rouge_scores_own(output: str, gold: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    expected = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(gold, output)
    if any(c.isalnum() for c in gold):
        for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert judge(name, output, gold) == expected[kind].fmeasure


def test_typographic_signs_leave_english_rouge_as_it_is() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    output, gold = "“Don’t panic” — the dogs were running…", "The dog’s running – don’t “panic”!"
    expected = scorer.RougeScorer(["rougeL"], use_stemmer=True).score(gold, output)["rougeL"].fmeasure
    assert judge("rouge_l", output, gold) == expected


def test_an_answer_without_words_is_worth_one_where_it_is_the_gold_answer() -> None:
    pytest.importorskip("rouge_score")
    assert (judge("rouge_l", "😀", "😀"), judge("rouge_l", "😀", "😢"), judge("rouge_l", "x", "😀")) == (1, 0, 0)


@pytest.mark.parametrize(
    ("output", "gold", "value"),
    [  # torchmetrics 1.9.0, squad()["f1"] / 100
        ("The cat sat.", "a cat, sitting", 0.5),
        ("Denver Broncos", "the Denver Broncos!", 1.0),
        ("in 1912", "1912", 2 / 3),
        ("no", "yes", 0.0),
        ("to be or not to be", "to be", 0.5),
        ("U.S.A.", "USA", 1.0),
        ("", "x", 0.0),
        ("l'eau", "eau", 0.0),
    ],
)
def test_token_f1_equals_torchmetrics(output: str, gold: str, value: float) -> None:
    assert judge("token_f1", output, gold) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("from 10-12", 12),
        ("it is -4 degrees", -4),
        ("x=-4", -4),
        ("(3)-4", 4),
        ("it fell to −1,000", -1000),
        ("-$3.50 in all", -3.5),
        ("$-3.50 in all", -3.5),
        ("1,2,3", 3),
        ("the 1,234,567.", 1234567),
        ("it is .5", 0.5),
        ("#### 70%", 70),
        ("#### $1,080.00 a year, or 90 a month", 1080),
        ("#### none, but 7 before", 7),
        ("7 eggs\n####", 7),
        ("#### Step 1: 3*4 = 12\n#### Step 2: add 2\nThe answer is 14.", 14),
        ("#### The answer is 18\n\nQuestion: 99 more", 18),
        ("#### 1/2", 0.5),
        ("#### **5**", 5),
        (r"\boxed{$9{,}500}", 9500),
        (r"\boxed{12} in 3 steps", 12),
        (r"so \boxed{x}, that is 7", 7),
        (r"\boxed{\frac{7}{8}}", 0.875),
        ("1/2", 0.5),
        ("10 / 4", 2.5),
        ("$1,000/4", 250),
        ("-1/2", -0.5),
        ("5/0", 0),
        ("on 3/4/2020", 2020),
        ("on 2024-01-15", 15),
        ("at 10:30", 30),
        ("70 000", 70000),
        ("12\u2009345\u202f678,9 km", 12345678.9),
        ("9'500 and 9’501", 9501),
        ("1_000_000", 1000000),
        ("in 2019 350 people", 350),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1.234.567", 1234567),
        ("1,00,000", 100000),
        ("12,34,567.5", 1234567.5),
        ("3,5", 3.5),
        ("0,125", 0.125),
        ("version 1.2.3", 3),
        ("1e5", 100000),
        ("1.5E-3", 0.0015),
        ("1e5x or 2", 2),
        ("2 × 10^5", 200000),
        (r"2.5 \times 10^{-3}", 0.0025),
        ("10⁵", 100000),
        ("10^5", 100000),
        ("10**5", 100000),
        ("2^10", 1024),
        ("25 m^2", 25),
        ("25 m²", 25),
        ("½", 0.5),
        ("3½ cups", 3.5),
        ("3 1/2", 3.5),
        (r"3\frac{1}{2}", 3.5),
        (r"-\dfrac{1}{2}", -0.5),
        (r"$\frac12$", 0.5),
        ("−¾", -0.75),
        ("x = - 4", -4),
        ("- 4 apples", 4),
        ("(-5)", -5),
        ("from 10–12", 12),
        ("2 apples and 3", 3),
        ("٣٤٫٥", 34.5),
        ("१२३", 123),
        ("１２３", 123),
        ("€ 1.234,50", 1234.5),
        ("US$1 000", 1000),
        ("COVID-19", 19),
        ("12.", 12),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: float) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["", "none", "9" * 5000, "1e999999999", "0^-1", "10^99999", "x²"])
def test_what_is_no_number_or_beyond_all_bounds_is_none(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("output", "gold", "value"),
    [
        ("1000001", "1000000", 0),  # a millionth apart
        ("100000000000000000001", "100000000000000000000", 0),
        ("12345678.5", "12345678", 0),
        ("0.333333333", "1/3", 1),
        ("0.3333", "1/3", 0),
        ("33.3333333", "100/3", 1),
        ("1e-7", "2e-7", 0),
        ("1e-9", "0", 0),
        ("-0", "0.0", 1),
        ("0.1 + 0.2 = 0.30000000000000004", "0.3", 1),
        ("9" * 5000, "9" * 5000, 0),
        ("70 000", "70,000", 1),
    ],
)
def test_whole_numbers_must_be_equal_and_others_to_a_millionth(output: str, gold: str, value: float) -> None:
    assert judge("number_match", output, gold) == value


@given(st.text(alphabet="0123456789.,-+/^*eE×x {}\\$#½²⁵ fracboxd'", max_size=60), st.text(max_size=30))
def test_any_text_has_a_finite_number_or_none(text: str, other: str) -> None:
    for each in (text, other, text + other):
        number = last_number(each)
        assert number is None or math.isfinite(number)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of the group ``iclkit.metrics`` that name the functions of this file."""
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "iclkit_test_metrics", module)
    points = [
        EntryPoint(n, f"iclkit_test_metrics:{n}", "iclkit.metrics") for n in ("same_start", "starts", "wrong_made")
    ]
    monkeypatch.setattr("iclkit.registry.entry_points", lambda group: points if group == "iclkit.metrics" else [])


def same_start(output: str, gold: str) -> float:
    return float(output[:1] == gold[:1])


def starts(*, length: int) -> Metric:
    return Metric("starts", judge=lambda output, gold: float(output[:length] == gold[:length]))


def wrong_made(**_: Any) -> str:
    return "no metric"


@pytest.mark.usefixtures("plugins")
def test_a_function_of_two_texts_is_a_metric_and_so_is_what_a_factory_makes() -> None:
    assert judge("same_start", "cat", "cow") == 1
    metric = METRICS.get("starts,length=2")
    assert (metric.name, metric.figure(["cat"], ["cow"])) == ("starts,length=2", 0)
    assert not METRICS.get("same_start").bounded


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("starts", "missing a required .*argument: 'length'"),
        ("starts,size=2", "missing a required|unexpected keyword"),
        ("wrong_made,a=1", "gave str; it must give an iclkit.eval.Metric"),
        ("accuracy,k=1", "the metric 'accuracy' takes no settings"),
        ("sql_execution", "missing a required argument: 'database'"),
    ],
)
def test_wrong_settings_of_a_metric_are_told(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        METRICS.get(name)


@pytest.mark.parametrize(("name", "library"), [("chrf", "sacrebleu"), ("rouge_l", "rouge_score.rouge_scorer")])
def test_without_the_extra_a_metric_says_what_to_install(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(
        sys.modules, {"chrf": "iclkit.eval._bleu", "rouge_l": "iclkit.eval._rouge"}[name], raising=False
    )
    with pytest.raises(UsageError, match=r"pip install .*\[metrics\]'"):
        METRICS.get(name)
