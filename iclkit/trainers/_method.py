"""A training method: the prompts it has scored, what is learned from the scores, and how a model is evaluated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder, Retriever, RetrieverFormat
from iclkit.errors import RunError
from iclkit.records import Example, Progress, digest
from iclkit.trainers._config import Source, TrainConfig, evaluation_interval, sources
from iclkit.trainers._data import TaskData, TrainingData
from iclkit.trainers._feedback import Feedback, FeedbackPrompt, feedback_value
from iclkit.trainers._mine import Miner

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from iclkit.trainers._batch import RetrieverBatch, TrainingRow

ConfigT = TypeVar("ConfigT", bound=TrainConfig)
ConfigT_co = TypeVar("ConfigT_co", bound=TrainConfig, covariant=True)
CHECKED_QUERIES = 64  # of each task, whose candidates are looked at before anything is scored
TRIED = 20_000  # texts of a kind whose tokens are counted before a training
_ROOM = 1.1  # how much longer the vector of a later demonstration may be than the longest one now
OTHER = -100.0  # nats added to the value of a candidate of another task or label (LLM-R, appendix)
FloatArray = NDArray[np.float64]
Side = Literal["query", "document"]
RankedCandidates = dict[int, list[tuple[int, float]]]
"""Query row -> (candidate row, value in nats), best first; equal values in the order of rows."""


@dataclass
class Session(Generic[ConfigT_co]):
    """A training under way: data, settings, the LM's feedback, and the work folder.

    ``facts`` collects what the card says about the data, such as how many queries were used.
    """

    config: ConfigT_co
    corpus: TrainingData
    feedback: Feedback
    miner: Miner
    rendering: RetrieverFormat
    work: Path
    say: Callable[[str], None] = print
    bar: Callable[[str], Progress | None] = lambda title: None  # noqa: ARG005
    tracker: str = "none"
    facts: dict[str, Any] = field(default_factory=dict)

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator for one purpose, keyed by the seed and names: no draw depends on another."""
        return np.random.default_rng(int(digest([self.config.seed, *key], 8), 16))

    def query_text(self, row: int, chosen: Sequence[int] = ()) -> str:
        """What the encoder reads of a query row behind chosen rows, first chosen first."""
        examples = self.corpus.examples
        return self.rendering.query(examples[row].text, self.task_of(row).name, [examples[c] for c in chosen])

    def document_text(self, row: int) -> str:
        """What the encoder reads of a demonstration."""
        return self.rendering.example(self.corpus.examples[row], self.task_of(row).name)

    def task_of(self, row: int) -> TaskData:
        """The task that a row belongs to."""
        return self.corpus.tasks[int(self._task_numbers[row])]

    @cached_property
    def _task_numbers(self) -> NDArray[np.int64]:
        return self.corpus.task_numbers()


class Method(ABC, Generic[ConfigT]):
    """A training method.

    ``gather`` has the LM score prompts (through the ledger, so that none is scored twice), ``batches`` and ``loss`` say
    what is learned from the scores, ``gain`` how good a model is on queries that it has not learned from.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    config_class: ClassVar[type[TrainConfig]]

    @abstractmethod
    def prompts(self, s: Session[ConfigT]) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """The prompts of the first iteration that can be named before any is scored, for the cost estimate."""

    @abstractmethod
    def check(self, s: Session[ConfigT]) -> None:
        """DataError or UsageError, before any prompt is scored, when nothing can be learned whatever the scores."""

    def stages(self, s: Session[ConfigT]) -> list[TrainConfig]:
        """The configs of the bi-encoders that are trained one after the other, each from its ``base``."""
        return [s.config]

    def variants(self, s: Session[ConfigT]) -> list[ConfigT]:
        """The configs that an iteration is trained with one by one; the best on held-out queries is kept."""
        return [s.config]

    def texts(self, s: Session[ConfigT]) -> list[tuple[str, Side, list[str]]]:
        """The texts that the encoder reads in a training: what they are, their side, and themselves; some of very
        many."""
        rows = [int(r) for task in s.corpus.tasks for r in (*task.queries, *task.held_out)]
        return [
            ("queries", "query", [s.query_text(r) for r in some_of(rows)]),
            ("demonstrations", "document", [s.document_text(r) for r in some_of(range(len(s.corpus.view)))]),
        ]

    def evaluation_prompts(self, s: Session[ConfigT]) -> int:  # noqa: ARG002
        """The most prompts that evaluations of a training have scored beyond those of ``prompts``."""
        return 0

    def score(self, s: Session[ConfigT]) -> None:
        """Have the LM score what ``prompts`` names, and no more."""
        for task, prompts in self.prompts(s):
            s.feedback.score(task, prompts, s.bar(f"{task.name}: feedback"))

    @abstractmethod
    def gather(self, s: Session[ConfigT], iteration: int, retriever: Embedder | None) -> Any:
        """The scores that an iteration needs; ``retriever``: the one of the iteration before."""

    def start_from(self, s: Session[ConfigT], base: str) -> str | Path:  # noqa: ARG002
        """The folder of the encoder that training starts from, once ``gather`` is done; ``base``: the settings'."""
        return base

    def selector(self, config: ConfigT) -> Source:  # noqa: ARG002
        """The selector that the retriever is trained for, and how many demonstrations it learns to choose."""
        return Source("knn", 1)

    @abstractmethod
    def batches(self, s: Session[ConfigT], gathered: Any) -> list[list[TrainingRow]]:
        """All batches in the order of training; equal settings and scores give equal batches."""

    @abstractmethod
    def loss(self, config: ConfigT, queries: Tensor, documents: Tensor, batch: RetrieverBatch) -> Tensor:
        """A scalar: the loss of queries (b, d) with their documents (b, m, d), positives first."""

    @abstractmethod
    def gain(self, s: Session[ConfigT], model: SentenceTransformer) -> float:
        """The LM gain (nats) of choosing with ``model`` over choosing at random, on held-out queries."""


