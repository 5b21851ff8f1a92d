"""How a text is dressed before it is encoded: instruction and examples in front, something behind, one rule for length.

Every embedder here is an instance of ``open + cut(text) + close`` on the query side and on the document side, a pooling
over the tokens, and normalization. Examples stand on the query side only, unless the method is symmetric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from iclkit.errors import UsageError
from iclkit.records import Json, digest

Pooling = Literal["mean", "last", "cls", "weighted", "max", "sqrt"]
Pair = tuple[str, str]
PREPARATIONS_VERSION = 1


@runtime_checkable
class ExampleProvider(Protocol):
    """Gives the (query, response) pairs that are shown in front of one query, the most similar last."""

    fingerprint: str

    def __call__(self, text: str) -> Sequence[Pair]:
        """Pairs for this query; never the query itself."""
        ...


@dataclass(frozen=True, slots=True)
class SideFormat:
    """``head``, then each example, then ``open``, the text, and ``close``. All but the text are never cut.

    ``example`` is how one pair is written, with the marks ``{query}`` and ``{response}``. ``examples`` are the same for
    every text; a ``provider`` chooses them per text instead.
    """

    open: str = ""
    close: str = ""
    head: str = ""
    example: str = ""
    examples: tuple[Pair, ...] = ()
    provider: ExampleProvider | None = None

    def pairs(self, text: str) -> tuple[Pair, ...]:
        """The examples shown in front of ``text``, in order."""
        return tuple(self.provider(text)) if self.provider else self.examples

    def front(self, pairs: Sequence[Pair]) -> str:
        """Everything that stands before the text."""
        shown = (self.example.split("{query}") for _ in pairs)
        blocks = [
            before + query + between + response + after
            for (query, response), (before, rest) in zip(pairs, shown, strict=True)
            for between, after in (rest.split("{response}"),)
        ]
        return self.head + "".join(blocks) + self.open

    def identity(self) -> dict[str, Json]:
        """What goes into a fingerprint, under names that no renaming touches: stored vectors are found by it."""
        return {
            "open": self.open,
            "close": self.close,
            "head": self.head,
            "example": self.example,
            "examples": [[q, r] for q, r in self.examples],
            "provider": self.provider.fingerprint if self.provider else "",
        }


@dataclass(frozen=True, slots=True)
class EmbeddingFormat:
    """A way to get vectors out of a model.

    ``pooling``: mean, last token, first token (cls), mean weighted by position (SGPT), maximum, mean times the square
    root of the length; several are concatenated. ``text_only``: only the text's own tokens are pooled.
    ``joint``: front and text are tokenised as one text and the end is cut, as sentence-transformers does; otherwise
    token ids are joined, and only the text is ever cut. ``max_tokens``: of everything together (0: what the model
    takes); ``max_text_tokens``: of the text (0: what fits). ``prepare``: "" or "eol" (see ``prepare_text``).
    """

    query: SideFormat = field(default_factory=SideFormat)
    document: SideFormat = field(default_factory=SideFormat)
    pooling: tuple[Pooling, ...] = ("mean",)
    text_only: bool = False
    joint: bool = False
    max_tokens: int = 0
    max_text_tokens: int = 0
    prepare: Literal["", "eol", "lower"] = ""

    @property
    def symmetric(self) -> bool:
        """Whether both sides are encoded alike."""
        return self.query == self.document

    def identity(self, side: str) -> dict[str, Json]:
        """What determines the vectors of one side, given the model. ``side``: query or document."""
        return {
            "pooling": [*self.pooling],
            "text_only": self.text_only,
            "joint": self.joint,
            "max_tokens": self.max_tokens,
            "max_text_tokens": self.max_text_tokens,
            "prepare": self.prepare,
            "side": (self.query if side == "query" else self.document).identity(),
            "preparations": PREPARATIONS_VERSION,
        }


def prepare_text(text: str, how: str) -> str:
    """Text preparation, idempotent. "eol" (Jiang et al. 2023, PromptEOL): double quotes become single, a final "?"
    becomes ".", and "." is appended unless the text ends in "." or a quote. "lower": lower case.

    >>> prepare_text('Who said "no"?', "eol")
    "Who said 'no'."
    """
    if how == "lower":
        return text.lower()
    if how != "eol":
        return text
    text = text.strip().replace('"', "'")
    if text.endswith("?"):
        text = text[:-1].rstrip() + "."
    return text if text.endswith((".", "'")) else text + "."


def prompt_eol(demonstration: Pair | None = None) -> EmbeddingFormat:
    """PromptEOL (Jiang et al. 2023, arXiv 2307.16645): the last token's state after asking for one word.

    ``demonstration``: a sentence and its one word, shown once in front. Both sides alike.
    """
    ask, close = 'This sentence : "', '" means in one word:"'
    side = SideFormat(
        open=ask,
        close=close,
        example=f'{ask}{{query}}{close}{{response}}". ',
        examples=(demonstration,) if demonstration else (),
    )
    return EmbeddingFormat(side, side, ("last",), prepare="eol")


def bge_icl(task: str, examples: Sequence[Pair] = (), response_cue: str = "\n<response>") -> EmbeddingFormat:
    """bge-en-icl (Li et al. 2024, arXiv 2409.15700): task, examples and query with tags; documents bare; last token.

    ``response_cue`` has to be the one that the checkpoint was trained with.
    """
    open_ = f"<instruct>{task}\n<query>"
    query = SideFormat(open_, response_cue, "", f"{open_}{{query}}\n<response>{{response}}\n\n", tuple(examples))
    return EmbeddingFormat(query, SideFormat(), ("last",), max_text_tokens=512)


def rare(task: str, provider: ExampleProvider | Sequence[Pair]) -> EmbeddingFormat:
    """RARe (Tejaswi et al. 2024, arXiv 2410.20088): retrieved (query, document) pairs before the query; last token.

    Helps encoders that were fine-tuned with such inputs, and tends to hurt others.
    """
    own = isinstance(provider, ExampleProvider)
    query = SideFormat(
        open="Query: ",
        head=f"Instruct: {task}\n",
        example="Query: {query}\nPositive Document: {response}\n",
        examples=() if own else tuple(provider),  # type: ignore[arg-type]
        provider=provider if own else None,  # type: ignore[arg-type]
    )
    return EmbeddingFormat(query, SideFormat(), ("last",))


POOLED: Mapping[str, tuple[Pooling, ...]] = {"mean": ("mean",), "weighted": ("weighted",), "last": ("last",)}


def lm_template(name: str) -> EmbeddingFormat:
    """The template of ``prompteol:MODEL``, ``mean:MODEL``, ``weighted:MODEL`` or ``last:MODEL``."""
    if name == "prompteol":
        return prompt_eol()
    if name in POOLED:
        return EmbeddingFormat(pooling=POOLED[name])
    raise UsageError(
        f"no way of embedding with a language model is called {name!r}; known: prompteol, {', '.join(POOLED)}"
    )


def format_fingerprint(template: EmbeddingFormat, side: str, **facts: Json) -> str:
    """Fingerprint of one side."""
    return digest([template.identity(side), dict(facts), side if not template.symmetric else ""])
