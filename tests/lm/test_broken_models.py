"""Model folders that are not whole: refused in one line that says what is wrong, before anything is computed."""

import math

import pytest

from iclkit.errors import IclkitError, ModelError, RequestError
from iclkit.lm import GenerateRequest, ScoreRequest, load_lm

from .broken import content, copy, setting, sharded, weights

NORM = "model.layers.0.input_layernorm.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def broken(tiny_folder, tmp_path):
    return lambda harm, *model, **config: copy(tiny_folder(*model, **config), tmp_path / "broken", harm)


def load(folder, **settings):
    return load_lm(str(folder), device="cpu", workers=1, cache=False, **{"dtype": "fp32", **settings})


def refusal(folder, **settings):
    """The one line that loading ends in."""
    with pytest.raises(ModelError) as caught:
        load(folder, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


# -- weights that are not numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [NORM, "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "bf16-verified"])
def test_one_weight_that_is_no_number_is_refused_by_name(broken, name, value, dtype):
    folder = broken(weights(lambda t: t[name].view(-1).__setitem__(-1, value)))
    assert f"{name} holds NaN or infinite numbers" in refusal(folder, dtype=dtype)


def test_a_weight_that_is_no_number_is_refused_in_other_architectures_too(broken):
    folder = broken(
        weights(lambda t: t["transformer.ln_f.weight"].__setitem__(0, math.nan)),
        "gpt2",
        n_embd=48,
        n_head=6,
        n_layer=2,
        n_positions=512,
        n_inner=80,
    )
    assert "ln_f.weight holds NaN" in refusal(folder)


@pytest.mark.parametrize("packed", [True, False])
def test_finite_weights_that_overflow_on_the_way_are_refused(broken, packed):
    def grow(tensors):
        for name in ("model.norm.weight", "lm_head.weight"):
            tensors[name] *= 1e30

    assert "logits are NaN or infinite" in refusal(broken(weights(grow)), packed=packed)


# -- weights that are missing, too many, of another shape or kind ------------------------------------------------------


def test_a_missing_norm_is_named(broken):
    assert "lack weights that config.json asks for: model.norm.weight" in refusal(
        broken(weights(lambda t: t.pop("model.norm.weight")))
    )


def test_a_missing_layer_and_missing_norms_are_named_and_counted(broken):
    def harm(tensors):
        for name in [n for n in tensors if ".layers.1." in n or "norm" in n]:
            del tensors[name]

    text = refusal(broken(weights(harm)))
    assert "model.layers.0.input_layernorm.weight, " in text
    assert " and 9 more; " in text


@pytest.mark.parametrize("layers", [3, 50, 10**9])
def test_a_config_of_more_layers_than_the_file_has_is_refused(broken, layers):
    text = refusal(broken(setting(num_hidden_layers=layers)))
    assert ("model.layers." in text and "lack" in text) or "num_hidden_layers" in text


def test_a_config_that_asks_for_far_more_memory_than_the_file_holds_is_refused_before_it_is_taken(broken):
    huge = {"num_hidden_layers": 900, "hidden_size": 16384, "intermediate_size": 65536, "num_attention_heads": 128}
    assert "lack weights" in refusal(broken(setting(**huge)))


@pytest.mark.parametrize("sub", ["", "parts"])
def test_a_weight_that_no_shard_holds_is_named(broken, sub):
    def harm(folder):
        sharded(sub)(folder)
        name = f"{sub}/shard-0.safetensors".lstrip("/")
        weights(lambda t: t.pop(next(iter(t))), name)(folder)

    assert "lack weights that config.json asks for: " in refusal(broken(harm))


def test_a_shard_that_is_not_there_is_named(broken):
    def harm(folder):
        sharded()(folder)
        (folder / "shard-1.safetensors").unlink()

    assert "lacks shard-1.safetensors" in refusal(broken(harm))


def test_tied_weights_are_held_once_and_not_missed(tiny_folder):
    folder = tiny_folder("llama", tie_word_embeddings=True)
    from iclkit.models._folder import read_header

    assert "lm_head.weight" not in read_header(folder / "model.safetensors")
    assert load(folder).notes == ()


def test_weights_without_a_place_are_told_once_in_a_note(broken):
    import torch

    folder = broken(weights(lambda t: t.update({f"extra.{n}": torch.zeros(3) for n in range(5)})))
    assert load(folder).notes == (
        "weights of the file that the model has no place for are left out: extra.0, extra.1, extra.2 and 2 more",
    )


def test_fewer_layers_than_the_file_has_are_told_in_a_note(broken):
    (note,) = load(broken(setting(num_hidden_layers=1))).notes
    assert "model.layers.1.input_layernorm.weight" in note


def test_another_shape_than_the_config_says_is_named_with_both_shapes(broken):
    def harm(tensors):
        tensors[UP] = tensors[UP][:40].clone()
        tensors["padding"] = tensors[NORM].repeat(200)  # as many numbers as the config asks for

    assert f"{UP} has the shape (40, 48) in the file, config.json asks for (80, 48)" in refusal(broken(weights(harm)))


@pytest.mark.parametrize("kind", ["int64", "int8", "uint8", "bool", "float8_e4m3fn"])
def test_integers_in_the_place_of_weights_are_refused(broken, kind):
    import torch

    folder = broken(weights(lambda t: t.__setitem__(UP, t[UP].to(getattr(torch, kind)))))
    assert f"{UP} holds " in refusal(folder)


def test_half_precision_weights_are_taken(broken):
    import torch

    load(broken(weights(lambda t: t.update({k: v.to(torch.float16) for k, v in t.items()}))))


def test_an_adapter_without_its_base_is_refused(broken):
    assert "adapter" in refusal(broken(content("adapter_config.json", '{"base_model_name_or_path": "x/y"}')))


# -- files that are cut short or nonsense ------------------------------------------------------------------------------

NOT_WEIGHTS = {
    "empty": b"",
    "garbage": b"x" * 5000,
    "header too large": b"\xff" * 8 + b"{}",
    "header no object": (5).to_bytes(8, "little") + b"[1,2]" + bytes(100),
    "header cut": (500).to_bytes(8, "little") + b'{"a":',
    "no data": (63).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(63),
}


@pytest.mark.parametrize("data", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_a_file_that_is_no_safetensors_is_refused(broken, data):
    assert "model.safetensors is not a whole safetensors file" in refusal(broken(content("model.safetensors", data)))


@pytest.mark.parametrize("size", [7, 20, -1, -1000])
def test_a_file_cut_short_is_refused(broken, size):
    def harm(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    assert "model.safetensors is not a whole safetensors file" in refusal(broken(harm))


@pytest.mark.parametrize(
    "table",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": ["x.safetensors"]}}',
        '{"weight_map": {"a": "../outside.safetensors"}}',
        '{"weight_map": {"a": "/tmp/outside.safetensors"}}',
        '{"weight_map": {"a": "pytorch_model.bin"}}',
        "{oops",
    ],
)
def test_an_index_that_leads_astray_is_refused(broken, table):
    def harm(folder):
        sharded()(folder)
        content("model.safetensors.index.json", table)(folder)

    refusal(broken(harm))


BAD_JSON = {
    "empty": b"",
    "list": b"[]",
    "number": b"5",
    "null": b"null",
    "cut": b'{"model_type": "llama"',
    "not UTF-8": b'{"model_type": "\xff"}',
    "deep": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long integer": b'{"x": ' + b"9" * 6000 + b"}",
    "half a surrogate pair": b'{"x": "\\ud800"}',
}


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON)
def test_settings_that_are_no_json_object_are_refused_by_file(broken, file, data):
    assert file in refusal(broken(content(file, data)))


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON)
def test_a_tokenizer_file_that_is_no_json_is_refused(broken, data):
    assert "tokenizer" in refusal(broken(content("tokenizer.json", data)))


