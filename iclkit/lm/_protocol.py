"""What every language model offers, whatever serves it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from iclkit.errors import RequestError
from iclkit.records import CostEstimate, GenerateRequest, Generation, Message, Score, ScoreRequest, Usage

if TYPE_CHECKING:
    from iclkit.lm._dry_run import DryRunLM
    from iclkit.lm._shape import ModelShape

T_contra = TypeVar("T_contra", contravariant=True)

LOGITS = "logits"
"""``LM.scoring`` of a model whose logits are at hand."""


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
class MinimalLM(Protocol):
    """The least that can be used as a language model; ``as_lm`` adds the rest of ``LM``."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Weights, dtype policy, tokenizer and backend version: equal fingerprints give equal answers."""
        ...

    @property
    def context_size(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        ...

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


@runtime_checkable
class LM(MinimalLM, Protocol):
    """A language model. Results come in the order of the requests, whatever the order of computation.

    ``score`` and ``generate`` raise RequestError, with its index in the list they were given, for a request that can
    never be answered; whoever asked may leave it out and ask again for the others.
    """

    @property
    def scoring(self) -> str:
        """How log-probabilities are had: ``logits``, or a server's way (see ``_servers``).

        A server's ``generate`` and ``forced`` have none: such scores only rank the answers (``ranks_only``).
        """
        ...

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this LM is asked and what is kept."""
        ...

    @property
    def shape(self) -> ModelShape | None:
        """What reading costs depend on; None where it is not known."""
        ...

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the requests would cost now; nothing is asked, but a short probe may be timed. Errors as ``score``."""
        ...

    def dry_run(self) -> DryRunLM:
        """This LM, never asked: requests are counted and get blank answers."""
        ...


def ranks_only(lm: LM) -> bool:
    """Whether an LM's scores only rank the answers by what it wrote, and are no log-probabilities.

    So it is with a server that gives no probabilities (``scoring`` is "generate" or "forced"): its scores must not be
    added up, averaged, calibrated or shown as nats.
    """
    return lm.scoring in ("generate", "forced")


def scores_together(lm: LM) -> bool:
    """Whether a score depends on the other continuations of its context that are asked about in the same call."""
    return lm.scoring in ("decisions", "forced")
