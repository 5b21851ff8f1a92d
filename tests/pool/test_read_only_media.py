"""Pools on media that cannot be written, on disks that are full, and changed by others between a look and a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclkit.errors import PoolError
from iclkit.pool import Pool, _store
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder

EXAMPLES = [Example(f"text {n}", "ab"[n % 2]) for n in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "demos.db") as pool:
        pool.add(EXAMPLES)
    return tmp_path / "demos.db"


def test_a_pool_on_read_only_media_can_be_selected_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr("os.access", lambda *_: False)
    with Pool.open(path, create=False) as pool:
        assert pool.read_only
        knn = make_selector("knn").fit(pool.view(), Kit(embedder=HashEmbedder()))
        assert len(knn.select(Query("text 3"), 2)) == 2
        with pytest.raises(PoolError, match="reading only"):
            pool.add([Example("new", "a")])
    assert path.read_bytes() == before


def test_what_was_kept_and_has_gone_since_keeps_its_copies(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [Example("Late parcel", "a"), Example("late  parcel!", "a")]
    with Pool.open(path) as pool:
        pool.add(copies)
        found = _store.duplicate_rows

        def and_another_process_removes_the_kept_one(*given):
            groups = found(*given)
            with Pool.open(path) as other:
                other.remove([copies[0].id])
            return groups

        monkeypatch.setattr(_store, "duplicate_rows", and_another_process_removes_the_kept_one)
        assert pool.dedupe().removed == 0
        assert pool.get(copies[1].id).text == copies[1].text
