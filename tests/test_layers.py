"""The map of design: rooms import downward only, and outside libraries come in through their own doors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "iclkit"

# lower number = lower room; rooms with the same number do not import each other
LEVEL = {
    "secrets": -1,
    "locks": -1,
    "records": 0,
    "errors": 0,
    "registry": 1,
    "settings": 1,
    "database": 1,
    "files": 1,
    "extras": 1,
    "text": 1,
    "overlap": 1,
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
    "predictors": 6,
    "eval": 7,
    "trainers": 8,
    "tuners": 8,
    "report": 8,
    "testing": 9,
    "integrations": 9,
    "serve": 9,
    "view": 10,
    "cli": 11,
}
DOORS = {
    "sqlite3": {"database", "pool/_readonly_worker"},  # the worker runs foreign SQL, in a process of its own
    "faiss": {"pool"},
    "torch": {"lm", "embed", "pool", "trainers", "tuners", "models"},
    "transformers": {"lm", "embed", "trainers", "models"},
    "sentence_transformers": {"embed", "trainers", "models"},
    "optuna": {"tuners"},
    "httpx": {"lm", "datasets", "models", "serve"},
    "huggingface_hub": {"lm", "datasets", "models", "integrations", "trainers/_card"},
    "starlette": {"serve", "view"},
    "uvicorn": {"serve"},
    "langchain_core": {"integrations"},
    "dspy": {"integrations"},
    "lm_eval": {"integrations"},
    "inspect_ai": {"integrations"},
    "mlflow": {"integrations"},
    "wandb": {"integrations"},
    "trackio": {"integrations"},
    "ray": {"engines"},
    "lancedb": {"pool"},
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
IMPORTS = [(file, name) for file in FILES for name in sorted(imports(file))]


def test_every_module_stands_in_a_room_with_a_level() -> None:
    rooms = {room_of(f) for f in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms <= LEVEL.keys()
    assert {room for room in LEVEL if not (PACKAGE / room).exists() and not (PACKAGE / f"{room}.py").exists()} == set()


def test_rooms_import_downward_only() -> None:
    wrong = []
    for file, name in IMPORTS:
        room, parts = room_of(file), name.split(".")
        if parts[0] != "iclkit" or len(parts) < 2 or parts[1] not in LEVEL or parts[1] == room:
            continue
        if LEVEL[parts[1]] >= LEVEL[room] and {parts[1], room} != {"records", "errors"}:
            wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_outside_libraries_come_in_through_their_doors() -> None:
    wrong = []
    for file, name in IMPORTS:
        allowed = DOORS.get(name.split(".")[0])
        places = {room_of(file), str(file.relative_to(PACKAGE).with_suffix(""))}
        if allowed is not None and not places & allowed:
            wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_other_rooms_are_entered_by_their_front_door() -> None:
    wrong = []
    for file, name in IMPORTS:
        parts = name.split(".")
        if parts[0] == "iclkit" and len(parts) > 2 and parts[1] != room_of(file) and parts[2].startswith("_"):
            wrong.append(f"{file.relative_to(PACKAGE)} reaches behind the door of {parts[1]}: {name}")
    assert wrong == []


def test_nothing_swaps_a_class_or_a_module() -> None:
    wrong = [str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.py")
             if re.search(r"__class__ = |sys\.modules\[[^\]]*\] = ", f.read_text())]  # fmt: skip
    assert wrong == []


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
