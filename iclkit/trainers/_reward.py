"""LLM-R's reward model: a cross-encoder that sees the gold answer and learns which demonstration the LM prefers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification

from iclkit import models
from iclkit.embed import token_limit
from iclkit.errors import ModelError, RunError
from iclkit.records import Progress
from iclkit.trainers._fit import Guard, Keeper, Progressing, common_arguments, diverged, losses, run_trainer
from iclkit.trainers._llm_r import LLMRConfig
from iclkit.trainers._losses import reward_loss
from iclkit.trainers._processes import processes, shard_batches

Group = tuple[str, tuple[str, ...]]
"""A query with its answer, and demonstrations with the positive first."""


def load_reward(config: LLMRConfig, folder: Path) -> CrossEncoder:
    """A cross-encoder with one output; its head is new where the folder holds a bare encoder, and seeded."""
    with models.load_errors(f"cannot train a reward model from {folder}"):
        # of the encoder no weight may be made up; the head and the pooler under it may be new
        models.load_weights(AutoModelForSequenceClassification, folder, _encoder_states, settings={"num_labels": 1})
        with models.quiet_transformers():
            torch.manual_seed(config.seed)
            model = CrossEncoder(
                str(folder),
                num_labels=1,
                device="cuda" if torch.cuda.is_available() else "cpu",
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                activation_fn=torch.nn.Identity(),
            )
            most = token_limit(model.transformers_model, model.tokenizer)
            model.max_seq_length = min(384, 3 * config.max_tokens, most)
            return model


def _encoder_states(model: Any) -> Tensor:
    ids = torch.tensor([[5, 6, 7]])
    states: Tensor = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return states


class _GroupLoss(torch.nn.Module):
    """Cross-entropy of the positive of each group. ``mini_batch``: with a number above 0 so many pairs are read at a
    time, and read again for the gradient, so that the memory of a step is that of so many pairs."""

    def __init__(self, model: CrossEncoder, mini_batch: int = 0) -> None:
        super().__init__()
        self.model, self._mini_batch = model, mini_batch

    def forward(self, inputs: Sequence[Any], labels: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        questions, groups = inputs
        pairs = [(q, d) for q, group in zip(questions, groups, strict=True) for d in group]
        size = self._mini_batch or len(pairs)
        portions = [self._tokens(pairs[at : at + size]) for at in range(0, len(pairs), size)]
        if self._mini_batch and torch.is_grad_enabled():
            read = [checkpoint(self._scores, tokens, use_reentrant=False) for tokens in portions]
        else:
            read = [self._scores(tokens) for tokens in portions]
        loss = reward_loss(torch.cat(read).view(len(questions), -1).float())
        if not bool(loss.isfinite()):
            raise diverged(f"a loss of the reward model of {float(loss)}")
        return loss

    def _tokens(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        tokens = self.model.preprocess([*pairs])
        return {k: v.to(self.model.device) if isinstance(v, Tensor) else v for k, v in tokens.items()}

    def _scores(self, tokens: dict[str, Any]) -> Tensor:
        scores: Tensor = self.model(dict(tokens))["scores"]
        return scores


class _Trainer(CrossEncoderTrainer):
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out: iclkit writes the card, and the library's looks models up on the hub."""


def fit_reward(
    config: LLMRConfig,
    model: CrossEncoder,
    batches: Sequence[Sequence[Group]],
    work: Path,
    *,
    tracker: str = "none",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Softmax cross-entropy over groups (Wang et al., EACL 2024, equation 2), going on from the last whole checkpoint
    in ``work``.

    Returns ``steps`` and ``loss`` (step, loss) pairs. RunError when there is no group, and for a training whose loss,
    gradients or weights are no numbers.
    """
    from datasets import Dataset

    batches = shard_batches(batches, config.reward_batch_size)
    rows = [(group, n) for n, batch in enumerate(batches) for group in batch]
    if not rows:
        raise RunError("no training query has enough scored candidates for the reward model; mine more of them")
    data = Dataset.from_dict(
        {
            "query": [q for (q, _), _ in rows],
            "documents": [[*d] for (_, d), _ in rows],
            "label": [0.0] * len(rows),
            "batch": [n for _, n in rows],
        }
    )
    steps = len(batches) // processes().num_processes
    args = CrossEncoderTrainingArguments(
        per_device_train_batch_size=config.reward_batch_size,
        learning_rate=config.reward_learning_rate,
        **common_arguments(config, work, steps, tracker, warmup_steps=config.reward_warmup_steps),
    )
    keeper = Keeper(model, config, evaluated=False)
    trainer = _Trainer(
        model=model,
        args=args,
        train_dataset=data,
        loss=_GroupLoss(model, config.mini_batch),
        data_collator=_collate,
        callbacks=[Progressing(progress), Guard(), keeper],
    )
    state = run_trainer(trainer, keeper, rows, work, say)
    return {"steps": state.global_step, "loss": losses(state.log_history)}


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "query": [row["query"] for row in rows],
        "documents": [row["documents"] for row in rows],
        "label": torch.zeros(len(rows)),
    }


_collate.valid_label_columns = ["label"]  # type: ignore[attr-defined]


def reward_of(
    model: CrossEncoder, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
) -> NDArray[np.float64]:
    """(n,): the reward logit of each (query with answer, demonstration)."""
    out, size = np.empty(len(pairs)), 256
    step: Callable[[int], None] = (lambda n: progress(n, len(pairs))) if progress else (lambda n: None)  # noqa: ARG005
    for at in range(0, len(pairs), size):
        some = [*pairs[at : at + size]]
        out[at : at + len(some)] = model.predict(some, batch_size=32, show_progress_bar=False)
        step(at + len(some))
    if not np.isfinite(out).all():
        raise ModelError(
            "the reward model gives rewards that are not finite; lower reward_learning_rate, with --restart"
        )
    return out
