"""CEIL: which sets of demonstrations help, learnt as determinants over relevance and similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from iclkit.embed import Embedder, Retriever
from iclkit.errors import DataError, UsageError
from iclkit.records import Example
from iclkit.selectors import dpp_order
from iclkit.trainers._config import Source, TrainConfig, preset
from iclkit.trainers._data import TaskData
from iclkit.trainers._epr import EPR, ranks_of
from iclkit.trainers._feedback import FeedbackPrompt, value
from iclkit.trainers._method import TRIED, Method, Session, checkpoint_retriever, encode_with, in_batches, judgings
from iclkit.trainers._processes import batches_for, processes
from iclkit.trainers._sets import HeldOutSets, held_out_sets, random_sets, report_savings, set_prompt
from iclkit.trainers._whole import drop, is_whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from iclkit.trainers._fit import Loss, TrainingRow

Subset = tuple[int, ...]
"""Positions among a query's neighbours, most relevant first."""

_TIED = 1e-9
_OF_EPR = ("seed", "queries", "held_out", "report", "candidates", "cross_task", "value", "normalise", "base", "pooling",
           "max_tokens", "document", "instruct", "judge_every", "judgements", "patience", "keep",
           "checkpoints", "dtype", "clip")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScoredSets:
    """A query row, the rows of its neighbours (nearest first), and subsets of them with their values, best first."""

    query: int
    neighbours: tuple[int, ...]
    subsets: tuple[tuple[Subset, float], ...]


def first_stage(config: TrainConfig) -> TrainConfig:
    """The EPR that CEIL starts from where ``base`` is no trained retriever: same data and encoder, its own training.

    Under ``paper`` as icl-ceil's scripts train it: one tower for both sides, which learns from the queries alone
    (``freeze_documents``), long at a low rate.
    """
    same = {name: getattr(config, name) for name in _OF_EPR}
    paper = {
        "towers": 1, "freeze_documents": config.freeze_documents, "epochs": 120.0, "learning_rate": 1e-5,
        "batch_size": 128,
    }  # fmt: skip
    return replace(preset("epr", config.preset), **{**same, **(paper if config.preset == "paper" else {})})


def draw_subsets(n: int, size: int, count: int, rng: np.random.Generator) -> list[Subset]:
    """``count`` distinct subsets of n positions, the first ``size`` always the first of them, the rest uniform.

    All there are where that is not more than ``count``; none where size > n.
    """
    if size > n:
        return []
    if math.comb(n, size) <= count:
        return [*combinations(range(n), size)]
    found = {tuple(range(size)): None}
    while len(found) < count:
        found[tuple(sorted(rng.choice(n, size, replace=False).tolist()))] = None
    return [*found]


