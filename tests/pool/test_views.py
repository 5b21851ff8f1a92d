"""Views: overlays that store nothing, copies and pickles, what is fitted once, and snapshots that read what is new."""

# ruff: noqa: S301  what is unpickled here was pickled here

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iclkit.errors import PoolError
from iclkit.pool import Pool
from iclkit.records import Example, Query
from iclkit.selectors import Kit, make_selector
from iclkit.testing import HashEmbedder

EMBEDDER = HashEmbedder(8)


class Shout:
    """Writes an input in capitals, and counts."""

    name, fingerprint, count = "shout", "shout-2", 1

    def __init__(self) -> None:
        self.calls: list[str] = []

    def write(self, inputs, number):
        self.calls += inputs
        return [i.upper() for i in inputs]


class Counting(HashEmbedder):
    """Counts the documents that it encodes."""

    encoded = 0

    def encode_documents(self, texts, progress=None):
        self.encoded += len(texts)
        return super().encode_documents(texts)


def filled(path: Path, count: int = 5) -> Pool:
    pool = Pool.open(path)
    pool.add(Example(f"text {n}", "xy"[n % 2], meta={"n": n}) for n in range(count))
    return pool


def test_what_is_made_on_an_overlay_stays_in_memory_and_is_made_once(tmp_path: Path) -> None:
    with filled(tmp_path / "p.db") as pool:
        overlay, embedder, shout = pool.view().overlay(), Counting(8), Shout()
        before = {f: f.read_bytes() for f in tmp_path.iterdir()}
        for _ in range(2):
            np.testing.assert_array_equal(overlay.vectors(embedder), embedder.encode_documents(
                [e.text for e in overlay.examples]))  # fmt: skip
            overlay.text_vectors(embedder, ["a key"])
            assert overlay.keys(shout).texts[0] == ("TEXT 0",)
            overlay.keys_of_queries(shout, ["what"])
        assert embedder.encoded == 5 + 1 + 2 * 5
        assert len(shout.calls) == 6
        assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before
        assert pool.stats().vectors == {}
        assert pool.stored_keys(pool.ids[0]) == []
        pool.view().keys(shout)
        assert len(shout.calls) == 11


def test_an_overlay_uses_what_the_pool_has(tmp_path: Path) -> None:
    with filled(tmp_path / "p.db") as pool:
        pool.embed(EMBEDDER)
        pool.view().keys(Shout())
        embedder, shout = Counting(8), Shout()
        overlay = pool.view().overlay([Example("new", "x")])
        overlay.vectors(embedder)
        overlay.keys(shout)
        assert embedder.encoded == 1
        assert shout.calls == ["new"]


def test_examples_of_an_overlay_are_candidates_and_the_pool_never_sees_them(tmp_path: Path) -> None:
    with filled(tmp_path / "p.db") as pool:
        view, known = pool.view(), pool.get(pool.ids[1])
        new = [Example("fresh one", "x"), Example("fresh two", "y"), known, Example("fresh one", "x")]
        overlay = view.overlay(new)
        assert [e.text for e in overlay.examples[5:]] == ["fresh one", "fresh two"]
        assert overlay.rows[:5].tolist() == view.rows.tolist()
        assert overlay.hash != view.hash
        (own,) = overlay.candidates([Query("fresh two")], EMBEDDER)
        (best,) = own.nearest(1).rows.tolist()
        assert overlay.ids_at(np.array([best])) == [new[1].id]
        chosen = make_selector("knn").fit(overlay, Kit(embedder=EMBEDDER)).select(Query("fresh one"), 1)
        assert chosen.ids == (new[0].id,)
        assert len(pool) == len(view) == 5
        twice = overlay.overlay([Example("third", "x")])
        assert len(twice) == 8
        assert len({*twice.rows.tolist()}) == 8


