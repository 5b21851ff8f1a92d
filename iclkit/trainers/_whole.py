"""Folders that a kill or a bad disk may leave half-written: sealed when they are whole, looked at before they are used.

A seal is a file with the size and the hash of every other file of the folder, written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from iclkit.errors import DataError
from iclkit.files import read_json, replace_file

SEAL = "whole.json"


def seal(folder: Path) -> None:
    """Mark a folder as whole with what it holds now."""
    replace_file(folder / SEAL, json.dumps(_facts(folder), indent=1))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds what it was sealed with, byte for byte."""
    try:
        return bool(read_json(folder / SEAL) == _facts(folder))
    except (DataError, OSError):
        return False


def last_checkpoint(folder: Path, say: Callable[[str], None] = lambda text: None) -> Path | None:  # noqa: ARG005
    """The newest whole checkpoint of a training, None where there is none; ``say`` is told of those passed over."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda p: -int(p.name.rpartition("-")[2])):
        if is_whole(path):
            return path
        say(f"note: {path} is not whole; going on from before it")
    return None


def drop(folder: Path) -> None:
    """Remove a folder that nothing needs any more, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def _facts(folder: Path) -> dict[str, list[object]]:
    """Size and BLAKE2 hash of every file but the seal, by path."""
    facts = dict[str, list[object]]()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with path.open("rb") as stream:
                facts[path.relative_to(folder).as_posix()] = [
                    path.stat().st_size,
                    hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest(),
                ]
    return facts
