"""Random pools with a geometry of their own, for selectors that meet a naive second implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from iclkit.pool import Pool, PoolView
from iclkit.records import Example, Query
from iclkit.selectors import Kit
from iclkit.testing import TableEmbedder


@dataclass(frozen=True)
class World:
    """A pool whose examples are "d0", "d1" … with the rows of ``vectors``, and one query "q"."""

    view: PoolView
    kit: Kit
    query: Query
    sim: np.ndarray  # (n,) cosine with the query, rounded as the library rounds
    near: np.ndarray  # (n, n) cosine between examples, rounded


@pytest.fixture(scope="session")
def world() -> Callable[..., World]:
    def build(seed: int, n: int, dim: int = 4, labels: int = 3, exclude: tuple[int, ...] = ()) -> World:
        rng = np.random.default_rng(seed)
        vectors, target = rng.standard_normal((n, dim)), rng.standard_normal(dim)
        for row in range(1, n):  # duplicates, to try the ties
            if rng.random() < 0.2:
                vectors[row] = vectors[rng.integers(row)]
        embedder = TableEmbedder({"q": target, **{f"d{i}": v for i, v in enumerate(vectors)}})
        examples = [Example(f"d{i}", f"label {rng.integers(labels)}") for i in range(n)]
        unit = embedder.encode_documents([f"d{i}" for i in range(n)]).astype(np.float64)
        sim = np.round(unit @ embedder.encode_queries(["q"])[0], 6)
        query = Query("q", exclude=frozenset(examples[i].id for i in exclude))
        return World(Pool.of(examples).view(), Kit(embedder=embedder, seed=3), query, sim, np.round(unit @ unit.T, 6))

    return build
