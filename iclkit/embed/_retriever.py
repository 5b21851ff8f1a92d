"""A trained retriever as an embedder: a sentence-transformers folder with a card of how texts were written for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iclkit.embed._cuts import CutTexts
from iclkit.embed._protocol import BaseEmbedder, Embedder, FloatArray
from iclkit.errors import ModelError
from iclkit.records import Example, Json, Progress, digest

CARD = "iclkit.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class RetrieverFormat:
    """How a retriever reads queries and examples; the same in training and in use.

    ``document``: ``input``, or ``input+output`` with ``separator`` between. ``instructions`` stand in front of texts of
    their task, on the sides named in ``instruct`` (``query``, ``document``). ``radius``: see ``mips_to_cosine``; 0 for
    cosine.
    """

    document: Literal["input", "input+output"] = "input+output"
    separator: str = "\t"
    instructions: Mapping[str, str] = field(default_factory=dict)
    instruct: tuple[str, ...] = ("query", "document")
    radius: float = 0.0

    def identity(self) -> dict[str, Json]:
        """What decides the texts, under names that no renaming touches: stored vectors and cards hold it."""
        return {
            "document": self.document,
            "separator": self.separator,
            "instructions": dict(self.instructions),
            "instruct": [*self.instruct],
            "radius": self.radius,
        }

    def example(self, example: Example, task: str = "") -> str:
        """The text of a demonstration. ``task`` is the one asked about; the example's own goes first."""
        shown = example.text
        if self.document == "input+output":
            shown += self.separator + example.output
        return self._with_instruction(shown, "document", example.task or task)

    def query(self, text: str, task: str = "", chosen: Sequence[Example] = ()) -> str:
        """The text of a query behind the demonstrations ``chosen`` so far, first chosen first.

        The query stands in front, then the demonstrations, newest first: a text cut at its end loses the oldest
        demonstration, never the query (Se2's released code cuts the query).
        """
        shown = [self._with_instruction(text, "query", task)]
        shown += [f"{e.text}{self.separator}{e.output}" for e in reversed(chosen)]
        return "\n".join(shown)

    def _with_instruction(self, text: str, side: str, task: str) -> str:
        instruction = self.instructions.get(task, "") if side in self.instruct else ""
        return f"{instruction} {text}" if instruction else text


class Retriever(BaseEmbedder):
    """An embedder that writes texts as its training did.

    ``for_task`` gives the same retriever with that task's instruction; without it, texts stand bare.
    """

    def __init__(self, inner: Embedder, rendering: RetrieverFormat, card: Mapping[str, Any], task: str = "") -> None:
        self.inner, self.rendering, self.card, self.task = inner, rendering, card, task
        self.name = inner.name
        identity: list[Json] = [inner.fingerprint, digest(rendering.identity()), task if rendering.instructions else ""]
        self.fingerprint = digest(identity)
        self.dim = inner.dim + bool(rendering.radius)

    @classmethod
    def over(cls, embedder: Embedder, rendering: RetrieverFormat) -> Retriever:
        """A retriever that writes texts in that way, over an embedder or over what another retriever was trained
        from."""
        return cls(embedder.inner if isinstance(embedder, Retriever) else embedder, rendering, {})

    @property
    def similarity(self) -> Literal["cosine", "dot"]:
        """What it was trained on."""
        return "dot" if self.rendering.radius else "cosine"

    @property
    def cut_texts(self) -> CutTexts:
        """Those of the embedder that it is over."""
        return self.inner.cut_texts

    @property
    def documents_are_inputs(self) -> bool:
        """False: it writes each example."""
        return False

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The tasks that its card names."""
        return _trained_on(self.card)

    @property
    def training(self) -> Mapping[str, Json]:
        """The settings that its card names."""
        config = self.card.get("config")
        return config if isinstance(config, Mapping) else {}

    def lacks_instruction(self, task: str) -> bool:
        """Whether it learned with an instruction for each task and has none for this one, whose texts then stand
        bare."""
        instructed = bool(self.rendering.instruct) and any(self.rendering.instructions.values())
        return instructed and not self.rendering.instructions.get(task)

    def for_task(self, task: str) -> Retriever:
        """The retriever as it reads the texts of one task."""
        return Retriever(self.inner, self.rendering, self.card, task)

    def document_text(self, example: Example) -> str:
        """The example as the training wrote demonstrations."""
        return self.rendering.example(example, self.task)

    def state_text(self, query: str, chosen: Sequence[Example]) -> str:
        """The query and what is chosen as the training wrote them."""
        return self.rendering.query(query, self.task, chosen)

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        vectors = self.inner.encode_queries([self.state_text(text, ()) for text in texts], progress)
        return np.pad(vectors, ((0, 0), (0, 1))) if self.rendering.radius else vectors

    def encode_states(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32: rows whose products with documents are the similarities of the training.

        Unit rows where these are cosines. Inner products of two queries with documents compare only in this form: unit
        rows rank the documents of one query, but lack its length.
        """
        if not self.rendering.radius:
            return self.inner.encode_queries(texts, progress)
        return np.pad(self.inner.encode_raw(texts, progress, side="query") * self.rendering.radius, ((0, 0), (0, 1)))

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows, of texts from ``document_text``."""
        if not self.rendering.radius:
            return self.inner.encode_documents(texts, progress)
        return mips_to_cosine(self.inner.encode_raw(texts, progress), self.rendering.radius)

    def document_lengths(self, texts: Sequence[str]) -> FloatArray:
        """(n,) lengths of the documents' vectors before they are normalized."""
        return np.asarray(np.linalg.norm(self.inner.encode_raw(texts), axis=1), dtype=np.float32)


