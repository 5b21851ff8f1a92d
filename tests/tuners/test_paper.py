"""EASE and Skill-KNN as their papers run them, from the first prompt to the last file, on random models."""

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
        LlamaConfig(vocab_size=size, num_key_value_heads=1, max_position_embeddings=2048, **shape)
    ).save_pretrained(decoder)
    MPNetModel(MPNetConfig(vocab_size=size, max_position_embeddings=514, **shape)).save_pretrained(encoder)
    for each in (decoder, encoder):
        tokenizer.save_pretrained(each)
    return decoder, encoder


def write_task(folder: Path, **counts: int) -> Path:
    folder.mkdir()
    for split, count in counts.items():
        rows = [{"input": f"{split} text number {n} of many", "output": ("yes", "no")[n % 2]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_the_papers_search_starts_and_ends_on_models_with_random_weights(tmp_path, home, capsys):
    from iclkit.cli import main

    decoder, encoder = tiny_models(tmp_path)
    task = write_task(tmp_path / "things", train=200, dev=90, test=20)
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


def test_skill_knn_with_another_lm_as_rewriter_starts_and_ends_as_in_the_paper(tmp_path, home, capsys):
    from iclkit.cli import main

    (tmp_path / "rewriter").mkdir()
    decoder, encoder = tiny_models(tmp_path)
    rewriter = decoder.rename(tmp_path / "rewriter" / "decoder")
    (tmp_path / "again").mkdir()
    answerer, _ = tiny_models(tmp_path / "again")
    task = write_task(tmp_path / "things", train=10, test=4)
    best, base = (f"skill-knn,rewriter={rewriter}{more}" for more in ("", ",variant=base,order=-1"))
    command = ["eval", str(task), "-s", "knn", "-s", best, "-s", base, "--preset", "paper", "--lm", str(answerer),
               "--embedder", str(encoder), "--seeds", "5", "--dtype", "fp32", "--out", str(tmp_path / "runs"),
               "--json"]  # fmt: skip
    for _ in range(2):  # the second time everything is there
        with pytest.raises(SystemExit) as stop:
            main(command)
        text = capsys.readouterr()
        assert stop.value.code == 0, text.err
    specs = [json.loads(file.read_text())["spec"]["parts"] for file in (tmp_path / "runs").glob("*/run.json")]
    chosen = [parts["selector"] for parts in specs if "selector" in parts]
    variants = sorted(each["settings"]["variant"] for each in chosen if each["name"] == "skill-knn")
    assert variants == ["base"] * 5 + ["distinctiveness"]  # each seed takes another order of the pairs
