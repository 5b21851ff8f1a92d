"""Folders of embedders and rerankers: what is loaded lies in the folder and is hashed; nothing else is run or read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclkit.embed import load_embedder, load_reranker
from iclkit.embed._encoder import TextEmbedder
from iclkit.embed._folder import folder_hash, read_modules
from iclkit.embed._sentence_transformer import SentenceTransformerEmbedder
from iclkit.errors import ModelError

EVIL = "import pathlib\npathlib.Path({ran!r}).touch()\nclass Evil:\n    load = staticmethod(lambda *a, **k: None)\n"


@pytest.fixture
def st(tiny_bert: Path, tmp_path: Path) -> Path:
    """A sentence-transformers folder: transformer, pooling, a dense layer, normalization."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(1)
    modules = [Transformer(str(tiny_bert)), Pooling(32), Dense(32, 12), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "st"))
    return tmp_path / "st"


@pytest.fixture
def towers(st: Path, tmp_path: Path) -> Path:
    """A router with a transformer on each side."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    def tower() -> list[Any]:
        return [*SentenceTransformer(str(st), device="cpu")]

    model = SentenceTransformer(modules=[Router.for_query_document(tower(), tower())], device="cpu")
    model.save(str(tmp_path / "towers"))
    return tmp_path / "towers"


@pytest.fixture
def cross(tiny_bert: Path, tmp_path: Path) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "cross"))
    torch.manual_seed(2)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(folder)
    return folder


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    told = json.loads(file.read_text())
    file.write_text(json.dumps(change(told) or told))


def set_module(folder: Path, number: int, **changes: Any) -> None:
    edit(folder / "modules.json", lambda steps: steps[number].update(changes))


def refused(folder: Path, says: str, load: Callable[[str], Any] = load_embedder) -> str:
    with pytest.raises(ModelError, match=says) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(folder: Path, part: str, file: str = "model.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    weights = {k: v for k, v in load_file(folder / file).items() if part not in k}
    save_file(weights, folder / file, metadata={"format": "pt"})


# -- code --


@pytest.mark.parametrize(
    "dotted",
    [
        "evilmod.Evil",
        "evil.Evil",
        "Evil",
        "os.system",
        "sentence_transformers_evil.Evil",
        "sentence_transformers.base.model.torch",
        "sentence_transformers.util.misc.os",
        "sentence_transformers..Pooling",
        "sentence_transformers/evil.Pooling",
        "sentence_transformers.evaluation.SimilarityFunction",
        "",
    ],
)
def test_a_module_of_another_kind_is_refused_before_anything_is_run(
    st: Path, tmp_path: Path, dotted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (st, tmp_path):
        for name in ("evilmod", "evil", "sentence_transformers_evil"):
            (place / f"{name}.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)  # it is not even asked
    set_module(st, 1, type=dotted)
    told = refused(st, "asks for a module of type")
    assert "code from a model's folder" in told
    assert not (tmp_path / "ran").exists()


def test_a_module_inside_a_router_is_looked_at_too(towers: Path, tmp_path: Path) -> None:
    assert isinstance(load_embedder(str(towers)), SentenceTransformerEmbedder)
    (towers / "evil.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    config = towers / "router_config.json"
    before = config.read_text()
    edit(config, lambda c: c["types"].update(query_1_Pooling="evil.Evil"))
    refused(towers, r"router_config\.json asks for a module of type 'evil\.Evil'")
    config.write_text(before)
    edit(config, lambda c: c["types"].update({"../query_1_Pooling": c["types"]["query_1_Pooling"]}))
    refused(towers, "which is not inside the model's folder")
    for odd in ([], {"types": []}, {"types": {"a": 5}}, {}):
        config.write_text(json.dumps(odd))
        refused(towers, r"router_config\.json")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("activation", ["evil.Evil", "os.system", "torch.load", "torch.nn.Linear", "torch.nn.init", 5])
def test_an_activation_that_is_none_of_torch_is_refused(st: Path, activation: Any) -> None:
    edit(st / "2_Dense" / "config.json", lambda c: c.update(activation_function=activation))
    refused(st, "activation_function is")


def test_a_tokenizer_that_a_word_embedding_names_is_refused_unless_it_is_the_librarys(st: Path) -> None:
    set_module(st, 0, type="sentence_transformers.models.WordEmbeddings")
    (st / "wordembedding_config.json").write_text('{"tokenizer_class": "evil.Tokenizer"}')
    refused(st, r"asks for the tokenizer 'evil\.Tokenizer'")


def test_a_reranker_that_brings_code_is_refused(cross: Path, tmp_path: Path) -> None:
    assert load_reranker(str(cross)).score([("a", "b")]).shape == (1,)
    (cross / "evil.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    edit(cross / "config.json", lambda c: c.update(auto_map={"AutoModelForSequenceClassification": "evil.Evil"}))
    refused(cross, "names code of the model's own", load_reranker)
    assert not (tmp_path / "ran").exists()


def test_the_library_that_is_installed_refuses_code_by_itself() -> None:
    """The floor in pyproject.toml: 5.x runs a local folder's Python file."""
    import tomllib
    from importlib.metadata import version

    root = Path(__file__).resolve().parents[2]
    needs = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "sentence-transformers>=6.0" in needs
    assert int(version("sentence-transformers").partition(".")[0]) >= 6


