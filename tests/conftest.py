"""Fixtures shared by all rooms: where real models and real data are, or a skip that says why they are not here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("iclkit", deadline=None)  # how long a case takes says more about the machine than the code
settings.load_profile("iclkit")

ROOT = Path(__file__).resolve().parent.parent


def _model(name: str, kind: str) -> Path:
    from iclkit import models
    from iclkit.errors import ModelError

    try:
        return models.resolve(name, kind, pull=False)
    except ModelError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"model {name} is not under {models.home()}: {error}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a local folder."""
    return _model("smollm2-135m", "lm")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """all-MiniLM-L6-v2 as a local folder."""
    return _model("all-minilm-l6-v2", "embedder")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: ICLKIT_TEST_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("ICLKIT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set ICLKIT_TEST_DATA")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ICLKIT_HOME."""
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that one test gives away is not hidden in what another prints: the process remembers secrets."""
    from iclkit import secrets

    monkeypatch.setattr(secrets, "_known", {})


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests of pages."""
    from tests.browser import start

    browser = start(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()
