"""Texts that are too long for a model are cut, and never unseen: each kind of model counts them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from iclkit.embed import CutTexts, Embedder, as_embedder, load_embedder, load_reranker
from iclkit.embed._quick import QuickEmbedder
from iclkit.testing import HashEmbedder

from .test_embedder import _static
from .test_encoder import save_sentence_transformer

TEXTS = ["the cat sat", "the cat " * 60, "who sat on the mat? " * 80, "", "the cat " * 60]


def _tokens(folder: Path) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer(text)["input_ids"])


def _router(bert: Path, folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    towers = [[Transformer(str(bert), max_seq_length=n), Pooling(32), Normalize()] for n in (40, 30)]
    model = SentenceTransformer(modules=[Router.for_query_document(*towers)], device="cpu")
    model.save(str(folder))
    return folder


def _check(embedder: Embedder, tokens: Callable[[str], int], limit: int) -> None:
    """Against the tokens of each text, counted one by one; ``tokens`` with all that stands around a text."""
    embedder.encode_documents(TEXTS[:1])
    assert len(embedder.cut_texts) == 0
    assert embedder.cut_texts.note("it") == ""
    embedder.encode_documents(TEXTS)
    expected = {text: tokens(text) for text in TEXTS if tokens(text) > limit}
    assert len(expected) == 2
    assert len(embedder.cut_texts) == 2
    assert embedder.cut_texts.longest == max(expected.values())
    embedder.encode_documents(TEXTS)  # the same texts are no further ones
    assert embedder.cut_texts.note("it") == (
        f"it reads the first {limit} tokens of a text; 2 texts are longer (the longest: {max(expected.values()):,} "
        f"tokens), and the rest is ignored"
    )


def test_an_encoder_counts_what_it_cuts(tiny_bert: Path, tmp_path: Path) -> None:
    tokens = _tokens(tiny_bert)
    _check(load_embedder(str(tiny_bert)), tokens, 64)
    _check(load_embedder(str(save_sentence_transformer(tiny_bert, tmp_path / "st", "mean"))), tokens, 40)


def test_a_text_of_just_the_limit_is_read_whole(tiny_bert: Path) -> None:
    tokens, embedder = _tokens(tiny_bert), load_embedder(str(tiny_bert))
    text = "a" + " a" * (64 - tokens("a"))
    assert tokens(text) == 64
    embedder.encode_queries([text])
    embedder.encode_tokens([text])
    assert not embedder.cut_texts
    embedder.encode_tokens([text + " a"])
    assert (len(embedder.cut_texts), embedder.cut_texts.longest) == (1, 65)


def test_a_language_model_counts_the_texts_and_not_what_stands_around_them(tiny_lm: Path) -> None:
    tokens = _tokens(tiny_lm)
    side = load_embedder(f"prompteol:{tiny_lm}")
    around = tokens('This sentence : "') + tokens('" means in one word:"')
    side.encode_queries(["the cat " * 200])
    (longest,) = (side.cut_texts.longest,)
    assert len(side.cut_texts) == 1
    assert abs(longest - around - tokens(("the cat " * 200).strip() + ".")) <= 3  # marks of beginning and end


def test_two_towers_have_a_limit_each(tiny_bert: Path, tmp_path: Path) -> None:
    tokens, embedder = _tokens(tiny_bert), load_embedder(str(_router(tiny_bert, tmp_path / "two")))
    text = "a" + " a" * (35 - tokens("a"))
    embedder.encode_queries([text])
    assert not embedder.cut_texts
    embedder.encode_documents([text])
    assert (len(embedder.cut_texts), embedder.cut_texts.longest) == (1, 35)


def test_the_quick_way_counts_too_and_its_probes_are_no_texts(tiny_bert: Path, tmp_path: Path, home: Path) -> None:
    folder = str(save_sentence_transformer(tiny_bert, tmp_path / "st", "mean"))
    assert not load_embedder(folder, few=True).cut_texts  # compares both ways with texts that are too long
    quick = load_embedder(folder, few=True)
    assert isinstance(quick, QuickEmbedder)
    quick.encode_queries(TEXTS)
    assert (len(quick.cut_texts), quick.cut_texts.longest) == (2, max(map(_tokens(tiny_bert), TEXTS)))
    quick.encode_documents([*TEXTS, "sat " * 70])
    assert len(quick.cut_texts) == 3


def test_a_reranker_counts_pairs(tiny_bert: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = shutil.copytree(tiny_bert, tmp_path / "cross")
    torch.manual_seed(2)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(folder)
    reranker = load_reranker(str(folder))
    reranker.score([("who", "the cat")])
    assert not reranker.cut_texts
    reranker.score([("who", "the cat"), ("who", "the cat " * 60), ("where", "the cat " * 60)])
    assert len(reranker.cut_texts) == 2
    assert reranker.cut_texts.longest > 64


def test_models_without_a_limit_cut_nothing(tmp_path: Path) -> None:
    class Foreign:
        name, fingerprint, dim = "foreign", "f", 4
        encode_queries = encode_documents = lambda self, texts, progress=None: [[1.0, 0.0, 0.0, 0.0]] * len(texts)

    for embedder in (HashEmbedder(), as_embedder(Foreign()), load_embedder(str(_static(tmp_path)))):
        embedder.encode_documents(["the cat " * 500])
        assert not embedder.cut_texts


def test_very_many_are_counted_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclkit.embed._cuts.MOST", 3)
    cuts = CutTexts(4)
    for n in range(9):
        cuts.add(f"{n}", 10 + n)
    assert cuts.note("it") == (
        "it reads the first 4 tokens of a text; 3 or more texts are longer (the longest: 18 tokens), and the rest is "
        "ignored"
    )
