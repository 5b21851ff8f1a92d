"""What a training method decides: which prompts the LM scores, what is learnt from them, and how it would choose."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder, Retriever, RetrieverFormat
from iclkit.errors import RunError
from iclkit.records import Example, Progress, digest
from iclkit.trainers._config import Source, TrainConfig, judged_every, sources
from iclkit.trainers._data import TaskData, TrainingData
from iclkit.trainers._feedback import Feedback, FeedbackPrompt, value
from iclkit.trainers._mine import Miner

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from iclkit.trainers._fit import Loss, TrainingRow

TRIED = 64  # queries of a course that are looked at before anything is asked, to see whether they can teach
_ROOM = 1.1  # how much longer a vector of a later demonstration may be than the longest one now
FloatArray = NDArray[np.float64]
RankedCandidates = dict[int, list[tuple[int, float]]]
"""Query row -> (candidate row, value in nats), best first; equal values in the order of rows."""


@dataclass
class Session:
    """One training under way: data, settings, the LM's feedback, and where to keep work."""

    config: TrainConfig
    corpus: TrainingData
    feedback: Feedback
    miner: Miner
    rendering: RetrieverFormat
    work: Path
    say: Callable[[str], None] = print
    bar: Callable[[str], Progress | None] = lambda title: None  # noqa: ARG005
    tracker: str = "none"
    facts: dict[str, Any] = field(default_factory=dict)
    """What the card will tell: counts of what was dropped and why."""

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator for one purpose, keyed by the seed and names: no draw depends on another."""
        return np.random.default_rng(int(digest([self.config.seed, *key], 8), 16))

    def query_text(self, row: int, chosen: Sequence[int] = ()) -> str:
        """What the encoder reads of a query row behind chosen rows, first chosen first."""
        course = self.course_of(row)
        examples = self.corpus.examples
        return self.rendering.query(examples[row].text, course.name, [examples[c] for c in chosen])

    def document_text(self, row: int) -> str:
        """What the encoder reads of a demonstration."""
        return self.rendering.example(self.corpus.examples[row], self.course_of(row).name)

    def course_of(self, row: int) -> TaskData:
        """The course a row belongs to."""
        return self.corpus.courses[int(self._courses[row])]

    @cached_property
    def _courses(self) -> NDArray[np.int64]:
        return self.corpus.course_of()


class Method(ABC):
    """A strategy for training. ``gather`` asks the LM (through the ledger: nothing is asked twice), ``lessons`` and
    ``objective`` say what is learnt, ``measure`` how good a model is on queries it has not learnt from."""

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @abstractmethod
    def plan(self, s: Session) -> list[tuple[TaskData, list[FeedbackPrompt]]]:
        """The prompts of the first iteration that can be named before any is scored, for the price."""

    @abstractmethod
    def check(self, s: Session) -> None:
        """Before anything is asked: DataError or UsageError when nothing can be learnt, whatever the LM will say."""

    def stages(self, s: Session) -> list[TrainConfig]:
        """The settings of the bi-encoders that are trained one after the other, each from the settings' ``base``."""
        return [s.config]

    def judging(self, s: Session) -> int:  # noqa: ARG002
        """At most how many prompts a training's judgements ask that ``plan`` does not name."""
        return 0

    def score(self, s: Session) -> None:
        """Ask the LM all that ``plan`` names, and no more."""
        for course, asks in self.plan(s):
            s.feedback.tell(course, asks, s.bar(f"{course.name}: feedback"))

    @abstractmethod
    def gather(self, s: Session, iteration: int, retriever: Embedder | None) -> Any:
        """Score what this iteration needs; ``retriever``: the one of the iteration before."""

    def start(self, s: Session, base: Path) -> Path:  # noqa: ARG002
        """The folder of the encoder that training starts from, once ``gather`` is done; ``base``: the settings'."""
        return base

    def chooser(self, config: TrainConfig) -> Source:  # noqa: ARG002
        """The selector that the trained retriever is meant for, and how many demonstrations it learns to choose."""
        return Source("knn", 1)

    @abstractmethod
    def batches(self, s: Session, gathered: Any) -> list[list[TrainingRow]]:
        """All batches in the order of training; equal settings and scores give equal batches."""

    @abstractmethod
    def objective(self, config: TrainConfig) -> Loss:
        """The loss of a batch."""

    @abstractmethod
    def measure(self, s: Session, model: SentenceTransformer) -> float:
        """The LM gain (nats) of choosing with ``model`` over choosing at random, on held-out queries."""


def judgings(s: Session, lessons: int) -> int:
    """How many prompts judging asks, where each judgement asks one for each held-out query; ``lessons``: of an epoch.

    One judgement comes before training.
    """
    config = s.config
    steps = config.max_steps or max(1, math.ceil(config.epochs * lessons / config.batch_size))
    looks = 2 + steps // judged_every(config, steps)
    return config.iterations * looks * sum(len(c.held_out) for c in s.corpus.courses)


def mined(
    s: Session, course: TaskData, queries: Sequence[Example], retriever: Embedder | None = None
) -> list[list[int]]:
    """Candidate rows of each query by the configured sources; with a retriever, its nearest instead."""
    found = sources(s.config.candidates)
    if retriever is not None:
        found = (type(found[0])("knn", sum(f.count for f in found)),)
    rows = s.miner.mine(course, queries, found, cross_task=s.config.cross_task, embedder=retriever)
    return [r.tolist() for r in rows]


