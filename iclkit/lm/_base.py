"""What language models have in common: counters, notes, an estimate, a dry run; and foreign objects made complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from iclkit.errors import UsageError
from iclkit.lm._dry_run import DryRunLM
from iclkit.lm._protocol import LM, LOGITS, MinimalLM, OnDone
from iclkit.lm._shape import ModelShape
from iclkit.records import CostEstimate, GenerateRequest, Generation, Message, Score, ScoreRequest, Usage


class BaseLM(ABC):
    """The LM protocol in terms of four methods, which a backend writes beside name, fingerprint and context size.

    A backend adds what it does to ``_usage``, and what the user should know to ``_notes``.
    """

    name: str
    fingerprint: str
    context_size: int
    scoring: str = LOGITS
    _usage: Usage = Usage()
    _notes: tuple[str, ...] = ()

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""

    @abstractmethod
    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""

    @abstractmethod
    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""

    @abstractmethod
    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request."""

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        return self._usage

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this LM is asked and what is kept."""
        return self._notes

    @property
    def shape(self) -> ModelShape | None:
        """What reading costs depend on; None where it is not known."""
        return None

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the requests would cost if each different one were read whole; how long that takes is not known."""
        texts = {r.context for r in requests} | {r.continuation for r in requests if isinstance(r, ScoreRequest)}
        counts = {text: self.count_tokens(text) for text in texts}
        tokens = {
            r: counts[r.context] + (counts[r.continuation] if isinstance(r, ScoreRequest) else 0) for r in requests
        }
        return CostEstimate(
            requests=len(requests),
            prompts=len({r.context for r in requests}),
            calls=len(tokens),
            tokens_asked=sum(tokens[r] for r in requests),
            tokens_computed=sum(tokens.values()),
            tokens_generated=sum(r.max_tokens for r in tokens if isinstance(r, GenerateRequest) and not r.choices),
            seconds=None if requests else 0.0,
        )

    def dry_run(self) -> DryRunLM:
        """This LM, never asked: requests are counted and get blank answers."""
        return DryRunLM(self)


REQUIRED = ("name", "fingerprint", "context_size", "count_tokens", "render_chat", "score", "generate")
DEFAULTS: Mapping[str, Any] = {"scoring": LOGITS, "notes": (), "shape": None}
"""Members of ``LM`` that a foreign object may have or not, and what they are where it has them not."""


def as_lm(lm: object) -> LM:
    """The language model itself where it has every member of ``LM``, else one that completes it.

    An object with ``name``, ``fingerprint``, ``context_size``, ``count_tokens``, ``render_chat``, ``score`` and
    ``generate`` can be completed; a text is the name of one to load. UsageError for one that lacks any of them.
    """
    if isinstance(lm, str):
        from iclkit.lm._load import load_lm

        return load_lm(lm)
    if isinstance(lm, LM):
        return lm
    if not isinstance(lm, MinimalLM):
        lacks = ", ".join(name for name in REQUIRED if name not in dir(lm))
        raise UsageError(f"{type(lm).__name__} is no language model: it lacks {lacks} (see iclkit.lm.MinimalLM)")
    return CompletedLM(lm)


class CompletedLM(BaseLM):
    """A foreign object with the members that it lacks. Its requests are counted; its tokens are not known."""

    def __init__(self, lm: MinimalLM) -> None:
        self.lm, self.name, self.fingerprint, self.context_size = lm, lm.name, lm.fingerprint, lm.context_size
        given = {name: getattr(lm, name, default) for name, default in DEFAULTS.items()}
        self.scoring, self._notes = given["scoring"], tuple(given["notes"])
        self._shape: ModelShape | None = given["shape"]

    @property
    def shape(self) -> ModelShape | None:
        """As the object says, if it does."""
        return self._shape

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        return self.lm.count_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        return self.lm.render_chat(messages)

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""
        scores = self.lm.score(requests, on_done)
        self._usage += Usage(requests=len(requests), calls=len(requests))
        return scores

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request."""
        answers = self.lm.generate(requests, on_done)
        self._usage += Usage(len(requests), len(requests), tokens_generated=sum(a.tokens for a in answers))
        return answers
