"""Token ids of texts line by line, so that a demonstration which stands in many prompts is tokenized once.

A tokenizer of the GPT kind cuts a text into words by a pattern, from left to right, before it merges anything, and its
pattern looks one character ahead at most. Where a line begins with a letter and a word begins there too, the ids of
what stands before are those of that text and the letter, less the letter's, and the rest is tokenized as if it stood
alone. Which tokenizers are of this kind is read from their settings (``line_tokenizer``), and that a word begins at a
cut is looked at for every line, so the ids are those of the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

TokenIds = tuple[int, ...]
Words = list[int | None]
Encode = Callable[[Sequence[str]], list[tuple[TokenIds, Words]]]
"""Token ids of each text, and for each token the number of the word that it stands in."""

_KEPT = 500_000  # tokens of lines that are remembered: some 20 MB
_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})  # what they do to a letter stops at a newline
_BY_CHARACTER = frozenset({"Digits", "Punctuation"})
_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]")
_FARTHER = re.compile(r"\(\?<|\(\?[=!]|\\[bBAzZG]|(?<!\\)[\^$]")  # looks behind, further ahead, or at the text's ends
_CUT = re.compile(r"\n(?=[^\W\d_])")
_CUT_AT_END = re.compile(r"\n[^\W\d_]\Z")
_PROBE = (
    "Review: It's 12 o'clock, isn't it?\n\nSentiment: positive\n\nReview: naïve \u00e9tude 3.14!!\nno\n \n  A\tb\n"
    "\u65e5\u672c\u8a9e\n\u0434\u0430\n\nx"
)


class LineTokenizer:
    """Remembers the ids of lines, a bounded number of them."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._ids: dict[str, TokenIds | None] = {}  # by line and the letter after it; None: no word begins there
        self._of_letter: dict[str, TokenIds] = {}
        self._tokens = 0

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text."""
        lines = [_recent_lines(text) for text in texts]
        known = self._lookup(chain.from_iterable(lines))
        joined = [_joined(known, of_text) for of_text in lines]
        whole = iter(self._whole([text for text, ids in zip(texts, joined, strict=True) if ids is None]))
        return [next(whole) if ids is None else ids for ids in joined]

    def encode_behind(self, tails: Mapping[str, Collection[str]]) -> dict[tuple[str, str], TokenIds]:
        """The ids of ``head + tail`` for each tail of each head; a head's lines but the last are put together once."""
        keys = [(head, tail) for head, its_tails in tails.items() for tail in its_tails]
        cut = {head: _recent_lines(head) for head in tails}
        ends = [lines_of(cut[head][-1] + tail) for head, tail in keys]
        known = self._lookup(chain(*ends, *(lines[:-1] for lines in cut.values())))
        stems = {head: _joined(known, lines[:-1]) for head, lines in cut.items()}
        found: dict[tuple[str, str], TokenIds] = {}
        for (head, tail), lines in zip(keys, ends, strict=True):
            stem, end = stems[head], _joined(known, lines)
            if stem is not None and end is not None:
                found[head, tail] = stem + end
        whole = [key for key in keys if key not in found]
        found |= zip(whole, self._whole([head + tail for head, tail in whole]), strict=True)
        return found

    def _whole(self, texts: Sequence[str]) -> list[TokenIds]:
        return [ids for ids, _ in self._encode(texts)] if texts else []

    def _lookup(self, lines: Iterable[str]) -> dict[str, TokenIds | None]:
        known: dict[str, TokenIds | None] = {}
        new: dict[str, None] = {}
        for line in lines:
            if line in self._ids:
                known[line] = self._ids[line]
            else:
                new[line] = None
        if new:
            letters = {line[-1] for line in new if _CUT_AT_END.search(line)} - self._of_letter.keys()
            encoded = self._encode([*new, *letters])
            self._of_letter.update({c: ids for c, (ids, _) in zip(letters, encoded[len(new) :], strict=True)})
            found = {line: self._without_letter(line, *e) for line, e in zip(new, encoded, strict=False)}
            known |= found
            self._tokens += sum(len(ids) for ids in found.values() if ids is not None) + len(found)
            if self._tokens > _KEPT:
                self._ids, self._tokens = {}, 0
            else:
                self._ids |= found
        return known

    def _without_letter(self, line: str, ids: TokenIds, words: Words) -> TokenIds | None:
        if not _CUT_AT_END.search(line):
            return ids
        letter = self._of_letter[line[-1]]
        at = len(ids) - len(letter)
        begins = 0 < at < len(ids) and ids[at:] == letter and words[at] is not None and words[at - 1] != words[at]
        return ids[:at] if begins and len({*words[at:]}) == 1 else None


def _joined(known: Mapping[str, TokenIds | None], lines: Sequence[str]) -> TokenIds | None:
    parts = [ids for line in lines if (ids := known[line]) is not None]
    return tuple(chain.from_iterable(parts)) if len(parts) == len(lines) else None


def lines_of(text: str) -> list[str]:
    """A text cut where a line begins with a letter. Each part but the last has that letter at its end as well.

    >>> lines_of("Text: good\\nLabel: yes\\n\\n 1")
    ['Text: good\\nL', 'Label: yes\\n\\n 1']
    """
    parts = _CUT.split(text)
    for n, following in enumerate(parts[1:]):
        parts[n] += "\n" + following[0]
    return parts


_recent_lines = lru_cache(maxsize=256)(lines_of)
"""Of prompts, which are counted, asked about, and asked about with each label."""


def line_tokenizer(tokenizer: Any) -> LineTokenizer | None:
    """What reads texts line by line with a tokenizer of ``transformers``; None where lines are not read alone."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not _reads_by_lines(backend):
        return None

    def encode(texts: Sequence[str]) -> list[tuple[TokenIds, Words]]:
        encoded = tokenizer([*texts], add_special_tokens=False).encodings
        return [(tuple(e.ids), e.word_ids) for e in encoded]

    lines = LineTokenizer(encode)
    return (
        lines if lines.encode([_PROBE]) == [tuple(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])] else None
    )


def _reads_by_lines(backend: Any) -> bool:
    normalizers = _steps(backend.normalizer, "normalizers")
    splits = _steps(backend.pre_tokenizer, "pretokenizers")
    if not all(step["type"] in _NORMALIZERS for step in normalizers):
        return False
    if any("\n" in token.content for token in backend.get_added_tokens_decoder().values()):
        return False
    patterns = [step for step in splits if step["type"] not in _BY_CHARACTER and not _only_bytes(step)]
    return len(patterns) == 1 and _looks_one_ahead(patterns[0])


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return [*state[name]] if state["type"] == "Sequence" else [state]


def _only_bytes(step: dict[str, Any]) -> bool:
    return step["type"] == "ByteLevel" and not step["use_regex"] and not step["add_prefix_space"]


def _looks_one_ahead(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":  # the pattern of GPT-2
        return bool(step["use_regex"]) and not step["add_prefix_space"]
    if step["type"] != "Split" or step["invert"] or step["behavior"] != "Isolated" or "Regex" not in step["pattern"]:
        return False
    return not _FARTHER.search(_CLASS.sub("", step["pattern"]["Regex"].replace(r"(?!\S)", "")))
