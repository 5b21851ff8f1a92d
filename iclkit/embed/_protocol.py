"""What turns texts into vectors and what judges pairs of them: the protocols, and the checks of what they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from iclkit.embed._cuts import CutTexts
from iclkit.errors import ModelError, NeedError, UsageError
from iclkit.records import Example, Json, Progress, digest

FloatArray = NDArray[np.float32]


class Reranker(Protocol):
    """A model that reads query and example together, e.g. a cross-encoder (``load_reranker``)."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[Any]:
        """(n,): how well the second text of each pair serves the first; the more the better."""
        ...


@runtime_checkable
class EmbedderLike(Protocol):
    """The least that an embedder has: what ``as_embedder`` completes."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray: ...
    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray: ...


@runtime_checkable
class Embedder(EmbedderLike, Protocol):
    """Texts to vectors. Queries and documents may be encoded differently (prompts, examples on the query side).

    ``BaseEmbedder`` has every member but the first three and the two encoders; ``as_embedder`` completes an object that
    has no more than these.
    """

    @property
    def name(self) -> str:
        """What loads the same embedder again."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal vectors of queries."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def document_fingerprint(self) -> str:
        """Equal ones mean equal vectors of documents: what stored vectors are known by."""
        ...

    @property
    def similarity(self) -> Literal["cosine", "dot"]:
        """What the products of ``encode_states`` with documents are."""
        ...

    @property
    def documents_are_inputs(self) -> bool:
        """Whether ``document_text`` is the example's input as it stands."""
        ...

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of the tasks that a retriever was trained on."""
        ...

    @property
    def training(self) -> Mapping[str, Json]:
        """The settings of a retriever's training; empty for others."""
        ...

    @property
    def gives_token_vectors(self) -> bool:
        """Whether ``encode_tokens`` can be called."""
        ...

    @property
    def cut_texts(self) -> CutTexts:
        """The texts so far that were too long to be read whole."""
        ...

    def lacks_instruction(self, task: str) -> bool:
        """Whether it learned with an instruction for each task and has none for this one."""
        ...

    def for_task(self, task: str) -> Embedder:
        """The embedder as it reads the texts of one task."""
        ...

    def document_text(self, example: Example) -> str:
        """What ``encode_documents`` is to be given for an example."""
        ...

    def state_text(self, query: str, chosen: Sequence[Example]) -> str:
        """The text of a query behind the demonstrations chosen so far, first chosen first."""
        ...

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""
        ...

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows, of texts as ``document_text`` writes them."""
        ...

    def encode_states(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32 of texts as ``state_text`` writes them: rows whose products with documents are the
        similarities that the embedder was trained on. Unit rows where these are cosines."""
        ...

    def encode_raw(
        self, texts: Sequence[str], progress: Progress | None = None, *, side: Literal["query", "document"] = "document"
    ) -> FloatArray:
        """(n, dim) float32 of texts of one side, not normalized. ModelError for an embedder without such vectors."""
        ...

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
        """Per text its tokens, special ones apart, and their contextual vectors (tokens, d), unit rows.

        NeedError for an embedder without them.
        """
        ...


