"""OpenAI's batch API: what a dry run found to be lacking is answered within a day, at half the price.

The requests are those of an ordinary run: the code that asks runs against an ``Offline`` that writes down what would be
sent. When the batch has come back the same code runs again and finds the answers, which go into the LM cache like any
other. What is lacking after that (a line that failed, a question that depends on an answer) the real run asks for.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, ModelError
from iclkit.files import parse_json, read_json, replace_file
from iclkit.lm._servers._http import Client, said
from iclkit.lm._servers._model import Unanswered
from iclkit.records import digest

MOST_LINES = 50_000
MOST_BYTES = 190 << 20
"""OpenAI takes 50,000 lines and 200 MB."""
ROUNDS = 2
"""Answers may call for a second question (a thought that needed room); what is left then is asked for directly."""
_OVER = ("completed", "expired", "cancelled")
"""States in which no more answers come; expired and cancelled batches keep those they have."""


class Pending(Exception):
    """An answer that a batch has yet to bring."""


class Offline:
    """Stands for a server: known answers are given, other requests are written down. Thread-safe."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[str, Any] | None] = {}
        self._asked: dict[str, tuple[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def __call__(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        key = digest([path, body])
        with self._lock:
            if key in self._answers:
                if (found := self._answers[key]) is None:
                    raise Unanswered("the batch brought no answer")
                return found
            self._asked[key] = path, dict(body)
        raise Pending

    def take(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """What was asked for since the last call, by key."""
        with self._lock:
            asked, self._asked = self._asked, {}
            return asked

    def bring(self, answers: Mapping[str, dict[str, Any]], asked: Sequence[str]) -> None:
        """Answers to what was asked; those that are missing are known to be."""
        with self._lock:
            self._answers |= {key: answers.get(key) for key in asked}


@dataclass(frozen=True, slots=True)
class BatchFolder:
    """Batches under way, so that the same command goes on with them: a JSON file and the lines that were sent."""

    folder: Path
    client: Client
    tell: Callable[[str], None]
    poll: float = 30.0

    def ask(self, asked: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        """Submit requests, or find that they were; wait; the answers by key. ModelError for a batch that failed."""
        name = digest([self.client.url, sorted(asked)])
        state = self.folder / f"{name}.json"
        known: dict[str, str] = self._known(state)
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = [*_parts(asked)]
        for number, (path, lines) in enumerate(parts):
            if str(number) in known:
                continue
            file = self.folder / f"{name}-{number}.jsonl"
            replace_file(file, lines)
            uploaded = self.client.upload("/files", file.name, lines, {"purpose": "batch"})
            body = {"input_file_id": _id(uploaded), "endpoint": f"/v1{path}", "completion_window": "24h"}
            known[str(number)] = _id(self.client.post("/batches", body))
            replace_file(state, json.dumps(known))
        self.tell(
            f"{len(asked):,} requests are in {len(parts)} batch{'es' if len(parts) > 1 else ''} "
            f"({', '.join(known.values())}); waiting, up to a day. Ctrl-C is safe: the same command goes on"
        )
        answers: dict[str, dict[str, Any]] = {}
        for id_ in known.values():
            answers |= self._collect(id_, state)
        return answers

    def done(self, asked: Mapping[str, Any]) -> None:
        """Forget batches whose answers are stored."""
        name = digest([self.client.url, sorted(asked)])
        for file in self.folder.glob(f"{name}*"):
            file.unlink(missing_ok=True)

    def _known(self, state: Path) -> dict[str, str]:
        if not state.exists():
            return {}
        found = read_json(state)
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise DataError(f"{state} names no batches; remove it to submit them again")
        return found

    def _collect(self, id_: str, state: Path) -> dict[str, dict[str, Any]]:
        told = ""
        while True:
            batch = self.client.get(f"/batches/{id_}")
            status, counts = str(batch.get("status")), batch.get("request_counts")
            if status == "failed":
                state.unlink(missing_ok=True)
                errors = batch.get("errors")
                listed = errors.get("data") if isinstance(errors, dict) else None
                why = listed[0].get("message") if isinstance(listed, list) and listed else "no reason given"
                raise ModelError(f"batch {id_} failed: {said(str(why))}; the same command submits it again")
            if status in _OVER:
                break
            finished = counts.get("completed") if isinstance(counts, dict) else None
            line = f"batch {id_}: {said(status)}" + ("" if finished is None else f", {finished} answered")
            if line != told:
                self.tell(line)
                told = line
            time.sleep(self.poll)
        answers: dict[str, dict[str, Any]] = {}
        if file := batch.get("output_file_id"):
            for line_ in self.client.download(f"/files/{said(str(file))}/content").splitlines():
                answers |= _answer(line_)
        self.tell(f"batch {id_}: {status}, {len(answers):,} answers")
        return answers


def _parts(asked: Mapping[str, tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, bytes]]:
    """(path, lines) of each batch: one path, no more lines and bytes than are taken."""
    for path in sorted({path for path, _ in asked.values()}):
        lines: list[bytes] = []
        size = 0
        for key in sorted(k for k, (p, _) in asked.items() if p == path):
            sent = {"custom_id": key, "method": "POST", "url": f"/v1{path}", "body": asked[key][1]}
            line = json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
            if lines and (len(lines) >= MOST_LINES or size + len(line) > MOST_BYTES):
                yield path, b"".join(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        yield path, b"".join(lines)


def _answer(line: bytes) -> dict[str, dict[str, Any]]:
    """The answer of a line by its key; {} for a line that brings none."""
    try:
        found = parse_json(line, "batch")
    except DataError:
        return {}
    response = found.get("response") if isinstance(found, dict) else None
    if not isinstance(response, dict) or response.get("status_code") != 200:
        return {}
    body = response.get("body")
    return {str(found.get("custom_id")): body} if isinstance(body, dict) else {}


def _id(answer: Mapping[str, Any]) -> str:
    id_ = answer.get("id")
    if not isinstance(id_, str) or not id_.replace("-", "").replace("_", "").isalnum():
        raise ModelError("the server gave a file or batch no id; does it offer OpenAI's batch API?")
    return id_
