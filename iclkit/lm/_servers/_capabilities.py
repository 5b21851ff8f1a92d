"""What one model of one server can do, found with a few requests and remembered."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from iclkit.errors import DataError
from iclkit.files import read_json, replace_file
from iclkit.schema import read_as

WIDTHS = (64, 4096, 1 << 20)
"""How many next-token candidates are asked for; more only when a needed token is not among the fewer."""
CHAT_WIDTHS = (20, 5, 1)
AGREES = 0.25
"""Nats within which one model gives the same figure again: half precision and the shape of a batch may move it."""
GOOD_FOR = timedelta(days=7)
"""Servers are updated: what was found is looked for again after this time."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found out about a model of a server. Every field comes from an answer, never from a server's name.

    endpoint: completions or chat. scoring: the way that is used. long_scoring: the way used for long continuations
    where that is another one. token_ids: prompts may be token ids. lists: several prompts may be sent in one request.
    widths, chat_width: how many candidates it gives. force: how an answer is bound to given ones. changes: what it
    needs of OpenAI's requests. within_thought: answers begin inside a thought. context: tokens, 0 where it does not
    say, and context_from. connections: requests at once that were fastest, 0 where that was not found out. slots:
    prompts that it keeps the state of, one each (llama.cpp), 0 where it does not say. cached_tokens: it reports what
    its prefix cache answered. check: log-probability of the probe. deviation: nats between the same asked cold and from
    the cache. kind: the make it gives itself. found: when.
    """

    endpoint: str = ""
    scoring: str = ""
    long_scoring: str = ""
    token_ids: bool = False
    lists: bool = False
    widths: tuple[int, ...] = WIDTHS
    chat_width: int = CHAT_WIDTHS[0]
    force: str = ""
    changes: tuple[str, ...] = ()
    within_thought: bool = False
    context: int = 0
    context_from: str = ""
    connections: int = 0
    slots: int = 0
    cached_tokens: bool = False
    check: float | None = None
    deviation: float | None = None
    kind: str = ""
    found: str = ""

    @property
    def fresh(self) -> bool:
        """Whether it was found lately enough to be relied on."""
        try:
            return datetime.now(UTC) - datetime.fromisoformat(self.found) < GOOD_FOR
        except (ValueError, TypeError):
            return False


class Records(Protocol):
    """Where capabilities are kept."""

    def get(self, key: str, /) -> Capabilities | None: ...
    def put(self, key: str, found: Capabilities, /) -> None: ...
    def drop(self, key: str, /) -> None: ...


class NoRecords:
    """Nothing is kept."""

    def get(self, _: str) -> None:
        """Nothing is known."""

    def put(self, _: str, __: Capabilities) -> None:
        """Nothing is kept."""

    def drop(self, _: str) -> None:
        """Nothing is there."""


class FolderRecords:
    """A JSON file per server and model. What cannot be read or written is looked for again: nothing depends on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Capabilities | None:
        """What was found lately, None where that is nothing."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            found = read_as(Capabilities, read_json(path), str(path))
        except DataError:  # of another version, or damaged
            return None
        return found if found.fresh else None

    def put(self, key: str, found: Capabilities) -> None:
        """Keep it, where the folder can be written."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._path(key), json.dumps(asdict(found), indent=1) + "\n")

    def drop(self, key: str) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
