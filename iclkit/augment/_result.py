"""The result of a generation, and the provenance that its examples carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iclkit.errors import RunError
from iclkit.lm import LM, GenerateRequest, Generation, ask_each
from iclkit.pool import AddReport, Pool
from iclkit.records import Example, Json, Message, clean_text, digest, fold_text

METHODS = ("auto-icl", "answer", "labels", "recycle", "bootstrap", "synthesize")
"""What ``meta["generated"]`` may be."""
_FORMER = {"synthesise": "synthesize"}  # as it stands in pools made before the names were settled
NO_ANSWER = "no answer"
"""Why a request made no example to which the model wrote nothing, or which it refused."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An attempt that made no example: why, and what the model wrote, or what it gave no answer to."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class AugmentResult:
    """``examples`` with their provenance, ``rejected`` attempts, and the number of LM ``calls``.

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


def no_answer(reply: Generation, subject: str) -> Rejected:
    """The record of an empty or refused generation about ``subject``."""
    refusal = f"\n({reply.finish})" if reply.finish.startswith("refused") else ""
    return Rejected(NO_ANSWER, subject + refusal)


@dataclass(slots=True)
class Provenance:
    """The method, LM and seed of a generation: the part of the provenance that all its examples share."""

    method: str
    lm: LM
    seed: int
    _answered: bool = field(default=False, init=False, repr=False)

    def stamp(self, example: Example, context: str, sources: Sequence[str] = (), **more: Json) -> Example:
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

    def request(self, text: str, opening: str, chat: bool) -> str:
        """A request for the model: as a user's turn, or as a text that ends in the opening of the answer."""
        return self.lm.render_chat([Message("user", text)]) if chat else f"{text}\n{opening}"

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """A generation per request. One that the LM refuses is empty, and its ``finish`` is "refused: " and the reason.

        RunError when it refuses all of several requests, and never answered one before.
        """
        answers, refused = ask_each(self.lm.generate, requests)
        self._answered |= bool(answers)
        if len(refused) > 1 and not self._answered:
            raise RunError(f"{self.lm.name} refused all of {len(requests)} prompts: {refused[0]}")
        return [
            answers[n] if n in answers else Generation("", 0, f"refused: {refused[n]}") for n in range(len(requests))
        ]

    def settings(self, reserve: int) -> dict[str, Any]:
        """Settings of ``prompts.assemble`` for a prompt that leaves room for ``reserve`` tokens."""
        return {
            "budget": self.lm.context_size,
            "count_tokens": self.lm.count_tokens,
            "reserve": reserve,
            "seed": self.seed,
        }


class SeenInputs:
    """Inputs that were seen. Two are equal when they differ in case, punctuation and white space alone."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._seen = {self._folded(t) for t in known}

    def add(self, text: str) -> bool:
        """Add a text. True if it was not there yet."""
        folded = self._folded(text)
        if folded in self._seen:
            return False
        self._seen.add(folded)
        return True

    @staticmethod
    def _folded(text: str) -> str:
        return fold_text(text) or clean_text(text)  # signs alone are told apart as they are


def add_to_pool(pool: Pool, result: AugmentResult) -> AddReport:
    """Add the examples to a pool. Those that it holds already, generated or not, stay as they are."""
    return pool.add(result.examples)


def generated(examples: Iterable[Example], method: str | None = None) -> list[Example]:
    """The examples that a model wrote, or those of one method."""
    methods = METHODS if method is None else (method,)
    return [e for e in examples if (by := e.meta.get("generated")) and _FORMER.get(str(by), str(by)) in methods]
