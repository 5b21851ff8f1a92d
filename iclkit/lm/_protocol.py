"""What every language model answers, whatever serves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from iclkit.errors import ModelError, RequestError
from iclkit.records import Message

T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is ``continuation`` after ``context``?

    The continuation carries its leading space (" positive"). Requests with equal contexts share one forward pass.
    ``group`` names requests that compete although their contexts differ (candidate demonstrations for one query); it
    never changes what is computed, only which winners ``bf16-verified`` makes sure of.
    """

    context: str
    continuation: str
    group: str = ""


ROUNDING = 1e-3
"""Nats by which the log-probability of a token may come out above zero: that of a sure token, added up in float32."""


@dataclass(frozen=True, slots=True)
class Score:
    """``logprob``: sum over the continuation's tokens of log p, in nats. ``tokens``: how many tokens that is.

    ``greedy``: whether each of them was the most likely next token. There is no score that is not finite or lies above
    zero by more than rounding: ModelError, so that none is ever compared, stored or believed, whatever LM gave it.
    """

    logprob: float
    tokens: int
    greedy: bool

    def __post_init__(self) -> None:
        if not -math.inf < self.logprob <= ROUNDING * max(1, self.tokens):
            raise ModelError(
                f"the language model gave {self.logprob:g} as the log-probability of {self.tokens} tokens: its "
                "weights, its server or its arithmetic is broken, and nothing that it says can be trusted"
            )


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue ``context`` by at most ``max_tokens`` tokens, ending before the first of the ``stop`` strings.

    ``choices``, when given, constrain the answer to one of these strings. ``temperature`` 0 is greedy; a sampled
    continuation is determined by ``seed``.
    """

    context: str
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """``text`` without the stop string; ``tokens`` generated; ``finish`` is stop, length or choice."""

    text: str
    tokens: int
    finish: str


class OnDone(Protocol[T_contra]):
    """Called with (index in the request list, result) pairs as soon as a batch is finished."""

    def __call__(self, done: Sequence[tuple[int, T_contra]], /) -> None: ...


@contextmanager
def numbered(places: Sequence[int]) -> Iterator[None]:
    """Inside, requests are asked that stand at ``places`` in a caller's list: a RequestError comes out numbered so."""
    try:
        yield
    except RequestError as error:
        raise RequestError(places[error.index], str(error)) from error


Progress = Callable[[int, int], None]
"""Called with (done, total) units of work; a room below ``cli`` never prints."""


@runtime_checkable
class LM(Protocol):
    """A language model. Results come in the order of the requests, whatever the order of computation.

    ``score`` and ``generate`` raise RequestError, with its index in the list they were given, for a request that can
    never be answered; whoever asked may leave it out and ask again for the others.
    """

    name: str
    fingerprint: str
    """Weights, dtype policy, tokenizer and backend version: equal fingerprints give equal answers."""
    context_size: int
    """Tokens that a prompt and its answer may take together."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        ...

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        ...

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""
        ...

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request."""
        ...


def ranks_only(lm: object) -> bool:
    """Whether an LM's scores only rank the answers by what it wrote, and are no log-probabilities.

    So it is with a server that tells no probabilities (``scoring`` is "generate"): its scores must not be added up,
    averaged, calibrated or shown as nats.
    """
    return getattr(lm, "scoring", "") == "generate"
