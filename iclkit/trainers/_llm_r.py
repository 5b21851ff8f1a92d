"""LLM-R: a reward model learns the LM's preferences, and a bi-encoder learns from the reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.files import read_json, replace_file
from iclkit.records import Example, Json, digest
from iclkit.settings import setting
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._config import TrainConfig, beyond, other_default
from iclkit.trainers._epr import CandidateConfig, CandidateMethod, extremes
from iclkit.trainers._method import OTHER, RankedCandidates, Session, in_batches
from iclkit.trainers._processes import batches_for, processes
from iclkit.trainers._whole import drop

if TYPE_CHECKING:
    from torch import Tensor

    from iclkit.trainers._reward import Group


@dataclass(frozen=True)
class LLMRConfig(CandidateConfig):
    """LLM-R (Wang, Yang & Wei 2024); defaults for a small machine, ``paper`` for the paper's."""

    method: ClassVar[str] = "llm-r"
    paper: ClassVar[Mapping[str, Any]] = {
        "base": "intfloat/e5-base-v2", "similarity": "cos", "temperature": 0.01, "queries": 30_000,
        "candidates": "bm25:100", "cross_task": True, "value": "gold", "positives": 3, "negatives": 16,
        "iterations": 2, "hard_negatives": 3, "batch_size": 256, "learning_rate": 3e-5, "epochs": 8.0,
        "max_steps": 6000, "max_tokens": 256, "reward_base": "google/electra-base-discriminator",
        "reward_negatives": 7, "reward_learning_rate": 1e-5, "reward_max_steps": 3000, "reward_batch_size": 128,
        "patience": 0, "instruct": "none", "keep": "last", "checkpoints": 10, "refill": True,
        "mini_batch": 128, "dtype": "bf16", "warmup_steps": 400, "reward_warmup_steps": 400,
        "gather_across_devices": True,
    }  # fmt: skip

    negatives: int = other_default(CandidateConfig, "negatives", 8)
    batch_size: int = other_default(CandidateConfig, "batch_size", 12)
    epochs: float = other_default(CandidateConfig, "epochs", 6.0)
    hard_negatives: int = setting(3, "negatives of each training row", ge=0)
    contrastive_weight: float = setting(0.2, "of the contrastive loss beside the distillation", ge=0)
    label_rule: bool = setting(False, "as the released code: a candidate of another label is never a positive")
    refill: bool = setting(False, "random demonstrations of reward -100 in the place of negatives that are missing")
    reward_base: str = setting("all-minilm-l6-v2", "the encoder that the reward model starts from")
    reward_negatives: int = setting(5, "negatives of each row of the reward model", ge=1)
    reward_learning_rate: float = setting(5e-5, "of the reward model", gt=0)
    reward_epochs: float = setting(4.0, "passes of the reward model; reward_max_steps goes first", ge=0)
    reward_max_steps: int = setting(0, "steps of the reward model; 0: as reward_epochs say", ge=0)
    reward_batch_size: int = setting(8, "rows per step of the reward model", ge=1)
    reward_warmup_steps: int = setting(0, "as warmup_steps, of the reward model", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_length("reward_epochs", "reward_max_steps")

    def identity(self) -> dict[str, Json]:
        """With the method's own settings."""
        return {
            **super().identity(),
            "hard_negatives": self.hard_negatives, "contrastive_weight": self.contrastive_weight,
            "label_rule": self.label_rule, "reward_base": self.reward_base,
            "reward_negatives": self.reward_negatives, "reward_learning_rate": self.reward_learning_rate,
            "reward_epochs": self.reward_epochs, "reward_max_steps": self.reward_max_steps,
            "reward_batch_size": self.reward_batch_size, **beyond(self, refill=False, reward_warmup_steps=0),
        }  # fmt: skip


class LLMR(CandidateMethod[LLMRConfig]):
    """a cross-encoder that sees the answer learns the LM's preferences; a bi-encoder is distilled from it"""

    name: ClassVar[str] = "llm-r"
    source: ClassVar[str] = "Wang, Yang & Wei 2024, EACL, arXiv 2307.07164"
    config_class: ClassVar[type[TrainConfig]] = LLMRConfig
    needed: ClassVar[tuple[str, ...]] = ("positives", "negatives", "hard_negatives", "reward_negatives")

    def can_learn(self, s: Session[LLMRConfig], row: int, ranked: list[tuple[int, float]]) -> bool:
        """Whether reward model and retriever both can learn from the candidates."""
        once = replace(s, config=replace(s.config, reward_epochs=1.0, reward_max_steps=0), facts={})
        return super().can_learn(s, row, ranked) and bool(self._groups(once, {row: ranked}))

    def gather(self, s: Session[LLMRConfig], iteration: int, retriever: Embedder | None) -> RankedCandidates:
        """The LM's values, then a reward model trained on them, then its logit for every candidate."""
        return self._rewarded(s, super().gather(s, iteration, retriever), iteration)

    def training_row(
        self, s: Session[LLMRConfig], row: int, ranked: list[tuple[int, float]], epoch: int
    ) -> TrainingRow | None:
        """The best by reward and hard negatives from the worst, with their rewards as the teacher's logits.

        By ``refill`` a query with fewer negatives gets random demonstrations that were no candidates, of reward -100.
        """
        best, worst = eligible_extremes(s, row, ranked, s.config.positives, s.config.negatives)
        count = s.config.hard_negatives
        if not best or (len(worst) < count and not s.config.refill):
            return None
        rng, rewards = s.rng("llm-r", s.corpus.examples[row].id, epoch), dict(ranked)
        negatives = rng.choice(worst, min(count, len(worst)), replace=False).tolist() if worst else []
        if missing := count - len(negatives):
            strangers = self._strangers(s, row, ranked)
            if len(strangers) < missing:
                return None
            negatives += rng.choice(strangers, missing, replace=False).tolist()
            rewards = dict.fromkeys(negatives, OTHER) | rewards
        documents = (best[0], *negatives)  # the paper's positive is the one of the highest reward
        return TrainingRow(row, documents, tuple(rewards[r] for r in documents))

    @staticmethod
    def _strangers(s: Session[LLMRConfig], row: int, ranked: list[tuple[int, float]]) -> list[int]:
        """Rows that were no candidates of a query; by ``label_rule``, in tasks with labels, of other labels only."""
        task, examples = s.task_of(row), s.corpus.examples
        known = {*(r for r, _ in ranked), *s.miner.forbidden(examples[row])}
        by_label = s.config.label_rule and bool(task.labels)
        return [
            r
            for r in task.rows.tolist()
            if r not in known and not (by_label and examples[r].output == examples[row].output)
        ]

    def loss(self, config: LLMRConfig, queries: Tensor, documents: Tensor, batch: RetrieverBatch) -> Tensor:
        """KL from the reward's softmax plus ``contrastive_weight`` times the contrastive loss (equations 3 to 5)."""
        from iclkit.trainers._losses import llm_r_loss

        return llm_r_loss(
            queries, documents, batch.values, tau=config.temperature, alpha=config.contrastive_weight, mask=batch.mask
        )

    def _rewarded(self, s: Session[LLMRConfig], ranked: RankedCandidates, iteration: int) -> RankedCandidates:
        """The same candidates by the reward model, which is trained unless this iteration's rewards are there."""
        work = s.work / f"reward-{iteration}"
        key = digest([[row, candidates] for row, candidates in sorted(ranked.items())])
        kept = work / "rewards.json"
        if (known := _read_rewards(kept, key)) is not None:
            return known
        from iclkit import models
        from iclkit.trainers._reward import fit_reward, load_reward, reward_of

        work.mkdir(parents=True, exist_ok=True)
        model = load_reward(s.config, models.resolve(s.config.reward_base, "embedder"))
        facts = fit_reward(
            s.config,
            model,
            self._groups(s, ranked),
            work,
            tracker=s.tracker,
            progress=s.bar("reward model"),
            say=s.say,
        )
        s.facts[f"reward model {iteration + 1}"] = {"steps": facts["steps"], "last loss": facts["loss"][-1][1]}
        pairs = [
            (reward_query_text(s, row), s.document_text(r)) for row, candidates in ranked.items() for r, _ in candidates
        ]
        logits = iter(reward_of(model, pairs, s.bar("rewards")).tolist())
        rewarded = {
            row: sorted(((r, float(next(logits))) for r, _ in candidates), key=lambda rv: (-rv[1], rv[0]))
            for row, candidates in ranked.items()
        }
        if processes().is_main_process:
            stored = [[row, candidates] for row, candidates in rewarded.items()]
            replace_file(kept, json.dumps({"key": key, "check": digest(stored), "ranked": stored}))
            drop(work / "checkpoints")
        processes().wait_for_everyone()
        return rewarded

    def _groups(self, s: Session[LLMRConfig], ranked: RankedCandidates) -> list[list[Group]]:
        """All batches for the reward model: a positive against several of the worst."""
        batches: list[list[Group]] = []
        wanted, epoch, count = batches_for(s.config.reward_max_steps), 0, s.config.reward_negatives
        while (len(batches) < wanted) if wanted else (epoch < s.config.reward_epochs):
            by_task: dict[str, list[Group]] = {}
            for row, candidates in ranked.items():
                best, worst = eligible_extremes(s, row, candidates, s.config.positives, max(count, s.config.negatives))
                if not best or len(worst) < count:
                    continue
                rng = s.rng("reward", s.corpus.examples[row].id, epoch)
                positive = best[int(rng.integers(len(best)))]
                documents = [positive, *rng.choice(worst, count, replace=False).tolist()]
                group = reward_query_text(s, row), tuple(s.document_text(r) for r in documents)
                by_task.setdefault(s.task_of(row).name, []).append(group)
            if not by_task:
                break
            batches += in_batches(s, by_task, s.config.reward_batch_size, epoch)
            epoch += 1
        return batches[: wanted or None]


def eligible_extremes(
    s: Session[LLMRConfig], row: int, ranked: list[tuple[int, float]], positives: int, negatives: int
) -> tuple[list[int], list[int]]:
    """``extremes``, with positives of the query's task only.

    By ``label_rule``, in tasks with labels, positives have the query's label and negatives have not.
    """
    task, examples = s.task_of(row), s.corpus.examples
    by_label = s.config.label_rule and bool(task.labels)
    same_label = {r: examples[r].output == examples[row].output for r, _ in ranked}
    eligible = {r: s.task_of(r).name == task.name and (same_label[r] or not by_label) for r, _ in ranked}
    adjusted = [(r, v if eligible[r] else v + OTHER) for r, v in ranked]
    best, worst = extremes(sorted(adjusted, key=lambda rv: (-rv[1], rv[0])), positives, negatives)
    return [r for r in best if eligible[r]], [r for r in worst if not (by_label and same_label[r])]


def reward_query_text(s: Session[LLMRConfig], row: int) -> str:
    """What the reward model reads of a query: with its answer, which the bi-encoder never sees."""
    example: Example = s.corpus.examples[row]
    return f"{example.text}\n{example.output}"


def _read_rewards(file: Path, key: str) -> RankedCandidates | None:
    """The rewards kept in a file for these candidates; None where there are none, or the file is damaged."""
    try:
        stored = read_json(file)
        if stored["key"] != key or stored["check"] != digest(stored["ranked"]):
            return None
        return {int(row): [(int(r), float(v)) for r, v in candidates] for row, candidates in stored["ranked"]}
    except (DataError, LookupError, TypeError, ValueError):
        return None
