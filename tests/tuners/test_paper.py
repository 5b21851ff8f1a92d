"""EASE as its reference code runs it, from the first list to the selector file, on random models of the real shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

WORDS = ["text", "number", "of", "many", "yes", "no", "Text", "Kind", ":", "train", "test", "dev", "\n"]


def tiny_models(folder: Path) -> tuple[Path, Path]:
    """A decoder as SmolLM2 is, and an encoder as all-mpnet-base-v2 is, both with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, MPNetConfig, MPNetModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    names = ["<pad>", "<unk>", "</s>", *WORDS, *map(str, range(10)), *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(names))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    shape["initializer_range"] = 0.5
    size = len(vocabulary)
    decoder, encoder = folder / "decoder", folder / "encoder"
    LlamaForCausalLM(
        LlamaConfig(vocab_size=size, num_key_value_heads=1, max_position_embeddings=512, **shape)
    ).save_pretrained(decoder)
    MPNetModel(MPNetConfig(vocab_size=size, max_position_embeddings=514, **shape)).save_pretrained(encoder)
    for each in (decoder, encoder):
        tokenizer.save_pretrained(each)
    return decoder, encoder


def test_the_papers_search_starts_and_ends_on_models_with_random_weights(tmp_path, home, capsys):
    from iclkit.cli import main

    decoder, encoder = tiny_models(tmp_path)
    task = tmp_path / "things"
    task.mkdir()
    for split, count in (("train", 200), ("dev", 90), ("test", 20)):
        rows = [{"input": f"{split} text number {n} of many", "output": ("yes", "no")[n % 2]} for n in range(count)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "best.json"
    # four proposals of the bandit instead of 125; all else is the preset's
    command = ["tune", "ease", str(task), "--lm", str(decoder), "--embedder", str(encoder), "--preset",
               "paper", "--trials", "44", "--out", str(out), "--dtype", "fp32"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(command)
    text = capsys.readouterr()
    assert stop.value.code == 0, text.err
    found = json.loads(out.read_text())
    assert len(found["demonstrations"]) == 5
    assert (found["search"]["trials"], found["search"]["features"]) == (44, "block")
    assert found["search"]["settings"]["domain"] == 50_000
    assert found["confirmation"]["queries"] == 60
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        main(command)  # the same command again finds everything there
    again = json.loads(out.read_text())
    assert again["search"]["values"] == found["search"]["values"]
    assert again["demonstrations"] == json.loads(before)["demonstrations"]
