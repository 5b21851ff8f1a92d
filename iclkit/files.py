"""Text files as every room reads and writes them: JSON, JSON lines, and whole-file replacement that survives a kill.

Lines end at ``\\n`` alone (a ``\\r`` before it is dropped): texts may hold U+2028, U+0085 and whatever else
``str.splitlines`` takes for the end of a line.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iclkit.errors import DataError


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file (a byte order mark is dropped). DataError when it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def split_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) for each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


_DEEPEST = 100  # levels; the interpreter's own limit depends on who calls


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text. ``where`` names file and line in the DataError for a text that is none.

    Values nested deeper than 100 levels, integers of thousands of digits and lone surrogates, which Python's reader
    lets pass or answers with errors of other kinds, are DataErrors too.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text)
        text.encode()
        if "\\u" in text:  # the other way for a lone surrogate to come in
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deep") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a surrogate pair ({error.object[error.start]!r}) is no character") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if text.count("[") + text.count("{") > _DEEPEST and _too_deep(value):
        raise DataError(f"{where}: JSON is nested too deep")
    return value


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


def replace_file(path: Path, content: str | bytes) -> None:
    """Put ``content`` in place of the file in one step: after a kill or a full disk it is the old or the new file.

    Synced to the disk before it takes the place. A link stays one, to the new file; a device or a pipe is written to.
    OSError when it cannot be written; nothing is left behind then.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
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


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, on systems where a folder can be synced."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
