"""The number that a worked solution ends in, however people and language models write it.

Read are: groups of three (``1,000``, ``1.000.000``, ``70 000``, ``9'500``, ``1,00,000``), decimal points and commas,
signs, currencies, fractions and mixed numbers (``3 1/2``, ``½``), powers (``1e5``, ``2 × 10^5``, ``10⁵``), the LaTeX of
all these, and the digits of all scripts. Where a sign could be either, ``1,234`` is a thousand, ``3,5`` three and a
half, and ``1.234`` one and a bit.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_LARGEST = 300  # powers of ten; what is beyond is no answer, and would take time and memory to read

_SIGNS = str.maketrans({**dict.fromkeys("−–‒﹣－‑", "-"), "٫": ".", "．": ".", "٬": ",", "⁄": "/", "∕": "/", "＄": "$"})
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_TEX = [
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[,;: ]|~"), "\u2009"),
    (re.compile(r"\\(?:!|left\b|right\b)"), ""),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"(\d?)\s*\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1 \2/\3"),
    (re.compile(r"(\d?)\s*\\[dtc]?frac\s*(\d)\s*(\d)"), r"\1 \2/\3"),
    (re.compile(r"\^\s*\{\s*([+-]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"-\s+(?=\d+/\d)"), "-"),  # the blank that a fraction was given
]
_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")

_MONEY = "[$€£¥₹]"
_GAPS = "|".join(rf"(?:{gap}\d{{3}})+" for gap in (" ", "[\u00a0\u2007\u2009\u202f]", "['’]", "_"))
_DIGITS = rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_GAPS})(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*|\.\d+"
_NUMERAL = re.compile(_DIGITS, re.ASCII)
# a hyphen is a sign only where no number, letter or bracket stands before it: "10-12" ends in 12; a blank may follow it
# only after one of = ≈ (
_SIGNED = re.compile(rf"(?:(?:^|[^\w.)\]}}%])-(?:{_MONEY} ?)?|{_MONEY} ?-|[=≈(] ?- )$")
_EXPONENT = re.compile(r"[eE]([+-]?\d+)(?!\w)")
_TIMES_TEN = re.compile(r"\s?[×*x·]\s?10(?:\^|\*\*)\(?([+-]?\d+)\)?")
_POWER = re.compile(r"(?:\^|\*\*(?=\d))\(?([+-]?\d+)\)?")
_MIXED = re.compile(r" (\d+)/(\d+)(?![\d/]|[.,]\d)")
_OVER = re.compile(rf" ?/ ?{_MONEY}?({_DIGITS})", re.ASCII)


def last_number(text: str) -> float | None:
    """The number a worked solution ends in: the one after ``####``, else in the last ``\\boxed{}``, else the last.

    None when there is no number.
    >>> last_number("so 3 * 4 = 12. #### 1,012 eggs"), last_number("it is $7.50."), last_number("none")
    (1012.0, 7.5, None)
    >>> last_number("from 10-12"), last_number("it fell to −1,000"), last_number(r"\\boxed{3\\frac{1}{2}}")
    (12.0, -1000.0, 3.5)
    """
    value = _last(text)
    return None if value is None else float(value)


def equal_number(output: str, gold: str) -> float:
    """1 when both texts end in the same number (GSM8K: Cobbe et al. 2021, arXiv 2110.14168).

    Whole numbers must be equal, others to a millionth (of the gold number where that is below 1).
    """
    said, true = _last(output), _last(gold)
    if said is None or true is None:
        return 0.0
    if said.denominator == true.denominator == 1:
        return float(said == true)
    return float(abs(said - true) <= min(Fraction(1), abs(true)) / 10**6)


def _last(text: str) -> Fraction | None:
    text = _plain(text)
    if marks := text.count("####"):
        # the first mark that a number follows at once; a single mark may have words before its number, several are
        # more likely headings
        parts = text.split("####")[1:]
        direct = [p for p in parts if re.match(rf"[\s:=*]*[-({{\\]*{_MONEY}?[-({{]*\.?\d", p)]
        for part in direct or parts * (marks == 1):
            if found := _numbers(part):
                return found[0]
    for boxed in reversed(_BOXED.findall(text)):
        if found := _numbers(boxed):
            return found[-1]
    found = _numbers(text)
    return found[-1] if found else None


def _plain(text: str) -> str:
    """The text with one spelling for signs, digits, fractions and powers."""
    if not text.isascii():
        text = re.sub("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_RAISED), text.translate(_SIGNS))
        text = _plain_characters(text).translate(_SIGNS)
    if "\\" in text or "{" in text or "~" in text:
        for pattern, plain in _TEX:
            text = pattern.sub(plain, text)
    return text


def _plain_characters(text: str) -> str:
    """ASCII digits for those of other scripts, and ``1/2`` for ``½``, a blank before it if a digit stands there."""
    plain = list[str]()
    for character in text:
        if character.isascii():
            plain.append(character)
        elif character.isdecimal():
            plain.append(str(unicodedata.decimal(character)))
        elif character.isnumeric() and "⁄" in (folded := unicodedata.normalize("NFKC", character)):
            plain.append(f" {folded}" if plain and plain[-1][-1].isdigit() else folded)
        else:
            plain.append(character)
    return "".join(plain)


def _numbers(text: str) -> list[Fraction]:
    """All numbers in a plain text, in order."""
    found, at = [], 0
    while numeral := _NUMERAL.search(text, at):
        at = numeral.end()
        start = numeral.start()
        if start and text[start - 1] == "^":  # of a letter: m^2
            continue
        value = _value(numeral[0])
        if value is None:
            continue
        value, at = _continued(value, text, at)
        if value is not None and abs(value) < 10**_LARGEST:
            found.append(-value if _SIGNED.search(text[max(0, start - 5) : start]) else value)
    return found


def _continued(value: Fraction, text: str, at: int) -> tuple[Fraction | None, int]:
    """A number with what belongs to it after its digits, and where that ends; None for what is too large."""
    for pattern in (_EXPONENT, _TIMES_TEN):
        if match := pattern.match(text, at):
            power = _power(Fraction(10), match[1])
            return (None if power is None else value * power), match.end()
    if match := _POWER.match(text, at):
        return _power(value, match[1]), match.end()
    if (match := _MIXED.match(text, at)) and value.denominator == 1:
        top, bottom = _value(match[1]), _value(match[2])
        if top is not None and bottom and top < bottom:
            return value + top / bottom, match.end()
    parts = []
    while match := _OVER.match(text, at):
        parts.append(_value(match[1]))
        at = match.end()
    if len(parts) == 1 and parts[0]:
        return value / parts[0], at
    return (parts[-1] if parts else value), at  # of 3/4/2020 the last


def _power(base: Fraction, text: str) -> Fraction | None:
    digits = text.lstrip("+-")
    exponent = int(text) if len(digits) <= 4 else 10**4
    size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
    if size > 4 * _LARGEST or (base == 0 and exponent < 0):
        return None
    return base**exponent


def _value(numeral: str) -> Fraction | None:
    """What digits with separators say; of a list (``1,2,3``) the last; None for what is too long."""
    if len(numeral) > _LARGEST:
        return None
    text = re.sub(r"[^\d.,]", "", numeral)
    grouped = len(text) < len(numeral)
    points, commas = text.count("."), text.count(",")
    if points and commas:
        last = max(text.rfind("."), text.rfind(","))
        other = "," if text[last] == "." else "."
        whole, decimals = text[:last], text[last + 1 :]
        if _in_groups(whole, other):
            return Fraction(f"{whole.replace(other, '')}.{decimals}")
        return _value(text.rpartition(",")[2])
    sign = "." if points else ","
    if grouped or points + commas == 0:
        return Fraction(text.replace(",", "."))
    if (commas or points > 1) and _in_groups(text, sign):
        return Fraction(text.replace(sign, ""))
    if points + commas == 1:
        return Fraction(text.replace(",", "."))
    return Fraction(text.rpartition(sign)[2])


def _in_groups(text: str, sign: str) -> bool:
    """Whether the digits stand in groups of three, or of two before a last of three (Indian numbering)."""
    mark = re.escape(sign)
    return bool(re.fullmatch(rf"[1-9]\d{{0,2}}(?:{mark}\d{{3}})+|[1-9]\d?(?:{mark}\d\d)+{mark}\d{{3}}", text))
