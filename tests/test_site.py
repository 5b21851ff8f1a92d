"""The documentation as a site, built as ``make docs`` does: a dead link or a page outside the menu is an error."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("mkdocs", reason="the site needs mkdocs-material and mkdocstrings: pip install 'iclkit[dev]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if not line.startswith("INFO"))
    return out


def test_it_builds_without_a_warning_and_can_be_searched_offline(site: Path):
    assert (site / "index.html").is_file()
    assert (site / "search" / "search_index.js").is_file()  # a script: browsers do not fetch JSON from a file system
    fonts = [page.name for page in site.rglob("*.html") if "fonts.googleapis.com" in page.read_text(encoding="utf-8")]
    assert fonts == []


def test_the_reference_has_what_the_rooms_export(site: Path):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html")}
    missing = []
    for room, page in pages.items():
        if room == "top":
            continue
        module = importlib.import_module(f"iclkit.{room}")
        classes = [n for n in getattr(module, "__all__", ()) if isinstance(getattr(module, n), type)]
        missing += [f"{room}.{name}" for name in classes if f'id="iclkit.{room}.{name}"' not in page]
    assert missing == []


def test_doctests_are_shown_as_code(site: Path):
    page = (site / "reference" / "eval.html").read_text(encoding="utf-8")
    assert "<blockquote" not in page
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
