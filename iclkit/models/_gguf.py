"""GGUF files that a user names by their path: recognised, hashed once, converted once."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from iclkit.errors import DataError, ModelError
from iclkit.files import read_json, replace_file
from iclkit.models._catalogue import home
from iclkit.models._store import PullProgress, folder_of, install, problems, sha256_of

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_HASHES = "gguf-hashes.json"


def check_gguf(path: Path) -> Path:
    """The absolute path of a GGUF file. ModelError for one that is not there or is none."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"cannot read {path} ({error.strerror})") from error
    if start != _MAGIC:
        raise ModelError(f"{path} is no GGUF file (it does not begin with GGUF)")
    return path.absolute()


def gguf_hash(path: Path) -> str:
    """Hex sha256 of the file, remembered by its path, size and time of change."""
    facts, store = path.stat(), home() / _HASHES
    mark = [facts.st_size, facts.st_mtime_ns]
    known: dict[str, Any] = {}
    with contextlib.suppress(DataError):
        found = read_json(store) if store.is_file() else {}
        known = found if isinstance(found, dict) else {}
    entry = known.get(str(path))
    if isinstance(entry, list) and entry[:2] == mark and isinstance(entry[-1], str):
        return entry[-1]
    sha = sha256_of(path)
    with contextlib.suppress(OSError):  # where nothing can be written it is read again the next time
        store.parent.mkdir(parents=True, exist_ok=True)
        replace_file(store, json.dumps({**known, str(path): [*mark, sha]}))
    return sha


def gguf_folder(path: Path, progress: PullProgress | None, *, convert: bool) -> Path:
    """The folder with the weights of a GGUF file as bf16 safetensors, converted once and kept under ``home()``.

    ModelError for a file that transformers cannot read.
    """
    path = check_gguf(path)
    sha = gguf_hash(path)
    name = f"gguf-{path.stem[:40]}-{sha[:16]}"
    folder = folder_of(name)
    if folder.is_dir() and not problems(folder):
        return folder
    if not convert:
        raise ModelError(f"{path} is not converted yet; load it once with --lm {path}")

    def fill(work: Path) -> tuple[Path, str, str]:
        from iclkit.models._convert import gguf_to_safetensors

        size = path.stat().st_size

        def step(share: float) -> None:
            if progress is not None:
                progress(int(share * size), size, f"converting {path.name}")

        done = gguf_to_safetensors(path, work / "converted", step)
        return work / "converted", f"file:{path.name}#sha256={sha}", done

    return install(name, "lm", "", fill)
