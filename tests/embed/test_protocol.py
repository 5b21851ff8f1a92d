"""A foreign object is completed once, and what it gives is checked wherever it enters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iclkit.embed import (
    BaseEmbedder,
    Embedder,
    Retriever,
    RetrieverFormat,
    as_embedder,
    encode_checked,
    encode_tokens_checked,
    score_checked,
    vector_key,
)
from iclkit.errors import ModelError, NeedError, UsageError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder, OverlapReranker

EXAMPLES = [Example(f"text {n} {'red' if n % 2 else 'blue'}", "ab"[n % 2]) for n in range(8)]


class Foreign:
    """The least that an embedder has."""

    def __init__(self) -> None:
        self._hash = HashEmbedder()
        self.name, self.fingerprint, self.dim = "foreign", "foreign-1", 64

    def encode_queries(self, texts: Any) -> Any:
        return self._hash.encode_queries(texts)

    def encode_documents(self, texts: Any) -> Any:
        return self._hash.encode_documents(texts)


def test_an_embedder_of_ours_is_itself_and_a_foreign_object_is_completed() -> None:
    ours = HashEmbedder()
    assert as_embedder(ours) is ours
    completed = as_embedder(Foreign())
    assert isinstance(completed, Embedder)
    assert as_embedder(completed) is completed
    assert (completed.for_task("film"), completed.trained_on, completed.similarity) == (completed, (), "cosine")
    assert completed.document_fingerprint == "foreign-1"
    assert completed.document_text(EXAMPLES[0]) == EXAMPLES[0].text
    assert completed.state_text("q", EXAMPLES[:2]) == f"q\n{EXAMPLES[1].text}\n{EXAMPLES[0].text}"
    with pytest.raises(NeedError, match="no vectors of single tokens"):
        completed.encode_tokens(["a"])


def test_what_a_foreign_object_has_of_its_own_is_kept() -> None:
    foreign: Any = Foreign()
    foreign.document_fingerprint = "documents-1"
    foreign.encode_tokens = HashEmbedder().encode_tokens
    completed = as_embedder(foreign)
    assert vector_key(completed, "document") != vector_key(as_embedder(Foreign()), "document")
    assert completed.gives_token_vectors
    assert encode_tokens_checked(completed, ["a b"])[0][0] == ["a", "b"]


def test_an_object_that_is_none_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(UsageError, match=r"int is no embedder: it lacks name, fingerprint, dim, encode_queries"):
        as_embedder(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("selector", ["knn", "mmr", "se2", "cosine-coverage", "rrf,of=[knn,bm25]"])
def test_a_foreign_embedder_serves_pools_and_selectors_as_ours_does(selector: str) -> None:
    view, query = Pool.of(EXAMPLES).view(), Query("a red text")
    foreign: Any = Foreign()
    one = make_selector(selector).fit(view, Kit(embedder=foreign)).select(query, 3)
    other = make_selector(selector).fit(view, Kit(embedder=HashEmbedder())).select(query, 3)
    assert one.ids == other.ids
    np.testing.assert_array_equal(view.vectors(foreign), view.vectors(HashEmbedder()))


def test_a_retriever_writes_examples_and_states_and_says_what_it_was_trained_on() -> None:
    card = {"tasks": [{"name": "film"}], "config": {"temperature": 0.1}}
    retriever = Retriever(HashEmbedder(), RetrieverFormat(), card)
    assert isinstance(retriever, Embedder)
    assert (retriever.trained_on, retriever.training["temperature"]) == (("film",), 0.1)
    assert not retriever.documents_are_inputs
    assert retriever.document_text(EXAMPLES[0]) == f"{EXAMPLES[0].text}\t{EXAMPLES[0].output}"
    assert retriever.state_text("q", EXAMPLES[:1]) == f"q\n{EXAMPLES[0].text}\t{EXAMPLES[0].output}"
    assert Retriever.over(retriever, RetrieverFormat("input")).inner is retriever.inner


class Odd(HashEmbedder):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def encode_queries(self, texts: Any, progress: Any = None) -> Any:
        return self.value

    encode_documents = encode_queries


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.full((2, 64), np.nan), "no numbers"),
        (np.full((2, 64), 1e300), "no numbers"),
        (np.ones((3, 64)) / 8, "an array of shape"),
        (np.ones(64) / 8, "an array of shape"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        (["a", "b"], "no array of numbers"),
        (None, "(no array of numbers|an array of shape)"),
    ],
)
@pytest.mark.parametrize("side", ["query", "document", "state"])
def test_vectors_that_are_none_are_one_line_that_names_the_embedder(value: Any, says: str, side: Any) -> None:
    with pytest.raises(ModelError, match=f"embedder 'hash' .*{says}") as caught:
        encode_checked(Odd(value), ["a", "b"], side)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "of 0 texts for 1"),
        ([(["a"], np.full((1, 4), np.nan))], "no numbers"),
        ([(["a", "b"], np.ones((1, 1)))], "for the 2 tokens"),
    ],
)
def test_token_vectors_that_are_none_are_refused(tokens: Any, says: str) -> None:
    embedder: Any = HashEmbedder()
    embedder.encode_tokens = lambda _: tokens
    with pytest.raises(ModelError, match=says):
        encode_tokens_checked(embedder, ["a"])


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (lambda pairs: [np.nan] * len(pairs), "gave no number"),
        (lambda pairs: [np.inf] * len(pairs), "gave no number"),
        (lambda pairs: [0.5], "an array of shape"),
        (lambda pairs: np.ones((len(pairs), 2)), "an array of shape"),
        (lambda pairs: ["high"] * len(pairs), "no array of numbers"),
    ],
)
def test_scores_that_are_none_are_one_line_that_names_the_reranker(scores: Any, says: str) -> None:
    reranker: Any = OverlapReranker()
    reranker.score = scores
    view = Pool.of(EXAMPLES).view()
    chooser = make_selector("rerank,of=bm25").fit(view, Kit(reranker=reranker))
    with pytest.raises(ModelError, match=f"reranker 'overlap' .*{says}"):
        chooser.select(Query("a red text"), 3)
    assert score_checked(reranker, []).shape == (0,)


def test_an_embedder_of_ones_own_needs_no_more_than_its_encoders() -> None:
    class Mine(BaseEmbedder):
        name, fingerprint, dim = "mine", "mine-1", 2

        def encode_queries(self, texts: Any, progress: Any = None) -> Any:
            return np.tile(np.float32([0.6, 0.8]), (len(texts), 1))

        encode_documents = encode_queries

    with Pool.of(EXAMPLES) as pool:
        assert pool.embed(Mine()) == len(EXAMPLES)
