"""GGUF to safetensors, on a tiny model written here and on the real one that was pulled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from iclkit import models
from iclkit.errors import ModelError
from iclkit.models._convert import gguf_to_safetensors

from ..gguf_files import write_gguf


def byte_level_vocabulary() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, then one merge per kind of white space and of letters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    stand_in = dict(zip(plain, map(chr, plain), strict=True)) | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [stand_in[b] for b in range(256)]


def test_a_gguf_becomes_the_same_weights_in_bf16_without_a_word_on_the_terminal(tmp_path, capfd):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    vocabulary = [*byte_level_vocabulary(), "ĊĊ", "he", "<|end|>"]
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), tie_word_embeddings=True, **shape, **heads)
    model = LlamaForCausalLM(config).eval()
    write_gguf(tmp_path / "tiny.gguf", model, vocabulary, ["Ċ Ċ", "h e"], [len(vocabulary) - 1])
    capfd.readouterr()

    steps: list[float] = []
    said = gguf_to_safetensors(tmp_path / "tiny.gguf", tmp_path / "out", steps.append)

    assert capfd.readouterr() == ("", "")
    assert said.startswith("tiny.gguf to bf16 safetensors by transformers ")
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0.0, 1.0)
    assert len(steps) > 10
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert back.dtype == torch.bfloat16
    assert not hasattr(back.config, "quantization_config")
    expected = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    assert expected.keys() == back.state_dict().keys()
    assert all(torch.equal(expected[k], v) for k, v in back.state_dict().items())
    # digits are split off before white space is looked at, so the two newlines stay together
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("he\n\n5").input_ids) == ["he", "ĊĊ", "5"]


def test_a_gguf_that_lacks_weights_is_refused_by_name(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = [*byte_level_vocabulary(), "ĊĊ", "he", "<|end|>"]
    config = LlamaConfig(
        vocab_size=len(vocabulary), tie_word_embeddings=True, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    weights = LlamaForCausalLM(config).state_dict()
    half = {name: tensor for name, tensor in weights.items() if ".layers.1.mlp" not in name}
    model = SimpleNamespace(config=config, state_dict=lambda: half)
    write_gguf(tmp_path / "half.gguf", model, vocabulary, ["Ċ Ċ", "h e"], [len(vocabulary) - 1])
    with pytest.raises(ModelError, match=r"half\.gguf .* lack .*: model\.layers\.1\.mlp\.down_proj\.weight") as caught:
        gguf_to_safetensors(tmp_path / "half.gguf", tmp_path / "out", lambda share: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_gguf_is_one_clear_line(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"not a gguf" * 100)
    says = r"bad\.gguf cannot be converted to safetensors: .*; llama.cpp may know it: give it as gguf:PATH"
    with pytest.raises(ModelError, match=says) as caught:
        gguf_to_safetensors(tmp_path / "bad.gguf", tmp_path / "out", lambda share: None)
    assert "\n" not in str(caught.value)


@pytest.mark.models
def test_the_pulled_models_are_what_was_pulled(smollm2_path, minilm_path):
    assert models.check("smollm2-135m") == []
    assert models.check("all-minilm-l6-v2") == []


@pytest.mark.models
def test_the_pulled_lm_is_bf16_and_continues_a_well_known_sentence(smollm2_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert tokenizer("Hello world").input_ids == [19556, 905]
    assert tokenizer.decode(tokenizer("Zahl:\n\n42 ☃").input_ids) == "Zahl:\n\n42 ☃"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"


@pytest.mark.models
def test_the_pulled_embedder_puts_like_near_like(minilm_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_path), device="cpu")
    cat, kitten, tax = model.encode(["A cat sleeps.", "A kitten is napping.", "Tax law changed."])
    assert cat.shape == (384,)
    assert float(cat @ kitten) > 0.5 > 0.2 > float(cat @ tax)
