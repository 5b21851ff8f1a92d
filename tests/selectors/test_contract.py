from __future__ import annotations

from typing import Any

import pytest

from iclkit.selectors import BUILTINS, make_selector
from iclkit.testing import SelectorContract

VARIANTS = ["mmr,trade_off=0.2,candidates=5", "mmr,trade_off=1", "bm25,tokenizer=trigrams,b=0.2"]


class TestBuiltins(SelectorContract):
    @pytest.fixture(params=[*BUILTINS, *VARIANTS])
    def selector(self, request: pytest.FixtureRequest) -> Any:
        return make_selector(request.param)

    def expected_size(self, selector: Any, k: int, allowed: int) -> int:
        return 0 if selector.name == "zero" else min(k, allowed)
