"""One pool, one saved selector and fifty queries that every tool is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import Chooser, Kit, load_selector, make_selector
from iclkit.testing import HashEmbedder

WORDS = (
    *("parcel", "late", "broken", "refund", "invoice", "card", "login", "password", "screen", "battery", "order"),
    *("address", "courier", "gift", "return", "size", "color", "phone", "email", "account", "charge", "twice"),
    *("stolen", "wrong", "missing", "slow", "cold", "noisy", "friendly", "helpful", "quick"),
)
TEAMS = ("shipping", "billing", "support")


def sentence(n: int) -> str:
    """A text of five words that no other n has."""
    return " ".join(WORDS[(n * step + n // 7) % len(WORDS)] for step in (1, 3, 5, 7, 11)) + f" no {n}"


EXAMPLES = [Example(sentence(n), TEAMS[n % 3], meta={"lang": "en" if n % 4 else "de"}) for n in range(120)]
TEXTS = [sentence(n) for n in range(1000, 1050)]


@dataclass(frozen=True)
class World:
    """``pool``: a pool file; ``kept``: the folder of a selector that was saved on it."""

    pool: Path
    kept: Path

    @property
    def chooser(self) -> Chooser:
        return load_selector(self.kept)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("sockets")
    with Pool.open(folder / "tickets.db") as pool:
        pool.add(EXAMPLES)
        make_selector("bm25").fit(pool.view(), Kit()).save(folder / "kept", k=4)
    return World(folder / "tickets.db", folder / "kept")


@pytest.fixture
def chooser() -> Chooser:
    """kNN over the same examples, kept in memory."""
    pool = Pool.of(EXAMPLES)
    view, kit = pool.view(), Kit(embedder=HashEmbedder())
    return Chooser(make_selector("knn").fit(view, kit), view, kit, k=4, pool=pool)
