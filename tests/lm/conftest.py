"""Tiny random models with real tokenizers trained on the spot, and the naive reference that scoring must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a film that is a pleasure to watch and a joy to remember",
    "Review: the plot is thin . Sentiment: negative",
    "Review: a warm and funny story . Sentiment: positive",
    "what is the capital of france ? location",
    "newspapers report that the newspaper man is new",
] * 20


def train_tokenizer(kind: str, bos: bool) -> Any:
    """A byte-level BPE ("bpe") or a SentencePiece-like unigram tokenizer ("unigram"), with or without a BOS token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind == "bpe":
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(vocab_size=300, special_tokens=special)
    else:
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    core.train_from_iterator(CORPUS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_folder(arch, kind, bos, **config)`` -> the folder of a random model of a few thousand weights."""
    made: dict[Any, Path] = {}

    def make(arch: str = "llama", kind: str = "bpe", bos: bool = False, **settings: Any) -> Path:
        key = (arch, kind, bos, repr(sorted(settings.items())))
        if key not in made:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM

            tokenizer = train_tokenizer(kind, bos)
            config = AutoConfig.for_model(
                arch,
                **{
                    "vocab_size": len(tokenizer),
                    "hidden_size": 48,
                    "intermediate_size": 80,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "max_position_embeddings": 512,
                    "initializer_range": 0.3,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                    **settings,
                },
            )
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(f"{arch}-{kind}")
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def naive() -> Callable[[Path, Sequence[Any]], list[float]]:
    """The reference: one float32 forward per pair of ids, batch of one, full-vocabulary logits, a plain sum."""
    loaded: dict[Path, Any] = {}

    def score(folder: Path, pairs: Sequence[Any]) -> list[float]:
        import torch
        from transformers import AutoModelForCausalLM

        if folder not in loaded:
            loaded[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        out = []
        for pair in pairs:
            with torch.inference_mode():
                logits = loaded[folder](torch.tensor([pair.ids])).logits[0]
            table = torch.log_softmax(logits, -1)
            out.append(sum(float(table[i - 1, pair.ids[i]]) for i in range(pair.n_context, len(pair.ids))))
        return out

    return score


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts a server for the test: a toy one that offers what is named, or one that answers as a function says."""
    from .openai_server import ScriptedServer, ToyServer

    for name in ("OPENAI_API_KEY", "ICLKIT_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    servers: list[Any] = []

    def begin(*offers: Any, **facts: Any) -> Any:
        scripted = bool(offers) and callable(offers[0])
        servers.append(ScriptedServer(offers[0]) if scripted else ToyServer(*offers, **facts))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()
