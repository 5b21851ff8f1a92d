"""The presets of the papers start and end: every step and every file, on tiny random models of their architectures.

Nothing of a preset is changed but the models and how much there is of it (queries, steps).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.embed import Retriever, load_embedder
from iclkit.lm import load_lm
from iclkit.pool import Pool
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.trainers import METHODS, Training, corpus_of_tasks, preset

pytestmark = pytest.mark.slow
COLORS = ("red", "green", "blue", "white", "black", "grey")
THINGS = ("house", "river", "table", "garden", "window", "street", "bottle", "candle", "basket", "bridge")
PLACES = ("london", "paris", "rome", "oslo", "cairo")


def rows(count: int, ask: str, answer: str) -> list[Example]:
    """Different texts with an answer each: by ``{kind}`` one of six, by ``{thing}`` and ``{place}`` one of many."""
    made = []
    for n in range(count):
        color, thing, place = COLORS[n % 6], THINGS[n // 6 % 10], PLACES[n // 60 % 5]
        text = ask.format(color=color, thing=thing, place=place)
        made.append(Example(f"{text} {n // 300}", answer.format(kind=color, thing=thing, place=place)))
    return made


def tasks_of(method: str) -> list[Any]:
    train, test = "the {color} {thing} of {place} is", "a {color} {thing} in {place} was"
    labels = make_task(
        "kinds", rows(140, train, "{kind}"), rows(12, test, "{kind}"), template=Template("{input} {output}")
    )
    train, test = "which {thing} of {place} is {color} ?", "any {thing} in {place} that is {color} ?"
    answer = "find {thing} where {place} is {kind}"
    code = make_task(
        "code", rows(140, train, answer), rows(12, test, answer), template=Template("Q: {input}\nA: {output}")
    )
    return {"udr": [labels, code], "llm-r": [labels, code], "se2": [labels]}.get(method, [code])


def wordpiece(texts: list[str]) -> Any:
    """A lower-casing WordPiece tokenizer with BERT's marks."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=220, special_tokens=marks))
    return BertTokenizerFast(vocab=core.get_vocab(), model_max_length=512)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as the hub has them: GPT-Neo, bert-base-uncased, electra-base-discriminator, e5-base-v2, sentence-t5."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as cores
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertModel,
        ElectraConfig,
        ElectraForPreTraining,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        PreTrainedTokenizerFast,
        T5Config,
        T5EncoderModel,
    )

    folder = tmp_path_factory.mktemp("paper")
    texts = [f"{e.text} {e.output}" for m in METHODS for t in tasks_of(m) for e in (*t.train, *t.test)]
    torch.manual_seed(0)
    bpe = Tokenizer(cores.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    marks = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=2048, **marks).save_pretrained(folder / "gpt-neo")
    neo = GPTNeoConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]],
        num_heads=4, window_size=256, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    GPTNeoForCausalLM(neo).save_pretrained(folder / "gpt-neo")
    tokenizer = wordpiece(texts)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 512,
    }  # fmt: skip
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    for name, model in (
        ("bert", BertForMaskedLM(BertConfig(**sizes))),
        ("electra", ElectraForPreTraining(ElectraConfig(embedding_size=32, **sizes))),
        ("e5-bare", BertModel(BertConfig(**sizes))),
        ("t5-bare", T5EncoderModel(t5)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name in ("e5", "t5"):
        modules = [Transformer(str(folder / f"{name}-bare")), Pooling(32, "mean"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / name), create_model_card=False)
    return {path.name: path for path in folder.iterdir()}


LESS: dict[str, dict[str, Any]] = {
    "epr": {"queries": 12, "epochs": 3, "batch_size": 6},
    "udr": {"queries": 8, "epochs": 2, "batch_size": 4},
    "llm-r": {"queries": 6, "max_steps": 4, "batch_size": 6, "reward_max_steps": 3, "reward_batch_size": 4},
    "se2": {"queries": 8, "epochs": 1},
    "ceil": {"queries": 4, "epochs": 2, "batch_size": 2},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_preset_of_the_paper_starts_and_ends(method, models, tmp_path) -> None:
    tasks, lm = tasks_of(method), load_lm(str(models["gpt-neo"]), device="cpu", cache=False)
    base = models["e5" if method == "llm-r" else "bert"]
    changes: dict[str, Any] = {"base": str(base), "held_out": 2, "report": 2, **LESS[method]}
    if method == "llm-r":
        changes["reward_base"] = str(models["electra"])
    config, heard = preset(method, "paper", **changes), list[str]()
    out = tmp_path / "out"
    with Training(corpus_of_tasks(tasks, config), lm, out, config, say=heard.append) as training:
        announced = training.estimate()
        trained = training.run()
        assert announced.prompts > config.queries * 50
        assert len(training.session.feedback.ledger) >= announced.prompts
    card = json.loads((out / "iclkit.json").read_text())
    assert card["config"] == {**json.loads(json.dumps(config.as_dict())), **card["training"][-1].get("settings", {})}
    assert len(card["training"]) == config.iterations
    for facts in card["training"]:
        assert facts["steps"] > 0
        assert len(facts["judged"]) >= 1
    assert [r.task for r in trained.reports] == [t.name for t in tasks]
    assert {p.name for p in out.iterdir()} >= {"README.md", "iclkit.json", "modules.json"}
    assert list(out.rglob("model.safetensors"))
    work = tmp_path / "out.work"
    expected = {"ledger.db", "training.json", "lock", *(f"fit-{n}.json" for n in range(config.iterations))}
    expected |= {f"model-{n}" for n in range(config.iterations)}
    expected |= {f"{part}-0-{n}" for n in range(3) for part in ("fit", "model")} if method == "ceil" else set()
    expected |= {f"reward-{n}" for n in range(config.iterations)} if method == "llm-r" else set()
    expected |= {"epr"} if method == "ceil" else set()
    assert expected <= {p.name for p in work.iterdir()}
    assert not list(work.rglob("checkpoint-*"))
    retriever = load_embedder(str(out))
    assert isinstance(retriever, Retriever)
    run = evaluate(tasks[0], card["selector"], lm, pool=Pool.of(tasks[0].train), k=3, embedder=retriever, limit=4)
    assert len(run.rows) == 4
    again = Training(corpus_of_tasks(tasks, config), lm, out, config).run()
    assert again.card == card


def test_a_t5_encoder_can_be_the_base(models, tmp_path) -> None:
    tasks, lm = tasks_of("epr"), load_lm(str(models["gpt-neo"]), device="cpu", cache=False)
    config = preset("epr", base=str(models["t5"]), queries=8, held_out=2, report=2, max_steps=2, batch_size=4)
    Training(corpus_of_tasks(tasks, config), lm, tmp_path / "out", config).run()
    assert isinstance(load_embedder(str(tmp_path / "out")), Retriever)
