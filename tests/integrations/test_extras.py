"""What a tool needs and is not there, or is too old, is one line with the command that helps."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from iclkit.errors import UsageError
from iclkit.integrations._demonstrations import settings_of
from iclkit.integrations._extras import require
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder


def test_a_missing_package_is_named_with_the_command() -> None:
    with pytest.raises(UsageError, match=r"needs no-such-tool here, which is not installed: pip install .*\[x\]'"):
        require("x", "no-such-tool", "1.0")


def test_a_version_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "0.9.12rc1")
    with pytest.raises(UsageError, match=r"tool 0\.10 or newer, and 0\.9\.12rc1 is installed.*--upgrade"):
        require("x", "tool", "0.10")
    for enough in ("0.9", "0.9.12", "0.9.2"):
        require("x", "tool", enough)


def test_the_room_loads_no_tool_before_it_is_asked_for() -> None:
    code = "import iclkit.integrations, sys; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for tool in ("langchain_core", "dspy", "lm_eval", "inspect_ai", "sklearn"):
        assert f"'{tool}'" not in loaded


def test_of_a_saved_selector_everything_but_the_labels_of_its_pool_is_used(tmp_path: Path) -> None:
    kit = Kit(HashEmbedder(), labels=("a", "b"), seed=3, order="random", reserve=7, task="t")
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([Example("one", "a"), Example("two", "b")])
        make_selector("bm25").fit(pool.view(), kit).save(tmp_path / "kept", k=1)
    spec, again = settings_of(str(tmp_path / "kept"), None)
    assert spec.startswith("bm25,")
    assert again == replace(kit, embedder=None, labels=())
