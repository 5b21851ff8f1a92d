from __future__ import annotations

import math
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import UsageError
from iclkit.pool import Pool
from iclkit.pool import _terms as terms
from iclkit.pool._terms import TermIndex, Terms, trigrams, words
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector

TEXT = st.lists(st.sampled_from(["red", "green", "blue", "fish", "cat", "dog", "the"]), max_size=8).map(" ".join)


def naive(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    """The formula of Lucene, a word at a time."""
    docs = [re.findall(r"\w+", t.lower()) for t in texts]
    mean = sum(map(len, docs)) / len(docs)
    scores = [0.0] * len(docs)
    for word in re.findall(r"\w+", query.lower()):
        df = sum(word in d for d in docs)
        idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
        for n, doc in enumerate(docs):
            if word in doc:
                f = doc.count(word)
                scores[n] += idf * f / (f + k1 * (1 - b + b * len(doc) / mean))
    return scores


def pool(texts):
    return Pool.of(Example(t, f"y{n}") for n, t in enumerate(texts)).view()


@settings(max_examples=250, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=12), query=TEXT, b=st.sampled_from([0.0, 0.5, 1.0]))
def test_scores_equal_the_formula(texts, query, b):
    np.testing.assert_allclose(
        TermIndex(Terms.of(texts, words), 1.2, b).scores(query), naive(query, texts, 1.2, b), atol=1e-5
    )


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=12), query=TEXT, k=st.integers(1, 14))
def test_picks_are_the_best_that_share_a_word_then_random_ones(texts, query, k):
    view = pool(texts)
    selection = make_selector("bm25").fit(view, Kit()).select(Query(query), k)
    scores = naive(query, texts, 1.5, 0.75)
    overlapping = [s for s in scores if s > 0]
    got = [scores[view.ids.index(p.example_id)] for p in selection]
    np.testing.assert_allclose(got, (sorted(overlapping, reverse=True) + [0.0] * len(texts))[: len(got)], atol=1e-5)
    assert len(got) == min(k, len(texts))
    without = sum(s == 0 for s in got)
    assert any("are random" in note for note in selection.notes) == (without > 0)


def test_without_a_common_word_the_picks_are_random_by_query_not_the_first_rows():
    view = pool([f"text {n}" for n in range(50)])
    one = make_selector("bm25").fit(view, Kit())
    first, second = one.select(Query("qwertz"), 5), one.select(Query("zztop"), 5)
    assert first.ids != second.ids
    assert first.ids != view.ids[:5]
    assert first.notes == ("5 picks have nothing in common with the query and are random",)


def test_a_word_that_the_pool_lacks_changes_nothing():
    view = pool(["red fish", "blue fish", "one dog"])
    one = make_selector("bm25").fit(view, Kit())
    assert one.select(Query("fish"), 2).picks == one.select(Query("fish", id="other"), 2).picks
    picks = one.select(Query("fish unheard unseen"), 2).picks
    assert picks == one.select(Query("fish"), 2).picks


def test_identical_texts_tie_and_the_lower_row_comes_first():
    view = pool(["blue", "red fish", "red fish", "red fish"])
    picks = make_selector("bm25").fit(view, Kit()).select(Query("fish"), 3).picks
    assert [p.example_id for p in picks] == [*view.ids[1:4]]
    assert len({p.score for p in picks}) == 1


def test_a_field_that_all_share_leaves_ranks_alone_when_length_does_not_count():
    texts = ["red fish fish", "red", "blue fish red", "green dog"]
    plain = TermIndex(Terms.of(texts, words), 1.5, 0.0).scores("red fish")
    longer = TermIndex(Terms.of([t + " source wikipedia" for t in texts], words), 1.5, 0.0).scores("red fish")
    np.testing.assert_allclose(plain, longer)


def test_frequent_words_stored_densely_score_the_same():
    texts = [f"the cat {n}" if n % 5 == 0 else f"the dog {n}" for n in range(40)]
    np.testing.assert_allclose(
        TermIndex(Terms.of(texts, words), 1.5, 0.75).scores("the the cat 7"),
        naive("the the cat 7", texts, 1.5, 0.75),
        atol=1e-5,
    )


def test_a_pool_of_empty_texts_still_answers():
    view = pool(["", " "])
    assert len(make_selector("bm25").fit(view, Kit()).select(Query("x"), 2)) == 2


def test_tokenizers_and_stemmers_are_settings():
    assert trigrams("fishy Ab") == ["fis", "ish", "shy", "ab"]
    view = pool(["he runs", "a house"])
    stem = make_selector("bm25,stemmer=english").fit(view, Kit())
    assert stem.select(Query("running"), 1).notes == ()
    assert make_selector("bm25").fit(view, Kit()).select(Query("running"), 1).notes != ()
    with pytest.raises(UsageError, match="choose from split, trigrams, words"):
        make_selector("bm25,tokenizer=word")
    with pytest.raises(UsageError, match="klingon"):
        make_selector("bm25,stemmer=klingon")
    with pytest.raises(UsageError, match=r"b is 2\.0; give a number from 0 to 1"):
        make_selector("bm25,b=2")