def some_of(rows: Sequence[int]) -> Sequence[int]:
    """The rows; of more than 20,000 every second, third … one: few enough to look at their texts before a training."""
    return rows[:: 1 + len(rows) // TRIED]


def evaluation_prompt_count(s: Session[TrainConfig], rows: int) -> int:
    """How many prompts evaluations have scored, where each asks one of every held-out query; ``rows``: of an epoch.

    One evaluation comes before training.
    """
    config = s.config
    steps = config.max_steps or max(1, math.ceil(config.epochs * rows / config.batch_size))
    evaluations = 2 + steps // evaluation_interval(config, steps)
    return config.iterations * evaluations * sum(len(task.held_out) for task in s.corpus.tasks)


def candidate_sources(config: TrainConfig, retriever: Embedder | None) -> tuple[Source, ...]:
    """The sources of candidates; with a retriever as many of its nearest, by inputs, instead."""
    configured = sources(config.candidates)
    return configured if retriever is None else (Source("knn", sum(source.count for source in configured)),)


def mine_candidates(
    s: Session[TrainConfig], task: TaskData, queries: Sequence[Example], retriever: Embedder | None = None
) -> list[list[int]]:
    """Candidate rows of each query by the configured sources; with a retriever, its nearest instead."""
    rows = s.miner.mine(
        task, queries, candidate_sources(s.config, retriever), cross_task=s.config.cross_task, embedder=retriever
    )
    return [r.tolist() for r in rows]


def candidate_prompts(
    s: Session[TrainConfig], queries: Sequence[Example], candidates: Sequence[Sequence[int]]
) -> list[FeedbackPrompt]:
    """One prompt per query and candidate."""
    return [
        FeedbackPrompt(q, (s.corpus.examples[r],)) for q, rows in zip(queries, candidates, strict=True) for r in rows
    ]


def score_candidates(
    s: Session[TrainConfig],
    task: TaskData,
    queries: Sequence[Example],
    candidates: Sequence[Sequence[int]],
    title: str,
) -> list[list[tuple[int, float]]]:
    """For each query its candidates with their values (nats), best first; those without a score are left out.

    With ``cross_task``, the value of a candidate of another task is 100 nats less (LLM-R, appendix).
    """
    scores = iter(s.feedback.score(task, candidate_prompts(s, queries, candidates), s.bar(title)))
    result = []
    for rows in candidates:
        ranked = []
        for row in rows:
            answer = next(scores)
            if answer is not None:
                other_task = s.task_of(row).name != task.name
                value = feedback_value(answer, s.config.value, s.config.normalize)
                ranked.append((row, value + OTHER * other_task))
        result.append(sorted(ranked, key=lambda rv: (-rv[1], rv[0])))
    return result


@dataclass
class HeldOutQueries:
    """Held-out queries with their candidates, all scored: choosing among them costs no LM call."""

    task: TaskData
    queries: list[Example]
    ranked: list[list[tuple[int, float]]]


def held_out(s: Session[TrainConfig], title: str = "held-out queries") -> list[HeldOutQueries]:
    """The held-out queries of every task, scored once."""
    result = []
    for task in s.corpus.tasks:
        queries = [s.corpus.examples[int(r)] for r in task.held_out]
        ranked = score_candidates(s, task, queries, mine_candidates(s, task, queries), f"{task.name}: {title}")
        kept = [(q, r) for q, r in zip(queries, ranked, strict=True) if len(r) > 1]
        result.append(HeldOutQueries(task, [q for q, _ in kept], [r for _, r in kept]))
    return result


def encode_with(
    s: Session[TrainConfig], model: SentenceTransformer, queries: Sequence[str], rows: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Vectors of query texts and of rows by the model in training; unit rows where it is trained on cosines."""
    documents = [s.document_text(r) for r in rows]
    options = {"batch_size": 64, "show_progress_bar": False}
    q = np.asarray(model.encode_query([*queries], **options), np.float64)
    d = np.asarray(model.encode_document(documents, **options), np.float64)
    if not (np.isfinite(q).all() and np.isfinite(d).all()):
        raise RunError("the model in training gives vectors that are not finite; lower learning_rate, with --restart")
    return q, d


def candidate_gain(s: Session[TrainConfig], model: SentenceTransformer, parts: Sequence[HeldOutQueries]) -> float:
    """Mean over queries of (value of the model's best candidate - mean value of the candidates), in nats.

    Of candidates that the model ranks equally (to 1e-6) the one of the lower row is taken.
    """
    gains = []
    for part in parts:
        rows = sorted({row for ranked in part.ranked for row, _ in ranked})
        position = {row: n for n, row in enumerate(rows)}
        texts = [s.rendering.query(q.text, part.task.name) for q in part.queries]
        queries, documents = encode_with(s, model, texts, rows)
        for vector, ranked in zip(queries, part.ranked, strict=True):
            candidates = sorted(ranked)  # by row: in the LM's order a tie would go to the candidate that it likes best
            scores = documents[[position[row] for row, _ in candidates]] @ vector
            values = np.array([value for _, value in candidates])
            gains.append(float(values[int(np.argmax(np.round(scores, 6)))] - values.mean()))
    return float(np.mean(gains)) if gains else 0.0


def in_batches(
    s: Session[TrainConfig], by_task: Mapping[str, list[Any]], size: int, epoch: int, *, power: float = 1.0
) -> list[list[Any]]:
    """One epoch's batches, each of one task, in random order.

    A task with share q of the rows gets batches in proportion to q^power (UDR: 0.5), the total staying the same; a
    task that gets more than it has goes round again.
    """
    total = sum(map(len, by_task.values()))
    if not total:
        return []
    weights = {name: (len(rows) / total) ** power for name, rows in by_task.items() if rows}
    scale = sum(weights.values())
    batches: list[list[Any]] = []
    for name, weight in weights.items():
        rows, rng = by_task[name], s.rng("order", name, epoch)
        wanted = max(1, round(weight / scale * total)) if power != 1.0 else len(rows)
        rounds = -(-wanted // len(rows))
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)])[:wanted]
        batches += [[rows[i] for i in order[at : at + size]] for at in range(0, wanted, size)]
    return [batches[i] for i in s.rng("batches", epoch).permutation(len(batches))]


def checkpoint_retriever(folder: Path, s: Session[TrainConfig], config: TrainConfig | None = None) -> Retriever:
    """The retriever saved in a folder, reading texts and ranking as in this training.

    ``config``: of its training, where that is another than the session's. For inner products the format gets a radius
    that holds every demonstration (see ``RetrieverFormat.radius``). RunError for vectors that are not finite.
    """
    from iclkit.embed import load_embedder

    retriever = Retriever.over(load_embedder(str(folder), dtype="fp32"), replace(s.rendering, radius=0.0))
    if (config or s.config).similarity != "dot":
        return retriever
    lengths = retriever.document_lengths([s.document_text(row) for row in range(len(s.corpus.view))])
    if not np.isfinite(lengths).all():
        raise RunError(f"the model in {folder} gives vectors that are not finite; train again with --restart")
    return Retriever.over(retriever, replace(s.rendering, radius=_ROOM * float(lengths.max())))


def trained_base(s: Session[Any]) -> Retriever | None:
    """The base that training starts from where it is a trained retriever itself."""
    return s.miner.embedder if isinstance(s.miner.embedder, Retriever) else None
