"""CEIL: which sets of demonstrations help, learned as determinants over relevance and similarity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from iclkit.embed import Embedder, Retriever
from iclkit.errors import DataError, UsageError
from iclkit.records import Example, Json
from iclkit.selectors import dpp_order
from iclkit.settings import setting
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._config import BERT, SetConfig, Source, TrainConfig, other_default
from iclkit.trainers._data import TaskData
from iclkit.trainers._epr import EPR, EPRConfig, ranks_of
from iclkit.trainers._feedback import FeedbackPrompt, feedback_value
from iclkit.trainers._method import (
    CHECKED_QUERIES,
    Method,
    Session,
    checkpoint_retriever,
    encode_with,
    evaluation_prompt_count,
    in_batches,
    trained_base,
)
from iclkit.trainers._processes import batches_for, processes
from iclkit.trainers._sets import HeldOutSets, held_out_sets, random_sets, report_savings, set_prompt
from iclkit.trainers._whole import drop, is_whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Subset = tuple[int, ...]
"""Positions among a query's neighbors, most relevant first."""

_TIED = 1e-9
_SHARED_WITH_EPR = (
    "preset", "seed", "queries", "held_out", "report", "candidates", "cross_task", "value", "normalize", "base",
    "pooling", "max_tokens", "document", "instruct", "evaluate_every", "evaluations", "patience", "keep",
    "checkpoints", "dtype", "clip", "mini_batch", "gather_across_devices",
)  # fmt: skip


