"""The map of design: rooms import downward only, and outside libraries come in through their own doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "iclkit"

# lower number = lower room; rooms with the same number do not import each other
LEVEL = {
    "secrets": -1,
    "records": 0,
    "errors": 0,
    "registry": 1,
    "settings": 1,
    "database": 1,
    "files": 1,
    "text": 1,
    "schema": 1,
    "models": 2,
    "engines": 2,
    "embed": 3,
    "prompts": 3,
    "lm": 3,
    "pool": 4,
    "selectors": 5,
    "augment": 5,
    "datasets": 5,
    "eval": 6,
    "trainers": 7,
    "tuners": 7,
    "report": 7,
    "testing": 8,
    "integrations": 8,
    "cli": 9,
}
DOORS = {
    "sqlite3": {"database", "pool/_readonly_worker"},  # the worker runs foreign SQL, in a process of its own
    "faiss": {"pool"},
    "torch": {"lm", "embed", "pool", "trainers", "tuners", "models"},
    "transformers": {"lm", "embed", "trainers", "models"},
    "sentence_transformers": {"embed", "trainers", "models"},
    "optuna": {"tuners"},
    "httpx": {"lm", "datasets", "models"},
    "huggingface_hub": {"lm", "datasets", "models"},
    "click": {"cli"},
    "rich": {"cli"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
    return found


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f.parent != PACKAGE or f.stem in LEVEL]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_rooms_import_downward_only(file: Path) -> None:
    room = room_of(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "iclkit" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room] or {parts[1], room} == {"records", "errors"}, f"{room} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_outside_libraries_come_in_through_their_doors(file: Path) -> None:
    for name in imports(file):
        allowed = DOORS.get(name.split(".")[0])
        places = {room_of(file), str(file.relative_to(PACKAGE).with_suffix(""))}
        assert allowed is None or places & allowed, f"{name} is imported in {room_of(file)}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_other_rooms_are_entered_by_their_front_door(file: Path) -> None:
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "iclkit" and len(parts) > 2 and parts[1] != room_of(file):
            assert not parts[2].startswith("_"), f"{name} reaches behind the door of {parts[1]}"


def test_importing_iclkit_and_its_command_line_loads_nothing_heavy() -> None:
    code = "import iclkit, iclkit.cli, sys; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "transformers", "faiss", "scipy", "sklearn", "pyarrow", "numpy", "sentence_transformers"):
        assert f"'{heavy}'" not in loaded


def test_importing_iclkit_alone_loads_neither_sqlite_nor_click() -> None:
    code = "import iclkit, sys; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'sqlite3'" not in loaded
    assert "'click'" not in loaded
