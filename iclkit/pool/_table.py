"""Where a pool is kept: what ``Pool`` asks of a back end, whatever it is.

``SQLiteTable`` (one file, the default) and ``LanceTable`` (LanceDB tables, on a disk or an object store) answer it.
What the operations of a pool mean stands in ``Pool``; a back end finds, stores and gives back.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar

from iclkit.errors import DataError
from iclkit.pool._candidates import IntArray
from iclkit.pool._find import ExamplePage
from iclkit.pool._vectors import text_hash
from iclkit.records import Example

if TYPE_CHECKING:
    from iclkit.pool._view import PoolReader

Column: TypeAlias = Literal["task", "output"]
T = TypeVar("T")


def in_parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many values at a time; no more are taken than are asked for."""
    rest = iter(values)
    while part := [*itertools.islice(rest, size)]:
        yield part


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """An example as it is stored: input, choices and metadata as JSON."""

    example: Example
    chosen_id: bool
    """The id is not a hash of the content, but was chosen by somebody."""
    input: str
    choices: str
    meta: str
    text_hash: bytes

    @classmethod
    def of(cls, example: Example, position: int) -> ExampleRow:
        """DataError, naming the position, when a part of the example cannot be stored."""
        e = example
        try:
            if not isinstance(e.input, str | Mapping) or not isinstance(e.output, str):
                raise TypeError("input has to be a text or named fields, and output a text")
            if isinstance(e.input, Mapping) and not all(isinstance(v, str) for v in e.input.values()):
                raise TypeError("every field of an input has to be a text")
            parts = [e.input if isinstance(e.input, str) else dict(e.input), [*e.choices], dict(e.meta)]
            # the order of an input's fields is part of it, so keys are not sorted
            texts = [json.dumps(p, ensure_ascii=False, separators=(",", ":"), allow_nan=False) for p in parts]
            for text in (*texts, e.output, e.task, e.id):
                text.encode()
            hash_of_text = text_hash(e.text)
        except (TypeError, ValueError) as error:
            raise DataError(f"example {position} ({e.id}) cannot be stored: {error}") from error
        return cls(e, e.id != content_id(e), texts[0], texts[1], texts[2], hash_of_text)

    @property
    def id(self) -> str:
        """The example's."""
        return self.example.id

    @property
    def output(self) -> str:
        """The example's."""
        return self.example.output

    @property
    def task(self) -> str:
        """The example's."""
        return self.example.task


def content_id(example: Example) -> str:
    """The id that the content has when nobody chooses one."""
    return replace(example, id="").id


@dataclass(frozen=True, slots=True)
class Removal:
    """An example that goes, and what stays of it: its id, why, and the id of what stands in its place."""

    id: str
    reason: str
    replaced_by: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The examples of a pool at a revision. ``rows`` (n,): handles, ascending; ``texts`` (n,): the number of each
    input's text, equal for equal texts. ``examples``: of a pool too large to be held, None."""

    revision: int
    rows: IntArray
    examples: tuple[Example, ...] | None
    texts: IntArray


class Changes(Protocol):
    """One transaction: all of it or nothing. What it reads holds what it has inserted."""

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are in the pool."""
        ...

    def removed(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that something was ever removed under."""
        ...

    def examples(self, ids: Sequence[str]) -> dict[str, Example]:
        """The examples of those of the ids that are in the pool."""
        ...

    def insert(self, rows: Sequence[ExampleRow]) -> None:
        """Put rows, whose ids are not there, behind all others."""
        ...

    def replace(self, rows: Sequence[ExampleRow]) -> None:
        """Put rows in the place of those with their ids: of other metadata or spelling, not of other content."""
        ...

    def remove(self, removals: Sequence[Removal]) -> None:
        """Take examples out, with the vectors and keys of texts that no example has any more."""
        ...


class Table(Protocol):
    """The examples of one pool, what was removed, and (``reader``) vectors, keys and words.

    PoolError, in one line, when the place cannot be used.
    """

    @property
    def place(self) -> Path | str:
        """A file, a folder, a URI, or ``:memory:``."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether it cannot be written, or may not."""
        ...

    @property
    def reader(self) -> PoolReader:
        """What views ask."""
        ...

    @property
    def uid(self) -> str:
        """What tells this pool from all others, wherever it is moved or copied to."""
        ...

    def close(self) -> None:
        """Give the place back."""
        ...

    def reading(self) -> AbstractContextManager[object]:
        """One state for all reads inside."""
        ...

    def writing(self, action: str) -> AbstractContextManager[Changes]:
        """A transaction, for which other writers wait."""
        ...

    def revision(self) -> int:
        """Grows with every change of content; never falls."""
        ...

    def count(self) -> int:
        """How many examples there are."""
        ...

    def count_removed(self) -> int:
        """How many ids something was removed under that nothing stands under now."""
        ...

    def examples(self, ids: Sequence[str]) -> dict[str, Example]:
        """The examples of those of the ids that are there."""
        ...

    def beginning(self, prefix: str, limit: int) -> list[Example]:
        """Examples whose ids begin so, by id."""
        ...

    def replaced(self, example_id: str) -> tuple[bool, str | None]:
        """Whether something was removed under an id, and what was last put in its place."""
        ...

    def page(
        self, text: str, task: str | None, output: str | None, newest_first: bool, start: int, limit: int
    ) -> ExamplePage:
        """See ``Pool.find``."""
        ...

    def count_values(self, column: Column, limit: int) -> list[tuple[str, int]]:
        """See ``Pool.count_values``."""
        ...

    def snapshot(self, old: Snapshot | None) -> Snapshot:
        """The examples now; ``old`` itself where nothing has changed since."""
        ...

    def embedded(self, example: Example) -> list[str]:
        """Names of the embedders that have a vector of an example's text."""
        ...

    def size(self) -> int:
        """Bytes."""
        ...

    def compact(self) -> None:
        """Let go of the room, and of the content, of what was removed."""
        ...

    def damage(self) -> list[str]:
        """What is wrong with the place itself, a line each; nothing else that is read of it can be relied on."""
        ...

    def broken_references(self) -> list[str]:
        """A line for each row that refers to one that is not there, or stands twice."""
        ...

    def content_id_as_stored(self, example_id: str) -> str:
        """The content id of an example by the rules of the time when it was stored."""
        ...

    def contents(self) -> AbstractContextManager[Contents]:
        """All of it in one state, to be kept elsewhere."""
        ...


@dataclass(frozen=True, slots=True)
class StoredExample:
    """``row``: the handle; the rest as ``ExampleRow`` has it. ``revision``: of its last change."""

    row: int
    id: str
    input: str
    output: str
    task: str
    choices: str
    meta: str
    text_hash: bytes
    revision: int

    @classmethod
    def of(cls, row: int, example: ExampleRow, revision: int) -> StoredExample:
        """A row with its handle."""
        e = example
        return cls(row, e.id, e.input, e.output, e.task, e.choices, e.meta, e.text_hash, revision)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key, by the transform that wrote it; see ``iclkit.pool._keys``."""

    fingerprint: str
    name: str
    source: str
    number: int
    text: str
    fallback: bool


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """The vectors of an embedder: ``key`` is its ``vector_key``; ``vectors`` gives (hash of a text, bytes of
    little-endian float32)."""

    key: str
    name: str
    dim: int
    vectors: Iterator[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that a pool holds, each part to be gone through once, in this order."""

    uid: str
    revision: int
    vectors: Iterable[StoredVectors]
    keys: Iterable[StoredKey]
    removals: Iterable[tuple[Removal, int]]
    """With the revision of each."""
    examples: Iterable[StoredExample]
    """By handle."""
