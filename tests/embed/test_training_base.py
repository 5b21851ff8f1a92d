"""What a training starts from: whole, and with the prefixes that its embedder puts in front of texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclkit import models
from iclkit.embed import load_embedder, load_training_base
from iclkit.errors import ModelError, UsageError

E5 = ("query: ", "passage: ")


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "base"))


def prefixes(spec: str) -> tuple[str, str]:
    prompts = load_training_base(spec).prompts
    return prompts["query"], prompts["document"]


def test_a_base_keeps_the_prompts_of_its_folder(folder: Path) -> None:
    assert prefixes(str(folder)) == ("", "")
    told = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    assert prefixes(str(folder)) == E5


def test_a_base_has_the_prefixes_that_the_catalogue_knows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = models.catalogue()["e5-small-v2"]
    monkeypatch.setattr(models, "card_of", lambda _: card)
    assert prefixes(str(folder)) == (card.query_prefix, card.document_prefix) == E5


def test_prefixes_behind_the_name_go_first(folder: Path) -> None:
    assert prefixes(f"{folder},query_prefix=q: ,document_prefix=d: ") == ("q: ", "d: ")
    with pytest.raises(UsageError, match="dtype cannot be set here"):
        load_training_base(f"{folder},dtype=bf16")


def test_what_is_saved_from_a_base_embeds_as_the_base_did(folder: Path, tmp_path: Path) -> None:
    spec = f"{folder},query_prefix=query: ,document_prefix=passage: "
    load_training_base(spec).save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    base, saved = load_embedder(spec), load_embedder(str(tmp_path / "saved"))
    for side in ("encode_queries", "encode_documents"):
        np.testing.assert_array_equal(getattr(saved, side)(["the cat"]), getattr(base, side)(["the cat"]))


@pytest.mark.parametrize("lost", ["encoder.layer.1.", "embeddings.word_embeddings"])
def test_a_base_that_lacks_weights_is_refused(folder: Path, lost: str) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights: dict[str, Any] = {k: v for k, v in load_file(file).items() if not k.startswith(lost)}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lack weights .*{lost}"):
        load_training_base(str(folder))
