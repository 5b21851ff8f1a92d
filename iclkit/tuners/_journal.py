"""A journal as Optuna writes one, with a lock that a killed worker cannot leave behind and no half-written lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from iclkit.errors import DataError, RunError
from iclkit.files import parse_json


class Journal(BaseJournalBackend):
    """One JSON object a line, in the format of Optuna's ``JournalFileBackend``, which can read it too.

    Writers take turns by a lock on the file itself, which the system gives up when its owner ends, however that is.
    (Optuna's is a link beside the file: after a kill the others wait 30 seconds before they take it away. Such a link,
    left by a version that used it, is not looked at.) What a full disk or a power cut left of a last line is taken away
    before the next is written; else the two would be one that nobody can read. DataError for a file that holds
    something else, with its line.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._starts = [0]  # where each line begins, of those read so far, and where the next one will
        with self.path.open("ab"):
            pass

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The entries from a number on; a last line that is not whole (yet) is left out."""
        number = min(log_number_from, len(self._starts) - 1)
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            for line in file:
                if not line.endswith(b"\n"):
                    return
                entry = self._entry(number, line)
                if number + 1 == len(self._starts):
                    self._starts.append(self._starts[number] + len(line))
                number += 1
                if number > log_number_from:
                    yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries at the end, all of them or none, and sync. RunError when the disk is full."""
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            # unbuffered: what could not be written must not be tried again when the file is closed
            with self.path.open("r+b", buffering=0) as file, _locked(file, str(self.path)):
                _append(file, data)
        except OSError as error:
            raise RunError(
                f"cannot write the search's journal {self.path} ({error.strerror}); free space or make it writable, "
                f"then give the same command again: finished trials are kept"
            ) from error

    def _entry(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self.path}, line {number + 1}"
        entry = parse_json(line, where)
        if not isinstance(entry, dict) or not isinstance(entry.get("op_code"), int) or "worker_id" not in entry:
            raise DataError(
                f"{where}: not an entry of a search's journal; put a copy of it in its place, or move it away to "
                f"search anew"
            )
        return entry


@contextmanager
def _locked(file: FileIO, path: str) -> Iterator[None]:
    if os.name != "posix":
        lock = JournalFileOpenLock(path)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
    yield


def _append(file: FileIO, data: bytes) -> None:
    end = _end_of_lines(file)
    file.truncate(end)
    file.seek(end)
    try:
        written = 0
        while written < len(data):
            written += file.write(data[written:])
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(end)
        raise


def _end_of_lines(file: FileIO) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        if (at := file.read(end - start).rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0
