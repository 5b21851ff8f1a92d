"""Fifty queries give the same demonstrations through Python, the command line and every tool that is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from iclkit.selectors import make_selector

from .conftest import TEXTS
from .doors import DOORS, keep, through_python


@pytest.fixture(scope="module", params=["random", "mmr"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pool file and the folder of a selector saved on it, with a real embedder where it needs one."""
    if make_selector(request.param).needs.embedder:
        request.getfixturevalue("minilm_path")
    return keep(request.param, tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize("door", DOORS)
def test_the_same_queries_give_the_same_demonstrations(kept: tuple[Path, Path], door: str) -> None:
    package, ask = DOORS[door]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    expected = through_python(*kept)
    assert len(expected) == len(TEXTS)
    assert len({tuple(ids) for ids in expected}) > 20
    assert ask(*kept) == expected
