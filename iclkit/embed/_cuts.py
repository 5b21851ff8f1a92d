"""Texts that are too long for the model that reads them: cut at its limit as everywhere, but counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, Self, runtime_checkable

MOST = 100_000  # texts that are told apart


class CutTexts:
    """The different texts that a model has not read to their end, ``limit`` tokens being all that it takes of one (0:
    not known).

    >>> cuts = CutTexts(256)
    >>> cuts.add("a long text", 300)
    >>> len(cuts), cuts.longest
    (1, 300)
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._texts, self._longest = set[int](), 0

    def add(self, text: str, tokens: int) -> None:
        """A text, and how many tokens it has."""
        self._longest = max(self._longest, tokens)
        if len(self._texts) < MOST:
            self._texts.add(hash(text))

    def look(self, texts: Sequence[str], lengths: Callable[[list[str]], Iterable[int]]) -> Self:
        """Add those of the texts that are too long. ``lengths`` counts tokens, special ones with them."""
        if self.limit and texts:
            for text, tokens in zip(texts, lengths([*texts]), strict=True):
                if tokens > self.limit:
                    self.add(text, tokens)
        return self

    def clear(self) -> None:
        """Forget them."""
        self._texts.clear()
        self._longest = 0

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def longest(self) -> int:
        """Tokens of the longest; 0 where none was cut."""
        return self._longest

    def __or__(self, other: CutTexts) -> CutTexts:
        """Those of two models of one limit."""
        both = CutTexts(self.limit or other.limit)
        both._texts, both._longest = self._texts | other._texts, max(self._longest, other._longest)
        return both

    def note(self, name: str) -> str:
        """What a user should know of it, "" where nothing was cut."""
        if not self:
            return ""
        count = f"{len(self):,}" + (" or more" if len(self) >= MOST else "")
        are = "text is" if len(self) == 1 else "texts are"
        return (
            f"{name} reads the first {self.limit:,} tokens of a text; {count} {are} longer (the longest: "
            f"{self.longest:,} tokens), and the rest is ignored"
        )


@runtime_checkable
class CountsCuts(Protocol):
    """A model that counts the texts it could not read whole; it has a name."""

    @property
    def name(self) -> str: ...
    @property
    def cut_texts(self) -> CutTexts: ...