# -- files elsewhere, and pickles --


@pytest.mark.parametrize("path", ["../outside", "/outside", "1_Pooling/../../outside"])
def test_a_module_outside_the_folder_is_refused(st: Path, path: str) -> None:
    (st / "2_Dense").rename(st.parent / "outside")
    set_module(st, 2, path=str(st.parent / "outside") if path.startswith("/") else path)
    refused(st, "which is not inside the model's folder .* copy them into it")


def test_a_pickled_module_is_refused_with_a_way_out(st: Path, tiny_bert: Path) -> None:
    import torch

    (st / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": torch.zeros(12, 32)}, st / "2_Dense" / "pytorch_model.bin")
    refused(st, "2_Dense has no model.safetensors but pytorch_model.bin, a pickle, .* save it again")
    (st / "2_Dense" / "pytorch_model.bin").unlink()
    refused(st, "2_Dense has no model.safetensors; fetch or copy")


def test_a_pickled_module_of_a_model_that_is_run_whole_is_refused_too(towers: Path) -> None:
    (towers / "query_2_Dense" / "model.safetensors").rename(towers / "query_2_Dense" / "pytorch_model.bin")
    refused(towers, "query_2_Dense has no model.safetensors but pytorch_model.bin, a pickle")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tokenizer_name_or_path": "/elsewhere"}, "tokenizer_name_or_path in its settings is '/elsewhere'"),
        ({"model_args": {"gguf_file": "x.gguf"}}, "model_args in its settings sets 'gguf_file'"),
        ({"model_kwargs": {"config": "x"}}, "model_kwargs in its settings sets 'config'"),
        ({"processor_kwargs": {"vocab_file": "../v.txt"}}, "processor_kwargs in its settings sets 'vocab_file'"),
        ({"model_args": {"adapter_kwargs": {"_adapter_model_path": "x"}}}, "sets 'adapter_kwargs'"),
        ({"model_args": [1]}, "model_args in its settings"),
        ({"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ({"do_lower_case": "no"}, "do_lower_case is 'no'"),
    ],
)
def test_settings_of_a_transformer_lead_nowhere_else(st: Path, settings: dict, says: str) -> None:
    edit(st / "sentence_bert_config.json", lambda c: c.update(settings))
    refused(st, says)


# -- the hash --


def change_weights(file: Path) -> None:
    """Other numbers of the same shapes, in the file that a link leads to."""
    from safetensors.torch import load_file, save

    weights = {k: v.clone() for k, v in load_file(file).items()}
    file.resolve().write_bytes(save({k: v * 1.5 for k, v in weights.items()}, metadata={"format": "pt"}))


@pytest.mark.parametrize(
    ("file", "link"),
    [
        ("model.safetensors", "none"),
        ("model.safetensors", "file"),
        ("2_Dense/model.safetensors", "none"),
        ("2_Dense/model.safetensors", "file"),
        ("2_Dense/model.safetensors", "folder"),
    ],
)
def test_weights_that_change_change_the_fingerprint_through_links_too(st: Path, file: str, link: str) -> None:
    moved = st / file if link == "file" else (st / file).parent
    if link != "none":
        outside = st.parent / "outside"
        moved.rename(outside)
        moved.symlink_to(outside)
    before = load_embedder(str(st))
    vectors = before.encode_documents(["the cat"])
    change_weights(st / file)
    after = load_embedder(str(st))
    assert np.abs(after.encode_documents(["the cat"]) - vectors).max() > 0
    assert before.fingerprint != after.fingerprint
    assert before.document_fingerprint != after.document_fingerprint


def test_shards_in_a_subfolder_are_hashed(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "m"))
    keys = [*load_file(folder / "model.safetensors")]
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "all.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "parts/all.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = load_embedder(str(folder)).fingerprint
    change_weights(folder / "parts" / "all.safetensors")
    assert load_embedder(str(folder)).fingerprint != before


def test_a_module_under_a_name_that_is_skipped_elsewhere_is_hashed(st: Path) -> None:
    (st / "2_Dense").rename(st / "onnx")
    set_module(st, 2, path="onnx")
    before = load_embedder(str(st)).fingerprint
    change_weights(st / "onnx" / "model.safetensors")
    assert load_embedder(str(st)).fingerprint != before


