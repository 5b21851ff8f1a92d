"""Settings of a training: those that all methods share. Each method's own stand beside the method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

from iclkit.errors import UsageError
from iclkit.records import Json
from iclkit.settings import check_settings, setting

T = TypeVar("T")
PRESETS = ("paper", "small")


def beyond(config: object, **before: Json) -> dict[str, Json]:
    """The settings that differ from what was done ``before`` they existed: a training that was begun then stays
    known.

    >>> beyond(TrainConfig(seed=3), seed=0, epochs=8.0)
    {'seed': 3}
    """
    return {name: getattr(config, name) for name, old in before.items() if getattr(config, name) != old}


def other_default(base: type, name: str, default: T) -> T:
    """A setting of a base class with another default, for a subclass; meaning, bounds and choices stay."""
    known = {f.name: f.metadata for f in fields(base)}
    made: T = field(default=default, metadata=known[name])
    return made


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training besides its data and its LM; saved with the result.

    The defaults are the preset ``small``, for a 2-core CPU and a 135M LM; ``paper`` holds what differs under the preset
    of that name.

    Every ``evaluate_every`` steps the LM gain on held-out queries is measured, at longer intervals where that would be
    more than ``evaluations`` times. After ``patience`` evaluations without a better one, training stops. Without
    held-out queries nothing is evaluated, and the last model is kept.
    """

    method: ClassVar[str] = ""
    paper: ClassVar[Mapping[str, Any]] = {}

    preset: str = setting("small", "the preset that the other settings were taken from", choices=PRESETS)
    seed: int = setting(0, "first weights, dropout, the order and the draws of training rows", ge=0)
    data_seed: int = setting(0, "which rows are queries, and which candidates are drawn at random", ge=0)
    # data
    queries: int = setting(200, "training queries per task; 0: all", ge=0)
    held_out: int = setting(40, "queries per task for early stopping", ge=0)
    report: int = setting(60, "queries per task for the report", ge=0)
    candidates: str = setting(
        "bm25:10+knn:5+random:5",
        "selectors that propose candidates, SELECTOR:COUNT with + between; SELECTOR@output:COUNT searches outputs",
    )
    cross_task: bool = setting(False, "candidates of other tasks too")
    iterations: int = setting(1, "rounds of mining, scoring and training; later ones mine with the retriever", ge=1)
    from_base: bool = setting(True, "each iteration starts from the base model, not from the model before")
    # feedback
    value: Literal["gold", "share"] = setting(
        "share", "of a prompt: log-probability of the gold answer, or of its share among the options"
    )
    normalize: Literal["mean", "sum"] = setting("mean", "log-probability of gold answers per token, or in all")
    # encoder
    base: str = setting("all-minilm-l6-v2", "the encoder that training starts from: a name or a folder")
    pooling: Literal["own", "cls", "mean"] = setting("own", "pooling of the base; own: as it comes")
    towers: Literal[1, 2] = setting(1, "one encoder for queries and documents, or one for each")
    similarity: Literal["cos", "dot"] = setting("cos", "cosine or inner product")
    max_tokens: int = setting(256, "tokens that are read of a text", ge=8)
    document: Literal["input", "input+output"] = setting("input+output", "what is read of a demonstration")
    instruct: Literal["none", "both", "document"] = setting("none", "which texts begin with the task's instruction")
    freeze_documents: bool = setting(False, "no gradient through documents")
    # optimization
    batch_size: int = setting(16, "training rows per step, of each process", ge=1)
    gather_across_devices: bool = setting(
        False, "of several processes: the documents of all are negatives for each, with their gradients"
    )
    mini_batch: int = setting(
        0, "texts that a step reads at a time, so that a large batch fits the memory (GradCache); 0: all", ge=0
    )
    learning_rate: float = setting(5e-5, "of AdamW", gt=0)
    epochs: float = setting(8.0, "passes over the training rows; max_steps goes first", ge=0)
    max_steps: int = setting(0, "steps; 0: as epochs say", ge=0)
    warmup: float = setting(0.1, "share of the steps before the learning rate decays", ge=0, le=1)
    warmup_steps: int = setting(0, "the same in steps; 0, or more than half of all: as warmup says", ge=0)
    weight_decay: float = setting(0.0, "of AdamW", ge=0)
    clip: float = setting(2.0, "largest norm of the gradient", ge=0)
    evaluate_every: int = setting(25, "steps between evaluations on held-out queries", ge=1)
    evaluations: int = setting(40, "evaluations of a training at most; 0: no limit", ge=0)
    patience: int = setting(3, "evaluations without a better one until training stops; 0: never", ge=0)
    keep: Literal["best", "last"] = setting("best", "the model that is kept: of the best evaluation, or the last")
    checkpoints: int = setting(4, "checkpoints of a training at most, to go on from after a kill", ge=1)
    dtype: Literal["fp32", "bf16", "fp16"] = setting("fp32", "precision of the training")

    def __post_init__(self) -> None:
        check_settings(self, f"training method {self.method!r}")
        sources(self.candidates)
        self._check_length("epochs", "max_steps")

    def _check_length(self, epochs: str, steps: str) -> None:
        """UsageError where a training would have no step."""
        if not getattr(self, epochs) and not getattr(self, steps):
            raise UsageError(f"{epochs} and {steps} are both 0; give one of them above 0")

    @property
    def exported_positives(self) -> int:
        """How many of the best candidates stand as positives in scores that are exported for other trainers."""
        return 1

    @property
    def masks_labels(self) -> bool:
        """Whether documents of other queries that carry a query's own answer are no negatives for it."""
        return False

    def as_dict(self) -> dict[str, Json]:
        """Every setting by name, the method first."""
        return {"method": self.method, **asdict(self)}

    def identity(self) -> dict[str, Json]:
        """What decides the result, for the training's key: all but the number of checkpoints, under literal keys."""
        return {
            "method": self.method,
            "preset": self.preset, "seed": self.seed, "data_seed": self.data_seed, "queries": self.queries,
            "held_out": self.held_out, "report": self.report, "candidates": self.candidates,
            "cross_task": self.cross_task, "iterations": self.iterations, "from_base": self.from_base,
            "value": self.value, "normalize": self.normalize, "base": self.base, "pooling": self.pooling,
            "towers": self.towers, "similarity": self.similarity, "max_tokens": self.max_tokens,
            "document": self.document, "instruct": self.instruct, "freeze_documents": self.freeze_documents,
            "batch_size": self.batch_size, "learning_rate": self.learning_rate, "epochs": self.epochs,
            "max_steps": self.max_steps, "warmup": self.warmup, "weight_decay": self.weight_decay, "clip": self.clip,
            "evaluate_every": self.evaluate_every, "evaluations": self.evaluations, "patience": self.patience,
            "keep": self.keep, "dtype": self.dtype,
            **beyond(self, warmup_steps=0, mini_batch=0, gather_across_devices=False),
        }  # fmt: skip


