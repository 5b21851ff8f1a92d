"""Vectors of texts, kept in the pool's file, and the index over those of its examples.

Texts are numbered by their hash, so that equal texts have one vector per embedder; vectors are stored under the
embedder's document fingerprint (``vector_key``).
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from iclkit.database import MEMORY, Database
from iclkit.embed import Embedder, FloatArray, are_unit, check_rows, encode_checked, vector_key
from iclkit.engines import Engine
from iclkit.errors import PoolError
from iclkit.pool._arrays import appended, begins_with, distinct
from iclkit.pool._candidates import IntArray
from iclkit.pool._index import FlatIndex, VectorIndex
from iclkit.pool._lists import ApproximateIndex, ListIndex, Lists, read_info
from iclkit.pool._vector_file import VectorFile
from iclkit.records import Progress, digest

log = logging.getLogger(__name__)
BATCH = 512  # texts embedded per commit: what a kill can lose
SECONDS_PER_COMMIT = 5.0
READ = 1 << 14  # vectors read from the file at a time
_STORED = (
    "FROM json_each(?) AS t CROSS JOIN vectors AS v ON v.text = t.value "
    "AND v.embedder = (SELECT number FROM embedders WHERE fingerprint = ?) WHERE length(v.vector) = ?"
)
_DEAD = 4  # a file is written anew when this part of its rows is no longer in the pool
_SAMPLE = 8  # rows at the end, and as many in between, that are compared with the database before a file is believed
_EMPTY = np.empty((0, 1), np.float32)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written."""
    told = path.stat()
    return told.st_size, told.st_mtime_ns


