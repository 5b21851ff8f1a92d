from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclkit.text import characters, count_words, fold, looks_english, search_terms, words

# script: a text, its words, and what a search for it sees
SCRIPTS = {
    "Devanagari": ("यह हिन्दी में लिखा है।", "यह हिन्दी में लिखा है", None),
    "Bengali": ("আমি বাংলায় লিখি।", "আমি বাংলায় লিখি", None),
    "Tamil": ("தமிழ் மொழி", "தமிழ் மொழி", None),
    "Arabic": ("الكِتَاب، مُفِيد", "الكِتَاب مُفِيد", None),
    "Hebrew": ("שָׁלוֹם עולם!", "שָׁלוֹם עולם", None),
    "Cyrillic": ("Привет, МИР: ёж", "привет мир ёж", None),
    "Greek": ("ΟΔΟΣ οδος", "οδοσ οδοσ", None),
    "Armenian": ("Բարեւ աշխարհ", "բարեւ աշխարհ", None),
    "Georgian": ("გამარჯობა მსოფლიო", "გამარჯობა მსოფლიო", None),
    "Ethiopic": ("ሰላም፡ለዓለም", "ሰላም ለዓለም", None),
    "Han": ("天气很好。", "天 气 很 好", "天 天气 气 气很 很 很好 好"),
    "Kana": ("今日はカレー", "今 日 は カ レ ー", "今 今日 日 日は は はカ カ カレ レ レー ー"),
    "Hangul": ("학교에 갔다", "학교에 갔다", "학교 교에 갔다"),
    "Thai": ("น้ำใจ ๒๕", "น้ํา าใ ใจ ๒๕", None),
    "Lao": ("ສະບາຍ", "ສະ ະບ ບາ າຍ", None),
    "Khmer": ("ភាសា", "ភា សា", "ភា ភាសា សា"),
    "Burmese": ("မြန်မာ", "မြ န် မာ", "မြ မြန် န် န်မာ မာ"),
    "Latin with marks": ("Việt Nam, naïve Ångström", "việt nam naïve ångström", None),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_every_script(script):
    text, wanted, terms = SCRIPTS[script]
    assert words(text) == wanted.split()
    assert search_terms(text) == (terms or wanted).split()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_composed_and_decomposed_texts_have_the_same_words(script, form):
    text = SCRIPTS[script][0]
    other = unicodedata.normalize(form, text)
    assert (words(other), search_terms(other)) == (words(text), search_terms(text))


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_plain_ascii_are_lower_cased_runs_of_letters_digits_and_underscores(text):
    assert words(text) == search_terms(text) == re.findall(r"\w+", text.lower())


@given(st.text())
def test_words_do_not_depend_on_unicode_form_and_folding_twice_changes_nothing(text):
    for form in ("NFC", "NFD"):
        assert words(unicodedata.normalize(form, text)) == words(text)
        assert search_terms(unicodedata.normalize(form, text)) == search_terms(text)
    assert fold(fold(text)) == fold(text)
    assert all(words(text))


@given(st.text())
def test_every_letter_and_digit_is_in_a_word(text):
    kept = {c for c in fold(text) if c.isalnum()}
    assert kept <= {*"".join(words(text))}
    assert kept <= {*"".join(search_terms(text))}


def test_forms_that_people_take_for_the_same_are_the_same():
    assert words("ＡＢＣ１２ ｶﾚｰ ﬁne Straße co\u00adop \ufeffx") == words("abc12 カレー fine STRASSE coop x")
    assert words("می\u200cخواهم") == words("میخواهم")
    assert words("ක්\u200dරම") == words("ක්රම")


def test_marks_stay_with_their_characters():
    assert characters("हिन्दी") == ["हि", "न्", "दी"]
    assert words("कि") != words("की")
    assert words("resume") != words("résumé")


def test_length_in_words_is_counted_without_spaces_too():
    assert count_words("It's a well-known fact.") == 4
    assert count_words("天気がとてもいい ok") == 9
    assert count_words("यह हिन्दी है ।") == 4
    assert count_words("ภาษาไทย") == 2
    assert count_words("") == 0


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("the parcel has not come and I want my money back", True),
        ("das Paket ist nicht da und ich will mein Geld zurück", False),
        ("le colis est en retard et je ne sais pas pour quand", False),
        ("el paquete no ha llegado y los pagos son para hoy con retraso", False),
        ("荷物がまだ届きません", False),
        ("Где моя посылка", False),
        ("SELECT name FROM rivers WHERE length > 3", True),
        ("card_arrival 12", True),
        ("sun", True),
    ],
)
def test_texts_that_are_not_english_are_told_by_script_and_common_words(text: str, english: bool) -> None:
    assert looks_english([text] * 60) is english
    assert looks_english(["ok"]), "too little to tell"
