"""Texts of all scripts: words for search and metrics, and what of a text may be sent to a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from iclkit.records import one_line

# C0 and C1 controls but tab and newline, and the marks that change the direction of what follows
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Unicode's Default_Ignorable_Code_Point: soft hyphen, joiners, zero-width spaces, direction marks, variation selectors
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_WORD = re.compile(r"\w+")
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")

# Blocks of the scripts that put no spaces between words, and of Hangul, which puts them between phrases
_SYLLABLES = (  # a character with its marks is a word or a syllable: Han, Kana, Bopomofo, Yi;
    (0x2E80, 0x30FF), (0x3100, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0xA4CF), (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
    # Burmese, Khmer, Tai Tham, Balinese, Javanese, Ahom
    (0x1000, 0x109F), (0x1780, 0x17FF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F), (0xA980, 0xA9FF), (0xAA60, 0xAA7F),
    (0x11700, 0x1174F),
)  # fmt: skip
# a character is a letter, vowels are letters too: Thai, Lao, Tai Le, New Tai Lue, Tai Viet
_LETTERS = ((0x0E00, 0x0EFF), (0x1950, 0x19DF), (0xAA80, 0xAADF))
_HANGUL = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF))
_UNSPACED = ("syllables", "letters")
_LAST_MARK = 0x1FFFF  # marks of scripts lie below


def printable(text: str) -> str:
    """``text`` without characters that steer a terminal: escape sequences, C0 and C1 controls, direction overrides.

    Halves of surrogate pairs, which no stream can write, count with them. Each is replaced by U+FFFD, so that a reader
    sees that something stood there. Tab and newline stay.

    >>> printable("a\\x1b[2Jb")
    'a\ufffd[2Jb'
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def visible(text: str) -> str:
    """``text`` as a reader sees it: NFC, on one line, without invisible characters (zero-width spaces, joiners, marks).

    >>> visible("not\\u200b  good\\ufeff")
    'not good'
    """
    return one_line(text if text.isascii() else _INVISIBLE.sub("", text))


# the commonest words of texts in English, and in other languages of Latin script, those that are English words left out
_ENGLISH = frozenset(
    _WORD.findall("""
    about after all and any are because but can could did does for from had has have how if is it its just my of our
    she that the their them there they this was were what when where which who why will with would you your""")
)
_OTHER = frozenset(
    _WORD.findall("""
    und der das ist nicht ein eine ich mit auf für sie les des est que pas une dans pour vous avec el los las por con
    para del pero il di che non sono della gli não uma com os dos het een van niet dat zijn voor nie się jest że och
    att det som är inte på bir ve bu için yang dan untuk tidak có không của là ei että mutta și este hogy nem az ja
    jsem jako ale ikke og til""")
)
_FEW_WORDS = 100
_OTHER_SHARE = 0.05


def looks_english(texts: Iterable[str]) -> bool:
    """Whether texts may be English, by their script and by the commonest words of Latin scripts.

    True where there is too little to tell: fewer than 100 words, or no running text.
    >>> looks_english(["the cat sat on the mat"] * 30), looks_english(["die Katze und der Hund auf der Matte"] * 30)
    (True, False)
    >>> looks_english(["猫はマットの上に座っていた"] * 30), looks_english(["sun"] * 200)
    (False, True)
    """
    latin = beyond = english = other = 0
    for text in texts:
        for word in _WORD.findall(text.casefold()):
            latin += word[0] < "\u0250" and word[0].isalpha()
            beyond += word[0] >= "\u0250"
            english += word in _ENGLISH
            other += word in _OTHER
    if beyond > max(latin, 10):
        return False
    return latin < _FEW_WORDS or other <= max(english, _OTHER_SHARE * latin)


