"""The documentation as a site, built as ``make docs`` does: a dead link or a page outside the menu is an error."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.browser import look

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


def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(site: Path):
    assert (site / "index.html").is_file()
    loads = re.compile(r'<(?:script|img|iframe)\b[^>]*\bsrc="http|<link\b[^>]*\brel="(?!canonical)[^>]*\bhref="http')
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))] == []


def test_it_is_searched_where_it_was_opened_from_a_file_system(site: Path, chrome: Any):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    look(chrome)
    chrome.get((site / "index.html").as_uri())
    wait = WebDriverWait(chrome, 30)
    box = wait.until(lambda page: next((e for e in page.find_elements(By.NAME, "query") if e.is_displayed()), None))
    box.send_keys("diversity")
    found = wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".md-search-result__item a"))
    assert "selectors.html" in " ".join(link.get_attribute("href") for link in found)


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
