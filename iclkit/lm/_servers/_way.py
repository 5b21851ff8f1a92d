"""What ways of scoring have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from iclkit.lm._servers._model import PROBE, ServedModel
from iclkit.lm._servers._parse import NotSupported
from iclkit.records import Score


class Way(ABC):
    """A way to have scores from a server: ``probe`` finds out whether it works there, ``scores`` uses it."""

    name: ClassVar[str]
    endpoint: ClassVar[str] = "completions"
    one_by_one: ClassVar[bool] = False
    """Whether each continuation is a request of its own; else one question serves all continuations of a context."""
    per_token: ClassVar[bool] = False
    """Whether a continuation of several tokens takes a question for each beginning of it."""
    note: ClassVar[str] = ""
    """What the user should know about scores that are had so."""

    def __init__(self, server: ServedModel) -> None:
        self.server = server

    def probe(self) -> None:
        """Find out whether it works. NotSupported, HttpError or Unanswered where it does not."""
        if self.server.can.endpoint != self.endpoint:
            raise NotSupported(f"{self.name} is for {self.endpoint}")
        self.find()

    def find(self) -> None:
        """Ask what has to be known before the first score."""
        if (value := self.check()) is None or value >= 0:
            raise NotSupported(f"{self.server} gives no log-probabilities")

    def check(self, prompt: str = PROBE) -> float | None:
        """The log-probability of a likely continuation of a short text; None where this way tells none."""
        return self.scores(prompt, [" Germany"])[0].logprob

    def ask(self) -> None:
        """One short question of this kind, to see that it is still answered."""
        self.check()

    @abstractmethod
    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """The score of each continuation of a context. Unanswered where the server gives none to this context."""

    def tell_bound(self, count: int) -> None:
        """Say that a label was not among the candidates, once the LM is in use."""
        if self.server.open:
            self.server.note(
                f"scoring {self.name}: a label was not among the {count} candidates that the server gives; its score "
                "is the upper bound that they give"
            )