@pytest.mark.parametrize(
    "values",
    [
        {"model": 5},
        {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
        {"added_tokens": [{"id": -1}]},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no", "type_id": 0}}],
                            "pair": [], "special_tokens": {}}},
    ],
)  # fmt: skip
def test_a_tokenizer_of_another_build_is_refused(broken, values):
    assert "the tokenizer in" in refusal(broken(setting("tokenizer.json", **values)))


@pytest.mark.parametrize(
    "values", [{"eos_token": 5}, {"bos_token": []}, {"tokenizer_class": 5}, {"chat_template": [5]}]
)
def test_tokenizer_settings_of_a_wrong_type_are_refused(broken, values):
    assert "the tokenizer in" in refusal(broken(setting("tokenizer_config.json", **values)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0),
        ("num_attention_heads", "6"),
        ("num_attention_heads", -6),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 4),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "2"),
        ("hidden_size", 0),
        ("hidden_size", "48"),
        ("intermediate_size", 81),
        ("head_dim", 7),
        ("vocab_size", 0),
        ("vocab_size", 99_999),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -5),
        ("max_position_embeddings", "512"),
        ("max_position_embeddings", None),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", math.nan),
        ("rope_parameters", []),
        ("rope_parameters", {"rope_type": "default", "rope_theta": math.nan}),
        ("hidden_act", "nope"),
        ("model_type", ["llama"]),
        ("model_type", 5),
        ("model_type", None),
        ("eos_token_id", "x"),
        ("id2label", 5),
        ("quantization_config", []),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("transformers_weights", "../model.safetensors"),
        ("transformers_weights", "weights.bin"),
        ("transformers_weights", 5),
    ],
)  # fmt: skip
def test_a_config_field_that_cannot_be_is_refused(broken, field, value):
    refusal(broken(setting(**{field: value})))