def text_hash(text: str) -> bytes:
    """What a text is numbered by."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Kept:
    """An index of a whole pool as it was, the numbers of its texts, dead ones included, and the file it is kept in.

    ``of``: the row handles and text numbers of the pool that it was last found to fit.
    """

    index: FlatIndex
    texts: IntArray
    file: VectorFile | None = None
    of: tuple[IntArray, IntArray] | None = None


@dataclass(frozen=True, slots=True)
class _Listed:
    """Lists, what their file was when it was read or written, and the index that was made of them."""

    stamp: tuple[int, int]
    lists: Lists
    index: ListIndex | None = None


class VectorStore(ABC):
    """Stored vectors of one pool. One that does not write keeps what it makes in memory.

    Where they are kept, and how they are searched, is a back end's.
    """

    texts_per_commit = 0
    """Where a commit is dear: so many texts are kept in one, or what ``SECONDS_PER_COMMIT`` have made. 0: a batch."""

    def __init__(self, writes: bool) -> None:
        self.writes = writes
        self._made: dict[tuple[str, bytes], NDArray[np.float32]] = {}

    def in_memory(self) -> Self:
        """One that reads the same vectors and does not write."""
        store = self._read_only()
        store._made.update(self._made)
        return store

    @abstractmethod
    def _read_only(self) -> Self: ...

    @abstractmethod
    def count_missing(self, embedder: Embedder, texts: IntArray) -> int:
        """How many of the texts (by number) have no stored vector of this embedder."""

    @abstractmethod
    def of_texts(self, texts: Sequence[str], embedder: Embedder, progress: Progress | None = None) -> FloatArray:
        """(len(texts), dim): document vectors of any texts; those not stored yet are made and stored."""

    @abstractmethod
    def index(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        *,
        whole: bool,
        progress: Progress | None = None,
    ) -> VectorIndex:
        """Search over the vectors of these texts, known by these row handles; vectors that are missing are made.

        ``whole``: they are all of the pool's. An approximate index that was built is then used; PoolError for one that
        cannot be.
        """

    @abstractmethod
    def approximate(self, embedder: Embedder) -> ApproximateIndex | None:
        """What is approximate about search in the whole pool. PoolError for an index that cannot be used."""

    @abstractmethod
    def approximations(self) -> list[ApproximateIndex]:
        """Of all embedders; those that cannot be used are left out."""

    @abstractmethod
    def build_lists(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        *,
        recall: float,
        lists: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> ApproximateIndex:
        """Sort the rows of the whole pool into lists, and keep them. PoolError where that cannot be done."""

    @abstractmethod
    def drop_lists(self, embedder: Embedder) -> bool:
        """Search exactly again; whether there were lists. PoolError where they cannot be removed."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Stored vectors per embedder, by a description of it."""

    @abstractmethod
    def problems(self) -> list[str]:
        """A line for each embedder with damaged vectors."""

    @abstractmethod
    def _stored(self, embedder: Embedder, texts: IntArray) -> list[tuple[int, bytes]]:
        """(number, little-endian float32) of those of the texts that have a vector."""

    @abstractmethod
    def _store(self, embedder: Embedder, texts: IntArray, hashes: Sequence[bytes], vectors: FloatArray) -> None:
        """Keep the vectors (n, dim) of texts with these numbers and hashes."""

    def of_numbers(
        self,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        progress: Progress | None = None,
        *,
        all_missing: bool = False,
    ) -> FloatArray:
        """(len(texts), dim): vectors of texts by number; those not stored yet are made of ``text_at(position)``.

        Committed in batches: a kill loses at most one (see ``texts_per_commit``), and the same call again goes on.
        Numbers below 0 are those of texts that the file has no number for. ``all_missing``: no vector of them is
        stored, so none is looked for.
        """
        numbers, first, of_each = np.unique(texts, return_index=True, return_inverse=True)
        vectors = np.empty((len(numbers), embedder.dim), np.float32)
        missing, damaged = np.ones(len(numbers), dtype=np.bool_), 0
        for start in range(0, 0 if all_missing else len(numbers), READ):  # so many rows at a time are held twice
            if stored := self._stored(embedder, numbers[start : start + READ]):
                at = np.searchsorted(numbers, [number for number, _ in stored])
                vectors[at] = np.frombuffer(b"".join(v for _, v in stored), "<f4").reshape(len(stored), -1)
                missing[at] = ~are_unit(vectors[at])
                damaged += int(missing[at].sum())
        if damaged:
            log.warning("%d stored vectors of embedder %r are damaged; they are made again", damaged, embedder.name)
        at = np.flatnonzero(missing)
        at = at[np.argsort(first[at])]  # numbers may be in any order; texts are read one after another
        text = {int(n): text_at(int(first[n])) for n in at}
        key = vector_key(embedder, "document")
        for n in [n for n, t in text.items() if not self.writes and (key, text_hash(t)) in self._made]:
            vectors[n] = self._made[key, text_hash(text.pop(n))]
        order = sorted(text, key=lambda n: len(text[n]))  # texts of about one length together: little padding
        new, since = list[int](), time.monotonic()

        def keep() -> None:
            self._store(embedder, numbers[new], [text_hash(text[n]) for n in new], vectors[new])
            new.clear()

        try:
            for done in range(0, len(order), BATCH):
                batch = order[done : done + BATCH]
                vectors[batch] = encode_checked(embedder, [text[n] for n in batch], "document")
                if self.writes:
                    new += batch
                    if len(new) >= self.texts_per_commit or time.monotonic() - since >= SECONDS_PER_COMMIT:
                        keep()
                        since = time.monotonic()
                else:
                    self._made.update(((key, text_hash(text[n])), vectors[n].copy()) for n in batch)
                if progress:
                    progress(done + len(batch), len(order))
        finally:  # what an embedder that fails, or a user, has ended stays
            if new:
                keep()
        as_asked = len(numbers) == len(texts) and bool((of_each[1:] > of_each[:-1]).all())
        return vectors if as_asked else vectors[of_each]

    def fill(
        self,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        engine: Engine[tuple[str, ...], FloatArray],
        progress: Progress | None = None,
    ) -> None:
        """Make and store the vectors that are missing, each batch as an engine brings it; a kill loses no more."""
        numbers, first = np.unique(texts, return_index=True)
        stored = set[int]()
        for start in range(0, len(numbers), READ):
            stored.update(n for n, _ in self._stored(embedder, numbers[start : start + READ]))
        by_position = sorted(zip(first.tolist(), numbers.tolist(), strict=True))  # texts are read one after another
        missing = {n: text_at(at) for at, n in by_position if n not in stored}
        order = sorted(missing, key=lambda n: len(missing[n]))
        batches = [order[done : done + BATCH] for done in range(0, len(order), BATCH)]
        jobs = [tuple(missing[n] for n in batch) for batch in batches]
        made = 0
        for job, vectors in engine.run(jobs):
            check_rows(embedder.name, vectors, jobs[job], embedder.dim)
            numbers_of = np.array(batches[job], dtype=np.int64)
            self._store(embedder, numbers_of, [text_hash(t) for t in jobs[job]], vectors)
            made += len(jobs[job])
            if progress:
                progress(made, len(order))