def test_a_vocabulary_of_an_unusual_ending_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "spm.spm").write_text("one")
    before = folder_hash(tmp_path, (), (tmp_path / "spm.spm",))
    (tmp_path / "spm.spm").write_text("two")
    assert folder_hash(tmp_path, (), (tmp_path / "spm.spm",)) != before


def test_the_hash_of_a_plain_folder_is_the_one_that_stored_vectors_carry(tmp_path: Path) -> None:
    for name, text in {
        "config.json": "{}", "model.safetensors": "w", "vocab.txt": "a", "1_Pooling/config.json": "{1}",
        "spiece.model": "m", "README.md": "not hashed", "onnx/model.json": "nor this", "pytorch_model.bin": "nor this",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert folder_hash(tmp_path) == "b718f42565695c630c5fec1b3438aa3b"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x.json").write_text("{}")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert folder_hash(tmp_path) == folder_hash(tmp_path)


# -- what is missing or damaged --


@pytest.mark.parametrize("lost", ["encoder.layer.1.", "LayerNorm"])
def test_an_embedder_that_lacks_weights_is_refused(st: Path, tiny_bert: Path, tmp_path: Path, lost: str) -> None:
    plain = Path(shutil.copytree(tiny_bert, tmp_path / "plain"))
    for folder in (st, plain):
        without(folder, lost)
        assert lost in refused(folder, "lack .* it would run on random numbers")
    (plain / "iclkit.json").write_text(
        json.dumps({"format": 1, "rendering": {"instruct": ["query"]}, "tasks": [{"name": "film"}]})
    )
    refused(plain, "it would run on random numbers")  # a trained retriever likewise


def test_a_tower_that_lacks_weights_is_refused(towers: Path) -> None:
    without(towers / "document_0_Transformer", "encoder.layer.1.")
    told = refused(towers, "document_0_Transformer does not load: .* encoder.layer.1.attention.output.LayerNorm.bias")
    assert "random numbers" in told


def test_a_tower_may_lack_the_pooler_that_nobody_reads(towers: Path) -> None:
    before = load_embedder(str(towers)).encode_documents(["the cat"])
    without(towers / "document_0_Transformer", "pooler")
    np.testing.assert_array_equal(load_embedder(str(towers)).encode_documents(["the cat"]), before)


def test_an_embedder_may_lack_the_pooler_that_nobody_reads(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "m"))
    before = load_embedder(str(folder)).encode_documents(["the cat"])
    without(folder, "pooler")
    np.testing.assert_array_equal(load_embedder(str(folder)).encode_documents(["the cat"]), before)


def test_an_embedder_is_no_reranker(tiny_bert: Path, cross: Path) -> None:
    assert "classifier.bias, classifier.weight" in refused(tiny_bert, "lack .* random numbers", load_reranker)
    without(cross, "bert.pooler")
    refused(cross, r"lack .*: bert\.pooler\.dense\.bias", load_reranker)


def test_a_dense_layer_that_lacks_its_weights_is_refused(st: Path) -> None:
    without(st, "linear.bias", "2_Dense/model.safetensors")
    refused(st, r"2_Dense.model\.safetensors lacks linear\.bias of its dense layer")


def test_a_folder_without_a_tokenizer_is_refused(st: Path, tiny_bert: Path, towers: Path, cross: Path) -> None:
    """transformers would make one that takes every word for the same unknown one."""
    for folder, load in ((st, load_embedder), (cross, load_reranker)):
        for file in folder.glob("tokenizer*"):
            file.unlink()
        refused(folder, r"lacks its tokenizer: tokenizer\.json or vocab\.txt", load)
    (towers / "query_0_Transformer" / "tokenizer.json").unlink()
    refused(towers, "tokenizer")


