"""Text files as every room reads and writes them: JSON, JSON lines, and whole-file replacement that survives a kill.

Lines end at ``\\n`` alone (a ``\\r`` before it is dropped): texts may hold U+2028, U+0085 and whatever else
``str.splitlines`` takes for the end of a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from iclkit.errors import DataError


def path_kind(path: Path) -> str:
    """``file``, ``folder``, ``stream`` (a pipe or a device) or, where nothing can be seen, ``""``; raises nothing.

    ``Path.exists`` raises for a name that is too long to be one.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "stream"


def read_bytes(path: Path) -> bytes:
    """The whole of a file, pipe or device, read once. DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:  # a name that no file can have
        raise DataError(f"cannot read {str(path)!r} ({error})") from error


def read_text(path: Path, *, stdin: bool = False) -> str:
    """The whole of a UTF-8 file (a byte order mark is dropped); of standard input for ``-`` where ``stdin`` is said.
    DataError when it cannot be read or is not UTF-8."""
    data = sys.stdin.buffer.read() if stdin and str(path) == "-" else read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x} at byte {error.start - start + 1}); "
            f"{_how_to_convert(data)}"
        ) from error
    if data[1:4:2] == b"\0\0" or data[0:4:2] == b"\0\0":
        raise DataError(f"{path} is not UTF-8 text: every other byte is zero; {_how_to_convert(data)}")
    return text


# what a file of another kind begins with
_KINDS = {
    b"\x1f\x8b": "it is compressed; unpack it with gunzip",
    b"\x28\xb5\x2f\xfd": "it is compressed; unpack it with zstd -d",
    b"PK\x03\x04": "it is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"PAR1": "it is a Parquet file; name it .parquet",
    b"SQLite format 3": "it is an SQLite file, perhaps a pool; write it out with: iclkit pool export",
}
_WIDE = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def other_kind(data: bytes) -> str:
    """What to do with a file that begins so and is no text; "" where nothing is known against it."""
    return next((remedy for mark, remedy in _KINDS.items() if data.startswith(mark)), "")


def _how_to_convert(data: bytes) -> str:
    if remedy := other_kind(data):
        return remedy
    name = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "")
    name = name or ("UTF-16LE" if data[1:4:2] == b"\0\0" else "UTF-16BE" if data[0:4:2] == b"\0\0" else "CP1252")
    return f"convert the file, e.g. iconv -f {name} -t UTF-8"


def split_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) for each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


_DEEPEST = 100  # levels; the interpreter's own limit depends on who calls


def parse_json(text: str | bytes, where: str, *, lone_surrogates: bool = False) -> Any:
    """The value of a JSON text. ``where`` names file and line in the DataError for a text that is none.

    Values nested deeper than 100 levels, integers of thousands of digits, a key that stands twice in an object, and
    lone surrogates (unless ``lone_surrogates`` lets them pass), which Python's reader takes or answers with errors of
    other kinds, are DataErrors too.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object)
        if not lone_surrogates:
            text.encode()
            if "\\u" in text:  # the other way for a lone surrogate to come in
                json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deep") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a surrogate pair ({error.object[error.start]!r}) is no character") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if "\n" in error.doc.strip() else where
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
    except _Twice as error:
        raise DataError(f"{where}: the field {error.args[0]!a} stands twice in one object; rename one") from error
    except ValueError as error:
        raise DataError(
            f"{where}: not JSON that can be read (an integer of more than {sys.get_int_max_str_digits():,} digits); "
            f"write it as a text"
        ) from error
    if text.count("[") + text.count("{") > _DEEPEST and _too_deep(value):
        raise DataError(f"{where}: JSON is nested too deep")
    return value


class _Twice(ValueError):
    """A key stands twice in a JSON object: Python would keep the last without a word."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(max(keys, key=keys.count))
    return made


def _too_deep(value: Any) -> bool:
    """Whether a value has more than 100 levels."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, dict | list) for item in level)


def read_json(path: Path) -> Any:
    """The value of a JSON file. DataError, naming the file, when it is none."""
    return parse_json(read_text(path), str(path))


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line that is not blank. DataError naming file and line for a bad one."""
    for number, line in split_lines(read_text(path)):
        yield number, parse_json(line, f"{path}, line {number}")


class LineFile:
    """A file of lines that was read once, for reading single lines again: only where they begin is held.

    What is read again is what was there at first: DataError where the file was written to or replaced since.
    """

    def __init__(self, path: Path, starts: array[int], state: tuple[int, ...]) -> None:
        self.path = path
        self._starts, self._state = starts, state

    @classmethod
    def read(cls, path: Path, *, torn: bool = True) -> tuple[LineFile, list[bytes]]:
        """The file, and its lines without their ends. DataError when it cannot be read.

        ``torn``: a last line without an end is what a kill left of one, and left out.
        """
        try:
            with path.open("rb") as file:
                state = _state(file)
                *lines, last = file.read().split(b"\n")
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror})") from error
        if last and not torn:
            lines.append(last)
        starts = array("q", [0])
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        return cls(path, starts, state), lines

    @classmethod
    def none(cls, path: Path) -> LineFile:
        """A file that is not there, as one without lines."""
        return cls(path, array("q", [0]), ())

    def __len__(self) -> int:
        return len(self._starts) - 1

    def lines(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The lines of these numbers, from 0, without their ends."""
        try:
            with self.path.open("rb", buffering=0) as file:
                if _state(file) != self._state:
                    raise DataError(f"{self.path} was changed while it was read; give the command again")
                for number in numbers:
                    file.seek(self._starts[number])
                    yield file.read(self._starts[number + 1] - self._starts[number] - 1)
        except OSError as error:
            raise DataError(f"cannot read {self.path} ({error.strerror})") from error


def _state(file: IO[bytes]) -> tuple[int, ...]:
    """What changes when a file is written to or replaced."""
    now = os.fstat(file.fileno())
    return now.st_ino, now.st_size, now.st_mtime_ns


def replace_file(path: Path, content: str | bytes) -> None:
    """Put ``content`` in place of the file in one step: after a kill or a full disk it is the old or the new file.

    Synced to the disk before it takes the place. A link stays one, to the new file; a device or a pipe is written to.
    OSError when it cannot be written; nothing is left behind then.
    """
    data = content.encode() if isinstance(content, str) else content
    if path_kind(path) == "stream":
        path.write_bytes(data)
        return
    path = path.resolve() if path.is_symlink() else path
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def part_of(path: Path) -> Path:
    """Where to write a file that is to take the place of ``path`` once it is whole."""
    name = path.name
    if len(name) > 40:  # it may be as long as the system allows, and so may that of its neighbor
        name = f"{name[:40]}-{zlib.crc32(os.fsencode(name)):08x}"
    return path.with_name(f"{name}.{os.getpid()}.part")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, on systems where a folder can be synced."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def try_lock(file: IO[Any], *, wait: bool = False) -> bool:
    """An advisory lock that ends with the process, however it ends; False when another holds it.

    With ``wait`` it comes back with the lock, as soon as nobody else holds it; signals end the wait as usual.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no such lock there; two processes at one place are the user's to avoid
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