class CEIL(Method):
    """sets of neighbours scored whole; relevance is learnt so that helpful sets have large determinants"""

    name: ClassVar[str] = "ceil"
    source: ClassVar[str] = "Ye et al. 2023, ICML, arXiv 2302.05698"

    def __init__(self) -> None:
        self._scored: dict[int, list[ScoredSets]] = {}
        self._held_out: list[tuple[HeldOutSets, list[list[int]]]] | None = None

    def plan(self, s: Session) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """EPR's prompts, unless that is trained, and those of subsets of the neighbours by the best embedder so far."""
        out, reader = [], s.miner.embedder
        if not isinstance(reader, Retriever):
            if is_whole(self._first_folder(s)):
                reader = checkpoint_retriever(self._first_folder(s), s, first_stage(s.config))
            else:
                out += EPR().plan(self._first_session(s))
        for course in s.corpus.courses:
            asks = [ask for _, _, _, own in self._subsets(s, course, reader, 0) for ask in own]
            out.append((course, [*asks, *random_sets(s, course)]))
        return out

    def check(self, s: Session) -> None:
        """That EPR's documents are read as CEIL's, and that some query of each course has two sets to tell apart."""
        base = s.miner.embedder
        if isinstance(base, Retriever):
            self._check_base(s, base)
        else:
            EPR().check(self._first_session(s))
        for course in s.corpus.courses:
            queries = [s.corpus.examples[int(r)] for r in course.queries[:TRIED]]
            most = max(map(len, self._neighbours(s, course, queries, base)), default=0)
            if math.comb(most, s.config.shots) < 2:
                raise DataError(
                    f"task {course.name!r} has at most {most} neighbours for a query, and ceil needs two sets of "
                    f"shots={s.config.shots}; lower shots, raise neighbours, or add examples"
                )

    def stages(self, s: Session) -> list[TrainConfig]:
        """EPR, unless the base is that, and CEIL."""
        return [s.config] if isinstance(s.miner.embedder, Retriever) else [first_stage(s.config), s.config]

    def judging(self, s: Session) -> int:
        """A judgement asks for the set that the model chooses for each held-out query."""
        return judgings(s, sum(len(c.queries) for c in s.corpus.courses))

    def score(self, s: Session) -> None:
        """EPR's prompts, those of the subsets (for which EPR is trained, if the base is none), and of random sets."""
        self.gather(s, 0, None)
        for course in s.corpus.courses:
            held_out_sets(s, course)

    def gather(self, s: Session, iteration: int, retriever: Embedder | None) -> list[ScoredSets]:
        """Train EPR if need be, then score subsets of each query's neighbours; those of all iterations together."""
        reader = retriever or self._first(s)
        for course in s.corpus.courses:
            drawn = self._subsets(s, course, reader, iteration)
            title = f"{course.name}: subsets"
            with report_savings(s, title):
                told = iter(s.feedback.tell(course, [a for _, _, _, asks in drawn for a in asks], s.bar(title)))
            for row, near, subsets, _ in drawn:
                values = [
                    (some, value(t, s.config.value, s.config.normalise))
                    for some in subsets
                    if (t := next(told)) is not None
                ]
                ranked = tuple(sorted(values, key=lambda sv: (-sv[1], sv[0])))
                own = self._scored.setdefault(row, [])
                own[iteration:] = [ScoredSets(row, tuple(near), ranked)]
        return [one for own in self._scored.values() for one in own]

    def start(self, s: Session, base: Path) -> Path:
        """EPR: the settings' ``base`` if that is a trained retriever, else the one trained first."""
        return base if isinstance(s.miner.embedder, Retriever) else self._first_folder(s)

    def chooser(self, config: TrainConfig) -> Source:
        """The set with the largest determinant, as large as the subsets."""
        return Source(f"ceil,trade_off={config.trade_off:g}", config.shots)

    def batches(self, s: Session, gathered: list[ScoredSets]) -> list[list[TrainingRow]]:
        """Epoch after epoch, a lesson per query with all its subsets.

        Values of a lesson: the subsets' positions, best subset first, then the subsets' ranks; rows of -1 fill up.
        """
        from iclkit.trainers._fit import TrainingRow

        used = [one for one in gathered if one.subsets and one.subsets[0][1] - one.subsets[-1][1] > _TIED]
        s.facts["queries"] = {"scored": len(gathered), "used": len(used)}
        if not used:
            return []
        n, m = max(len(one.neighbours) for one in used), max(len(one.subsets) for one in used)
        made: dict[str, list[TrainingRow]] = {}
        for one in used:
            positions = [p for some, _ in one.subsets for p in some]
            positions += [-1] * (s.config.shots * (m - len(one.subsets)))
            ranks = ranks_of([v for _, v in one.subsets])
            ranks += [m] * (m - len(ranks))
            shown = (*one.neighbours, *[one.neighbours[0]] * (n - len(one.neighbours)))
            lesson = TrainingRow(one.query, shown, tuple(map(float, (*positions, *ranks))))
            made.setdefault(s.course_of(one.query).name, []).append(lesson)
        out: list[list[TrainingRow]] = []
        wanted, epoch = batches_for(s.config.max_steps), 0
        while (len(out) < wanted) if wanted else (epoch < s.config.epochs):
            out += in_batches(s, made, s.config.batch_size, epoch)
            epoch += 1
        return out[: wanted or None]

    def objective(self, config: TrainConfig) -> Loss:
        """The margin loss over the subsets of each query (section 3.3), mean over queries."""
        import torch
        from torch.nn.functional import normalize

        from iclkit.trainers._losses import ceil_margin, dpp_parts, dpp_scores

        def loss(queries: Any, documents: Any, values: Any, mask: Any) -> Any:  # noqa: ARG001
            total, size = queries.new_zeros(()), config.shots
            for query, own, told in zip(normalize(queries, dim=-1), normalize(documents, dim=-1), values, strict=True):
                count = len(told) // (size + 1)
                subsets, ranks = told[: count * size].long().view(count, size), told[count * size :]
                there = subsets[:, 0] >= 0
                relevance, similarity = dpp_parts(query, own)
                scores = dpp_scores(relevance, similarity, subsets[there], config.trade_off)
                total = total + ceil_margin(scores, config.margin or None, ranks[there])
            return total / torch.tensor(len(queries))

        return loss

    def measure(self, s: Session, model: SentenceTransformer) -> float:
        """What the sets that ``model`` finds among the first retriever's neighbours are worth more than random ones."""
        if self._held_out is None:
            reader = self._first(s)
            parts = [held_out_sets(s, course) for course in s.corpus.courses]
            self._held_out = [(part, self._neighbours(s, part.course, part.queries, reader)) for part in parts]
        gains = []
        for part, neighbours in self._held_out:
            rows = sorted({r for own in neighbours for r in own})
            at = {r: n for n, r in enumerate(rows)}
            texts = [s.rendering.query(q.text, part.course.name) for q in part.queries]
            queries, documents = (_unit(v) for v in encode_with(s, model, texts, rows))
            sets = []
            for vector, own in zip(queries, neighbours, strict=True):
                items = documents[[at[r] for r in own]]
                sim = items @ vector
                order = dpp_order(sim, items @ items.T, s.config.shots, s.config.trade_off)
                sets.append([own[i] for i in sorted(order, key=lambda i: (-round(float(sim[i]), 6), own[i]))])
            gains += part.gains(s, sets)
        return float(np.mean(gains)) if gains else 0.0

    @staticmethod
    def _neighbours(
        s: Session, course: TaskData, queries: Sequence[Example], reader: Embedder | None
    ) -> list[list[int]]:
        source = (Source("knn", s.config.neighbours),)
        rows = s.miner.mine(course, queries, source, cross_task=s.config.cross_task, embedder=reader)
        return [r.tolist() for r in rows]

    def _subsets(
        self, s: Session, course: TaskData, reader: Embedder | None, iteration: int
    ) -> list[tuple[int, list[int], list[Subset], list[FeedbackPrompt]]]:
        """For each training query its row, its neighbours, subsets of them, and the subsets' prompts."""
        queries = [s.corpus.examples[int(r)] for r in course.queries]
        out = []
        for row, query, near in zip(
            course.queries.tolist(), queries, self._neighbours(s, course, queries, reader), strict=True
        ):
            rng = s.rng("ceil", "subsets", query.id, iteration)
            subsets = draw_subsets(len(near), s.config.shots, s.config.subsets, rng)
            out.append((row, near, subsets, [set_prompt(s, query, [near[p] for p in some]) for some in subsets]))
        return out

    def _first(self, s: Session) -> Embedder:
        """EPR: the base, if that is a trained retriever, else trained in ``epr`` of the work folder."""
        base = s.miner.embedder
        if isinstance(base, Retriever):
            self._check_base(s, base)
            return base
        if not is_whole(self._first_folder(s)):
            self._train_first(s)
        return checkpoint_retriever(self._first_folder(s), s, first_stage(s.config))

    @staticmethod
    def _check_base(s: Session, base: Retriever) -> None:
        if base.rendering.document != s.rendering.document:
            raise UsageError(
                f"base {s.config.base!r} reads documents as {base.rendering.document!r} and document is "
                f"{s.rendering.document!r}; set document={base.rendering.document}"
            )

    def _train_first(self, s: Session) -> None:
        import torch

        from iclkit import models
        from iclkit.trainers._fit import TrainingTexts, fit_retriever, load_encoder, save_model

        stage, epr = self._first_session(s), EPR()
        s.say("CEIL starts from EPR: training that first; a trained one can be given as base")
        gathered = epr.gather(stage, 0, None)
        torch.manual_seed(stage.config.seed)
        model = load_encoder(stage.config, models.resolve(stage.config.base, "embedder"))
        told = fit_retriever(
            stage.config,
            model,
            epr.batches(stage, gathered),
            TrainingTexts(stage.query_text, stage.document_text, lambda row: s.miner.forbidden(s.corpus.examples[row])),
            epr.objective(stage.config),
            stage.work,
            measure=(lambda m: epr.measure(stage, m)) if any(len(c.held_out) for c in s.corpus.courses) else None,
            tracker=s.tracker,
            progress=s.bar("training, EPR"),
            say=s.say,
        )
        s.facts["epr"] = {**stage.facts, "steps": told["steps"], "best": told["best"]}
        if processes().is_main_process:
            save_model(model, self._first_folder(s))
            drop(stage.work / "checkpoints")
        processes().wait_for_everyone()

    @staticmethod
    def _first_session(s: Session) -> Session:
        return replace(s, config=first_stage(s.config), work=s.work / "epr", facts={})

    @staticmethod
    def _first_folder(s: Session) -> Path:
        return s.work / "epr" / "model"


def _unit(vectors: Any) -> Any:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