def test_a_tokenizer_of_another_model_is_found_out(st: Path, cross: Path) -> None:
    word = {"id": 4000, "content": "zz", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False}  # fmt: skip
    for folder in (st, cross):
        edit(folder / "tokenizer.json", lambda told: told["added_tokens"].append(word))
    embedder, reranker = load_embedder(str(st)), load_reranker(str(cross))
    embedder.encode_documents(["the cat"])
    for use in (lambda: embedder.encode_documents(["the zz"]), lambda: reranker.score([("the cat", "zz")])):
        with pytest.raises(ModelError, match=r"gives the id \d+, and the model has \d+ word embeddings"):
            use()


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("modules.json", "{oops", "not JSON"),
        ("modules.json", "", "not JSON"),
        ("modules.json", "{}", r"modules\.json holds \{\}, not a list"),
        ("modules.json", "[]", "holds no list of modules"),
        ("modules.json", "[5]", "entry 0 is 5"),
        ("modules.json", '[{"type": "sentence_transformers.models.Pooling", "path": 5}]', "has the path 5"),
        ("modules.json", '[{"path": ""}]', "expected an object with `type` and `path`"),
        ("1_Pooling/config.json", "[]", "holds a list"),
        ("1_Pooling/config.json", '{"pooling_mode": "median"}', r"pooling_mode is \['median'\]; known: mean, cls"),
        ("1_Pooling/config.json", '{"pooling_mode": 5}', "pooling_mode is 5"),
        ("config_sentence_transformers.json", "[]", r"holds \[\], not an object"),
        ("config_sentence_transformers.json", '{"prompts": ["a"]}', r"prompts is \['a'\]"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 5}}', "prompts is"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "x"}', "no prompt is called so"),
        ("config_sentence_transformers.json", '{"truncate_dim": -1}', "truncate_dim is -1"),
        ("config_sentence_transformers.json", '{"similarity_fn_name": 5}', "similarity_fn_name is 5"),
        ("sentence_bert_config.json", "5", "holds 5, not an object"),
        ("2_Dense/config.json", "{", "not JSON"),
        ("tokenizer.json", "{oops", "cannot load the embedder"),
        ("tokenizer.json", "", "cannot load the embedder"),
        ("tokenizer_config.json", "[]", r"holds \[\], not an object"),
    ],
)  # fmt: skip
def test_damaged_files_are_named_in_one_line(st: Path, file: str, text: str, says: str) -> None:
    (st / file).write_text(text)
    refused(st, says)


def test_a_damaged_index_of_shards_is_one_line(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "m"))
    for text in ("", "{oops", "[]", '{"weight_map": 5}', "{}"):
        (folder / "model.safetensors.index.json").write_text(text)
        refused(folder, "not JSON|holds a list|weight_map is no object")


# -- what is taken apart, and what is not --


def theirs(folder: Path, texts: list[str], **how: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True, **how)


TEXTS = ["the cat sat on a mat", "where", "what is red"]


def test_a_dense_layer_without_a_named_activation_has_the_librarys(st: Path) -> None:
    named = load_embedder(str(st))
    edit(st / "2_Dense" / "config.json", lambda c: {k: v for k, v in c.items() if k != "activation_function"})
    ours = load_embedder(str(st))
    assert isinstance(ours, TextEmbedder)
    np.testing.assert_allclose(ours.encode_documents(TEXTS), theirs(st, TEXTS), atol=2e-5)
    assert ours.fingerprint != named.fingerprint


@pytest.mark.parametrize("order", [[0, 1, 3, 2], [0, 1, 2, 3, 3], [0, 1, 3]])
def test_modules_in_another_order_give_what_the_library_gives(st: Path, order: list[int]) -> None:
    edit(st / "modules.json", lambda steps: [dict(steps[n], idx=i, name=str(i)) for i, n in enumerate(order)])
    ours = load_embedder(str(st))
    np.testing.assert_allclose(ours.encode_documents(TEXTS), theirs(st, TEXTS), atol=2e-5)


def test_fewer_dimensions_are_kept_where_the_folder_says_so(st: Path) -> None:
    whole = load_embedder(str(st))
    edit(st / "config_sentence_transformers.json", lambda c: c.update(truncate_dim=5))
    ours = load_embedder(str(st))
    assert ours.dim == 5
    np.testing.assert_allclose(ours.encode_documents(TEXTS), theirs(st, TEXTS), atol=2e-5)
    assert ours.document_fingerprint != whole.document_fingerprint


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_a_limit_of_tokens_is_read_under_each_of_its_names(st: Path, name: str) -> None:
    (st / "sentence_bert_config.json").unlink()
    (st / name).write_text('{"max_seq_length": 8, "do_lower_case": false}')
    long, longer = "the cat sat on a mat " * 2, "the cat sat on a mat " * 9
    ours = load_embedder(str(st)).encode_documents([long, longer])
    np.testing.assert_allclose(ours, theirs(st, [long, longer]), atol=2e-5)
    np.testing.assert_array_equal(ours[0], ours[1])  # all beyond the limit is cut


def test_a_model_of_inner_products_says_that_cosines_are_taken(st: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(st / "config_sentence_transformers.json", lambda c: c.update(similarity_fn_name="dot"))
    load_embedder(str(st))
    assert "was trained for inner products; cosines are used here" in caplog.text


def test_links_to_files_as_the_hub_keeps_them_are_read(st: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    for file in [f for f in st.rglob("*") if f.is_file()]:
        place = snapshot / file.relative_to(st)
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / place.relative_to(snapshot).as_posix().replace("/", "-")
        shutil.copy(file, blob)
        place.symlink_to(os.path.relpath(blob, place.parent))
    assert load_embedder(str(snapshot)).fingerprint == load_embedder(str(st)).fingerprint
    assert [m.kind for m in read_modules(snapshot)] == ["Transformer", "Pooling", "Dense", "Normalize"]
