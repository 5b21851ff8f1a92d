"""Small worlds for every long command: files, a tiny random LM and encoder, the command, and what it should leave."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = {"animal": ["owl", "cat", "dog", "eel", "fox", "hen"], "food": ["pie", "ham", "jam", "egg", "fig", "nut"]}
QUICK = {"candidates": "random:4", "learning_rate": 2e-2, "max_steps": 6, "evaluate_every": 2, "patience": 0,
         "queries": 16, "held_out": 6, "report": 6, "batch_size": 4, "iterations": 1}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "epr": {},
    "udr": {"candidates": "random:8", "list_size": 4, "negatives": 3, "positives": 2},
    "llm-r": {
        "candidates": "random:8",
        "reward_max_steps": 4,
        "reward_negatives": 3,
        "reward_batch_size": 4,
        "negatives": 3,
        "positives": 2,
    },
    "se2": {"shots": 2, "random_negatives": 2},
    "ceil": {"shots": 2, "neighbors": 4, "subsets": 4},
}


def rows(split: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of two labels whose last word gives the label away."""
    rng = random.Random(f"{split}{seed}")
    labels = [("animal", "food")[n % 2] for n in range(count)]
    return [
        {"input": f"{split} number {n} {rng.choice(WORDS[label])}", "output": label} for n, label in enumerate(labels)
    ]


