"""Vectors in files beside a pool: appended to, and mapped into memory instead of being read.

``NAME.vectors`` holds rows of little-endian float32 and nothing else. ``NAME.rows`` says how many of them count, whose
they are, and what their checksum is. Both are derived from the pool and never believed over it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

import numpy as np

from iclkit.embed import FloatArray
from iclkit.files import try_lock
from iclkit.pool._arrays import appended
from iclkit.pool._candidates import IntArray
from iclkit.pool._export import write_whole

MAGIC = b"iclkit vectors 1\n"
_HEADER = 512  # bytes in front of the rows
_BLOCK = 1 << 24  # bytes read at a time for a checksum


@dataclass(frozen=True, slots=True, eq=False)
class VectorFile:
    """The first rows of a pool's vectors. ``key``: of the pool and the embedder. ``handles`` and ``texts`` (n,): row
    handle and number of the text of each; handles ascend."""

    path: Path
    key: str
    dim: int
    handles: IntArray
    texts: IntArray
    crc: int = 0
    rows_crc: int = 0

    def __len__(self) -> int:
        return len(self.handles)

    @property
    def rows_path(self) -> Path:
        """The file that says whose the vectors are."""
        return self.path.with_suffix(".rows")

    @classmethod
    def read(cls, path: Path, key: str, dim: int, *, writes: bool) -> Self:
        """ValueError that says what is wrong with the files; OSError when they cannot be read.

        The checksum of the vectors is looked at where their file has changed since it was written here, e.g. in a copy.
        """
        file = cls(path, key, dim, _NONE, _NONE)
        content = file.rows_path.read_bytes()
        magic, _, rest = content.partition(b"\n")
        if magic + b"\n" != MAGIC:
            raise ValueError("is not a file of this version")
        try:
            told = json.loads(rest[: _HEADER - len(MAGIC)])
            count, crc, rows_crc, stamp = int(told["rows"]), int(told["crc"]), int(told["rows_crc"]), told["stamp"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("has a broken header") from error
        if (told.get("key"), told.get("dim")) != (key, dim):
            raise ValueError("belongs to another pool or embedder")
        body = content[_HEADER : _HEADER + 16 * count]
        if len(body) != 16 * count or zlib.crc32(body) != rows_crc or path.stat().st_size < 4 * dim * count:
            raise ValueError("is damaged")
        pairs = np.frombuffer(body, "<i8").reshape(count, 2)
        file = replace(file, handles=pairs[:, 0].copy(), texts=pairs[:, 1].copy(), crc=crc, rows_crc=rows_crc)
        if file._stamp() != stamp:
            if _checksum(file.matrix()) != crc:
                raise ValueError("is damaged")
            if writes:
                with file.rows_path.open("r+b") as rows:
                    if try_lock(rows):
                        file._put_header(rows)
        return file

    def matrix(self) -> FloatArray:
        """(n, dim), mapped: read from the disk when it is looked at; read-only."""
        if not len(self):
            return np.empty((0, self.dim), np.float32)
        return np.asarray(np.memmap(self.path, "<f4", "r", shape=(len(self), self.dim)))

    def is_current(self) -> bool:
        """Whether the files are still as they were read or written here."""
        try:
            with self.rows_path.open("rb") as rows:
                return self._counts(rows)
        except OSError:
            return False

    def _counts(self, rows: IO[bytes]) -> bool:
        """Whether a header tells of just these rows."""
        try:
            told = json.loads(rows.read(_HEADER).partition(b"\n")[2])
            return bool((told["key"], told["rows"], told["crc"]) == (self.key, len(self), self.crc))
        except (ValueError, KeyError, TypeError):
            return False

    def write(self, vectors: FloatArray) -> Self:
        """Put new files in the place of old ones, with all vectors (n, dim). OSError when that cannot be done."""
        with write_whole(self.path) as file:
            for block in _blocks(vectors):
                block.astype("<f4").tofile(file)
        body = self._pairs(0)
        written = replace(self, crc=_checksum(vectors), rows_crc=zlib.crc32(body))
        with write_whole(self.rows_path) as rows:
            written._put_header(rows)
            rows.write(body)
        return written

    def append(self, handles: IntArray, texts: IntArray, vectors: FloatArray) -> Self:
        """With more rows behind these. OSError when that cannot be done, ValueError when another process has changed
        the files meanwhile. What a kill leaves half done is behind the rows that count, and is written over."""
        grown = replace(
            self,
            handles=appended(self.handles, handles),
            texts=appended(self.texts, texts),
            crc=_checksum(vectors, self.crc),
        )
        body = grown._pairs(len(self))
        grown = replace(grown, rows_crc=zlib.crc32(body, self.rows_crc))
        with self.rows_path.open("r+b") as rows, self.path.open("r+b") as file:
            if not try_lock(rows):
                raise ValueError("is being written by another process")
            if not self._counts(rows):
                raise ValueError("was written by another process")
            file.seek(4 * self.dim * len(self))
            file.truncate()
            file.write(vectors.astype("<f4").tobytes())
            file.flush()
            rows.seek(_HEADER + 16 * len(self))
            rows.truncate()
            rows.write(body)
            grown._put_header(rows)
        return grown

    def _pairs(self, first: int) -> bytes:
        return np.stack([self.handles[first:], self.texts[first:]], axis=1).astype("<i8").tobytes()

    def _put_header(self, rows: IO[bytes]) -> None:
        told = {"key": self.key, "dim": self.dim, "rows": len(self), "crc": self.crc, "rows_crc": self.rows_crc}
        rows.seek(0)
        rows.write((MAGIC + json.dumps({**told, "stamp": self._stamp()}).encode()).ljust(_HEADER - 1) + b"\n")

    def _stamp(self) -> list[int]:
        """What changes when somebody writes the file of vectors."""
        told = self.path.stat()
        return [told.st_size, told.st_mtime_ns]


_NONE = np.empty(0, np.int64)


def _blocks(vectors: FloatArray) -> Iterator[FloatArray]:
    step = max(1, _BLOCK // (4 * max(vectors.shape[1], 1)))
    return (np.ascontiguousarray(vectors[at : at + step]) for at in range(0, len(vectors), step))


def _checksum(vectors: FloatArray, crc: int = 0) -> int:
    for block in _blocks(vectors):
        crc = zlib.crc32(block.astype("<f4").data, crc)
    return crc
