"""Training a bi-encoder with the sentence-transformers trainer: checkpoints, resume, precision and trackers are its."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from iclkit.errors import ModelError, RunError
from iclkit.lm import Progress
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._processes import one_apart, processes, shared_out

log = logging.getLogger(__name__)
GAIN = "lm_gain"
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(queries (b, d), documents (b, m, d) positives first, values (b, v), mask (b, b * m)) -> scalar."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One training row, by pool rows: a query behind the ``chosen`` demonstrations (first chosen first), documents with
    the positive first, and the numbers that the method's objective wants."""

    query: int
    documents: tuple[int, ...]
    values: tuple[float, ...] = ()
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True)
class Texts:
    """What the encoder reads: texts of queries and documents by row, and rows that are no negatives for a query."""

    query: Callable[[int, Sequence[int]], str]
    document: Callable[[int], str]
    forbidden: Callable[[int], Collection[int]]


def load_encoder(config: TrainConfig, folder: Path) -> SentenceTransformer:
    """The bi-encoder that training starts from. ModelError when the folder holds no encoder."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer

    def tower() -> list[Any]:
        modules = list(SentenceTransformer(str(folder), device="cpu", model_kwargs=_SAFE))
        if config.pooling != "own":
            transformer = next(m for m in modules if isinstance(m, Transformer))
            width = transformer.get_embedding_dimension()
            modules = [transformer, Pooling(width, config.pooling)]
        modules = [m for m in modules if not isinstance(m, Normalize)]
        return [*modules, Normalize()] if config.similarity == "cos" else modules

    try:
        saved = SentenceTransformer(str(folder), device="cpu", model_kwargs=_SAFE)
        if any(isinstance(m, Router) for m in saved):
            model = saved  # a retriever of ours with two towers: go on with it
        elif config.towers == 2:
            model = SentenceTransformer(modules=[Router.for_query_document(tower(), tower())], device="cpu")
        else:
            model = SentenceTransformer(modules=tower(), device="cpu")
    except Exception as error:  # whatever the libraries raise over a broken folder is reported, with its cause
        raise ModelError(f"cannot train from {folder}: {str(error).strip().splitlines()[0]}") from error
    for part in model.modules():
        if isinstance(part, Transformer):
            part.max_seq_length = min(config.max_tokens, part.max_seq_length or config.max_tokens)
    return model


_SAFE = {"use_safetensors": True}


class RetrieverLoss(torch.nn.Module):
    """An objective over what the model makes of a batch; see ``Collator`` for the layout of ``labels``."""

    def __init__(self, model: SentenceTransformer, objective: Objective, width: int, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self._objective, self._width, self._frozen = objective, width, config.freeze_documents

    def forward(self, features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The objective's mean over the batch."""
        query, documents = features
        queries = self.model(query)["sentence_embedding"].float()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            unique = self.model(documents)["sentence_embedding"].float()
        b, m = len(labels), self._width
        columns, rest = labels[:, :m].long(), labels[:, m:]
        values, mask = rest[:, : rest.shape[1] - b * m], rest[:, rest.shape[1] - b * m :].bool()
        return self._objective(queries, unique[columns], values, mask)


class Collator:
    """Rows of a batch to token ids. Equal documents of a batch are encoded once.

    ``label`` (b, m + v + b * m): the column of each document among the unique ones, the lesson's values, and the mask
    of documents that are no negatives for the row: its own positive met again, and what repeats the query.
    """

    valid_label_columns = ("label",)

    def __init__(self, model: SentenceTransformer, texts: Texts, *, routed: bool) -> None:
        self._preprocess, self._texts, self._routed = model.preprocess, texts, routed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        number = {d: n for n, d in enumerate(dict.fromkeys(d for row in rows for d in row["documents"]))}
        every = [d for row in rows for d in row["documents"]]
        label = []
        for n, row in enumerate(rows):
            own = row["documents"]
            bad = {own[0], *self._texts.forbidden(row["query"])}
            start = n * len(own)
            mask = [d in bad and not start <= at < start + len(own) for at, d in enumerate(every)]
            label.append([*(number[d] for d in own), *row["values"], *map(float, mask)])
        batch: dict[str, Any] = {"label": torch.tensor(label, dtype=torch.float32)}
        asked = [self._texts.query(row["query"], row["chosen"]) for row in rows]
        shown = [self._texts.document(d) for d in number]
        for name, texts in (("query", asked), ("document", shown)):
            task = {"task": name} if self._routed else {}
            batch |= {f"{name}_{key}": value for key, value in self._preprocess(texts, **task).items()}
            if self._routed:
                batch[f"{name}_task"] = name
        return batch