@dataclass(frozen=True)
class CEILConfig(SetConfig):
    """CEIL (Ye et al. 2023); defaults for a small machine, ``paper`` for the paper's. ``shots``: size of the sets."""

    method: ClassVar[str] = "ceil"
    paper: ClassVar[Mapping[str, Any]] = {
        "base": BERT["base"], "pooling": "mean", "towers": 2, "similarity": "cos", "candidates": "bm25@output:50",
        "queries": 44_000, "value": "gold", "shots": 16, "neighbors": 100, "subsets": 50, "trade_off": 0.1,
        "trade_offs": (0.01, 0.05, 0.1),
        "freeze_documents": True, "document": "input", "batch_size": 128, "learning_rate": 1e-5, "epochs": 30.0,
        "patience": 5, "evaluate_every": 100, "evaluations": 0, "max_tokens": 512, "checkpoints": 10,
        "warmup_steps": 1300, "mini_batch": 128,
    }  # fmt: skip

    queries: int = other_default(SetConfig, "queries", 80)
    batch_size: int = other_default(SetConfig, "batch_size", 8)
    towers: Literal[1, 2] = other_default(SetConfig, "towers", 2)
    freeze_documents: bool = other_default(SetConfig, "freeze_documents", True)
    neighbors: int = setting(20, "nearest rows of a query that its sets are drawn from", ge=2)
    subsets: int = setting(12, "sets that are scored of each query", ge=2)
    trade_off: float = setting(0.1, "of relevance and diversity; small: relevance", gt=0)
    trade_offs: tuple[float, ...] = setting(
        (), "trade-offs that are trained with one by one, the best on held-out queries is kept; none: trade_off", gt=0
    )
    margin: float = setting(0.0, "of the loss per rank; 0: 1 / subsets", ge=0)

    def identity(self) -> dict[str, Json]:
        """With the method's own settings."""
        return {
            **super().identity(),
            "neighbors": self.neighbors, "subsets": self.subsets, "trade_off": self.trade_off, "margin": self.margin,
            **({"trade_offs": [*self.trade_offs]} if self.trade_offs else {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScoredSets:
    """A query row, the rows of its neighbors (nearest first), and subsets of them with their values, best first."""

    query: int
    neighbors: tuple[int, ...]
    subsets: tuple[tuple[Subset, float], ...]


def first_stage(config: CEILConfig) -> EPRConfig:
    """The EPR that CEIL starts from where ``base`` is no trained retriever: same data and encoder, its own training.

    Under ``paper`` as icl-ceil's scripts train it: one tower for both sides, which learns from the queries alone
    (``freeze_documents``), long at a low rate.
    """
    settings = config.as_dict()
    paper = {
        **EPRConfig.paper, "towers": 1, "freeze_documents": config.freeze_documents, "epochs": 120.0,
        "learning_rate": 1e-5, "batch_size": 128,
    }  # fmt: skip
    shared = {name: settings[name] for name in _SHARED_WITH_EPR}
    return EPRConfig(**{**(paper if config.preset == "paper" else {}), **shared})


def draw_subsets(n: int, size: int, count: int, rng: np.random.Generator) -> list[Subset]:
    """``count`` distinct subsets of n positions, the first ``size`` always the first of them, the rest uniform.

    All there are where that is not more than ``count``; none where size > n.
    """
    if size > n:
        return []
    if math.comb(n, size) <= count:
        return [*combinations(range(n), size)]
    subsets = {tuple(range(size)): None}
    while len(subsets) < count:
        subsets[tuple(sorted(rng.choice(n, size, replace=False).tolist()))] = None
    return [*subsets]


class CEIL(Method[CEILConfig]):
    """sets of neighbors scored whole; relevance is learned so that helpful sets have large determinants"""

    name: ClassVar[str] = "ceil"
    source: ClassVar[str] = "Ye et al. 2023, ICML, arXiv 2302.05698"
    config_class: ClassVar[type[TrainConfig]] = CEILConfig

    def __init__(self) -> None:
        self._scored: dict[int, list[ScoredSets]] = {}
        self._held_out: list[tuple[HeldOutSets, list[list[int]]]] | None = None

    def prompts(self, s: Session[CEILConfig]) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """EPR's prompts, unless that is trained, and those of subsets of the neighbors by the best embedder so far."""
        result, retriever = [], s.miner.embedder
        if trained_base(s) is None:
            if is_whole(self._first_folder(s)):
                retriever = checkpoint_retriever(self._first_folder(s), s, first_stage(s.config))
            else:
                result += EPR().prompts(self._first_session(s))
        for task in s.corpus.tasks:
            prompts = [prompt for *_, own in self._subsets(s, task, retriever, 0) for prompt in own]
            result.append((task, [*prompts, *random_sets(s, task)]))
        return result

    def check(self, s: Session[CEILConfig]) -> None:
        """That EPR's documents are read as CEIL's, that some query of each task has two sets to tell apart, and that
        there are held-out queries to choose a trade-off by."""
        if s.config.trade_offs and not s.corpus.has_held_out:
            raise UsageError(
                "trade_offs are told apart on held-out queries, and there are none; set held_out above 0, or "
                "trade_offs=[] and trade_off alone"
            )
        if base := trained_base(s):
            self._check_base(s, base)
        else:
            EPR().check(self._first_session(s))
        for task in s.corpus.tasks:
            queries = [s.corpus.examples[int(r)] for r in task.queries[:CHECKED_QUERIES]]
            most = max(map(len, self._neighbors(s, task, queries, s.miner.embedder)), default=0)
            if math.comb(most, s.config.shots) < 2:
                raise DataError(
                    f"task {task.name!r} has at most {most} neighbors for a query, and ceil needs two sets of "
                    f"shots={s.config.shots}; lower shots, raise neighbors, or add examples"
                )

    def stages(self, s: Session[CEILConfig]) -> list[TrainConfig]:
        """EPR, unless the base is that, and CEIL."""
        return [s.config] if trained_base(s) else [first_stage(s.config), s.config]

    def evaluation_prompts(self, s: Session[CEILConfig]) -> int:
        """Each evaluation has the set scored that the model chooses for each held-out query."""
        return len(self.variants(s)) * evaluation_prompt_count(s, sum(len(task.queries) for task in s.corpus.tasks))

    def variants(self, s: Session[CEILConfig]) -> list[CEILConfig]:
        """One for each of the trade-offs."""
        return [replace(s.config, trade_off=value) for value in s.config.trade_offs] or [s.config]

    def score(self, s: Session[CEILConfig]) -> None:
        """EPR's prompts, those of the subsets (for which EPR is trained, if the base is none), and of random sets."""
        self.gather(s, 0, None)
        for task in s.corpus.tasks:
            held_out_sets(s, task)

    def gather(self, s: Session[CEILConfig], iteration: int, retriever: Embedder | None) -> list[ScoredSets]:
        """Train EPR if need be, then score subsets of each query's neighbors; those of all iterations together."""
        nearest_by = retriever or self._first(s)
        for task in s.corpus.tasks:
            drawn = self._subsets(s, task, nearest_by, iteration)
            title = f"{task.name}: subsets"
            with report_savings(s, title):
                prompts = [prompt for *_, own in drawn for prompt in own]
                scores = iter(s.feedback.score(task, prompts, s.bar(title)))
            for row, neighbors, subsets, _ in drawn:
                values = [
                    (subset, feedback_value(answer, s.config.value, s.config.normalize))
                    for subset in subsets
                    if (answer := next(scores)) is not None
                ]
                ranked = tuple(sorted(values, key=lambda sv: (-sv[1], sv[0])))
                of_query = self._scored.setdefault(row, [])
                of_query[iteration:] = [ScoredSets(row, tuple(neighbors), ranked)]
        return [scored for of_query in self._scored.values() for scored in of_query]

    def start_from(self, s: Session[CEILConfig], base: str) -> str | Path:
        """EPR: the settings' ``base`` if that is a trained retriever, else the one trained first."""
        return base if trained_base(s) else self._first_folder(s)

    def selector(self, config: CEILConfig) -> Source:
        """The set with the largest determinant, as large as the subsets."""
        return Source(f"ceil,trade_off={config.trade_off:g}", config.shots)

    def batches(self, s: Session[CEILConfig], gathered: list[ScoredSets]) -> list[list[TrainingRow]]:
        """Epoch after epoch, a training row per query with all its subsets.

        Its values: the subsets' positions, best subset first, then the subsets' ranks; rows of -1 fill up.
        """
        used = [one for one in gathered if one.subsets and one.subsets[0][1] - one.subsets[-1][1] > _TIED]
        s.facts["queries"] = {"scored": len(gathered), "used": len(used)}
        if not used:
            return []
        n, m = max(len(one.neighbors) for one in used), max(len(one.subsets) for one in used)
        by_task: dict[str, list[TrainingRow]] = {}
        for one in used:
            positions = [p for subset, _ in one.subsets for p in subset]
            positions += [-1] * (s.config.shots * (m - len(one.subsets)))
            ranks = ranks_of([v for _, v in one.subsets])
            ranks += [m] * (m - len(ranks))
            documents = (*one.neighbors, *[one.neighbors[0]] * (n - len(one.neighbors)))
            row = TrainingRow(one.query, documents, tuple(map(float, (*positions, *ranks))))
            by_task.setdefault(s.task_of(one.query).name, []).append(row)
        batches: list[list[TrainingRow]] = []
        wanted, epoch = batches_for(s.config.max_steps), 0
        while (len(batches) < wanted) if wanted else (epoch < s.config.epochs):
            batches += in_batches(s, by_task, s.config.batch_size, epoch)
            epoch += 1
        return batches[: wanted or None]

    def loss(self, config: CEILConfig, queries: Tensor, documents: Tensor, batch: RetrieverBatch) -> Tensor:
        """The margin loss over the subsets of each query (section 3.3), mean over queries."""
        from torch.nn.functional import normalize

        from iclkit.trainers._losses import ceil_margin, dpp_parts, dpp_scores

        total, size = queries.new_zeros(()), config.shots
        for query, neighbors, values in zip(
            normalize(queries, dim=-1), normalize(documents, dim=-1), batch.values, strict=True
        ):
            count = len(values) // (size + 1)
            subsets, ranks = values[: count * size].long().view(count, size), values[count * size :]
            is_subset = subsets[:, 0] >= 0
            relevance, similarity = dpp_parts(query, neighbors)
            scores = dpp_scores(relevance, similarity, subsets[is_subset], config.trade_off)
            total = total + ceil_margin(scores, config.margin or None, ranks[is_subset])
        return total / len(queries)

    def gain(self, s: Session[CEILConfig], model: SentenceTransformer) -> float:
        """The gain of the sets that ``model`` finds among the first retriever's neighbors over random ones."""
        if self._held_out is None:
            first = self._first(s)
            parts = [held_out_sets(s, task) for task in s.corpus.tasks]
            self._held_out = [(part, self._neighbors(s, part.task, part.queries, first)) for part in parts]
        gains = []
        for part, every in self._held_out:
            rows = sorted({row for neighbors in every for row in neighbors})
            position = {row: n for n, row in enumerate(rows)}
            texts = [s.rendering.query(q.text, part.task.name) for q in part.queries]
            queries, documents = (_unit(v) for v in encode_with(s, model, texts, rows))
            sets = []
            for vector, neighbors in zip(queries, every, strict=True):
                items = documents[[position[row] for row in neighbors]]
                relevance = items @ vector
                order = dpp_order(relevance, items @ items.T, s.config.shots, s.config.trade_off)
                ranked = sorted(order, key=lambda i: (-round(float(relevance[i]), 6), neighbors[i]))
                sets.append([neighbors[i] for i in ranked])
            gains += part.gains(s, sets)
        return float(np.mean(gains)) if gains else 0.0

    @staticmethod
    def _neighbors(
        s: Session[CEILConfig], task: TaskData, queries: Sequence[Example], retriever: Embedder | None
    ) -> list[list[int]]:
        source = (Source("knn", s.config.neighbors),)
        rows = s.miner.mine(task, queries, source, cross_task=s.config.cross_task, embedder=retriever)
        return [r.tolist() for r in rows]

    def _subsets(
        self, s: Session[CEILConfig], task: TaskData, retriever: Embedder | None, iteration: int
    ) -> list[tuple[int, list[int], list[Subset], list[FeedbackPrompt]]]:
        """For each training query its row, its neighbors, subsets of them, and the subsets' prompts."""
        queries = [s.corpus.examples[int(r)] for r in task.queries]
        result = []
        for row, query, neighbors in zip(
            task.queries.tolist(), queries, self._neighbors(s, task, queries, retriever), strict=True
        ):
            rng = s.rng("ceil", "subsets", query.id, iteration)
            subsets = draw_subsets(len(neighbors), s.config.shots, s.config.subsets, rng)
            prompts = [set_prompt(s, query, [neighbors[p] for p in subset]) for subset in subsets]
            result.append((row, neighbors, subsets, prompts))
        return result

    def _first(self, s: Session[CEILConfig]) -> Embedder:
        """EPR: the base, if that is a trained retriever, else trained in ``epr`` of the work folder."""
        if base := trained_base(s):
            self._check_base(s, base)
            return base
        if not is_whole(self._first_folder(s)):
            self._train_first(s)
        return checkpoint_retriever(self._first_folder(s), s, first_stage(s.config))

    @staticmethod
    def _check_base(s: Session[CEILConfig], base: Retriever) -> None:
        if base.rendering.document != s.rendering.document:
            raise UsageError(
                f"base {s.config.base!r} reads documents as {base.rendering.document!r} and document is "
                f"{s.rendering.document!r}; set document={base.rendering.document}"
            )

    def _train_first(self, s: Session[CEILConfig]) -> None:
        import torch

        from iclkit.trainers._fit import fit_retriever, load_encoder, save_model, training_texts

        stage, epr = self._first_session(s), EPR()
        s.say("CEIL starts from EPR: training that first; a trained one can be given as base")
        gathered = epr.gather(stage, 0, None)
        torch.manual_seed(stage.config.seed)
        model = load_encoder(stage.config, stage.config.base)
        fitted = fit_retriever(
            stage.config,
            model,
            epr.batches(stage, gathered),
            training_texts(stage),
            epr.loss,
            stage.work,
            gain=(lambda m: epr.gain(stage, m)) if s.corpus.has_held_out else None,
            tracker=s.tracker,
            progress=s.bar("training, EPR"),
            say=s.say,
        )
        s.facts["epr"] = {**stage.facts, "steps": fitted["steps"], "best": fitted["best"]}
        if processes().is_main_process:
            save_model(model, self._first_folder(s))
            drop(stage.work / "checkpoints")
        processes().wait_for_everyone()

    @staticmethod
    def _first_session(s: Session[CEILConfig]) -> Session[EPRConfig]:
        return Session(
            first_stage(s.config), s.corpus, s.feedback, s.miner, s.rendering, s.work / "epr", s.say, s.bar, s.tracker
        )

    @staticmethod
    def _first_folder(s: Session[CEILConfig]) -> Path:
        return s.work / "epr" / "model"


def _unit(vectors: Any) -> Any:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
