"""Training a bi-encoder with the sentence-transformers trainer: checkpoints, resume, precision and trackers are its."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerState

from iclkit.embed import load_training_base
from iclkit.errors import RunError, UsageError
from iclkit.files import replace_file
from iclkit.models import load_errors
from iclkit.records import Progress
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._config import TrainConfig, evaluation_interval
from iclkit.trainers._losses import false_negatives
from iclkit.trainers._method import Session
from iclkit.trainers._processes import main_process_first, main_process_only, processes, shard_batches
from iclkit.trainers._whole import drop, last_checkpoint, seal

log = logging.getLogger(__name__)
GAIN_METRIC = "lm_gain"
ConfigT = TypeVar("ConfigT", bound=TrainConfig)
Loss = Callable[[Tensor, Tensor, RetrieverBatch], Tensor]
"""(queries (b, d), documents (b, m, d) positives first, batch) -> scalar."""


@dataclass(frozen=True)
class TrainingTexts:
    """What the encoder reads: texts of queries and documents by row, and which documents are no negatives for a query:
    ``forbidden`` rows, and, where ``answer`` (the output of a row) is given, those of other queries with its answer."""

    query: Callable[[int, Sequence[int]], str]
    document: Callable[[int], str]
    forbidden: Callable[[int], Collection[int]]
    answer: Callable[[int], str] | None = None

    def no_negatives(self, query: int, documents: Collection[int]) -> set[int]:
        """Those of some ``documents`` that are no negatives for a query."""
        result = {*self.forbidden(query)}
        if self.answer is not None:
            own = self.answer(query)
            result |= {d for d in documents if self.answer(d) == own}
        return result


def training_texts(s: Session[Any]) -> TrainingTexts:
    """What the encoder reads in a training."""
    examples = s.corpus.examples
    return TrainingTexts(
        s.query_text,
        s.document_text,
        lambda row: s.miner.forbidden(examples[row]),
        (lambda row: examples[row].output) if s.config.masks_labels else None,
    )


def load_encoder(config: TrainConfig, base: str | Path) -> SentenceTransformer:
    """The bi-encoder that training starts from, in fp32: a folder, or what ``load_training_base`` takes. Its
    ``prompts`` stand in front of texts, in training and for good.

    ModelError when the base is no encoder or lacks weights, UsageError for a base with two towers where the settings
    ask for one, or for another similarity or pooling."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer

    def tower() -> list[Any]:
        modules = list(load_training_base(str(base)))
        if config.pooling != "own":
            transformer = next(m for m in modules if isinstance(m, Transformer))
            width = transformer.get_embedding_dimension()
            modules = [transformer, Pooling(width, config.pooling)]
        modules = [m for m in modules if not isinstance(m, Normalize)]
        return [*modules, Normalize()] if config.similarity == "cos" else modules

    model = load_training_base(str(base))
    prompts = model.prompts
    with load_errors(f"cannot train from {base}"):
        if any(isinstance(m, Router) for m in model):
            _check_towers(config, model, base)  # a retriever of ours with two towers: go on with it
        elif config.towers == 2:
            towers = Router.for_query_document(tower(), tower())
            model = SentenceTransformer(modules=[towers], device="cpu", prompts=prompts)
        else:
            model = SentenceTransformer(modules=tower(), device="cpu", prompts=prompts)
    for part in model.modules():
        if isinstance(part, Transformer):
            part.max_seq_length = min(config.max_tokens, part.max_seq_length or config.max_tokens)
    return model