class InOrder(DefaultBatchSampler):
    """Batches as they were written: neighbours with one ``batch`` number; nothing is drawn here."""

    def __init__(self, dataset: Any, **kwargs: Any) -> None:
        super().__init__(range(len(dataset)), **{k: v for k, v in kwargs.items() if k in ("batch_size", "drop_last")})
        numbers = np.asarray(dataset["batch"])
        self._edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in zip(self._edges[:-1], self._edges[1:], strict=True):
            yield [*range(start, stop)]

    def __len__(self) -> int:
        return len(self._edges) - 1


class Judge(SentenceEvaluator):
    """Early stopping on what matters: ``measure(model)`` gives the LM gain on held-out queries, in nats."""

    def __init__(self, measure: Callable[[SentenceTransformer], float]) -> None:
        super().__init__()
        self.greater_is_better, self.primary_metric = True, GAIN
        self._measure = measure

    def __call__(self, model: SentenceTransformer, *_: Any, **__: Any) -> dict[str, float]:
        with one_apart():
            return {GAIN: self._measure(model)}


class _Trainer(SentenceTransformerTrainer):
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out: iclkit writes the card, and the library's looks models up on the hub."""


class Told(TrainerCallback):
    """Reports each step to our progress."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self._progress:
            self._progress(state.global_step, state.max_steps)


def fit_retriever(
    config: TrainConfig,
    model: SentenceTransformer,
    batches: Sequence[Sequence[Lesson]],
    texts: Texts,
    objective: Objective,
    work: Path,
    *,
    measure: Callable[[SentenceTransformer], float] | None = None,
    tracker: str = "none",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train ``model`` on the batches in order, resuming at the last checkpoint in ``work``; it ends as the best, or
    without ``measure`` as the last.

    Returns ``steps``, ``judged`` ((step, LM gain) pairs), ``best`` (its gain) and ``loss`` (step, loss) pairs.
    RunError when there is nothing to train on.
    """
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.modules import Router

    batches = shared_out(batches, config.batch_size)
    rows = [(lesson, n) for n, batch in enumerate(batches) for lesson in batch]
    if not rows:
        raise RunError("no training query has enough scored candidates; lower positives and negatives, or mine more")
    widths = {(len(lesson.documents), len(lesson.values)) for lesson, _ in rows}
    assert len(widths) == 1, f"lessons of several shapes: {widths}"
    ((width, _),) = widths
    data = Dataset.from_dict(
        {
            "query": [lesson.query for lesson, _ in rows],
            "chosen": [[*lesson.chosen] for lesson, _ in rows],
            "documents": [[*lesson.documents] for lesson, _ in rows],
            "values": [[*lesson.values] for lesson, _ in rows],
            "batch": [n for _, n in rows],
        }
    )
    judge = Judge(measure) if measure else None
    steps = len(batches) // processes().num_processes
    every = min(config.judge_every, steps)
    args = SentenceTransformerTrainingArguments(
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        router_mapping={"query": "query", "document": "document"},
        eval_strategy="steps" if judge else "no",
        eval_steps=every,
        load_best_model_at_end=judge is not None,
        metric_for_best_model=f"eval_{GAIN}" if judge else None,
        greater_is_better=True if judge else None,
        **common_arguments(config, work, steps, every, tracker),
    )
    callbacks: list[TrainerCallback] = [Told(progress)]
    if judge and config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    routed = any(isinstance(m, Router) for m in model)
    trainer = _Trainer(
        model=model,
        args=args,
        train_dataset=data,
        loss=RetrieverLoss(model, objective, width, config),
        evaluator=judge,
        data_collator=Collator(model, texts, routed=routed),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for data
    trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
    state = trainer.state
    history = state.log_history
    return {
        "steps": state.global_step,
        "judged": [(h["step"], h[f"eval_{GAIN}"]) for h in history if f"eval_{GAIN}" in h],
        "best": state.best_metric,
        "loss": [(h["step"], h["loss"]) for h in history if "loss" in h],
    }


def common_arguments(config: TrainConfig, work: Path, steps: int, every: int, tracker: str) -> dict[str, Any]:
    """What the trainers of retriever and reward model are told alike: one pass over batches that are laid out already,
    a checkpoint every ``every`` steps."""
    return {
        "output_dir": str(work / "checkpoints"),
        "num_train_epochs": 1,
        "max_steps": steps,
        "warmup_steps": math.ceil(config.warmup * steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip,
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": config.dtype == "bf16",
        "fp16": config.dtype == "fp16",
        "batch_sampler": InOrder,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "logging_steps": max(1, every // 5),
        "report_to": [] if tracker == "none" else [tracker],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole; the trainer's state is the last file of one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    return next((str(p) for p in found if _is_json(p / "trainer_state.json")), None)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def save_model(model: Any, folder: Path) -> None:
    """Write a model's folder whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(str(part), create_model_card=False)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
