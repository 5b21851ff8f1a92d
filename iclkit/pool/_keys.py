"""Retrieval keys, kept in the pool: what a transform wrote of an input is written once."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

from iclkit.database import Database
from iclkit.errors import DataError
from iclkit.pool._key_transforms import KeyTransform, RetrievalKeys, input_hash, normalize_key
from iclkit.records import Fields, Progress

BATCH = 32  # keys written per commit

StoredKeys = dict[tuple[str, int], tuple[str, bool]]
"""{(hash of the input, number of the key): (text, whether the input stands in)}"""


class KeyStore(ABC):
    """Stored keys of one pool. One that does not write keeps what is written in memory.

    Where they are kept is a back end's.
    """

    def __init__(self, writes: bool) -> None:
        self.writes = writes
        self._made: dict[str, StoredKeys] = {}

    def in_memory(self) -> Self:
        """One that reads the same keys and does not write."""
        store = self._read_only()
        store._made.update((fingerprint, dict(keys)) for fingerprint, keys in self._made.items())
        return store

    @abstractmethod
    def _read_only(self) -> Self: ...

    def written_for(self, inputs: Sequence[Fields]) -> list[list[tuple[str, int, str]]]:
        """For each input (transform, number, key) of all keys that are stored for it."""
        hashes = [input_hash(i) for i in inputs]
        found: dict[str, list[tuple[str, int, str]]] = {h: [] for h in hashes}
        for source, name, number, text in self._written([*found]):
            found[source].append((name, number, text))
        return [found[h] for h in hashes]

    @abstractmethod
    def _written(self, sources: Sequence[str]) -> list[tuple[str, str, int, str]]:
        """(hash of the input, transform, number, key) of all keys that are stored for these."""

    @abstractmethod
    def _stored(self, transform: KeyTransform, input_of: Mapping[str, Fields]) -> StoredKeys: ...

    @abstractmethod
    def _store(self, transform: KeyTransform, keys: StoredKeys) -> None: ...

    def keys(
        self,
        transform: KeyTransform,
        inputs: Sequence[Fields],
        progress: Progress | None = None,
        numbers: Sequence[int] | None = None,
    ) -> RetrievalKeys:
        """The keys of any inputs, examples' or queries'; those that are not stored are written, and stored.

        ``numbers``: which of an input's keys; all that the transform writes where this is None.

        Committed in batches: a kill loses at most one, and the same call again goes on. Written number by number, so
        that a rewriter can share what stands in front of all inputs.
        """
        hashes = [input_hash(i) for i in inputs]
        input_of = dict(zip(hashes, inputs, strict=True))
        made = self._made.get(transform.fingerprint, {})
        known = {**made, **self._stored(transform, input_of)}
        numbers = range(transform.count) if numbers is None else numbers
        missing = {number: [h for h in input_of if (h, number) not in known] for number in numbers}
        total, done = sum(map(len, missing.values())), 0
        for number, sources in missing.items():
            for start in range(0, len(sources), BATCH):
                batch = sources[start : start + BATCH]
                written = transform.write([input_of[h] for h in batch], number)
                if len(written) != len(batch):
                    raise DataError(f"{transform.name} wrote {len(written)} keys for {len(batch)} inputs")
                new = {(h, number): normalize_key(w, input_of[h]) for h, w in zip(batch, written, strict=True)}
                if self.writes:
                    self._store(transform, new)
                else:
                    self._made.setdefault(transform.fingerprint, {}).update(new)
                known.update(new)
                done += len(batch)
                if progress:
                    progress(done, total)
        texts = tuple(tuple(known[h, n][0] for n in numbers) for h in hashes)
        return RetrievalKeys(texts, tuple(sum(known[h, n][1] for n in numbers) for h in hashes))


class FileKeys(KeyStore):
    """Keys in a pool's file."""

    def __init__(self, database: Database, writes: bool) -> None:
        super().__init__(writes)
        self._db = database

    def _read_only(self) -> Self:
        return type(self)(self._db, writes=False)

    def _written(self, sources: Sequence[str]) -> list[tuple[str, str, int, str]]:
        return self._db.read(
            "SELECT k.source, name, k.number, k.text FROM json_each(?) AS s CROSS JOIN keys AS k ON k.source = s.value "
            "JOIN transforms AS t ON t.number = k.transform ORDER BY t.number, k.number",
            (json.dumps([*sources]),),
        )

    def _stored(self, transform: KeyTransform, input_of: Mapping[str, Fields]) -> StoredKeys:
        rows = self._db.read(
            "SELECT k.source, k.number, k.text, k.fallback FROM json_each(?) AS s CROSS JOIN keys AS k "
            "ON k.source = s.value AND k.transform = (SELECT number FROM transforms WHERE fingerprint = ?)",
            (json.dumps([*input_of]), transform.fingerprint),
        )
        return {(source, number): (text, bool(fallback)) for source, number, text, fallback in rows}

    def _store(self, transform: KeyTransform, keys: StoredKeys) -> None:
        with self._db.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO transforms (fingerprint, name) VALUES (?, ?)",
                (transform.fingerprint, transform.name),
            )
            connection.executemany(  # what another process wrote meanwhile stays: all see the same keys
                "INSERT OR IGNORE INTO keys (transform, source, number, text, fallback) "
                "SELECT number, ?, ?, ?, ? FROM transforms WHERE fingerprint = ?",
                ((h, n, text, int(fell), transform.fingerprint) for (h, n), (text, fell) in keys.items()),
            )
