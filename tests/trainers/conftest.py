"""Encoders small enough to be trained within a test: words are tokens, weights are random."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclkit.testing import hidden_mode_task

pytest.importorskip("datasets", reason="training needs the train extra")


def word_tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({w for t in texts for w in t.replace("\n", " ").replace("\t", " ").split()})
    every = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(every)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def texts_of(task) -> list[str]:
    return [f"{e.text} {e.output}" for e in (*task.train, *task.test)]


def bag_encoder(folder: Path, texts: list[str], dim: int = 96) -> Path:
    """A sentence-transformers folder whose text vector is the mean of its words' random vectors."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    bag = StaticEmbedding(word_tokenizer(texts), embedding_dim=dim)
    SentenceTransformer(modules=[bag], device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


def layered_encoder(folder: Path, texts: list[str]) -> Path:
    """A bag of words with two layers on top, so that one word can change what another means."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding

    torch.manual_seed(0)
    modules = [
        StaticEmbedding(word_tokenizer(texts), embedding_dim=128),
        Dense(128, 256, activation_function=torch.nn.ReLU()),
        Dense(256, 96, activation_function=torch.nn.Identity()),
    ]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


def tiny_bert(folder: Path, texts: list[str]) -> Path:
    """A two-layer BERT with random weights and words as tokens, without dropout."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokenizer = word_tokenizer(texts)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(folder))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(str(folder))  # fmt: skip
    return folder


def config_for(method: str, **settings):
    """The config of a method, with those of the settings that it has."""
    from dataclasses import fields

    from iclkit.trainers import METHODS, preset

    known = {f.name for f in fields(METHODS[method].config_class)}
    return preset(method, **{name: value for name, value in settings.items() if name in known})


@pytest.fixture(scope="session")
def mode_task():
    return hidden_mode_task(200, 60, modes=4, forms=3)


@pytest.fixture(scope="session")
def bag(mode_task, tmp_path_factory) -> Path:
    return bag_encoder(tmp_path_factory.mktemp("bag") / "bag", texts_of(mode_task[0]))


@pytest.fixture(scope="session")
def bert(mode_task, tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "bert", texts_of(mode_task[0]))


@pytest.fixture(scope="session")
def encoders():
    """This module's makers of encoders, for tests with texts of their own."""
    import sys

    return sys.modules[__name__]
