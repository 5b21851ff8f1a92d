"""Names to classes: built-ins first, then the entry points of installed packages.

A built-in is a ``"module:attribute"`` text, so looking a name up loads one module and listing loads none.
A plug-in that fails to load says why; it is never "not found".
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module, metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from iclkit.errors import UnknownName, UsageError
from iclkit.records import Json, Spec

log = logging.getLogger(__name__)


class Registry:
    """The classes of one kind (``"selector"``, ``"order policy"`` …), ours and those of group ``iclkit.<plural>``.

    A built-in stands above a plug-in of the same name, with one warning, and two plug-ins of one name are refused: what
    a name means must not depend on what else happens to be installed.
    """

    def __init__(self, kind: str, group: str, builtins: Mapping[str, str]) -> None:
        self.kind, self.group, self._builtins = kind, group, dict(builtins)
        self._added: dict[str, Any] = {}
        self._warned: set[str] = set()
        self._looked_up: set[str] = set()

    def names(self) -> list[str]:
        """Every known name, sorted; loads nothing."""
        return sorted({*self._builtins, *self._added, *(e.name for e in self._plugins())})

    def get(self, name: str) -> Any:
        """The object of that name. UnknownName on a miss, UsageError when a plug-in does not load."""
        if target := self._builtins.get(name):
            if name not in self._looked_up:  # reading the metadata of all installed packages takes milliseconds
                self._looked_up.add(name)
                self._plugins()
            return _load(target)
        if name in self._added:
            return self._added[name]
        plugins = [e for e in self._plugins() if e.name == name]
        if not plugins:
            raise UnknownName(self.kind, name, self.names())
        if len({e.value for e in plugins}) > 1:
            places = " and ".join(sorted({e.value for e in plugins}))
            raise UsageError(f"{self.kind} {name!r} stands for {places}: two packages use the name; uninstall one")
        try:
            return plugins[0].load()
        except (Exception, SystemExit) as error:  # foreign code: whatever it raises is reported, with its cause
            raise UsageError(
                f"{self.kind} {name!r} is installed ({plugins[0].value}) but does not load: "
                f"{type(error).__name__}: {error}"
            ) from error

    def add(self, target: str, name: str = "") -> Any:
        """Load what ``module:attribute`` names, let it be known under ``name`` (or the text itself), and return it.

        For what a user types. Names that stand in files (a run, a card) are looked up by ``get`` alone, so that no file
        can have code imported. UsageError for what cannot be loaded and for a name of ours.
        """
        module, colon, attribute = target.partition(":")
        if not colon or not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise UsageError(f"{target!r} is no {self.kind}; write module:Name, e.g. my_module:MyClass")
        if name in self._builtins:
            raise UsageError(f"{target} calls itself {name!r}, which is a {self.kind} of iclkit; give it another name")
        try:
            loaded = _load(target)
        except (Exception, SystemExit) as error:  # foreign code
            raise UsageError(f"{self.kind} {target!r} does not load: {type(error).__name__}: {error}") from error
        self._added[name or target] = loaded
        return loaded

    def _plugins(self) -> list[EntryPoint]:
        """What installed packages offer; of a name of ours, the user is told that it is not taken."""
        found = entry_points(group=self.group)
        for e in found:
            if e.name in self._builtins and e.name not in self._warned:
                self._warned.add(e.name)
                log.warning(
                    "note: the %s %r of an installed package (%s) is not used: iclkit has one of that name",
                    self.kind, e.name, e.value,
                )  # fmt: skip
        return [e for e in found if e.name not in self._builtins]


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of a group of all installed packages."""
    return list(_installed(group, tuple((entry, _changed(Path(entry))) for entry in sys.path)))


@lru_cache(maxsize=32)
def _installed(group: str, _: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Read once for a search path whose folders are as they were: it takes 30 ms."""
    return tuple(metadata.entry_points(group=group))


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def parse_spec(text: str) -> Spec:
    """``"mmr,trade_off=0.3,exact=true"`` -> Spec. Values are JSON where they parse as JSON, else text.

    A bracketed value may hold commas: ``fuse,of=[bm25,knn]`` is read as the text ``[bm25,knn]``.
    UsageError when a part after the name is not ``key=value`` or a key is given twice.
    """
    name, *parts = [p.strip() for p in _split(text)]
    settings: dict[str, Json] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise UsageError(f"{text!r}: {part!r} is not key=value; write e.g. mmr,trade_off=0.3")
        if key in settings:
            raise UsageError(f"{text!r}: {key!r} is given twice")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    if not name:
        raise UsageError(f"{text!r} has no name before its settings")
    return Spec(name, settings)


def parse_specs(text: str) -> list[Spec]:
    """``"[bm25,mmr,trade_off=0.3]"`` -> the Specs of bm25 and of mmr with its setting; ``"knn"`` -> one Spec.

    A ``key=value`` belongs to the name before it; a JSON list of texts is read as well. UsageError for no name at all.
    """
    body = text.strip()
    if body.startswith("[") and body.endswith("]"):
        body = body[1:-1]
    groups: list[list[str]] = []
    for part in (p.strip().strip('"') for p in _split(body)):
        if groups and "=" in part.partition("[")[0]:
            groups[-1].append(part)
        elif part:
            groups.append([part])
    if not groups:
        raise UsageError(f"{text!r} holds no name; write e.g. [bm25,knn]")
    return [parse_spec(",".join(group)) for group in groups]


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[{(") - (char in "]})")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
