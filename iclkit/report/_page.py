"""What the pages of iclkit have in common: how they look, the helpers of their scripts, and how one is put together."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable


def page_style(folder: Traversable | None = None) -> str:
    """The style of the board's page, and after it ``page.css`` of another page's folder."""
    own = _text(_board() / "page.css")
    return own if folder is None else own + _text(folder / "page.css")


def page_script(folder: Traversable | None = None) -> str:
    """The helpers that stand in ``shared``, and after them ``page.js`` of a page's folder, the board's by default."""
    return _text(_board() / "shared.js") + _text((folder or _board()) / "page.js")


def fill_page(folder: Traversable | None, parts: Mapping[str, str]) -> str:
    """``page.html`` of a page's folder, the board's by default, with ``%%NAME%%`` replaced by the parts."""
    return re.sub(r"%%(\w+)%%", lambda found: parts[found[1]], _text((folder or _board()) / "page.html"))


def policy_hash(text: str) -> str:
    """A content security policy's name for an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _board() -> Traversable:
    return resources.files("iclkit.report") / "page"


def _text(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")
