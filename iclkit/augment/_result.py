"""What a generator gives back, and the provenance that its examples carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iclkit.lm import LM
from iclkit.pool import AddReport, Pool
from iclkit.records import Example, Json, Message, clean_text, digest, fold_text

METHODS = ("auto-icl", "answer", "labels", "recycle", "bootstrap", "synthesise")
"""What ``meta["generated"]`` may be."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An attempt that made no example: why, and what the model wrote."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class AugmentResult:
    """What came of a generation: ``examples`` with their provenance, ``rejected`` attempts, ``calls`` of the LM.

    An example's ``meta`` holds ``generated`` (the method), ``generated_lm`` and ``generated_fingerprint`` (who wrote
    it), ``generated_seed``, ``generated_from`` (ids it was made from) and ``generated_prompt`` (hash of what was read),
    and what a method adds. They are plain keys, so a pool lists and removes by them (``--where generated=recycle``).
    """

    method: str
    examples: tuple[Example, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    calls: int = 0

    @property
    def reasons(self) -> Mapping[str, int]:
        """How many attempts were rejected for each reason, the most frequent first."""
        return dict(Counter(r.reason for r in self.rejected).most_common())


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who writes, how and with which seed: everything of an example's provenance that it shares with others."""

    method: str
    lm: LM
    seed: int

    def signed(self, example: Example, context: str, sources: Sequence[str] = (), **more: Json) -> Example:
        """The example with its provenance; its id, a hash of the content, stays."""
        meta: dict[str, Json] = {
            "generated": self.method,
            "generated_lm": self.lm.name,
            "generated_fingerprint": self.lm.fingerprint,
            "generated_seed": self.seed,
            "generated_from": [*sources],
            "generated_prompt": digest(context),
            **{f"generated_{k}": v for k, v in more.items()},
        }
        return replace(example, meta={**example.meta, **meta})

    def asks(self, text: str, opening: str, chat: bool) -> str:
        """A request for the model: as a user's turn, or as a text that ends in the opening of the answer."""
        return self.lm.render_chat([Message("user", text)]) if chat else f"{text}\n{opening}"

    def settings(self, reserve: int) -> dict[str, Any]:
        """What ``prompts.assemble`` needs for a prompt that leaves room for ``reserve`` tokens."""
        return {
            "budget": self.lm.context_size,
            "count_tokens": self.lm.count_tokens,
            "reserve": reserve,
            "seed": self.seed,
        }


class SeenInputs:
    """Tells a new input from one that was seen before: equal but for case, punctuation and white space."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._seen = {self._folded(t) for t in known}

    def take(self, text: str) -> bool:
        """True the first time a text comes."""
        folded = self._folded(text)
        if folded in self._seen:
            return False
        self._seen.add(folded)
        return True

    @staticmethod
    def _folded(text: str) -> str:
        return fold_text(text) or clean_text(text)  # signs alone are told apart as they are


def add_to_pool(pool: Pool, made: AugmentResult) -> AddReport:
    """Put what was made into a pool; what the pool has already, in whatever way it came there, is left as it is."""
    return pool.add(made.examples)


def generated(examples: Iterable[Example], method: str | None = None) -> list[Example]:
    """The examples that a model wrote, or those of one method."""
    return [
        e
        for e in examples
        if (e.meta.get("generated") in METHODS if method is None else e.meta.get("generated") == method)
    ]
