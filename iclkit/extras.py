"""The command that installs an extra, for whichever way iclkit itself was installed.

A copy that came from a checkout, a file or a repository is on no index, or is another version than the one there, so
``pip install 'iclkit[train]'`` would fail or replace it.
"""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent


def install_command(extra: str) -> str:
    """``pip install …`` for an extra: from the checkout or file that this copy came from, else from the index."""
    try:
        stored = metadata.distribution("iclkit").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from its folder
        stored = json.dumps({"url": ROOT.as_uri(), "dir_info": {"editable": True}}) if _is_checkout(ROOT) else None
    return _command(extra, json.loads(stored) if stored else {})


def _command(extra: str, origin: dict[str, Any]) -> str:
    """The command for an origin as ``direct_url.json`` describes it (PEP 610).

    >>> _command("train", {})
    "pip install 'iclkit[train]'"
    >>> _command("train", {"url": "file:///src/iclkit", "dir_info": {"editable": True}})
    "pip install -e '/src/iclkit[train]'"
    """
    url = str(origin.get("url", ""))
    if not url:
        return f"pip install {shlex.quote(f'iclkit[{extra}]')}"
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{unquote(urlsplit(url).path)}[{extra}]')}"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"pip install {shlex.quote(f'iclkit[{extra}] @ {url}')}"


def _is_checkout(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file()