def test_a_trace_made_during_a_run_stands_for_its_example() -> None:
    plain = Example("two plus two", "4")
    trace = Example("two plus two", "2 and 2 are 4", meta={"generated_from": [plain.id]})
    with Pool.of([plain]) as pool:
        (own,) = pool.view().overlay([trace]).candidates([Query("q")], EMBEDDER)
        assert [e.output for e in own.examples(own.nearest(2).rows)] == ["2 and 2 are 4"]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))])
@pytest.mark.parametrize("kept", ["file", "memory"])
def test_views_are_copied_with_their_parts_and_overlays(tmp_path: Path, again, kept: str) -> None:
    pool = filled(tmp_path / "p.db" if kept == "file" else ":memory:")
    pool.remove([pool.ids[2]])
    pool.embed(EMBEDDER)
    whole = pool.view()
    new = Example("new", "x")
    for view in (whole, whole.only(whole.rows[1:3]), whole.overlay([new]), whole.only(whole.rows[:2]).overlay([new])):
        other = again(view)
        assert other is not view
        assert other.examples == view.examples
        assert other.rows.tolist() == view.rows.tolist()
        assert other.revision == view.revision
        np.testing.assert_array_equal(other.vectors(EMBEDDER), view.vectors(EMBEDDER))


def test_a_fitted_selector_travels_to_another_process(tmp_path: Path) -> None:
    with filled(tmp_path / "p.db") as pool:
        fitted = make_selector("knn").fit(pool.view(), Kit(embedder=EMBEDDER))
        (tmp_path / "fitted").write_bytes(pickle.dumps(fitted))
        code = (
            "import pickle, sys; from iclkit.records import Query\n"
            "print(*pickle.load(open(sys.argv[1], 'rb')).select(Query('text 3'), 2).ids)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "fitted")]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert done.stdout.split() == [*fitted.select(Query("text 3"), 2).ids], done.stderr


def test_a_pool_that_has_changed_is_refused(tmp_path: Path) -> None:
    with filled(tmp_path / "p.db") as pool:
        saved = pickle.dumps(pool.view())
        pool.add([Example("one more", "x")])
        with pytest.raises(PoolError, match=r"changed since this was made \(revision 1, now 2\); make it again"):
            pickle.loads(saved)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(PoolError, match="no pool at"):
        pickle.loads(saved)
    filled(tmp_path / "p.db").close()
    with pytest.raises(PoolError, match="another pool"):
        pickle.loads(saved)


def test_what_is_learnt_from_a_view_is_made_once() -> None:
    with Pool.of([Example("a", "x")]) as pool:
        made = []
        for _ in range(2):
            assert pool.view().derived("terms", lambda: made.append(1) or len(made)) == 1
        assert pool.view().overlay().derived("terms", lambda: 2) == 1
        assert pool.view().overlay([Example("b", "x")]).derived("terms", lambda: 2) == 2
        pool.add([Example("c", "x")])
        assert pool.view().derived("terms", lambda: 3) == 3


def test_a_snapshot_after_additions_is_what_a_new_look_at_the_file_gives(tmp_path: Path) -> None:
    with filled(tmp_path / "p.db") as pool, Pool.open(tmp_path / "p.db") as writer:
        pool.view()
        changes = [
            lambda: writer.add([Example("more", "x"), Example("text 1", "z")]),
            lambda: writer.add([Example("more still", "x")]),
            lambda: writer.remove([writer.ids[0]]),
            lambda: writer.add([Example("text 0", "x")]),
            lambda: writer.update(writer.ids[1], output="new"),
            lambda: writer.update(writer.ids[2], meta={"seen": True}),
            lambda: writer.remove(writer.ids),
            lambda: writer.add([Example("again", "x")]),
        ]
        for change in changes:
            change()
            view = pool.view()
            with Pool.open(tmp_path / "p.db") as fresh:
                other = fresh.view()
                assert view.examples == other.examples
                assert [dict(e.meta) for e in view.examples] == [dict(e.meta) for e in other.examples]
                assert view.rows.tolist() == other.rows.tolist()
                assert view._texts.tolist() == other._texts.tolist()
                np.testing.assert_array_equal(view.vectors(EMBEDDER), other.vectors(EMBEDDER))