def words(text: str) -> list[str]:
    """The words of a text in any script, in order, folded so that spellings of one word are equal: for metrics.

    Words are runs of letters, digits and underscores, with the marks that belong to them (Unicode's word segmentation,
    UAX #29, but that apostrophes, points and hyphens part words). Where a script puts no spaces between words, each
    character of Chinese and Japanese is a word, as in UAX #29, and each syllable of Burmese and Khmer; for Thai and
    Lao, whose letters say little alone, it is each pair of neighboring letters. Case and compatibility forms are folded
    and invisible characters dropped (Unicode's NFKC_Casefold), so composed and decomposed, full-width and half-width
    forms are equal.

    >>> words("Don't PANIC")
    ['don', 't', 'panic']
    >>> words("हिन्दी 天気")
    ['हिन्दी', '天', '気']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    found = list[str]()
    for kind, run in _runs(text):
        if kind == "syllables":
            found += characters(run)
        elif kind == "letters":
            found += _pairs(characters(run))
        else:
            found.append(run)
    return found


def search_terms(text: str) -> list[str]:
    """What a text is searched by: its ``words``, with pairs of neighboring characters for scripts without spaces.

    Chinese, Japanese, Burmese and Khmer give characters and pairs: pairs work well alone, and characters beside them
    help (Kwok 1999, JASIS 50(8), 709-723); they also let a text be found by a single character. Korean words give their
    pairs of syllables in place of themselves, since particles are written to them (as in Lucene's CJKAnalyzer). The
    same as ``words`` for all other scripts.

    >>> search_terms("天気 is nice")
    ['天', '天気', '気', 'is', 'nice']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    found = list[str]()
    for kind, run in _runs(text):
        if kind == "word":
            found.append(run)
            continue
        own = characters(run)
        if kind == "syllables":
            for one, two in pairwise(own):
                found += (one, one + two)
            found.append(own[-1])
        else:
            found += _pairs(own)
    return found


def count_words(text: str) -> int:
    """How long a text is, in words as people count them: between white space, and without spaces by characters.

    A character of Chinese or Japanese or a syllable of Burmese or Khmer is a word, and so are four letters of Thai or
    Lao.

    >>> count_words("It's well-known."), count_words("天気がいい")
    (2, 5)
    """
    pieces = text.split()
    return len(pieces) if text.isascii() else sum(map(_count_in_piece, pieces))


def _count_in_piece(piece: str) -> int:
    sizes = [(kind, len(characters(run))) for kind, run in _runs(piece)]
    unspaced = sum(size if kind == "syllables" else -(-size // 4) for kind, size in sizes if kind in _UNSPACED)
    return max(1, unspaced + any(kind not in _UNSPACED for kind, _ in sizes))


def characters(text: str) -> list[str]:
    """The characters of a text, each with the marks that belong to it."""
    return list(text) if text.isascii() else _patterns().character.findall(text)


def fold(text: str) -> str:
    """``text`` in Unicode's NFKC_Casefold: case and compatibility forms folded, invisible characters dropped."""
    if text.isascii():
        return text.lower()
    visible = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFKC", visible.casefold())


def _pairs(own: list[str]) -> list[str]:
    return [one + two for one, two in pairwise(own)] or own


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """(kind, run) of each run of characters of one kind: ``word``, ``syllables``, ``letters``, ``hangul``."""
    folded = fold(text)
    patterns = _patterns()
    if not patterns.special.search("".join(_BEYOND_ASCII.findall(folded))):  # most texts of alphabets with spaces
        for run in _WORD.findall(folded):
            yield "word", run
        return
    for run in patterns.run.finditer(folded):
        assert run.lastgroup is not None
        yield run.lastgroup, run.group()


class _Patterns(NamedTuple):
    run: re.Pattern[str]
    character: re.Pattern[str]
    special: re.Pattern[str]
    """Finds a mark, or a character of a script without spaces."""


@cache
def _patterns() -> _Patterns:
    """Made of this Python's Unicode tables, in some 20 ms, for the first text that is not ASCII."""
    marks = _spans(n for n in range(0x300, _LAST_MARK) if unicodedata.category(chr(n)) in ("Mn", "Mc"))
    kinds = {"syllables": _SYLLABLES, "letters": _LETTERS, "hangul": _HANGUL}
    sets = {kind: "".join(_letters(*block) for block in blocks) for kind, blocks in kinds.items()}
    every = "".join(sets.values())
    runs = [f"(?P<{kind}>(?:[{own}][{marks}]*)+)" for kind, own in sets.items()]
    word = rf"(?P<word>(?:[^\W{every}][{marks}]*)+)"
    return _Patterns(
        re.compile("|".join([word, *runs])), re.compile(f"[^{marks}][{marks}]*"), re.compile(f"[{marks}{every}]")
    )


def _letters(first: int, last: int) -> str:
    """The letters of a block for a character class: not its digits, signs and marks; planes of Han as they are."""
    if first > _LAST_MARK:
        return f"{chr(first)}-{chr(last)}"
    return _spans(n for n in range(first, last + 1) if unicodedata.category(chr(n)) in ("Lo", "Lm", "Nl"))


def _spans(codes: Iterable[int]) -> str:
    """Ascending code points as the inside of a character class."""
    spans = list[list[int]]()
    for code in codes:
        if spans and spans[-1][1] == code - 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in spans)