def write_jsonl(file: Path, data: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")


def word_tokenizer() -> Any:
    """Whole words and single characters, so that every text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [f"{row['input']} {row['output']}" for split in ("train", "test") for row in rows(split, 60)]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return core


def make_models(folder: Path) -> tuple[Path, Path]:
    """Folders of a random Llama and a random BERT of a few thousand weights."""
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = word_tokenizer()
    lm, encoder = folder / "lm", folder / "encoder"
    marked = word_tokenizer()
    marked.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 1), ("</s>", 2)]
    )
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=core.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(lm)  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>").save_pretrained(lm)
    BertModel(
        BertConfig(
            vocab_size=core.get_vocab_size(), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=128, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).save_pretrained(encoder)  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=marked, pad_token="<unk>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        model_max_length=128,
    ).save_pretrained(encoder)  # fmt: skip
    return lm, encoder


@dataclass(frozen=True)
class World:
    """``make(folder)`` writes the inputs; ``words`` is the command; ``result(folder, home)`` what must come of it."""

    name: str
    make: Callable[[Path], None]
    words: tuple[str, ...]
    result: Callable[[Path, Path], Any]


def worlds(lm: Path, encoder: Path) -> list[World]:
    """Every command that works for long or writes what must not be lost."""
    reading = ("--lm", str(lm), "--dtype", "fp32", "--workers", "1", "--threads", "1")
    evaluating = ("eval", "task", "--predictor", "none", "-k", "2", *reading, "--embedder", str(encoder))
    made = [
        World("pool add", _task, ("pool", "add", "demos.db", "many.jsonl"), _pool_rows),
        World("pool dedupe", _pool, ("pool", "dedupe", "demos.db", "--near", "0.9"), _pool_rows),
        World("pool embed", _pool, ("pool", "embed", "demos.db", "--embedder", str(encoder)), _vectors),
        World("pool export", _pool, ("pool", "export", "demos.db", "out.jsonl"), _file("out.jsonl")),
        World("eval, labels", _task, (*evaluating, "-s", "random", "-s", "knn", "--seeds", "2"), _runs),
        World("eval, LM-scored selector", _task, (*evaluating, "-s", "mdl,candidates=4", "--seeds", "1"), _runs),
        World("eval, batch calibration", _task, (*evaluating, "-s", "bm25", "--calibrate", "batch"), _runs),
        World("eval, generation", _free_task, (*evaluating, "-s", "bm25", "--seeds", "1"), _runs),
        World(
            "augment",
            _pool,
            ("augment", "demos.db", "--method", "answer", "--queries", "queries.jsonl", "--lm", str(lm)),
            _pool_rows,
        ),
        World(
            "tune ease",
            _task,
            ("tune", "ease", "task", "-k", "2", "--trials", "8", "--validation", "12", "--confirm", "16",
             "--out", "best.json", "--embedder", str(encoder),
             *reading),
            _study,
        ),
    ]  # fmt: skip
    for method, more in METHODS.items():
        settings = {
            **QUICK,
            "base": str(encoder),
            **({"reward_base": str(encoder)} if method == "llm-r" else {}),
            **more,
        }
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        made.append(
            World(f"train {method}", _task, ("train", method, "task", "--out", "made", *sets, *reading), _weights)
        )
    return made


def fresh(world: World, folder: Path) -> tuple[Path, Path]:
    """A new folder with the world's inputs, and an empty ICLKIT_HOME."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "work").mkdir(parents=True)
    (folder / "home").mkdir()
    world.make(folder / "work")
    return folder / "work", folder / "home"


def _task(folder: Path) -> None:
    write_jsonl(folder / "task" / "train.jsonl", rows("train", 60))
    write_jsonl(folder / "task" / "test.jsonl", rows("test", 70))
    write_jsonl(folder / "many.jsonl", rows("many", 3000))


def _free_task(folder: Path) -> None:
    for split, count in (("train", 40), ("test", 24)):
        data = [
            {"input": r["input"], "output": f"it is {r['input'].split()[-1]} {n}"}
            for n, r in enumerate(rows(split, count))
        ]
        write_jsonl(folder / "task" / f"{split}.jsonl", data)


def _pool(folder: Path) -> None:
    from iclkit.pool import Pool
    from iclkit.records import Example

    with Pool.open(folder / "demos.db") as pool:
        pool.add([Example(r["input"], r["output"]) for r in (*rows("train", 400), *rows("train", 40, seed=1))])
        pool.add([Example(f"{r['input']}!", r["output"]) for r in rows("train", 100)])
    write_jsonl(folder / "queries.jsonl", [{"input": r["input"]} for r in rows("query", 24)])


def _pool_rows(folder: Path, home: Path) -> Any:
    from iclkit.pool import Pool

    with Pool.open(folder / "demos.db", create=False) as pool:
        return sorted((e.id, e.text, e.output) for e in pool.view().examples), sorted(map(str, pool.check()))


def _vectors(folder: Path, home: Path) -> Any:
    with sqlite3.connect(folder / "demos.db") as data:
        return sorted(
            (str(row[0]), hashlib.sha256(repr(row).encode()).hexdigest())
            for row in data.execute("SELECT * FROM vectors")
        )


def _study(folder: Path, home: Path) -> Any:
    """What a search promises after a kill: as many finished trials and demonstrations. Its later proposals may differ,
    since a list whose worker died is tried again under a new number."""
    data = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    return len(data["demonstrations"]), data["search"]["trials"] if "search" in data else None


def _file(name: str) -> Callable[[Path, Path], Any]:
    def read(folder: Path, home: Path) -> Any:
        text = (folder / name).read_text(encoding="utf-8")
        if name.endswith(".json"):
            data = json.loads(text)
            return data.get("demonstrations"), data.get("instruction")
        return text

    return read


def _runs(folder: Path, home: Path) -> Any:
    """The rows of all runs, byte for byte, and the keys of what the LM was asked: no more, and nothing twice."""
    found = {f.parent.name: f.read_bytes() for f in sorted((folder / "runs").glob("*/rows.jsonl"))}
    with sqlite3.connect(home / "lm-cache.db") as cache:
        keys = sorted(key for (key,) in cache.execute("SELECT key FROM entry"))
    return found, keys


def _weights(folder: Path, home: Path) -> Any:
    return {
        str(f.relative_to(folder / "made")): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted((folder / "made").rglob("*.safetensors"))
    }
