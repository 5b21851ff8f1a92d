"""Scores in and out as JSONL: our own layout, LLM-R's and FlagEmbedding's, for scores made on another machine.

- ``iclkit``: a line per prompt, with every option's log-probability; nothing is lost.
- ``llm-r``: a line per query, as ``microsoft/LMOps``, ``llm_retriever``, writes them: ``query_id``, ``query``,
  ``answers``, ``task_name`` and ``positives``/``negatives`` with ``doc_id`` and ``score``. A document's id is its
  example's.
- ``flagembedding``: a line per query: ``query``, ``pos``, ``neg``, ``pos_scores``, ``neg_scores``; documents by text.
  Ours add ``query_id``, for inputs that stand in a pool more than once.

The last two hold prompts of one demonstration and one number each: the value in nats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from iclkit.errors import DataError, UnknownName
from iclkit.files import parse_json, read_text, replace_file, split_lines
from iclkit.records import Example
from iclkit.trainers._config import TrainConfig
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import ROUNDING, feedback_value
from iclkit.trainers._ledger import LabelScores
from iclkit.trainers._method import Session

LAYOUTS = ("iclkit", "llm-r", "flagembedding")


def export_scores(s: Session[TrainConfig], path: Path, layout: str = "iclkit") -> int:
    """Write what the ledger holds for this training's LM and tasks; the number of lines.

    UnknownName for a layout, DataError when the file cannot be written.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    lines = [line for task in s.corpus.tasks for line in _lines(s, task, layout)]
    try:
        replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror})") from error
    return len(lines)


def import_scores(s: Session[TrainConfig], path: Path) -> int:
    """Put a file's scores into the ledger, under this training's LM; the number of scores. The layout is seen from the
    fields.

    All or nothing: DataError names file, line and field of the first that cannot be used.
    """
    reader = _Reader(s, path)
    for number, line in split_lines(read_text(path)):
        reader.read(number, line)
    for task in s.corpus.tasks:
        if rows := reader.rows.get(task.name):
            s.feedback.ledger.put(s.feedback.scope(task), rows)
    return sum(map(len, reader.rows.values()))


def _lines(s: Session[TrainConfig], task: TaskData, layout: str) -> Iterable[dict[str, Any]]:
    known = {e.id: e for e in (*s.corpus.examples, *task.report)}
    queries = {e.id for e in _possible_queries(s, task)}  # tasks with one template and label set share a scope
    by_query: dict[str, list[tuple[str, float]]] = {}
    for query, shown, scores in s.feedback.ledger.rows(s.feedback.scope(task)):
        if query not in queries or any(i not in known for i in shown):
            continue
        if layout == "iclkit":
            yield {
                "task": task.name, "query": query, "shown": [*shown], "options": [*s.feedback.scope(task).options],
                "logprobs": [*scores.logprobs], "tokens": [*scores.tokens], "gold": scores.gold,
            }  # fmt: skip
        elif len(shown) == 1:
            value = feedback_value(scores, s.config.value, s.config.normalize)
            by_query.setdefault(query, []).append((shown[0], value))
    for query, candidates in by_query.items():
        ranked = sorted(candidates, key=lambda iv: (-iv[1], iv[0]))
        best, rest = ranked[: s.config.exported_positives], ranked[s.config.exported_positives :]
        if layout == "llm-r":
            parts = {
                name: {"doc_id": [i for i, _ in part], "score": [v for _, v in part]}
                for name, part in (("positives", best), ("negatives", rest))
            }
            yield {
                "query_id": query, "query": known[query].text, "answers": [known[query].output],
                "task_name": task.name, **parts,
            }  # fmt: skip
        else:
            yield {
                "query": known[query].text, "query_id": query,
                "pos": [_document(known[i]) for i, _ in best], "neg": [_document(known[i]) for i, _ in rest],
                "pos_scores": [v for _, v in best], "neg_scores": [v for _, v in rest],
            }  # fmt: skip


def _possible_queries(s: Session[TrainConfig], task: TaskData) -> list[Example]:
    """What can be a query of a task: its training queries, held-out ones, report rows, then its other rows."""
    rows = dict.fromkeys([*task.queries.tolist(), *task.held_out.tolist(), *task.rows.tolist()])
    examples = [s.corpus.examples[r] for r in rows]
    drawn = len(task.queries) + len(task.held_out)
    return [*examples[:drawn], *task.report, *examples[drawn:]]


def _document(example: Example) -> str:
    return f"{example.text}\n{example.output}"