def mips_to_cosine(vectors: FloatArray, radius: float) -> FloatArray:
    """Documents (n, d) on a sphere (n, d + 1), so that the cosine with ``[query, 0]`` ranks by inner product.

    The last column is what is missing to ``radius`` (Bachrach et al. 2014, RecSys, the Xbox transform). Rows longer
    than the radius are cut to it.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors * np.minimum(1.0, radius / np.maximum(norms, 1e-12))
    rest = np.sqrt(np.maximum(radius**2 - np.sum(vectors**2, axis=1, keepdims=True), 0.0))
    return np.asarray(np.hstack([vectors, rest]) / radius, dtype=np.float32)


def read_card(folder: Path) -> dict[str, Any] | None:
    """The retriever's card in a folder, or None for a folder of another kind. ModelError for one that is broken."""
    file = folder / CARD
    if not file.is_file():
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        found = int(card["format"])
        if found <= FORMAT:
            _rendering(card)
            _trained_on(card)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no field {error}" if isinstance(error, KeyError) else error
        raise ModelError(f"{file} is no retriever's card ({why}); train again, or remove it") from error
    if found > FORMAT:
        raise ModelError(f"{file} has format {found}, made by a newer iclkit; this one reads up to {FORMAT}")
    return dict(card)


def retriever_from_card(inner: Embedder, card: Mapping[str, Any]) -> Retriever:
    """The embedder of a folder with its card, from ``read_card``."""
    return Retriever(inner, _rendering(card), card)


def _rendering(card: Mapping[str, Any]) -> RetrieverFormat:
    """How the card says texts are written. KeyError, TypeError, AttributeError or ValueError for one that is broken."""
    rendering = dict(card["rendering"])
    found = replace(RetrieverFormat(), **{**rendering, "instruct": tuple(rendering["instruct"])})
    sound = {
        "document": found.document in ("input", "input+output"),
        "separator": isinstance(found.separator, str),
        "instructions": all(isinstance(text, str) for text in found.instructions.values()),
        "instruct": {*found.instruct} <= {"query", "document"},
        "radius": 0 <= found.radius < float("inf"),
    }
    for name, good in sound.items():
        if not good:
            raise ValueError(f"rendering: {name} is {getattr(found, name)!r}")
    return found


def _trained_on(card: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(t["name"]) for t in card.get("tasks", ()))
