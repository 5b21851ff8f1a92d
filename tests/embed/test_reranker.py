"""A cross-encoder of real size: all-MiniLM's layers under a random head, beside sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iclkit.datasets import load_task
from iclkit.embed import load_reranker
from iclkit.pool import Pool
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder

pytestmark = pytest.mark.models
TASK = load_task("support")
PAIRS = [(q.text, TASK.train[(7 * n + 3) % 60].text) for n, q in enumerate(TASK.queries()[:40])]
PAIRS += [("", "x"), ("", ""), ("a " * 400, "b " * 300)]


@pytest.fixture(scope="session")
def cross_path(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("cross")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=1)
    model.classifier.weight.data.normal_(0, 0.3)  # scores that differ by more than the initial 0.02 would let them
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_path).save_pretrained(folder)
    return folder


def test_scores_are_those_of_sentence_transformers(cross_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(cross_path), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    ours = load_reranker(str(cross_path), dtype="fp32").score(PAIRS)
    assert np.ptp(theirs) > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_score_has_the_same_bits_alone_and_in_any_batch(cross_path: Path, dtype: str) -> None:
    reranker = load_reranker(str(cross_path), dtype=dtype)
    scores, order = reranker.score(PAIRS), np.random.default_rng(0).permutation(len(PAIRS))
    np.testing.assert_array_equal(reranker.score([PAIRS[n] for n in order]), scores[order])
    np.testing.assert_array_equal(np.concatenate([reranker.score([pair]) for pair in PAIRS]), scores)


def test_rerank_orders_candidates_as_sentence_transformers_ranks_them(cross_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(cross_path), device="cpu")
    view = Pool.of(TASK.train[:80]).view()
    kit = Kit(HashEmbedder(), reranker=load_reranker(str(cross_path), dtype="fp32"))
    one, queries = make_selector("rerank,depth=12").fit(view, kit), TASK.queries()[:5]
    for query, selection in zip(queries, one.select_many(queries, 4), strict=True):
        near = make_selector("knn").fit(view, kit).select(query, 12).ids
        texts = [view.examples_of([i])[0].text for i in near]
        ranked = theirs.rank(query.text, texts, top_k=4, activation_fn=torch.nn.Identity())
        assert [p.example_id for p in selection] == [near[int(r["corpus_id"])] for r in ranked]
        assert selection == one.select(query, 4)
