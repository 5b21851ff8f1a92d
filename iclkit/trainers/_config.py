"""One frozen object per training: the paper's values, or values that a small machine can pay for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from iclkit.errors import UnknownName, UsageError
from iclkit.records import Json

METHODS = ("epr", "udr", "llm-r", "se2", "ceil")
PRESETS = ("paper", "small")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All that decides a training besides its data and its LM; saved with the result.

    Data: ``queries`` per task (0: all), ``held_out`` per task for early stopping, ``report`` per task for the report.
    ``candidates``: selectors that propose candidates, ``SPEC:COUNT`` or ``SPEC@output:COUNT`` to search outputs by the
    query's output, with ``+`` between. ``cross_task``: candidates of other tasks too. ``iterations``: mine again with
    the retriever so far, score what is new, train again.

    Feedback: ``value`` of a scored prompt, ``gold`` (log-probability of the gold answer) or ``share`` (normed over the
    label options, where there are any); ``normalise`` ``mean`` per token or ``sum``. ``shots``: demonstrations per
    scored prompt (Se2: rounds; CEIL: subset size).

    Encoder: ``base`` model with its ``own`` pooling or another, ``towers`` 1 (shared) or 2, ``similarity`` ``cos`` or
    ``dot``, both divided by ``temperature``; ``max_tokens`` per text. Optimisation: AdamW, linear decay after
    ``warmup`` (share of the steps).

    Judging: every ``judge_every`` steps the LM gain on held-out queries is measured, at longer intervals where that
    would be more than ``judgements`` times in a training (0: no such bound). After ``patience`` judgements without a
    better one training stops (0: never). ``keep`` ``best``: the model of the best judgement, the last one where there
    are no held-out queries to judge by; ``last``: the one that training ends with. ``checkpoints``: at most so many
    are written in a training, to go on from after a kill; they decide nothing else.
    """

    method: str
    preset: str = "small"
    seed: int = 0  # first weights, dropout, the order and the draws of lessons
    data_seed: int = 0  # which rows are asked about, and candidates drawn at random
    # data
    queries: int = 200
    held_out: int = 40
    report: int = 60
    candidates: str = "bm25:10+knn:5+random:5"
    cross_task: bool = False
    iterations: int = 1
    restart: bool = True  # an iteration starts from the base model, not from the iteration before
    # feedback
    value: Literal["gold", "share"] = "share"
    normalise: Literal["mean", "sum"] = "mean"
    shots: int = 1
    # groups
    positives: int = 3
    negatives: int = 3
    positive_sampling: Literal["topk", "top1"] = "topk"
    hard_negatives: int = 1
    list_size: int = 8
    top_sampled: int = 1
    label_rule: bool = False  # LLM-R's released code: a candidate of another label is never a positive
    # loss
    rank_loss: Literal["paper", "lambda-mrr"] = "paper"
    rank_weight: float = 0.8
    contrastive_weight: float = 0.2
    margin: float = 0.0  # CEIL: 0 for 1 / subsets
    trade_off: float = 0.1  # CEIL: lambda
    subsets: int = 16  # CEIL: M
    neighbours: int = 40  # CEIL: n
    random_negatives: int = 8  # Se2
    # encoder
    base: str = "all-minilm-l6-v2"
    pooling: Literal["own", "cls", "mean"] = "own"
    towers: Literal[1, 2] = 1
    similarity: Literal["cos", "dot"] = "cos"
    temperature: float = 0.05
    max_tokens: int = 128
    document: Literal["input", "input+output"] = "input+output"
    instruct: Literal["none", "both", "document"] = "none"
    freeze_documents: bool = False
    # optimisation
    batch_size: int = 16
    learning_rate: float = 5e-5
    epochs: float = 8.0
    max_steps: int = 0
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 2.0
    judge_every: int = 25
    judgements: int = 40
    patience: int = 3
    keep: Literal["best", "last"] = "best"
    checkpoints: int = 4
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    # reward model (LLM-R)
    reward_base: str = "all-minilm-l6-v2"
    reward_negatives: int = 5
    reward_learning_rate: float = 5e-5
    reward_epochs: float = 4.0
    reward_max_steps: int = 0
    reward_batch_size: int = 8

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownName("training method", self.method, METHODS)
        for name, low in (("queries", 0), ("held_out", 0), ("report", 0), ("iterations", 1), ("shots", 1),
                          ("positives", 1), ("negatives", 1), ("list_size", 2), ("batch_size", 1), ("patience", 0),
                          ("judge_every", 1), ("judgements", 0), ("checkpoints", 1), ("max_tokens", 8),
                          ("subsets", 2), ("neighbours", 2), ("seed", 0),
                          ("data_seed", 0), ("hard_negatives", 0), ("top_sampled", 1), ("random_negatives", 0),
                          ("max_steps", 0), ("reward_negatives", 1), ("reward_max_steps", 0), ("reward_batch_size", 1),
                          ("margin", 0), ("weight_decay", 0), ("clip", 0), ("warmup", 0),
                          ("contrastive_weight", 0), ("rank_weight", 0)):  # fmt: skip
            if not getattr(self, name) >= low:  # "not >=" also catches nan
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("temperature", "learning_rate", "reward_learning_rate", "trade_off"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup", "rank_weight"):
            if getattr(self, name) > 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it is a share, at most 1")
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for epochs, steps in (("epochs", "max_steps"), ("reward_epochs", "reward_max_steps")):
            if not 0 < getattr(self, epochs) < float("inf") and not getattr(self, steps):
                raise UsageError(f"{epochs} is {getattr(self, epochs)} and {steps} 0; give one of them above 0")
        if self.similarity == "cos" and self.temperature >= 1 and self.preset != "paper":
            raise UsageError(f"temperature is {self.temperature}; cosines need one well below 1, e.g. 0.05")
        sources(self.candidates)

    def as_dict(self) -> dict[str, Json]:
        """Every setting by name."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Json]:
        """What decides the result, for the training's key.

        A setting that came later is left out at the value that means what was done before it, so that the keys of
        finished trainings stay.
        """
        return {k: v for k, v in self.as_dict().items() if k != "checkpoints" and BEFORE.get(k, _NEVER) != v}


_NEVER = object()
BEFORE: Mapping[str, Json] = {"judgements": 40, "keep": "best"}
"""Settings that came later, at the values that mean what was done before them."""


def judged_every(config: TrainConfig, steps: int) -> int:
    """After how many of its steps a training is judged again.

    >>> config = TrainConfig("epr", judge_every=25, judgements=40)
    >>> [judged_every(config, steps) for steps in (8, 104, 1000, 11_010)]
    [8, 25, 25, 276]
    """
    fewest = math.ceil(steps / config.judgements) if config.judgements else 1
    return max(1, min(max(config.judge_every, fewest), steps))


@dataclass(frozen=True, slots=True)
class Source:
    """A selector that proposes ``count`` candidates, by inputs or (``output``) by outputs."""

    spec: str
    count: int
    output: bool = False


def sources(text: str) -> tuple[Source, ...]:
    """Read ``TrainConfig.candidates``. UsageError naming the part that cannot be read.

    >>> sources("bm25@output:50+random:4")
    (Source(spec='bm25', count=50, output=True), Source(spec='random', count=4, output=False))
    """
    found = []
    for part in text.split("+"):
        spec, colon, count = part.strip().rpartition(":")
        if not colon or not spec or not count.isdigit() or int(count) < 1:
            raise UsageError(f"candidates has {part!r}; write SELECTOR:COUNT, several with + between, e.g. bm25:10")
        name, at, side = spec.rpartition("@")
        if at and side != "output":
            raise UsageError(f"candidates has {part!r}; after @ only output can stand")
        found.append(Source(name if at else spec, int(count), bool(at)))
    return tuple(found)


_BERT = {
    "base": "google-bert/bert-base-uncased",
    "pooling": "cls",
    "towers": 2,
    "similarity": "dot",
    "temperature": 1.0,
}
_PAPER: Mapping[str, Mapping[str, Any]] = {
    "epr": {**_BERT, "queries": 44_000, "candidates": "bm25@output:50", "value": "gold", "positives": 5, "negatives": 5,
            "batch_size": 120, "learning_rate": 1e-4, "epochs": 30, "max_tokens": 256, "patience": 0, "keep": "last",
            "checkpoints": 10},
    "udr": {**_BERT, "queries": 100_000, "candidates": "bm25:50", "value": "share", "positives": 5, "negatives": 5,
            "iterations": 3, "instruct": "both", "batch_size": 128, "learning_rate": 1e-4, "epochs": 30,
            "max_tokens": 256, "restart": False, "patience": 0, "keep": "last", "checkpoints": 10},
    "llm-r": {"base": "intfloat/e5-base-v2", "similarity": "cos", "temperature": 0.01, "queries": 30_000,
              "candidates": "bm25:100", "cross_task": True, "value": "gold", "positives": 3, "negatives": 16,
              "iterations": 2, "hard_negatives": 3, "batch_size": 256, "learning_rate": 3e-5, "max_steps": 6000,
              "max_tokens": 256, "reward_base": "google/electra-base-discriminator", "reward_negatives": 7,
              "reward_learning_rate": 1e-5, "reward_max_steps": 3000, "reward_batch_size": 128, "patience": 0,
              "instruct": "none", "keep": "last", "checkpoints": 10},
    "se2": {**_BERT, "queries": 10_000, "candidates": "random:50", "value": "share", "shots": 3, "positives": 1,
            "negatives": 20, "hard_negatives": 20, "random_negatives": 20, "batch_size": 8, "learning_rate": 1e-5,
            "epochs": 6, "max_tokens": 512, "patience": 0, "judgements": 6, "checkpoints": 10},
    "ceil": {"base": _BERT["base"], "pooling": "mean", "towers": 2, "similarity": "cos", "temperature": 1.0,
             "candidates": "bm25@output:50", "queries": 44_000, "value": "gold", "shots": 16,
             "neighbours": 100, "subsets": 50, "trade_off": 0.1, "freeze_documents": True, "document": "input",
             "batch_size": 128, "learning_rate": 1e-5, "epochs": 30, "patience": 5, "judge_every": 100,
             "judgements": 0, "max_tokens": 512, "checkpoints": 10},
}  # fmt: skip
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "epr": {},
    "udr": {"iterations": 2, "instruct": "both", "positives": 3, "negatives": 3, "list_size": 6, "epochs": 6,
            "batch_size": 12},
    "llm-r": {"hard_negatives": 3, "negatives": 8, "positives": 3, "batch_size": 12, "epochs": 6},
    "se2": {"candidates": "random:10", "queries": 100, "shots": 3, "hard_negatives": 4, "negatives": 4,
            "random_negatives": 4, "positives": 1, "batch_size": 8},
    "ceil": {"queries": 80, "shots": 3, "neighbours": 20, "subsets": 12, "batch_size": 8, "towers": 2,
             "freeze_documents": True,
             "document": "input+output"},
}  # fmt: skip


def preset(method: str, name: str = "small", **settings: Any) -> TrainConfig:
    """The settings of a method under a preset, some of them replaced.

    ``paper``: the values of the method's paper (docs/reproduction.md has them with their sources). ``small``: a 2-core
    CPU and a 135M LM in under 20 minutes. UnknownName for a method, preset or setting that does not exist.
    """
    if method not in METHODS:
        raise UnknownName("training method", method, METHODS)
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    for key in settings:
        if key not in _settings():
            raise UnknownName("training setting", key, _settings())
    values = (_PAPER if name == "paper" else _SMALL)[method]
    return TrainConfig(method, name, **{**values, **settings})


def parse_settings(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Settings given as text, by the type of their field. UsageError naming the setting that cannot be read."""
    known = _settings()
    found: dict[str, Any] = {}
    for key, text in pairs.items():
        if key not in known:
            raise UnknownName("training setting", key, known)
        default = known[key].default
        try:
            if isinstance(default, bool):
                found[key] = {"true": True, "false": False}[text.lower()]
            elif isinstance(default, int | float):
                found[key] = type(default)(text)
            else:
                found[key] = text
        except (KeyError, ValueError):
            kind = "true or false" if isinstance(default, bool) else f"a number like {default}"
            raise UsageError(f"{key} is {text!r}; give {kind}") from None
        if key in _CHOICES:
            _check_choice(key, found[key], _CHOICES[key])
    return found


def _settings() -> dict[str, dataclasses.Field[Any]]:
    """What can be set: all but the method and the preset, which come first."""
    return {f.name: f for f in dataclasses.fields(TrainConfig) if f.name not in ("method", "preset")}


def _check_choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; choose from {', '.join(map(str, choices))}")


_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "value": ("gold", "share"),
    "normalise": ("mean", "sum"),
    "similarity": ("cos", "dot"),
    "positive_sampling": ("topk", "top1"),
    "rank_loss": ("paper", "lambda-mrr"),
    "towers": (1, 2),
    "pooling": ("own", "cls", "mean"),
    "document": ("input", "input+output"),
    "instruct": ("none", "both", "document"),
    "dtype": ("fp32", "bf16", "fp16"),
    "keep": ("best", "last"),
}
