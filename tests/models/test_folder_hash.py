"""Hashes of model folders are part of every cache key and of every stored vector: they never change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iclkit.models import embedder_folder_hash, lm_folder_hash

FILES = {
    "config.json": "{}", "tokenizer.json": "{}", "vocab.txt": "a\nb\n", "chat_template.jinja": "x", "merges.bpe": "m",
    "notes.md": "no", "onnx/model.safetensors": "other", "1_Pooling/config.json": "{}",
    "2_Dense/model.safetensors": "w",
    "additional_chat_templates/tool.jinja": "t", "Zoo.json": "{}", "parts/one.safetensors": "1",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "parts/one.safetensors"}}),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(text)
    return tmp_path / "model"


def test_the_hash_of_a_folder_is_what_it_has_always_been(folder: Path) -> None:
    assert lm_folder_hash(folder) == "15567ed9ad5f3a2b7b53744c171390d0"
    assert lm_folder_hash(folder, ["notes.md", "gone"]) == "b7832947915a2c8e92a71cd4cbecaf76"
    assert embedder_folder_hash(folder) == "0a128ce555ef206148cf5b9e45dad807"
    read = [folder / "merges.bpe"]
    assert embedder_folder_hash(folder, [folder / "onnx"], read) == "102566deb29ac509e9bcbe658b198580"


@pytest.mark.parametrize(
    ("name", "lm", "embedder"),
    [
        ("config.json", True, True),
        ("parts/one.safetensors", True, True),
        ("additional_chat_templates/tool.jinja", True, False),
        ("2_Dense/model.safetensors", False, True),
        ("onnx/model.safetensors", False, False),
        ("notes.md", False, False),
    ],
)
def test_a_hash_changes_with_the_files_that_are_read_and_no_others(
    folder: Path, name: str, lm: bool, embedder: bool
) -> None:
    before = lm_folder_hash(folder), embedder_folder_hash(folder)
    (folder / name).write_text('{"weight_map": {}, "x": 1}')
    assert (lm_folder_hash(folder) != before[0], embedder_folder_hash(folder) != before[1]) == (lm, embedder)