def _check_towers(config: TrainConfig, model: SentenceTransformer, base: str | Path) -> None:
    """UsageError for settings that say otherwise than a base with two towers, which is trained on as it is."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    parts = [*model.modules()]
    pooling = next((p.pooling_mode for p in parts if isinstance(p, Pooling)), config.pooling)
    found = {
        "towers": 2,
        "similarity": "cos" if any(isinstance(p, Normalize) for p in parts) else "dot",
        "pooling": config.pooling if config.pooling == "own" else pooling,
    }
    wrong = [f"{name}={value}" for name, value in found.items() if value != getattr(config, name)]
    if wrong:
        raise UsageError(f"base {base} has two towers and goes on as they are; set {', '.join(wrong)}")


KEPT = 2  # checkpoints that are on disk at a time, for the case that the newer one is damaged
_BEST, _ROWS = "best.safetensors", "rows.txt"


class RetrieverLoss(CachedLossMixin, torch.nn.Module):
    """The loss of what the model makes of a batch from ``Collator``. ``freeze``: no gradient through documents.

    ``gather``: of several processes, each takes the loss of the batches of all (the texts say what is no negative
    across them): with the mean of their gradients that is the gradient of one process with so large a batch.

    ``mini_batch``: with a number above 0 so many texts are read at a time, first for the loss of the whole batch and
    then again for the gradient (GradCache, Gao et al. 2021): the memory of a step is that of so many texts.
    """

    model: SentenceTransformer

    def __init__(
        self,
        model: SentenceTransformer,
        loss: Loss,
        *,
        freeze: bool,
        mini_batch: int = 0,
        gather: TrainingTexts | None = None,
    ) -> None:
        super().__init__()
        # a table of word vectors is read whole: it needs no memory to speak of, and its input has no single texts
        self.model, self.mini_batch_size = model, 0 if has_static_embedding_input(model) else mini_batch
        self._loss, self._frozen, self._gather = loss, freeze, gather
        self._documents: list[Tensor] | None = None

    def forward(self, features: Sequence[dict[str, Tensor]], labels: Mapping[str, Tensor]) -> Tensor:
        """A scalar; RunError for a loss that is not finite. ``labels``: the fields of a ``RetrieverBatch``."""
        query, documents = features
        if not self.mini_batch_size:
            queries = self.model(query)["sentence_embedding"]
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
                unique = self.model(documents)["sentence_embedding"]
            return self._of(queries, unique, labels)
        read = [query, documents]
        if self._frozen:
            each = CachedLossMixin.embed_minibatch_iter(self, documents, with_grad=False, copy_random_state=False)
            self._documents, read = [vectors for vectors, _ in each], [query]
        loss: Tensor = CachedLossMixin.forward_cached(self, read, labels)
        return loss

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """The loss of vectors that were made portion by portion."""
        queries, documents = reps if self._documents is None else (*reps, self._documents)
        self._documents = None
        loss = self._of(torch.cat(queries), torch.cat(documents), labels)
        if with_backward:
            torch.autograd.backward(loss)
        return loss

    def _of(self, queries: Tensor, unique: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        batch = RetrieverBatch(**labels)
        queries, documents = queries.float(), unique.float()[batch.columns]
        if self._gather is not None:
            queries, documents, batch = gather_batches(queries, documents, batch, self._gather)
        loss = self._loss(queries, documents, batch)
        if not bool(loss.isfinite()):
            raise diverged(f"a loss of {float(loss)}")
        return loss


def gather_batches(
    queries: Tensor, documents: Tensor, batch: RetrieverBatch, texts: TrainingTexts
) -> tuple[Tensor, Tensor, RetrieverBatch]:
    """Vectors and batches of all processes, one behind the other; gradients reach the process that each is from.

    queries (b, d), documents (b, m, d), the same shapes everywhere; without other processes they stay as they are.
    ``columns`` is meaningless afterwards: the documents are chosen already.
    """
    if processes().num_processes == 1:
        return queries, documents, batch
    from sentence_transformers.util import all_gather

    rows = all_gather(batch.rows)
    return (
        all_gather(queries, with_grad=queries.requires_grad),
        all_gather(documents, with_grad=documents.requires_grad),
        RetrieverBatch(
            columns=all_gather(batch.columns),
            values=all_gather(batch.values),
            mask=no_negatives(rows.tolist(), texts).to(batch.mask.device),
            rows=rows,
        ),
    )


def no_negatives(rows: Sequence[Sequence[int]], texts: TrainingTexts) -> Tensor:
    """(b, b m) bool: which documents of a batch are no negatives for which row; rows: (query, its m documents)."""
    present = {d for _, *documents in rows for d in documents}
    return false_negatives(
        [documents for _, *documents in rows], [texts.no_negatives(query, present) for query, *_ in rows]
    )


class Collator:
    """Rows of a batch to token ids. Equal documents of a batch are encoded once.

    ``label``: the tensors of a ``RetrieverBatch`` by name, since the trainer moves tensors and mappings only.
    """

    valid_label_columns = ("label",)

    def __init__(self, model: SentenceTransformer, texts: TrainingTexts, *, routed: bool) -> None:
        self._preprocess, self._prompts, self._texts, self._routed = model.preprocess, model.prompts, texts, routed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        number = {d: n for n, d in enumerate(dict.fromkeys(d for row in rows for d in row["documents"]))}
        numbers = [[row["query"], *row["documents"]] for row in rows]
        label = {
            "columns": torch.tensor([[number[d] for d in row["documents"]] for row in rows]),
            "values": torch.tensor([[*row["values"]] for row in rows], dtype=torch.float32),
            "mask": no_negatives(numbers, self._texts),
            "rows": torch.tensor(numbers),
        }
        batch: dict[str, Any] = {"label": label}
        queries = [self._texts.query(row["query"], row["chosen"]) for row in rows]
        documents = [self._texts.document(d) for d in number]
        for name, texts in (("query", queries), ("document", documents)):
            task = {"task": name} if self._routed else {}
            features = self._preprocess(texts, prompt=self._prompts.get(name) or None, **task)
            batch |= {f"{name}_{key}": value for key, value in features.items()}
            if self._routed:
                batch[f"{name}_task"] = name
        return batch


class SequentialSampler(DefaultBatchSampler):
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


class GainEvaluator(SentenceEvaluator):
    """Evaluates a model in training by ``gain(model)``, the LM gain on held-out queries in nats."""

    def __init__(self, gain: Callable[[SentenceTransformer], float]) -> None:
        super().__init__()
        self.greater_is_better, self.primary_metric = True, GAIN_METRIC
        self._gain = gain

    def __call__(self, model: SentenceTransformer, *_: Any, **__: Any) -> dict[str, float]:
        with main_process_only():
            return {GAIN_METRIC: self._gain(model)}


class _Trainer(SentenceTransformerTrainer):
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out: iclkit writes the card, and the library's looks models up on the hub."""