@pytest.mark.parametrize("value", ["a", [1, "b"], {"x": 1}, 1.5, True])
def test_an_end_of_text_that_is_no_token_is_refused(broken, value):
    assert "eos_token_id" in refusal(broken(setting("generation_config.json", eos_token_id=value)))


def test_a_model_that_reads_ahead_is_no_causal_lm(tiny_folder):
    folder = tiny_folder("bert", max_position_embeddings=64)
    for dtype in ("fp32", "bf16"):
        assert "it is no causal LM" in refusal(folder, dtype=dtype)
    assert load(tiny_folder("bert", max_position_embeddings=64, is_decoder=True)).context_size == 64


# -- a tokenizer that is larger than its model -------------------------------------------------------------------------


def test_a_token_beyond_the_models_table_costs_its_request(broken):
    def harm(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:170].clone()

    def both(folder):
        weights(harm)(folder)
        setting(vocab_size=170)(folder)

    lm = load(broken(both))
    (note,) = lm.notes
    assert "the tokenizer has 176 tokens, the model 170" in note
    texts = [f" {lm.inner.codec.tokenizer.decode([n])}" for n in range(3, 176)]
    beyond = next(i for i, t in enumerate(texts) if max(lm.inner.codec.encode([f"the{t}"])[0]) >= 170)
    asks = [ScoreRequest("the", t) for t in (" dog", texts[beyond])]
    with pytest.raises(RequestError, match="none of the 170") as caught:
        lm.score(asks)
    assert caught.value.index == 1
    with pytest.raises(RequestError, match="none of the 170") as caught:
        lm.generate([GenerateRequest("the", 2), GenerateRequest(f"the{texts[beyond]}", 2)])
    assert caught.value.index == 1
    assert len(lm.score(asks[:1])) == 1


def test_nothing_in_a_folder_of_pickled_weights_is_loaded(broken):
    def harm(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    assert "pytorch_model.bin, a pickle, and pickles are never loaded" in refusal(broken(harm))


def test_every_refusal_is_ours(broken):
    """The line of an error that no check of ours has foreseen."""
    folder = broken(setting(hidden_act="nope"))
    with pytest.raises(IclkitError, match=r"does not load \(KeyError: 'nope'\)"):
        load(folder)
