"""What every language model answers, whatever serves it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

from iclkit.errors import RequestError
from iclkit.records import GenerateRequest, Generation, Message, Score, ScoreRequest

T_contra = TypeVar("T_contra", contravariant=True)


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