class Progressing(TrainerCallback):
    """Reports each step to our progress."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self._progress:
            self._progress(state.global_step, state.max_steps)


class Guard(TrainerCallback):
    """Stops a training with gradients that are not finite, or weights before they are evaluated or saved."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """RunError for gradients that are not finite; in fp16 the scaler leaves out such a step by itself."""
        grads = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if grads and not args.fp16 and not bool(torch.stack([g.isfinite().all() for g in grads]).all()):
            raise diverged(f"gradients that are not finite at step {state.global_step + 1}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """RunError for weights that are not finite, where the trainer's own callback has asked for a look at them."""
        if control.should_evaluate or control.should_save or control.should_training_stop:
            check_finite(kwargs["model"])


class Keeper(TrainerCallback):
    """Keeps the best weights in memory and in each checkpoint, stops when patience is out, and seals checkpoints.

    All it knows comes from the trainer's own history, which checkpoints hold, so that a training that goes on decides
    as one that never stopped.
    """

    def __init__(self, model: SentenceTransformer | CrossEncoder, config: TrainConfig, evaluated: bool) -> None:
        self._model, self.config, self._evaluated = model, config, evaluated
        self.best: dict[str, Tensor] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Where the last model is kept, it is evaluated too."""
        if self._evaluated and self.config.keep == "last" and state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        gains = [gain for _, gain in gains_by_step(state.log_history)]
        if gains and gains[-1] > max(gains[:-1], default=-math.inf) and self.config.keep == "best":
            self.best = {
                name: value.detach().cpu().clone().contiguous() for name, value in self._model.state_dict().items()
            }
        if out_of_patience(gains, self.config.patience):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        processes().wait_for_everyone()  # each has put a file of its own there
        if processes().is_main_process:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.best is not None:
                save_file(self.best, str(folder / _BEST))
            seal(folder)

    def resume(self, checkpoint: Path) -> None:
        """Take up the best weights of a checkpoint."""
        if (checkpoint / _BEST).is_file():
            self.best = load_file(str(checkpoint / _BEST))

    def restore(self) -> None:
        """Put the best weights into the model."""
        if self.best is not None:
            self._model.load_state_dict(self.best)


def gains_by_step(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, LM gain) of each evaluation in a trainer's history."""
    return [(int(h["step"]), float(h[f"eval_{GAIN_METRIC}"])) for h in history if f"eval_{GAIN_METRIC}" in h]


