"""A real package, installed by pip into a folder of its own, found through its entry points."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import UnknownName, UsageError
from iclkit.prompts import ORDERS, order_picks
from iclkit.records import Example
from iclkit.selectors import SELECTORS, make_selector
from iclkit.testing import SelectorContract

PACKAGE = Path(__file__).parent / "oracle"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    source = tmp_path_factory.mktemp("source") / "oracle"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [*target.glob("iclkit_oracle-1.0.dist-info/entry_points.txt")]
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    yield target
    sys.path.remove(str(target))
    for name in ("iclkit_oracle", "iclkit_oracle_broken"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_its_names_are_listed_beside_ours() -> None:
    assert {"longest", "broken", "knn"} <= set(SELECTORS.names())
    assert "alphabetic" in ORDERS.names()


def test_its_selector_takes_settings_and_its_order_sorts() -> None:
    assert str(make_selector("longest,sign=-1").spec) == "longest,sign=-1.0"
    shots = [Example("b", "1"), Example("a", "2")]
    assert order_picks(shots, "alphabetic", seed=0, query_id="q") == shots[::-1]
    with pytest.raises(UnknownName, match="Did you mean 'sign'"):
        make_selector("longest,sing=-1")


def test_a_plugin_that_does_not_load_says_why() -> None:
    with pytest.raises(UsageError, match=r"iclkit_oracle_broken:BrokenSelector.*the licence server is asleep"):
        make_selector("broken")
    with pytest.raises(UsageError, match=r"does not load.*NoSuchThing"):
        make_selector("absent")


def test_a_near_miss_offers_the_plugin() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'longest'"):
        make_selector("longset")


class TestThePlugin(SelectorContract):
    @pytest.fixture(params=["longest", "longest,sign=-1"])
    def selector(self, request: pytest.FixtureRequest) -> Any:
        return make_selector(request.param)
