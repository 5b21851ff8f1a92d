"""Scores in and out as JSONL: our own layout, LLM-R's and FlagEmbedding's, for scores made on another machine.

- ``iclkit``: a line per prompt, with every option's log-probability; nothing is lost.
- ``llm-r``: a line per query, as ``microsoft/LMOps``, ``llm_retriever``, writes them: ``query_id``, ``query``,
  ``answers``, ``task_name`` and ``positives``/``negatives`` with ``doc_id`` and ``score``. A document's id is its
  example's.
- ``flagembedding``: a line per query: ``query``, ``pos``, ``neg``, ``pos_scores``, ``neg_scores``; documents by text.

The last two hold prompts of one demonstration and one number each: the value in nats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, UnknownName
from iclkit.records import Example
from iclkit.trainers._corpus import Course
from iclkit.trainers._feedback import value
from iclkit.trainers._ledger import Told
from iclkit.trainers._method import Session

LAYOUTS = ("iclkit", "llm-r", "flagembedding")


def export_scores(s: Session, path: Path, layout: str = "iclkit") -> int:
    """Write what the ledger holds for this training's LM and tasks; the number of lines.

    UnknownName for a layout, DataError when the file cannot be written.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    lines = [line for course in s.corpus.courses for line in _lines(s, course, layout)]
    try:
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror})") from error
    return len(lines)


def import_scores(s: Session, path: Path) -> int:
    """Put a file's scores into the ledger, under this training's LM; the number of scores. The layout is seen from the
    fields.

    All or nothing: DataError names file, line and field of the first that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error})") from error
    reader = _Reader(s, path)
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            reader.take(number, line)
    for course, rows in reader.rows:
        s.feedback.ledger.put(s.feedback.scope(course), rows)
    return sum(len(rows) for _, rows in reader.rows)


def _lines(s: Session, course: Course, layout: str) -> Iterable[dict[str, Any]]:
    known = {e.id: e for e in (*s.corpus.examples, *course.report)}
    by_query: dict[str, list[tuple[str, float]]] = {}
    for query, shown, told in s.feedback.ledger.rows(s.feedback.scope(course)):
        if query not in known or any(i not in known for i in shown):
            continue
        if layout == "iclkit":
            yield {
                "task": course.name, "query": query, "shown": [*shown], "options": [*s.feedback.scope(course).options],
                "logprobs": [*told.logprobs], "tokens": [*told.tokens], "gold": told.gold,
            }  # fmt: skip
        elif len(shown) == 1:
            by_query.setdefault(query, []).append((shown[0], value(told, s.config.value, s.config.normalise)))
    for query, found in by_query.items():
        ranked = sorted(found, key=lambda f: (-f[1], f[0]))
        best, rest = ranked[: s.config.positives], ranked[s.config.positives :]
        if layout == "llm-r":
            parts = {
                name: {"doc_id": [i for i, _ in part], "score": [v for _, v in part]}
                for name, part in (("positives", best), ("negatives", rest))
            }
            yield {
                "query_id": query, "query": known[query].text, "answers": [known[query].output],
                "task_name": course.name, **parts,
            }  # fmt: skip
        else:
            yield {
                "query": known[query].text,
                "pos": [_document(known[i]) for i, _ in best], "neg": [_document(known[i]) for i, _ in rest],
                "pos_scores": [v for _, v in best], "neg_scores": [v for _, v in rest],
            }  # fmt: skip


def _document(example: Example) -> str:
    return f"{example.text}\n{example.output}"


class _Reader:
    """Lines of any layout to ledger rows; texts and ids are looked up in the pool."""

    def __init__(self, s: Session, path: Path) -> None:
        self.s, self.path = s, path
        every = [(c, e) for c in s.corpus.courses for e in (*(s.corpus.examples[int(r)] for r in c.rows), *c.report)]
        self.by_id: dict[str, tuple[Course, Example]] = {e.id: (c, e) for c, e in every}
        self.by_text = {e.text: e.id for _, e in every}
        self.by_document = {_document(e): e.id for _, e in every}
        self.rows: list[tuple[Course, list[tuple[str, list[str], Told]]]] = []

    def take(self, number: int, line: str) -> None:
        """One line. DataError for one that cannot be used."""
        where = f"{self.path}, line {number}"
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(data, dict):
            raise DataError(f"{where}: not an object with fields")
        try:
            if "logprobs" in data:
                self._own(data, where)
            elif "positives" in data:
                pairs = [
                    (i, float(v))
                    for part in ("positives", "negatives")
                    for i, v in zip(data[part]["doc_id"], data[part]["score"], strict=True)
                ]
                self._ranked(str(data["query_id"]), pairs, where, "query_id")
            elif "pos" in data:
                documents = [*data["pos"], *data["neg"]]
                values = [*data["pos_scores"], *data["neg_scores"]]
                pairs = [
                    (self._known(self.by_document, d, where, "pos or neg"), float(v))
                    for d, v in zip(documents, values, strict=True)
                ]
                self._ranked(self._known(self.by_text, data["query"], where, "query"), pairs, where, "query")
            else:
                raise DataError(f"{where}: has neither logprobs, positives nor pos; see the layouts of scores")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: a field is missing or is no number ({error})") from error

    def _own(self, data: Mapping[str, Any], where: str) -> None:
        course, query = self._known(self.by_id, data["query"], where, "query")
        options, logprobs = tuple(data["options"]), tuple(map(float, data["logprobs"]))
        gold = int(data["gold"])
        if options != (expected := self.s.feedback.scope(course).options):
            raise DataError(f"{where}: field options is {[*options]}, and for task {course.name!r} it is {[*expected]}")
        if len(data["tokens"]) != len(logprobs) or not 0 <= gold < len(logprobs):
            raise DataError(f"{where}: fields logprobs, tokens and gold do not fit together")
        shown = [self._known(self.by_id, i, where, "shown")[1].id for i in data["shown"]]
        self.rows.append((course, [(query.id, shown, Told(logprobs, tuple(map(int, data["tokens"])), gold))]))

    def _ranked(self, query_id: str, pairs: list[tuple[str, float]], where: str, field: str) -> None:
        course, query = self._known(self.by_id, query_id, where, field)
        found = [
            (query.id, [self._known(self.by_id, str(i), where, "doc_id")[1].id], Told((v,), (1,), 0)) for i, v in pairs
        ]
        self.rows.append((course, found))

    @staticmethod
    def _known(table: Mapping[str, Any], key: str, where: str, field: str) -> Any:
        if key not in table:
            raise DataError(f"{where}: field {field} names {str(key)[:60]!r}, which the pool does not hold")
        return table[key]