class _Reader:
    """Lines of any layout to ledger rows, by task; texts and ids are looked up in the pool.

    A text that stands there more than once means the row that is a query, and a document of the query's task.
    """

    def __init__(self, s: Session[TrainConfig], path: Path) -> None:
        self.s, self.path = s, path
        self.rows: dict[str, list[tuple[str, list[str], LabelScores]]] = {}
        self._query: dict[str, tuple[TaskData, Example]] = {}
        self._text: dict[str, str] = {}
        self._document: dict[str, str] = {}
        self._shown: dict[tuple[str, str], str] = {}
        self._ids = {e.id for e in s.corpus.examples}
        for task in s.corpus.tasks:
            for e in _possible_queries(s, task):
                self._query.setdefault(e.id, (task, e))
                self._text.setdefault(e.text, e.id)
            for e in (s.corpus.examples[r] for r in task.rows.tolist()):
                self._document.setdefault(_document(e), e.id)
                self._shown.setdefault((task.name, _document(e)), e.id)

    def read(self, number: int, line: str) -> None:
        """One line. DataError for one that cannot be used."""
        where = f"{self.path}, line {number}"
        data = parse_json(line, where)
        if not isinstance(data, dict):
            raise DataError(f"{where}: not an object with fields")
        if "logprobs" in data:
            self._own(_Line(where, data))
        elif "positives" in data:
            self._llm_r(_Line(where, data))
        elif "pos" in data:
            self._flagembedding(_Line(where, data))
        else:
            raise DataError(f"{where}: has neither field logprobs, positives nor pos; see the layouts of scores")

    def _own(self, line: _Line) -> None:
        task, query = self._query_of(line, "query")
        if line.text("task") != task.name:
            line.fail("task", f"is {line.text('task')!r}, and the query is of task {task.name!r}")
        options = [*self.s.feedback.scope(task).options]
        if line.get("options") != options:
            line.fail("options", f"is {line.get('options')!r}, and for task {task.name!r} it is {options}")
        answers = self.s.feedback.options(task, query)
        logprobs, tokens = line.numbers("logprobs", len(answers)), line.numbers("tokens", len(answers))
        if any(not 1 <= t < 1 << 32 or t != int(t) for t in tokens):
            line.fail("tokens", f"is {line.get('tokens')!r}; give whole numbers from 1 on")
        if any(value > ROUNDING * count for value, count in zip(logprobs, tokens, strict=True)):
            line.fail("logprobs", f"is {line.get('logprobs')!r}; log-probabilities are at most 0")
        gold = answers.index(query.output)
        if line.get("gold") != gold:
            line.fail("gold", f"is {line.get('gold')!r}, and the query's output is option {gold}")
        self._keep(task, query, self._documents(line, "shown"), LabelScores((*logprobs,), (*map(int, tokens),), gold))

    def _llm_r(self, line: _Line) -> None:
        task, query = self._query_of(line, "query_id")
        for name in ("positives", "negatives"):
            part = _Line(line.where, line.get(name), f"{name}.")
            shown = self._documents(part, "doc_id")
            for example_id, score in zip(shown, part.numbers("score", len(shown)), strict=True):
                self._keep(task, query, [example_id], LabelScores((score,), (1,), 0))

    def _flagembedding(self, line: _Line) -> None:
        if "query_id" in line.data:
            task, query = self._query_of(line, "query_id")
        else:
            text = line.text("query")
            if text not in self._text:
                line.fail("query", f"is {text[:60]!r}, which the pool does not hold")
            task, query = self._query[self._text[text]]
        for name in ("pos", "neg"):
            documents = line.texts(name)
            for text, score in zip(documents, line.numbers(f"{name}_scores", len(documents)), strict=True):
                found = self._shown.get((task.name, text)) or self._document.get(text)
                if found is None:
                    line.fail(name, f"names {text[:60]!r}, which the pool does not hold")
                self._keep(task, query, [found], LabelScores((score,), (1,), 0))

    def _keep(self, task: TaskData, query: Example, shown: Sequence[str], scores: LabelScores) -> None:
        self.rows.setdefault(task.name, []).append((query.id, [*shown], scores))

    def _query_of(self, line: _Line, field: str) -> tuple[TaskData, Example]:
        query = self._query.get(line.text(field))
        if query is None:
            line.fail(field, f"names {line.text(field)[:60]!r}, which the pool does not hold")
        return query

    def _documents(self, line: _Line, field: str) -> list[str]:
        shown = line.texts(field)
        for example_id in shown:
            if example_id not in self._ids:
                line.fail(field, f"names {example_id[:60]!r}, which the pool does not hold")
        return shown


class _Line:
    """One line's fields, checked; errors name file, line and field."""

    def __init__(self, where: str, data: Any, prefix: str = "") -> None:
        self.where, self.data, self._prefix = where, data, prefix
        if not isinstance(data, Mapping):
            raise DataError(f"{where}: field {prefix[:-1]} is {str(data)[:60]!r}, not an object with fields")

    def fail(self, field: str, what: str) -> NoReturn:
        raise DataError(f"{self.where}: field {self._prefix}{field} {what}")

    def get(self, field: str) -> Any:
        if field not in self.data:
            self.fail(field, "is missing")
        return self.data[field]

    def text(self, field: str) -> str:
        found = self.get(field)
        if not isinstance(found, str):
            self.fail(field, f"is {str(found)[:60]!r}, not a text")
        return found

    def texts(self, field: str) -> list[str]:
        found = self.get(field)
        if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
            self.fail(field, f"is {str(found)[:60]!r}, not a list of texts")
        return found

    def numbers(self, field: str, count: int) -> list[float]:
        found = self.get(field)
        if not isinstance(found, list) or not all(_is_number(x) for x in found):
            self.fail(field, f"is {str(found)[:60]!r}, not a list of numbers")
        if len(found) != count:
            self.fail(field, f"has {len(found)} numbers; {count} are wanted")
        return [float(x) for x in found]


def _is_number(value: object) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE


_HUGE = 1e300  # beyond what a score can be, and below what a float cannot hold
