"""Which comparisons are tested together: questions declared beforehand, a task's table, or everything explored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iclkit.errors import UsageError
from iclkit.eval import false_discovery, holm

CORRECTIONS = ("task", "board", "fdr", "fdr-any")
DECLARED, EXPLORED, CORRECTED = "declared", "explored", "corrected"


@dataclass(frozen=True, slots=True)
class Primary:
    """A question declared beforehand: does this line differ from the baseline, at every k or at one; on one task, or
    over all of them where there are several."""

    line: str
    k: int | None = None
    task: str = ""

    @classmethod
    def parse(cls, text: str) -> Primary:
        """``NAME``, ``NAME@K`` or either with `` on TASK`` behind it; UsageError for a K that is no number."""
        what, on, task = text.partition(" on ")
        name, at, k = what.rpartition("@")
        if at and not k.isdecimal():
            raise UsageError(f"--primary {text}: expected NAME or NAME@K, such as knn, knn@8 or 'knn@8 on TASK'")
        return cls(name if at else what, int(k) if at else None, task if on else "")

    def __str__(self) -> str:
        return (self.line if self.k is None else f"{self.line}@{self.k}") + (f" on {self.task}" if self.task else "")

    def matches(self, line: str, k: int, task: str) -> bool:
        """Whether a table's line answers it; the ``task`` of a line over all tasks is empty."""
        return line == self.line and self.k in (None, k) and self.task in ("", task)


class UnansweredQuestion(UsageError):
    """A declared question that nothing on the board answers."""

    def __init__(self, question: str, reason: str) -> None:
        self.question = question
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Question:
    """One comparison. ``family`` is what it is corrected with unless questions were declared."""

    p: float
    family: str
    primary: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's corrected p-value, or q-value, and the level that its own p-value had to meet.

    ``kind``: ``declared``, ``explored`` (then ``p`` is a q-value) or ``corrected``; ``among`` is how many were tested
    together.
    """

    p: float
    kind: str
    level: float
    among: int


def answer(questions: Sequence[Question], correction: str, alpha: float) -> list[Answer]:
    """Corrected answers, in the order of the questions.

    With primary questions: Holm among these alone, whatever else is on the board, so that no further task, selector or
    k takes power from them; everything else is explored, by false discovery rate. Without: Holm within each family
    (``task``) or over all (``board``), or the false discovery rate over all (``fdr``; ``fdr-any``: any dependence).
    """
    if correction not in CORRECTIONS:
        raise UsageError(f"correction is {correction!r}; choose from {', '.join(CORRECTIONS)}")
    primary = [i for i, q in enumerate(questions) if q.primary]
    rest = [i for i, q in enumerate(questions) if not q.primary]
    found: dict[int, Answer] = {}
    if primary:
        found |= _holm(questions, primary, alpha, DECLARED)
    if primary or correction.startswith("fdr"):
        values = false_discovery([questions[i].p for i in rest], any_dependence=correction == "fdr-any")
        rejected = max(1, sum(q <= alpha for q in values))
        found |= {
            i: Answer(q, EXPLORED, alpha * rejected / len(rest), len(rest)) for i, q in zip(rest, values, strict=True)
        }
        return [found[i] for i in range(len(questions))]
    families: dict[str, list[int]] = {}
    for i in rest:
        families.setdefault(questions[i].family if correction == "task" else "", []).append(i)
    for members in families.values():
        found |= _holm(questions, members, alpha, CORRECTED)
    return [found[i] for i in range(len(questions))]


def _holm(questions: Sequence[Question], members: Sequence[int], alpha: float, kind: str) -> dict[int, Answer]:
    adjusted = holm([questions[i].p for i in members])
    return {i: Answer(p, kind, alpha / len(members), len(members)) for i, p in zip(members, adjusted, strict=True)}