NEWS = {  # script: (weather, football, a question that is about the first)
    "Devanagari": ("कल दिल्ली में बारिश होगी", "भारत ने क्रिकेट मैच जीता", "दिल्ली की बारिश"),
    "Han": ("北京明天有大雨", "足球比赛昨晚结束", "雨会下到什么时候"),
    "Kana": ("東京はあした雨でしょう", "サッカーの試合が終わった", "あしたの天気"),
    "Hangul": ("내일 서울에는 비가 온다", "축구 경기가 끝났다", "서울은 맑다"),
    "Thai": ("พรุ่งนี้ฝนตกที่กรุงเทพ", "ทีมฟุตบอลชนะ", "กรุงเทพมีฝนไหม"),
    "Khmer": ("ថ្ងៃស្អែកមានភ្លៀង", "ក្រុមបាល់ទាត់ឈ្នះ", "ភ្លៀងទេ"),
    "Burmese": ("မနက်ဖြန်မိုးရွာမယ်", "ဘောလုံးပွဲပြီးပြီ", "မိုးလား"),
    "Lao": ("ມື້ອື່ນຝົນຈະຕົກ", "ທີມບານເຕະຊະນະ", "ຝົນ"),
    "Arabic": ("المطر غدا في القاهرة", "انتهت مباراة الكرة", "مطر القاهرة"),
    "Cyrillic": ("завтра в Москве дождь", "матч окончен", "ДОЖДЬ сегодня"),
    "Tamil": ("நாளை சென்னையில் மழை", "கால்பந்து போட்டி முடிந்தது", "மழை"),
    "Greek": ("αύριο βροχή στην Αθήνα", "ο αγώνας τελείωσε", "ΒΡΟΧΉ"),
}


@pytest.mark.parametrize("script", NEWS)
@pytest.mark.parametrize("spec", ["bm25", "bm25,tokenizer=trigrams", "bm25-coverage", "r-bm25"])
@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_what_is_about_the_query_is_found_in_every_script_and_unicode_form(script, spec, stored, asked):
    weather, football, question = NEWS[script]
    view = pool([unicodedata.normalize(stored, t) for t in (football, weather)])
    selection = make_selector(spec).fit(view, Kit()).select(Query(unicodedata.normalize(asked, question)), 1)
    assert selection.ids == (view.ids[1],)
    assert selection.picks[0].score > 0
    assert selection.notes == ()


def test_code_that_is_split_at_white_space_meets_itself_in_another_unicode_form():
    view = pool(["x = 1", "caf\u00e9 = 2"])
    one = make_selector("bm25,tokenizer=split").fit(view, Kit())
    assert one.select(Query("cafe\u0301 ?"), 1).ids == (view.ids[1],)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12), b=st.sampled_from([0.0, 0.75]), few=st.integers(1, 4))
def test_scoring_only_rows_that_may_be_best_gives_the_picks_of_scoring_all(seed, k, b, few):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 61)
    drawn = [rng.choice(60, rng.integers(1, 20), p=weights / weights.sum()) for _ in range(rng.integers(20, 200))]
    view = pool([" ".join(f"w{w}" for w in words) for words in drawn])
    queries = [
        Query(
            " ".join(f"w{w}" for w in rng.choice(62, rng.integers(1, 12))),
            exclude=frozenset(view.ids[n] for n in rng.choice(len(view), rng.integers(0, 10))),
        )
        for _ in range(4)
    ]
    selector, before = make_selector(f"bm25,b={b}").fit(view, Kit()), (terms._MANY, terms._SEEK)
    every = selector.select_many(queries, k)
    try:
        terms._MANY, terms._SEEK = 0, few
        assert selector.select_many(queries, k) == every
    finally:
        terms._MANY, terms._SEEK = before


def test_the_weights_of_frequent_words_are_computed_for_few_rows(monkeypatch):
    weighed = []
    plain = TermIndex._weigh
    monkeypatch.setattr(TermIndex, "_weigh", lambda s, w, rows, c: weighed.append(len(rows)) or plain(s, w, rows, c))
    monkeypatch.setattr(terms, "_MANY", 0)
    texts = [f"the of to a{n % 2000} b{n % 1900} c{n % 1800}" for n in range(20_000)]
    index = TermIndex(Terms.of(texts, words), 1.5, 0.75)
    rows, scores = index.contenders("the of to a7 b7 c7", 3, np.empty(0, np.int64))
    assert sum(weighed) < 20_000 / 8
    assert rows is not None
    assert rows[0] == 7
    np.testing.assert_array_equal(scores, index.scores("the of to a7 b7 c7")[rows])
    assert sum(weighed) > 3 * 20_000  # what scoring all rows takes