def out_of_patience(gains: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` evaluations were no better than the best before them; never for a patience of 0.

    >>> out_of_patience([0.1, 0.3, 0.2, 0.3], 2), out_of_patience([0.1, 0.3, 0.2], 2), out_of_patience([0.1, 0.1], 0)
    (True, False, False)
    """
    return bool(patience and gains) and len(gains) - 1 - gains.index(max(gains)) >= patience


def diverged(what: str) -> RunError:
    """The error of a training that diverges."""
    return RunError(
        f"the training gives {what}: lower learning_rate (or reward_learning_rate), raise temperature, or start from "
        f"another base, with --restart; scores are kept, and no such weights are"
    )


def check_finite(model: torch.nn.Module) -> None:
    """RunError for a model with weights that are not finite."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise diverged(f"weights that are not finite ({name})")


def fit_retriever(
    config: ConfigT,
    model: SentenceTransformer,
    batches: Sequence[Sequence[TrainingRow]],
    texts: TrainingTexts,
    loss: Callable[[ConfigT, Tensor, Tensor, RetrieverBatch], Tensor],
    work: Path,
    *,
    gain: Callable[[SentenceTransformer], float] | None = None,
    tracker: str = "none",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Train ``model`` on the batches in order, going on from the last whole checkpoint in ``work``.

    ``loss``: the method's. ``gain``: evaluates the model; the model that is kept is then the one of
    ``config.keep``, else the last. Returns ``steps``, ``judged`` ((step, LM gain) pairs), ``kept`` (the step of the
    model that is kept), ``best`` (its gain, None where it was not evaluated) and ``loss`` (step, loss) pairs. RunError
    when there is nothing to train on, and for a loss, gradients or weights that are not finite.
    """
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.modules import Router

    batches = shard_batches(batches, config.batch_size)
    rows = [(row, n) for n, batch in enumerate(batches) for row in batch]
    if not rows:
        raise RunError("no training query has enough scored candidates; lower positives and negatives, or mine more")
    widths = {(len(row.documents), len(row.values)) for row, _ in rows}
    assert len(widths) == 1, f"training rows of several shapes: {widths}"
    data = Dataset.from_dict(
        {
            "query": [row.query for row, _ in rows],
            "chosen": [[*row.chosen] for row, _ in rows],
            "documents": [[*row.documents] for row, _ in rows],
            "values": [[*row.values] for row, _ in rows],
            "batch": [n for _, n in rows],
        }
    )
    evaluator = GainEvaluator(gain) if gain else None
    steps = len(batches) // processes().num_processes
    routed = any(isinstance(m, Router) for m in model)
    # each pass leaves one of two towers out, whose gradients torch takes for done unless all steps are said to be alike
    alike = {"ddp_static_graph": True} if routed and processes().num_processes > 1 else {}
    args = SentenceTransformerTrainingArguments(
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        router_mapping={"query": "query", "document": "document"},
        eval_strategy="steps" if evaluator else "no",
        eval_steps=evaluation_interval(config, steps),
        **common_arguments(config, work, steps, tracker, warmup_steps=config.warmup_steps),
        **alike,
    )
    keeper = Keeper(model, config, evaluator is not None)
    trainer = _Trainer(
        model=model,
        args=args,
        train_dataset=data,
        loss=RetrieverLoss(
            model,
            partial(loss, config),
            freeze=config.freeze_documents,
            mini_batch=config.mini_batch,
            gather=texts if config.gather_across_devices else None,
        ),
        evaluator=evaluator,
        data_collator=Collator(model, texts, routed=routed),
        callbacks=[Progressing(progress), Guard(), keeper],
    )
    state = run_trainer(trainer, keeper, rows, work, say)
    gains = gains_by_step(state.log_history)
    kept = state.global_step
    if config.keep == "best" and gains:
        kept = max(gains, key=lambda each: (each[1], -each[0]))[0]
    return {
        "steps": state.global_step,
        "judged": gains,
        "kept": kept,
        "best": dict(gains).get(kept),
        "loss": losses(state.log_history),
    }


def run_trainer(trainer: Any, keeper: Keeper, rows: Sequence[Any], work: Path, say: Callable[[str], None]) -> Any:
    """Train to the end from the last whole checkpoint in ``work`` that was made with the same ``rows``; the trainer's
    last state. The model ends with the best weights, if any were kept."""
    trainer.remove_callback(PrinterCallback)  # stdout is for data
    checkpoints, note = work / "checkpoints", work / _ROWS
    with main_process_first():
        key = hashlib.blake2b(digest_size=16)
        for row in rows:
            key.update(repr(row).encode())
        if not note.is_file() or note.read_bytes() != key.hexdigest().encode():
            drop(checkpoints)  # of other scores: a prompt that was refused then has been answered since
            work.mkdir(parents=True, exist_ok=True)
            replace_file(note, key.hexdigest())
        last = last_checkpoint(checkpoints, say)
    if last is not None:
        keeper.resume(last)
        state = TrainerState.load_from_json(str(last / "trainer_state.json"))
        if out_of_patience([gain for _, gain in gains_by_step(state.log_history)], keeper.config.patience):
            keeper.restore()
            return state
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    keeper.restore()
    check_finite(trainer.model)
    return trainer.state


def losses(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) pairs of a trainer's history."""
    return [(h["step"], h["loss"]) for h in history if "loss" in h]


def common_arguments(
    config: TrainConfig, work: Path, steps: int, tracker: str, *, warmup_steps: int = 0
) -> dict[str, Any]:
    """The arguments that the trainers of retriever and reward model share: one pass over batches that are laid out
    already, and ``config.checkpoints`` checkpoints on the way, of which two are kept. ``warmup_steps`` hold where they
    are above 0 and at most half of the steps, else the share that ``config.warmup`` says."""
    return {
        "output_dir": str(work / "checkpoints"),
        "num_train_epochs": 1,
        "max_steps": steps,
        "warmup_steps": warmup_steps if 0 < warmup_steps <= steps / 2 else math.ceil(config.warmup * steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip,
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": config.dtype == "bf16",
        "fp16": config.dtype == "fp16",
        "batch_sampler": SequentialSampler,
        "save_strategy": "steps",
        "save_steps": math.ceil(steps / config.checkpoints),
        "save_total_limit": KEPT,
        "logging_steps": max(1, min(config.evaluate_every, steps) // 5),
        "logging_nan_inf_filter": False,
        "report_to": [] if tracker == "none" else [tracker],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def save_model(model: Any, folder: Path) -> None:
    """Write a model's folder whole or not at all, sealed. RunError for weights that are not finite."""
    check_finite(model)
    part = folder.with_name(folder.name + ".part")
    drop(part)
    model.save_pretrained(str(part), create_model_card=False)
    seal(part)
    drop(folder)
    part.rename(folder)