class BaseEmbedder(ABC):
    """An embedder of texts as they stand, alike for every task. Subclasses have ``name``, ``fingerprint`` and ``dim``,
    and encode. The members are those of ``Embedder``."""

    name: str
    fingerprint: str
    dim: int
    gives_token_vectors: bool = False

    @property
    def document_fingerprint(self) -> str:
        """``fingerprint``: both sides are encoded alike."""
        return self.fingerprint

    @property
    def cut_texts(self) -> CutTexts:
        """None that is known of."""
        return CutTexts()

    @property
    def similarity(self) -> Literal["cosine", "dot"]:
        """Cosine."""
        return "cosine"

    @property
    def documents_are_inputs(self) -> bool:
        """True."""
        return True

    @property
    def trained_on(self) -> tuple[str, ...]:
        """No task that is known of."""
        return ()

    @property
    def training(self) -> Mapping[str, Json]:
        """Nothing that is known of."""
        return {}

    def lacks_instruction(self, task: str) -> bool:  # noqa: ARG002
        """False: it reads every task alike."""
        return False

    def for_task(self, task: str) -> Embedder:  # noqa: ARG002
        """Itself."""
        return self

    def document_text(self, example: Example) -> str:
        """The example's input."""
        return example.text

    def state_text(self, query: str, chosen: Sequence[Example]) -> str:
        """The query, so that no cut can lose it, then the inputs of the chosen, newest first."""
        return "\n".join([query, *(e.text for e in reversed(chosen))])

    @abstractmethod
    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""

    @abstractmethod
    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """(n, dim) float32, unit rows."""

    def encode_states(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """As queries."""
        return self.encode_queries(texts, progress)

    def encode_raw(
        self,
        texts: Sequence[str],  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
        *,
        side: Literal["query", "document"] = "document",  # noqa: ARG002
    ) -> FloatArray:
        """ModelError: there are none."""
        raise ModelError(f"embedder {self.name!r} gives unit vectors only; load one with load_embedder")

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:  # noqa: ARG002
        """NeedError: there are none."""
        raise NeedError(f"embedder {self.name!r} gives no vectors of single tokens; take another one")


@runtime_checkable
class _NamesDocuments(Protocol):
    """An embedder whose documents are stored under a fingerprint of their own."""

    @property
    def document_fingerprint(self) -> str: ...


@runtime_checkable
class _EncodesTokens(Protocol):
    """An embedder that gives vectors of single tokens."""

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]: ...


