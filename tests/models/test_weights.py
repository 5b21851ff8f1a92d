"""No weight is made up: folders that lack one, or lead elsewhere, or are damaged, are refused in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import ModelError, UsageError
from iclkit.models import check_folder, first_words, inside, load_errors, load_weights, read_object

CONFIG = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    BertModel(BertConfig(**CONFIG)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def rewrite(folder: Path, keep: Callable[[str], bool], **more: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if keep(k)}
    save_file(weights | more, file, metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def states(model: Any) -> Any:
    import torch

    return model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state


def load(folder: Path, uses: Callable[[Any], Any] | None = states) -> Any:
    from transformers import AutoModel

    return load_weights(AutoModel, folder, uses)[0]


def refused(folder: Path, says: str, uses: Callable[[Any], Any] | None = states) -> str:
    with pytest.raises(ModelError, match=says) as caught:
        load(folder, uses)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- weights that are not there --


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("encoder.layer.1.", "encoder.layer.1.attention.output.LayerNorm.bias"),
        ("LayerNorm", "embeddings.LayerNorm.bias"),
        ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
        ("encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
    ],
)
def test_a_weight_that_is_not_in_the_file_is_named_and_not_made_up(copy: Path, lost: str, named: str) -> None:
    rewrite(copy, lambda k: lost not in k)
    told = refused(copy, "it would run on random numbers in their place")
    assert named in told
    assert str(copy) in told


def test_a_config_of_more_layers_than_the_file_has_is_refused(copy: Path) -> None:
    reconfigure(copy, num_hidden_layers=50)
    assert "encoder.layer.2." in refused(copy, "and 765 more")


def test_a_weight_of_another_shape_is_refused_with_both_shapes(copy: Path) -> None:
    import torch

    rewrite(copy, lambda k: True, **{"encoder.layer.0.output.dense.weight": torch.zeros(16, 23)})
    refused(
        copy,
        r"layer\.0\.output\.dense\.weight has the shape \(16, 23\) in the file, config.json asks for \(16, 24\)",
    )


def test_a_weight_that_nothing_depends_on_may_be_missing(copy: Path, bert: Path) -> None:
    import torch

    rewrite(copy, lambda k: "pooler" not in k)
    torch.testing.assert_close(states(load(copy)), states(load(bert)), rtol=0, atol=0)
    refused(
        copy, "lack .*: pooler.dense.bias, pooler.dense.weight", uses=lambda m: m(torch.tensor([[5, 6]])).pooler_output
    )
    refused(copy, "lack .*: pooler.dense.bias, pooler.dense.weight", uses=None)
    assert not any(p.grad is not None for p in load(copy).parameters())


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**CONFIG, num_key_value_heads=1, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_weights(AutoModelForCausalLM, tmp_path)
    reconfigure(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lack .*: lm_head\.weight"):
        load_weights(AutoModelForCausalLM, tmp_path)


def test_layers_that_the_config_has_no_place_for_are_told_and_foreign_heads_are_not(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModel, BertConfig, BertForMaskedLM

    reconfigure(copy, num_hidden_layers=1)
    (note,) = load_weights(AutoModel, copy, states)[1]
    assert "encoder.layer.1.attention.output.LayerNorm.bias" in note
    BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(tmp_path / "mlm")
    with caplog.at_level(logging.INFO, logger="iclkit"):
        assert load_weights(AutoModel, tmp_path / "mlm", states)[1] == ()
    assert "cls.predictions" in caplog.text


# -- files that are damaged --


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-100],
        lambda raw: raw[:7],
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: (5).to_bytes(8, "little") + b"{oops",
        lambda raw: b"not weights at all",
    ],
)
def test_weights_that_are_cut_or_have_no_header_are_refused_by_file(copy: Path, damage: Callable) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in refused(copy, "is not a whole safetensors file")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[]", "holds a list, where a JSON object is expected"),
        (b"5", "holds a number"),
        (b"null", "holds null"),
        (b'"bert"', "holds a text"),
        (b"", "not JSON"),
        (b"{oops", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"num_attention_heads": 0}', "num_attention_heads is 0; expected a whole number from 1"),
        (b'{"hidden_size": -4}', "hidden_size is -4"),
        (b'{"hidden_size": "sixteen"}', "hidden_size is 'sixteen'"),
        (b'{"num_hidden_layers": 1.5}', "num_hidden_layers is 1.5"),
        (b'{"vocab_size": true}', "vocab_size is True"),
    ],
)
def test_a_config_that_is_none_is_refused_by_file(copy: Path, text: bytes, says: str) -> None:
    (copy / "config.json").write_bytes(text)
    assert str(copy / "config.json") in refused(copy, says)


# -- files elsewhere, pickles, code --


def shard(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_may_lie_in_a_subfolder_and_nowhere_else(copy: Path, bert: Path) -> None:
    import torch
    from safetensors.torch import load_file

    keys = [*load_file(bert / "model.safetensors")]
    (copy / "parts").mkdir()
    shutil.copy(bert / "model.safetensors", copy / "parts" / "all.safetensors")
    shutil.copy(bert / "model.safetensors", copy.parent / "all.safetensors")
    shard(copy, dict.fromkeys(keys, "parts/all.safetensors"))
    torch.testing.assert_close(states(load(copy)), states(load(bert)), rtol=0, atol=0)
    for path in ("../all.safetensors", str(copy.parent / "all.safetensors"), "parts/../../all.safetensors"):
        shard(copy, dict.fromkeys(keys, path))
        refused(copy, "which is not inside the model's folder")
    shard(copy, dict.fromkeys(keys, "gone.safetensors"))
    refused(copy, r"lacks gone\.safetensors")
    for odd in ([], None, {"a": 5}, {}):
        shard(copy, odd)
        refused(copy, "weight_map is no object of file names")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "..\\x", "C:\\x", "C:/x", "a/.."])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="not inside the model's folder"):
        inside(tmp_path, path, "modules.json")


def test_a_path_inside_stays_as_it_is(tmp_path: Path) -> None:
    assert inside(tmp_path, "", "x") == tmp_path
    assert inside(tmp_path, "a/b.c", "x") == tmp_path / "a" / "b.c"


def test_pickles_are_never_loaded(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused(copy, "but pytorch_model.bin, a pickle, and pickles are never loaded: save the model as safetensors")
    reconfigure(copy, transformers_weights="pytorch_model.bin")
    refused(copy, "transformers_weights is 'pytorch_model.bin'; expected a safetensors file")
    reconfigure(copy, transformers_weights="../model.safetensors")
    refused(copy, "not inside the model's folder")


def test_an_adapter_for_a_model_elsewhere_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    refused(copy, "holds an adapter .* merge the two")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_folder_names_is_neither_run_nor_ignored(
    copy: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = read_object(copy / file) if (copy / file).exists() else {}
    told["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}
    (copy / file).write_text(json.dumps(told))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    refused(copy, r"names code of the model's own \(auto_map\), and code from a model's folder is never run")
    with caplog.at_level(logging.INFO, logger="iclkit"):
        check_folder(copy, own_code="ignore")
    assert "transformers' own class is taken instead" in caplog.text
    assert not (copy / "ran").exists()


def test_a_kernel_from_the_hub_is_refused(copy: Path) -> None:
    reconfigure(copy, attn_implementation="kernels-community/flash-attn")
    refused(copy, "attn_implementation is 'kernels-community/flash-attn', code from the hub")


# -- one line --


def test_what_a_library_raises_becomes_one_line() -> None:
    assert first_words(ValueError("first\n  second")) == "first second"
    assert first_words(ZeroDivisionError("integer modulo by zero")) == "ZeroDivisionError: integer modulo by zero"
    assert first_words(KeyError()) == "KeyError"
    assert len(first_words(ValueError("x" * 1000))) == 300


def test_an_error_of_ours_stays_and_one_of_a_library_names_what_was_loaded() -> None:
    for ours in (ModelError("as it is"), UsageError("as it is")):
        with pytest.raises(type(ours), match=r"^as it is$"), load_errors("cannot load the embedder 'm' from f"):
            raise ours
    line = r"^cannot load the embedder 'm' from f \(KeyError: 'a'\)$"
    with pytest.raises(ModelError, match=line), load_errors("cannot load the embedder 'm' from f"):
        raise KeyError("a")
