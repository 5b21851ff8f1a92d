"""LLM-R: a reward model learns the LM's preferences, and a bi-encoder learns from the reward model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from iclkit.embed import Embedder
from iclkit.errors import DataError
from iclkit.files import read_json, replace_file
from iclkit.records import Example, digest
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._epr import CandidateMethod, extremes
from iclkit.trainers._method import RankedCandidates, Session, in_batches
from iclkit.trainers._processes import batches_for, processes
from iclkit.trainers._whole import drop

if TYPE_CHECKING:
    from iclkit.trainers._fit import Loss, TrainingRow
    from iclkit.trainers._reward import Group

OTHER = -100.0
"""What a candidate of another task, or by the released code's label rule of another label, is worth less (nats)."""


class LLMR(CandidateMethod):
    """a cross-encoder that sees the answer learns the LM's preferences; a bi-encoder is distilled from it"""

    name: ClassVar[str] = "llm-r"
    source: ClassVar[str] = "Wang, Yang & Wei 2024, EACL, arXiv 2307.07164"
    wants: ClassVar[tuple[str, ...]] = ("positives", "negatives", "hard_negatives", "reward_negatives")

    def teaches(self, s: Session, row: int, ranked: list[tuple[int, float]]) -> bool:
        """Whether reward model and retriever both can learn from the candidates."""
        once = replace(s, config=replace(s.config, reward_epochs=1.0, reward_max_steps=0), facts={})
        return super().teaches(s, row, ranked) and bool(self._groups(once, {row: ranked}))

    def gather(self, s: Session, iteration: int, retriever: Embedder | None) -> RankedCandidates:
        """The LM's values, then a reward model trained on them, then its logit for every candidate."""
        return self._rewarded(s, super().gather(s, iteration, retriever), iteration)

    def lesson(self, s: Session, row: int, ranked: list[tuple[int, float]], epoch: int) -> TrainingRow | None:
        """The best by reward and hard negatives from the worst, with their rewards as the teacher's logits."""
        from iclkit.trainers._fit import TrainingRow

        best, worst = eligible_extremes(s, row, ranked, s.config.positives, s.config.negatives)
        count = s.config.hard_negatives
        if not best or len(worst) < count:
            return None
        rng, rewards = s.rng("llm-r", s.corpus.examples[row].id, epoch), dict(ranked)
        against = rng.choice(worst, count, replace=False).tolist()
        shown = (best[0], *against)  # the paper's positive is the one of the highest reward
        return TrainingRow(row, shown, tuple(rewards[r] for r in shown))

    def objective(self, config: TrainConfig) -> Loss:
        """KL from the reward's softmax plus ``contrastive_weight`` times the contrastive loss (equations 3 to 5)."""
        from iclkit.trainers._losses import llm_r_loss

        def loss(queries: Any, documents: Any, values: Any, mask: Any) -> Any:
            return llm_r_loss(
                queries, documents, values, tau=config.temperature, alpha=config.contrastive_weight, mask=mask
            )

        return loss

    def _rewarded(self, s: Session, ranked: RankedCandidates, iteration: int) -> RankedCandidates:
        """The same candidates by the reward model, which is trained unless this iteration's rewards are there."""
        work = s.work / f"reward-{iteration}"
        key = digest([[row, own] for row, own in sorted(ranked.items())])
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
        pairs = [(asked(s, row), s.document_text(r)) for row, own in ranked.items() for r, _ in own]
        logits = iter(reward_of(model, pairs, s.bar("rewards")).tolist())
        out = {
            row: sorted(((r, float(next(logits))) for r, _ in own), key=lambda rv: (-rv[1], rv[0]))
            for row, own in ranked.items()
        }
        if processes().is_main_process:
            told = [[row, own] for row, own in out.items()]
            replace_file(kept, json.dumps({"key": key, "check": digest(told), "ranked": told}))
            drop(work / "checkpoints")
        processes().wait_for_everyone()
        return out

    def _groups(self, s: Session, ranked: RankedCandidates) -> list[list[Group]]:
        """All batches for the reward model: a positive against several of the worst."""
        out: list[list[Group]] = []
        wanted, epoch, count = batches_for(s.config.reward_max_steps), 0, s.config.reward_negatives
        while (len(out) < wanted) if wanted else (epoch < s.config.reward_epochs):
            made: dict[str, list[Group]] = {}
            for row, own in ranked.items():
                best, worst = eligible_extremes(s, row, own, s.config.positives, max(count, s.config.negatives))
                if not best or len(worst) < count:
                    continue
                rng = s.rng("reward", s.corpus.examples[row].id, epoch)
                shown = [best[int(rng.integers(len(best)))], *rng.choice(worst, count, replace=False).tolist()]
                group = asked(s, row), tuple(s.document_text(r) for r in shown)
                made.setdefault(s.course_of(row).name, []).append(group)
            if not made:
                break
            out += in_batches(s, made, s.config.reward_batch_size, epoch)
            epoch += 1
        return out[: wanted or None]


def eligible_extremes(
    s: Session, row: int, ranked: list[tuple[int, float]], positives: int, negatives: int
) -> tuple[list[int], list[int]]:
    """``extremes``, with positives of the query's task and, by ``label_rule``, of its label, which no negative has.

    The rule is for tasks with labels.
    """
    course, examples = s.course_of(row), s.corpus.examples
    strict = s.config.label_rule and bool(course.labels)
    told = {r: examples[r].output == examples[row].output for r, _ in ranked}
    near = {r: s.course_of(r).name == course.name and (told[r] or not strict) for r, _ in ranked}
    judged = [(r, v if near[r] else v + OTHER) for r, v in ranked]
    best, worst = extremes(sorted(judged, key=lambda rv: (-rv[1], rv[0])), positives, negatives)
    return [r for r in best if near[r]], [r for r in worst if not (strict and told[r])]


def asked(s: Session, row: int) -> str:
    """What the reward model reads of a query: with its answer, which the bi-encoder never sees."""
    example: Example = s.corpus.examples[row]
    return f"{example.text}\n{example.output}"


def _read_rewards(file: Path, key: str) -> RankedCandidates | None:
    """The rewards kept in a file for these candidates; None where there are none, or the file is damaged."""
    try:
        told = read_json(file)
        if told["key"] != key or told["check"] != digest(told["ranked"]):
            return None
        return {int(row): [(int(r), float(v)) for r, v in own] for row, own in told["ranked"]}
    except (DataError, LookupError, TypeError, ValueError):
        return None
