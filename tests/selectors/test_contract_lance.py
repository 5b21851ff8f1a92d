"""Every selector's contract, on pools in LanceDB whose vectors LanceDB searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from iclkit.pool import Pool, _lance, _lance_vectors
from iclkit.records import Example
from iclkit.selectors import BUILTINS, make_selector

from .test_contract import BuiltinContract

pytest.importorskip("lancedb", reason="needs the extra lance")


@pytest.mark.slow
class TestOnLance(BuiltinContract):
    @pytest.fixture(autouse=True)
    def pools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_lance, "LARGE", 1)
        monkeypatch.setattr(_lance_vectors, "HELD", 0)
        self.made = 0
        self.folder = tmp_path

    def make_pool(self, examples: Sequence[Example]) -> Pool:
        self.made += 1
        pool = Pool.open(self.folder / f"{self.made}.lance")
        pool.add(examples)
        return pool

    @pytest.fixture(params=[b for b in BUILTINS if b != "fixed"])
    def selector(self, request: pytest.FixtureRequest) -> Any:
        return make_selector(request.param)
