"""Copies of a model folder with something wrong in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Harm = Callable[[Path], None]


def copy(folder: Path, to: Path, harm: Harm) -> Path:
    shutil.copytree(folder, to)
    harm(to)
    return to


def weights(change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Harm:
    """Change the tensors of a file in place."""

    def harm(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return harm


def setting(file: str = "config.json", **values: Any) -> Harm:
    """Change fields of a file of JSON."""

    def harm(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | values))

    return harm


def content(file: str, data: bytes | str) -> Harm:
    """Put other bytes in place of a file."""

    def harm(folder: Path) -> None:
        (folder / file).write_bytes(data.encode() if isinstance(data, str) else data)

    return harm


def sharded(sub: str = "") -> Harm:
    """The weights in two files, below ``sub`` where given, with an index."""

    def harm(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        (folder / sub).mkdir(exist_ok=True)
        table = {}
        for part in range(2):
            name = f"{sub}/shard-{part}.safetensors".lstrip("/")
            own = dict([*tensors.items()][part::2])
            save_file(own, folder / name, metadata={"format": "pt"})
            table |= dict.fromkeys(own, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))

    return harm
