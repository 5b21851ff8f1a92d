"""The pictures of what selectors choose are those that the selectors draw now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("draw_selectors", ROOT / "docs" / "_build" / "draw_selectors.py")
drawing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(drawing)
DRAWN = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.models] if name == "meaning" else [])
    for name in drawing.PICTURES
    if name != "model"
]


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_of_the_docs_is_what_its_selectors_choose(name):
    committed = (ROOT / "docs" / "images" / f"selectors-{name}.svg").read_text(encoding="utf-8")
    assert drawing.PICTURES[name]() == committed, f"run: python docs/_build/draw_selectors.py {name}"


def test_every_picture_stands_in_the_docs_below_its_command():
    page = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8")
    for name in drawing.PICTURES:
        command, picture = f"python docs/_build/draw_selectors.py {name}\n", f"(images/selectors-{name}.svg)"
        assert page.index(command) < page.index(picture)
