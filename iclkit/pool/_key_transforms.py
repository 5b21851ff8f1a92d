"""Key texts: what an input is searched by, when that is not the input itself.

A transform writes one or several keys per input (the skills it needs, a rewriting, a translation, one of its fields).
Keys are kept in the pool by the transform's fingerprint, so each is written once; they are never shown in a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from iclkit.errors import DataError
from iclkit.records import Fields, canonical_json, digest, input_text


@runtime_checkable
class KeyTransform(Protocol):
    """Writes keys. ``fingerprint`` covers all that determines key ``number`` of an input, but not ``count``."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def fingerprint(self) -> str:
        """What keys are kept under."""
        ...

    @property
    def count(self) -> int:
        """Keys per input: numbers 0 to count - 1."""
        ...

    def write(self, inputs: Sequence[Fields], number: int) -> list[str]:
        """Key ``number`` of each input. An empty text means that none could be written: the input stands in for it."""
        ...


@dataclass(frozen=True, slots=True)
class RetrievalKeys:
    """``texts[row]`` are the keys of one input, by number; in ``fallback_counts[row]`` of them the input stands in."""

    texts: tuple[tuple[str, ...], ...]
    fallback_counts: tuple[int, ...]

    @property
    def fallbacks(self) -> int:
        """Keys, of all, for which the input stands in."""
        return sum(self.fallback_counts)

    @property
    def distinct_share(self) -> float:
        """Share of different texts among all keys, 0 to 1: near 0 when a rewriter says the same of everything."""
        flat = [key for keys in self.texts for key in keys]
        return len({*flat}) / len(flat) if flat else 1.0


@dataclass(frozen=True)
class FieldKey:
    """One named field of the input as its key, or the whole input. DataError for an input without that field."""

    field: str = ""
    count: int = 1

    @property
    def name(self) -> str:
        """``field:NAME``, or ``input``."""
        return f"field:{self.field}" if self.field else "input"

    @property
    def fingerprint(self) -> str:
        """By the field's name."""
        return digest(["field", self.field])

    def write(self, inputs: Sequence[Fields], number: int) -> list[str]:  # noqa: ARG002
        """The field's text."""
        if not self.field:
            return [input_text(given) for given in inputs]
        for given in inputs:
            if isinstance(given, str) or self.field not in given:
                fields = "one text without fields" if isinstance(given, str) else ", ".join(given)
                raise DataError(f"an input has no field {self.field!r} to search by; it has {fields}")
        return [given[self.field] for given in inputs if not isinstance(given, str)]


def input_hash(given: Fields) -> str:
    """What the keys of an input are kept under."""
    whole = given if isinstance(given, str) else dict(given)
    return digest(canonical_json(whole))


def normalize_key(text: str, given: Fields) -> tuple[str, bool]:
    """The key as it is kept, and whether the input had to stand in for it."""
    text = " ".join(text.split())
    return (text, False) if text else (input_text(given), True)