@dataclass(frozen=True)
class SetConfig(TrainConfig):
    """The settings of methods that choose several demonstrations together."""

    shots: int = setting(3, "demonstrations that are chosen together", ge=1)

    def identity(self) -> dict[str, Json]:
        """With the number of demonstrations."""
        return {**super().identity(), "shots": self.shots}


def evaluation_interval(config: TrainConfig, steps: int) -> int:
    """The number of steps between two evaluations of a training of ``steps`` steps.

    >>> config = TrainConfig(evaluate_every=25, evaluations=40)
    >>> [evaluation_interval(config, steps) for steps in (8, 104, 1000, 11_010)]
    [8, 25, 25, 276]
    """
    fewest = math.ceil(steps / config.evaluations) if config.evaluations else 1
    return max(1, min(max(config.evaluate_every, fewest), steps))


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
    result = []
    for part in text.split("+"):
        spec, colon, count = part.strip().rpartition(":")
        if not colon or not spec or not count.isdigit() or int(count) < 1:
            raise UsageError(f"candidates has {part!r}; write SELECTOR:COUNT, several with + between, e.g. bm25:10")
        name, at, side = spec.rpartition("@")
        if at and side != "output":
            raise UsageError(f"candidates has {part!r}; after @ only output can stand")
        result.append(Source(name if at else spec, int(count), bool(at)))
    return tuple(result)


BERT: Mapping[str, Any] = {
    "base": "google-bert/bert-base-uncased",
    "pooling": "cls",
    "towers": 2,
    "similarity": "dot",
    "temperature": 1.0,
}
"""The encoder of EPR, UDR and Se2 as their papers have it, for the preset ``paper``."""


MASK_LABELS = "documents of other queries that carry a query's own answer are no negatives for it"


def check_cosine_temperature(config: Any) -> None:
    """UsageError for a temperature at which cosines tell nothing apart. Papers' own settings are taken as they are."""
    if config.similarity == "cos" and config.temperature >= 1 and config.preset != "paper":
        raise UsageError(f"temperature is {config.temperature}; cosines need one well below 1, e.g. 0.05")
