"""Every script and notebook of ``examples`` runs as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SHORT = {"measure": ["6"]}
"""Arguments with which an example asks the LM less than for a reader."""
SAYS = {
    "choose": "track order",
    "measure": "no difference shown",
    "without_an_lm": "of 204",
    "prompt_under_a_budget": "left out: ['over the budget",
    "keep_a_selector": "{'shop': 'north'}",
    "own_selector": "near-length",
    "first_look": "0.",
    "board": "knn-vote",
}


def run(words: list[str], folder: Path) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.models
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_runs(script: Path, tmp_path: Path, smollm2_path: Path, minilm_path: Path) -> None:
    assert SAYS[script.stem] in run([str(script), *SHORT.get(script.stem, [])], tmp_path)


@pytest.mark.models
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_cells_of_a_notebook_run(notebook: Path, tmp_path: Path, smollm2_path: Path, minilm_path: Path) -> None:
    cells = [c for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] for c in cells), "a notebook is committed without outputs"
    lines = ["".join(c["source"]) for c in cells]
    last = lines[-1].rsplit("\n", 1)
    if not last[-1].startswith("print("):  # a notebook shows the value of its last line
        last[-1] = f"print({last[-1]})"
    (tmp_path / "cells.py").write_text("\n".join([*lines[:-1], "\n".join(last)]), encoding="utf-8")
    assert SAYS[notebook.stem] in run(["cells.py"], tmp_path)


def test_the_table_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in [*SCRIPTS, *NOTEBOOKS] if f"`{p.name}`" not in text] == []