def asks_of(s: Session, queries: Sequence[Example], candidates: Sequence[Sequence[int]]) -> list[FeedbackPrompt]:
    """One prompt per query and candidate."""
    return [
        FeedbackPrompt(q, (s.corpus.examples[r],)) for q, rows in zip(queries, candidates, strict=True) for r in rows
    ]


def score_candidates(
    s: Session, course: TaskData, queries: Sequence[Example], candidates: Sequence[Sequence[int]], title: str
) -> list[list[tuple[int, float]]]:
    """For each query its candidates with their values (nats), best first; those that fit no prompt are left out.

    With ``cross_task``, a candidate of another task is worth 100 nats less (LLM-R, appendix).
    """
    told = iter(s.feedback.tell(course, asks_of(s, queries, candidates), s.bar(title)))
    out = []
    for rows in candidates:
        own = []
        for row in rows:
            answer = next(told)
            if answer is not None:
                foreign = s.course_of(row).name != course.name
                own.append((row, value(answer, s.config.value, s.config.normalise) - 100.0 * foreign))
        out.append(sorted(own, key=lambda rv: (-rv[1], rv[0])))
    return out


@dataclass
class HeldOutQueries:
    """Queries apart from training with their candidates, all scored: choosing among them costs no LM call."""

    course: TaskData
    queries: list[Example]
    ranked: list[list[tuple[int, float]]]


def held_out(s: Session, title: str = "held-out queries") -> list[HeldOutQueries]:
    """The held-out queries of every course, scored once."""
    out = []
    for course in s.corpus.courses:
        queries = [s.corpus.examples[int(r)] for r in course.held_out]
        ranked = score_candidates(s, course, queries, mined(s, course, queries), f"{course.name}: {title}")
        kept = [(q, r) for q, r in zip(queries, ranked, strict=True) if len(r) > 1]
        out.append(HeldOutQueries(course, [q for q, _ in kept], [r for _, r in kept]))
    return out


def encode_with(
    s: Session, model: SentenceTransformer, queries: Sequence[str], rows: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Vectors of query texts and of rows as the model in training gives them; normalised by the model for cosines."""
    documents = [s.document_text(r) for r in rows]
    options = {"batch_size": 64, "show_progress_bar": False}
    q = np.asarray(model.encode_query([*queries], **options), np.float64)
    d = np.asarray(model.encode_document(documents, **options), np.float64)
    if not (np.isfinite(q).all() and np.isfinite(d).all()):
        raise RunError("the model in training gives vectors that are not finite; lower learning_rate, with --restart")
    return q, d


def candidate_gain(s: Session, model: SentenceTransformer, parts: Sequence[HeldOutQueries]) -> float:
    """Mean over queries of (value of the model's best candidate - mean value of the candidates), in nats.

    Of candidates that the model ranks equally (to 1e-6) the one of the lower row is taken, whatever the LM says of it.
    """
    gains = []
    for part in parts:
        rows = sorted({r for own in part.ranked for r, _ in own})
        at = {r: n for n, r in enumerate(rows)}
        texts = [s.rendering.query(q.text, part.course.name) for q in part.queries]
        queries, documents = encode_with(s, model, texts, rows)
        for vector, ranked in zip(queries, part.ranked, strict=True):
            own = sorted(ranked)  # by row: in the LM's order, a tie would go to the candidate that the LM likes best
            near = documents[[at[r] for r, _ in own]] @ vector
            values = np.array([v for _, v in own])
            gains.append(float(values[int(np.argmax(np.round(near, 6)))] - values.mean()))
    return float(np.mean(gains)) if gains else 0.0


def in_batches(
    s: Session, by_course: Mapping[str, list[Any]], size: int, epoch: int, *, power: float = 1.0
) -> list[list[Any]]:
    """One epoch's batches, each of one task, in random order.

    A task with share q of the lessons gets batches in proportion to q^power (UDR: 0.5), the total staying the same;
    a task that gets more than it has goes round again.
    """
    total = sum(map(len, by_course.values()))
    if not total:
        return []
    weights = {name: (len(rows) / total) ** power for name, rows in by_course.items() if rows}
    scale = sum(weights.values())
    batches: list[list[Any]] = []
    for name, weight in weights.items():
        rows, rng = by_course[name], s.rng("order", name, epoch)
        wanted = max(1, round(weight / scale * total)) if power != 1.0 else len(rows)
        rounds = -(-wanted // len(rows))
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)])[:wanted]
        batches += [[rows[i] for i in order[at : at + size]] for at in range(0, wanted, size)]
    return [batches[i] for i in s.rng("batches", epoch).permutation(len(batches))]


def checkpoint_retriever(folder: Path, s: Session, config: TrainConfig | None = None) -> Retriever:
    """The retriever saved in a folder, reading texts as this training writes them and ranking as it was trained.

    ``config``: of its training, where that is another than the session's. For inner products the rendering gets a
    radius that holds every demonstration (see ``RetrieverFormat.radius``). RunError for vectors that are not finite.
    """
    from iclkit.embed import load_embedder

    embedder = load_embedder(str(folder), dtype="fp32")
    inner: Any = embedder.inner if isinstance(embedder, Retriever) else embedder
    rendering = replace(s.rendering, radius=0.0)
    if (config or s.config).similarity == "dot":
        lengths = np.linalg.norm(inner.encode_raw([s.document_text(row) for row in range(len(s.corpus.view))]), axis=1)
        if not np.isfinite(lengths).all():
            raise RunError(f"the model in {folder} gives vectors that are not finite; train again with --restart")
        rendering = replace(rendering, radius=_ROOM * float(lengths.max()))
    return Retriever(inner, rendering, {})