class _CompletedEmbedder(BaseEmbedder):
    """A foreign object with the members that it lacks. Of those that it need not have, it may have its own
    ``document_fingerprint`` and ``encode_tokens``."""

    def __init__(self, foreign: EmbedderLike) -> None:
        self._foreign: Any = foreign
        self.name, self.fingerprint, self.dim = foreign.name, foreign.fingerprint, int(foreign.dim)
        self._document_fingerprint: str = foreign.fingerprint
        if isinstance(foreign, _NamesDocuments):
            self._document_fingerprint = foreign.document_fingerprint
        self.gives_token_vectors = isinstance(foreign, _EncodesTokens)

    @property
    def document_fingerprint(self) -> str:
        return self._document_fingerprint

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        vectors: FloatArray = self._foreign.encode_queries(texts)
        return self._done(vectors, texts, progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        vectors: FloatArray = self._foreign.encode_documents(texts)
        return self._done(vectors, texts, progress)

    def encode_tokens(self, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
        if not self.gives_token_vectors:
            return super().encode_tokens(texts)
        tokens: list[tuple[list[str], FloatArray]] = self._foreign.encode_tokens(texts)
        return tokens

    @staticmethod
    def _done(vectors: FloatArray, texts: Sequence[str], progress: Progress | None) -> FloatArray:
        if progress:
            progress(len(texts), len(texts))
        return vectors


def as_embedder(embedder: EmbedderLike | str) -> Embedder:
    """The embedder itself, or a foreign object completed: the one place that asks what an object has.

    A text is the name of an embedder to load.

    UsageError for an object that lacks a name, a fingerprint, its dimensions or an encoder.
    """
    if isinstance(embedder, str):
        from iclkit.embed._load import load_embedder

        return load_embedder(embedder)
    if isinstance(embedder, BaseEmbedder | Embedder):
        return embedder
    if not isinstance(embedder, EmbedderLike):
        missing = [member for member in _LEAST if member not in dir(embedder)]
        raise UsageError(
            f"{type(embedder).__name__} is no embedder: it lacks {', '.join(missing)}; an embedder has "
            f"{', '.join(_LEAST)}"
        )
    return _CompletedEmbedder(embedder)


_LEAST = ("name", "fingerprint", "dim", "encode_queries", "encode_documents")


def vector_key(embedder: Embedder, side: str) -> str:
    """What vectors of one side (``"document"`` or ``"query"``) are stored under: 16 hex digits."""
    fingerprint = embedder.document_fingerprint if side == "document" else embedder.fingerprint
    return digest([fingerprint, side], 8)


def encode_checked(embedder: Embedder, texts: Sequence[str], side: Literal["query", "document", "state"]) -> FloatArray:
    """(n, dim) float32 vectors of queries, documents or states, checked as ``check_rows`` does."""
    encode = {
        "query": embedder.encode_queries,
        "document": embedder.encode_documents,
        "state": embedder.encode_states,
    }[side]
    vectors = _as_array(encode(texts), f"embedder {embedder.name!r}", np.float32)
    check_rows(embedder.name, vectors, texts, embedder.dim, unit=side != "state" or embedder.similarity == "cosine")
    return vectors


def encode_tokens_checked(embedder: Embedder, texts: Sequence[str]) -> list[tuple[list[str], FloatArray]]:
    """``embedder.encode_tokens``; ModelError unless each text has a unit row of numbers per token."""
    pairs = embedder.encode_tokens(texts)
    if len(pairs) != len(texts):
        raise ModelError(f"embedder {embedder.name!r} gave token vectors of {len(pairs)} texts for {len(texts)}")
    checked = []
    for text, (tokens, rows) in zip(texts, pairs, strict=True):
        vectors = _as_array(rows, f"embedder {embedder.name!r}", np.float32)
        if vectors.ndim != 2 or len(vectors) != len(tokens):
            raise ModelError(
                f"embedder {embedder.name!r} gave an array of shape {vectors.shape} for the {len(tokens)} tokens of "
                f"{_short(text)}"
            )
        check_rows(embedder.name, vectors, [text] * len(vectors))
        checked.append((tokens, vectors))
    return checked


def score_checked(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """(n,) scores of a reranker. ModelError, naming it, unless there is one finite number per pair."""
    if not pairs:
        return np.empty(0)
    scores = _as_array(reranker.score(pairs), f"reranker {reranker.name!r}", np.float64)
    check_scores(reranker.name, scores, pairs)
    return scores


def check_scores(name: str, scores: NDArray[Any], pairs: Sequence[tuple[str, str]]) -> None:
    """ModelError, naming the first bad pair, unless scores are (n,) and finite."""
    if scores.shape != (len(pairs),):
        raise ModelError(
            f"reranker {name!r} gave an array of shape {scores.shape} for {len(pairs)} pairs; expected one "
            "number per pair"
        )
    if bad := np.flatnonzero(~np.isfinite(scores)).tolist():
        raise ModelError(
            f"reranker {name!r} gave no number (NaN or infinite) for {len(bad)} of {len(pairs)} pairs, the "
            f"first is {_short(pairs[bad[0]][1])}: its weights are damaged, or do not fit its settings"
        )


def _as_array(values: Any, whose: str, dtype: Any) -> NDArray[Any]:
    """The array that a model gave. ModelError, naming it, for what is no array of numbers."""
    try:
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, and are refused as such
            return np.ascontiguousarray(values, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{whose} gave {type(values).__name__}, which is no array of numbers ({error})") from error


def are_unit(vectors: FloatArray) -> NDArray[np.bool_]:
    """(n,): which rows are of unit length; none with NaN or infinity in it is."""
    sound: NDArray[np.bool_] = np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
    return sound


def check_rows(
    name: str, vectors: FloatArray, texts: Sequence[str], dim: int | None = None, *, unit: bool = True
) -> None:
    """ModelError, naming the first bad text, unless vectors are (n, dim), finite and, with ``unit``, of unit length."""
    if vectors.ndim != 2 or len(vectors) != len(texts) or dim not in (None, vectors.shape[1]):
        raise ModelError(
            f"embedder {name!r} says it has {dim} dimensions and gave an array of shape {vectors.shape} for "
            f"{len(texts)} texts"
        )
    sound = are_unit(vectors) if unit else np.isfinite(vectors).all(axis=1)
    if sound.all():
        return
    bad = np.flatnonzero(~sound)
    first = float(np.linalg.norm(vectors[bad[0]]))
    if not np.isfinite(vectors[bad[0]]).all():
        what = "no numbers (NaN or infinite): its weights are damaged, or do not fit its settings"
    elif first == 0:
        what = "a vector of zeros, which has no direction: it knows nothing in that text; leave the text out"
    else:
        what = f"a vector of length {first:.4g}, not of unit length"
    raise ModelError(
        f"embedder {name!r} gave {what}; {len(bad)} of {len(texts)} texts, the first is {_short(texts[int(bad[0])])}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