class FileVectors(VectorStore):
    """Vectors in a pool's file, and in files beside it that are mapped into memory."""

    def __init__(self, database: Database, writes: bool) -> None:
        super().__init__(writes)
        self._db = database
        self._kept: dict[str, _Kept] = {}
        self._listed: dict[str, _Listed] = {}

    def _read_only(self) -> Self:
        return type(self)(self._db, writes=False)

    def count_missing(self, embedder: Embedder, texts: IntArray) -> int:
        """See ``VectorStore``."""
        numbers = distinct(texts)
        ((stored,),) = self._db.read(f"SELECT count(*) {_STORED}", self._values(embedder, numbers))
        return len(numbers) - int(stored)

    def of_texts(self, texts: Sequence[str], embedder: Embedder, progress: Progress | None = None) -> FloatArray:
        """See ``VectorStore``."""
        hashes = {t: text_hash(t) for t in texts}
        if self.writes:
            with self._db.writing() as connection:
                connection.executemany("INSERT OR IGNORE INTO texts (hash) VALUES (?)", ((h,) for h in hashes.values()))
        numbers = dict(self._db.read_each("SELECT hash, number FROM texts WHERE hash IN ({values})", hashes.values()))
        number_of = {t: numbers.get(h, -1 - n) for n, (t, h) in enumerate(hashes.items())}  # below 0: not numbered
        of_each = np.array([number_of[t] for t in texts], dtype=np.int64)
        return self.of_numbers(of_each, lambda at: texts[at], embedder, progress)

    def index(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        *,
        whole: bool,
        progress: Progress | None = None,
    ) -> VectorIndex:
        """See ``VectorStore``. Vectors of the whole pool are kept in a file beside it, to which later ones are
        appended, and the index of an earlier state of the pool is extended. Neither is believed over the database.
        """
        if not whole:
            return FlatIndex.of(self.of_numbers(texts, text_at, embedder, progress), rows)
        kept = self._exact(rows, texts, text_at, embedder, progress)
        return self._in_lists(kept, embedder) or kept.index

    def _exact(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        progress: Progress | None = None,
    ) -> _Kept:
        key = vector_key(embedder, "document")
        kept = self._kept.get(key)
        if kept is None or (kept.file is not None and not kept.file.is_current()):
            kept = self._read(embedder) or kept
        index = self._fitting(kept, embedder, rows, texts) if kept else None
        known = 0 if index is None else len(index)
        vectors = self.of_numbers(texts[known:], lambda at: text_at(known + at), embedder, progress)
        if kept is None or index is None or len(index.dead) * _DEAD > len(index.handles):
            every = vectors if index is None else np.concatenate([index.matrix, vectors])
            kept = self._made_anew(every, embedder, rows, texts)
        elif len(vectors):
            kept = self._grown(replace(kept, index=index), embedder, rows[known:], texts[known:], vectors)
        else:
            kept = replace(kept, index=index)
        self._kept[key] = kept = replace(kept, of=(rows, texts))
        return kept

    # ---- approximate search

    def approximate(self, embedder: Embedder) -> ApproximateIndex | None:
        """See ``VectorStore``."""
        listed = self._read_lists(embedder)
        return listed.lists.info if listed else None

    def approximations(self) -> list[ApproximateIndex]:
        """See ``VectorStore``."""
        if self._db.path == MEMORY:
            return []
        found = list[ApproximateIndex]()
        for path in sorted(Path(self._db.path).parent.glob(f"{glob.escape(Path(self._db.path).stem)}.*.lists")):
            try:
                found.append(read_info(path))
            except (OSError, ValueError) as error:
                log.warning("%s %s", path, error)
        return found

    def build_lists(
        self,
        rows: IntArray,
        texts: IntArray,
        text_at: Callable[[int], str],
        embedder: Embedder,
        *,
        recall: float,
        lists: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> ApproximateIndex:
        """See ``VectorStore``."""
        path = self._lists_file(embedder)
        if path is None:
            raise PoolError("an approximate index is kept beside the file of a pool, and this pool is in memory")
        kept = self._exact(rows, texts, text_at, embedder, progress)
        made = Lists.build(kept.index, kept.texts, embedder.name, recall, lists, seed)
        try:
            made.write(path, self._key(embedder))
        except OSError as error:
            raise PoolError(f"cannot write {path} ({error.strerror})") from error
        self._listed.pop(vector_key(embedder, "document"), None)
        return made.info

    def drop_lists(self, embedder: Embedder) -> bool:
        """See ``VectorStore``."""
        path = self._lists_file(embedder)
        self._listed.pop(vector_key(embedder, "document"), None)
        if path is None or not path.exists():
            return False
        try:
            path.unlink()
        except OSError as error:
            raise PoolError(f"cannot remove {path} ({error.strerror})") from error
        return True

    def _in_lists(self, kept: _Kept, embedder: Embedder) -> ListIndex | None:
        """Search in the lists beside the pool: extended when behind, written anew when far behind; None where there are
        none."""
        listed = self._read_lists(embedder)
        if listed is None:
            return None
        index = listed.index
        if index is None or not begins_with(kept.index.handles, index.exact.handles):
            index = ListIndex.of(kept.index, listed.lists, kept.texts)
        elif index.exact is not kept.index:
            index = index.extended(kept.index)
        lists, stamp, path = listed.lists, listed.stamp, self._lists_file(embedder)
        if self.writes and path is not None and index.lacks(lists):
            lists = index.lists(kept.texts)
            try:
                lists.write(path, self._key(embedder))
                stamp = _stamp(path)
            except OSError as error:
                log.warning("could not write %s (%s); rows will be sorted in again next time", path, error)
        self._listed[vector_key(embedder, "document")] = _Listed(stamp, lists, index)
        return index

    def _read_lists(self, embedder: Embedder) -> _Listed | None:
        path, key = self._lists_file(embedder), vector_key(embedder, "document")
        if path is None:
            return None
        try:
            stamp = _stamp(path)
            if key not in self._listed or self._listed[key].stamp != stamp:
                self._listed[key] = _Listed(stamp, Lists.read(path, self._key(embedder)))
            return self._listed[key]
        except FileNotFoundError:
            self._listed.pop(key, None)
            return None
        except (OSError, ValueError) as error:
            again = f"iclkit pool index {self._db.path} --embedder {embedder.name} --kind"
            raise PoolError(f"{path} {error}; make it again: {again} ivf, or search exactly: {again} exact") from error

    def _lists_file(self, embedder: Embedder) -> Path | None:
        path = self._file(embedder)
        return None if path is None else path.with_suffix(".lists")

    def _fitting(self, kept: _Kept, embedder: Embedder, rows: IntArray, texts: IntArray) -> FlatIndex | None:
        """The part of an index that has the first of these rows; None where it does not have just these."""
        index = kept.index
        if kept.of is None or not all(begins_with(now, then) for now, then in zip((rows, texts), kept.of, strict=True)):
            at = np.arange(len(index.handles))
            if begins_with(rows, index.handles):  # rows were added at most
                alive = np.ones(len(at), dtype=np.bool_)
            else:
                at = np.searchsorted(rows, index.handles)
                alive = at < len(rows)
                alive[alive] = rows[at[alive]] == index.handles[alive]
            held = int(alive.sum())
            if not (at[alive] == np.arange(held)).all() or (texts[:held] != kept.texts[alive]).any():
                return None  # it belongs to another pool, or to this one before it was restored
            index = index.without(np.flatnonzero(~alive))
        held = len(index)
        between = np.linspace(0, held - 1, min(held, _SAMPLE)).astype(np.int64)
        sample = np.unique(np.concatenate([np.arange(max(0, held - _SAMPLE), held), between]))
        stored, vectors = dict(self._stored(embedder, texts[sample])), index.vectors(rows[sample]) if held else _EMPTY
        if are_unit(vectors).all() and all(
            stored.get(int(texts[n])) == vector.astype("<f4").tobytes()
            for n, vector in zip(sample, vectors, strict=True)
        ):
            return index
        log.warning("%s does not agree with the pool; building it again", self._file(embedder) or "an index in memory")
        return None

    def _made_anew(self, vectors: FloatArray, embedder: Embedder, rows: IntArray, texts: IntArray) -> _Kept:
        path = self._file(embedder)
        if path is None or not self.writes or not len(rows):
            return _Kept(FlatIndex.of(vectors, rows), texts)
        try:
            file = VectorFile(path, self._key(embedder), embedder.dim, rows, texts).write(vectors)
            matrix = file.matrix()
            path.with_suffix(".faiss").unlink(missing_ok=True)  # what earlier versions kept
        except OSError as error:
            log.warning("could not write %s (%s); the index will be built again next time", path, error)
            return _Kept(FlatIndex.of(vectors, rows), texts)
        return _Kept(FlatIndex(matrix, rows), texts, file)

    def _grown(self, kept: _Kept, embedder: Embedder, rows: IntArray, texts: IntArray, vectors: FloatArray) -> _Kept:
        """With more rows: appended to the file where there is one that may be written, and in memory otherwise."""
        known, file = appended(kept.texts, texts), kept.file
        if file is not None and self.writes:
            try:
                file = file.append(rows, texts, vectors)
                return _Kept(kept.index.extended(rows, vectors, file.matrix()), known, file)
            except (OSError, ValueError) as error:
                log.warning("%s %s; it is left as it is", self._file(embedder), error)
        return _Kept(kept.index.extended(rows, vectors), known)

    def _file(self, embedder: Embedder) -> Path | None:
        if self._db.path == MEMORY:
            return None
        return Path(self._db.path).with_suffix(f".{vector_key(embedder, 'document')[:8]}.vectors")

    def _key(self, embedder: Embedder) -> str:
        ((uid,),) = self._db.read("SELECT value FROM facts WHERE name = 'uid'")
        return digest([vector_key(embedder, "document"), str(uid)], 8)

    def _read(self, embedder: Embedder) -> _Kept | None:
        """What the file beside the pool holds; None, with a warning, for one that cannot be used, and for none."""
        path = self._file(embedder)
        if path is None:
            return None
        try:
            file = VectorFile.read(path, self._key(embedder), embedder.dim, writes=self.writes)
            return _Kept(FlatIndex(file.matrix(), file.handles), file.texts, file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s %s; building it again from the pool", path, error)
            return None

    def _stored(self, embedder: Embedder, texts: IntArray) -> list[tuple[int, bytes]]:
        return self._db.read(f"SELECT v.text, v.vector {_STORED}", self._values(embedder, texts))

    @staticmethod
    def _values(embedder: Embedder, texts: IntArray) -> tuple[str, str, int]:
        return json.dumps(texts.tolist()), vector_key(embedder, "document"), 4 * embedder.dim

    def _store(self, embedder: Embedder, texts: IntArray, hashes: Sequence[bytes], vectors: FloatArray) -> None:  # noqa: ARG002
        key = vector_key(embedder, "document")
        with self._db.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO embedders (fingerprint, name, side, dim) VALUES (?, ?, 'document', ?)",
                (key, embedder.name, embedder.dim),
            )
            # a text whose last example was removed meanwhile has no row in texts any more, and needs no vector
            connection.executemany(
                "INSERT OR REPLACE INTO vectors (embedder, text, vector) "
                "SELECT (SELECT number FROM embedders WHERE fingerprint = ?), number, ? FROM texts WHERE number = ?",
                ((key, v.astype("<f4").tobytes(), int(t)) for t, v in zip(texts, vectors, strict=True)),
            )

    def counts(self) -> dict[str, int]:
        """See ``VectorStore``."""
        return {
            f"{name} ({side}, {dim}-d, {key[:8]})": count
            for name, side, dim, key, count in self._db.read(
                "SELECT name, side, dim, fingerprint, (SELECT count(*) FROM vectors WHERE embedder = number) "
                "FROM embedders ORDER BY number"
            )
        }

    def problems(self) -> list[str]:
        """See ``VectorStore``."""
        lines = []
        for number, name, dim in self._db.read("SELECT number, name, dim FROM embedders"):
            damaged = 0
            with self._db.reading() as connection:  # one vector at a time
                for (blob,) in connection.execute("SELECT vector FROM vectors WHERE embedder = ?", (number,)):
                    norm = float(np.linalg.norm(np.frombuffer(blob, "<f4"))) if len(blob) == 4 * dim else 0.0
                    damaged += not abs(norm - 1) < 1e-3  # not a number is damaged too
            if damaged:
                lines.append(f"{damaged} vectors of embedder {name!r} are damaged")
        return lines
