from __future__ import annotations

from typing import Any

import pytest

from iclkit.selectors import BUILTINS, make_selector
from iclkit.testing import SelectorContract

VARIANTS = [
    "mmr,trade_off=0.2,candidates=5",
    "mmr,trade_off=1",
    "skill-knn,variant=consistency,rewrites=2,style=parsing",
    "bm25,tokenizer=trigrams,b=0.2",
    "dpp,sort=picks,candidates=10",
    "set-bsr,weights=idf,sort=picks",
    "bm25-coverage,sort=relevance",
    "many-labels,min_labels=3",
    "vote-k,budget=8,neighbors=5",
    "vote-k-confidence,budget=12,seeds=4,neighbors=5",
    "rrf,of=[bm25,mmr,trade_off=0.3,random]",
    "borda,of=[knn,cosine-coverage],depth=40",
    "hybrid,near=2,fixed=mfl,of=bm25",
    "rerank,of=[mmr,trade_off=0.9],depth=12",
    "mdl,window=3,candidates=6,prefer=highest,normalize=sum",
    "cone,candidates=3",
    "locale,probe=pool,probes=4,orders=5",
    "pvi-weight,of=bm25,weight=2.0,candidates=4",
    "filter,of=[rrf,of=[bm25,knn],depth=40]",
]


class BuiltinContract(SelectorContract):
    def expected_size(self, selector: Any, k: int, allowed: int) -> int:
        if selector.name == "zero":
            return 0
        gone = len(selector.dropped()) if selector.name == "pvi-filter" else 0
        return min(k, allowed - gone, getattr(selector, "budget", allowed))


class TestBuiltins(BuiltinContract):
    @pytest.fixture(params=[*(b for b in BUILTINS if b != "fixed"), *VARIANTS])  # test_fixed.py
    def selector(self, request: pytest.FixtureRequest) -> Any:
        return make_selector(request.param)
