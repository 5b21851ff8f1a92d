"""Key texts: written once per input and number, kept across processes, never lost by more than a batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import DataError
from iclkit.pool import FieldKey, Pool
from iclkit.records import Example, Fields, input_text
from iclkit.testing import HashEmbedder


class Shout:
    """Upper case, with the number; silent on texts that begin with a dot."""

    name = "shout"

    def __init__(self, count: int = 2, fingerprint: str = "shout-1") -> None:
        self.count, self.fingerprint = count, fingerprint
        self.calls: list[tuple[str, int]] = []

    def write(self, inputs: Sequence[Fields], number: int) -> list[str]:
        self.calls += [(input_text(i), number) for i in inputs]
        return ["" if input_text(i).startswith(".") else f"{number}\n {input_text(i).upper()}  " for i in inputs]


def some(n: int) -> list[Example]:
    return [Example(f"text {i}", "x") for i in range(n)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8), st.integers(1, 3))
def test_keys_are_what_the_transform_writes_in_one_line(texts: list[str], count: int) -> None:
    shout = Shout(count)
    with Pool.of(Example(t, "x") for t in texts) as pool:
        view = pool.view()
        keys = view.keys(shout)
        expected = [
            tuple(
                " ".join(f"{n} {e.text.upper()}".split()) if not e.text.startswith(".") else e.text
                for n in range(count)
            )
            for e in view.examples
        ]
        assert list(keys.texts) == expected
        assert keys.fallback_counts == tuple(count * e.text.startswith(".") for e in view.examples)
        assert keys.fallbacks == count * sum(e.text.startswith(".") for e in view.examples)


def test_each_key_is_written_once_and_more_numbers_add_only_themselves(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([*some(5), Example("text 0", "another output")])
        first = Shout(2)
        pool.view().keys(first)
        assert len(first.calls) == 10  # equal inputs share their keys
    with Pool.open(tmp_path / "p.db") as pool:
        again, more, other = Shout(2), Shout(3), Shout(2, "shout-2")
        pool.view().keys(again)
        assert again.calls == []
        assert len(pool.view().keys(more).texts[0]) == 3
        assert [n for _, n in more.calls] == [2] * 5
        pool.view().keys(other)
        assert len(other.calls) == 10
        pool.add([Example("new", "x")])
        newer = Shout(2)
        pool.view().keys(newer)
        assert newer.calls == [("new", 0), ("new", 1)]
        assert [k for _, _, k in pool.stored_keys(pool.ids[-1])] == ["0 NEW", "1 NEW"]


def test_query_keys_are_kept_too_and_a_read_only_pool_keeps_nothing(tmp_path: Path) -> None:
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add(some(2))
        first = Shout(1)
        assert pool.view().keys_of_queries(first, ["what"]).texts == (("0 WHAT",),)
        pool.view().keys_of_queries(first, ["what", "text 0"])
        assert first.calls == [("what", 0), ("text 0", 0)]
    with Pool.open(tmp_path / "p.db", read_only=True) as pool:
        reader = Shout(1)
        assert pool.view().keys(reader).texts == (("0 TEXT 0",), ("0 TEXT 1",))
        assert reader.calls == [("text 1", 0)]
        assert pool.view().text_vectors(HashEmbedder(8), ["0 TEXT 1", "never seen"]).shape == (2, 8)


def test_a_killed_rewriting_loses_at_most_one_batch(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Pool.open(path) as pool:
        pool.add(some(100))
    code = """
import os, sys
import iclkit.pool._keys as store
from iclkit.pool import Pool
store.BATCH = 8
class Dying:
    name, fingerprint, count, left = "shout", "shout-1", 1, 5
    def write(self, inputs, number):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), 9)
        return [f"{number} {i.upper()}" for i in inputs]
Pool.open(sys.argv[1]).view().keys(Dying())
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    with Pool.open(path) as pool:
        shout = Shout(1)
        assert pool.view().keys(shout).texts[:2] == (("0 TEXT 0",), ("0 TEXT 1",))
        assert len(shout.calls) == 100 - 32


def test_removing_an_example_removes_its_keys_unless_another_has_its_input() -> None:
    with Pool.of([Example("same", "a"), Example("same", "b"), Example("other", "a")]) as pool:
        pool.view().keys(Shout(1))
        first, second, third = pool.ids
        pool.remove([first, third])
        assert pool.stored_keys(second) == [("shout", 0, "0 SAME")]
        pool.remove([second])
        assert pool._table.database.read("SELECT count(*) FROM keys") == [(0,)]


def test_texts_are_embedded_once_and_share_vectors_with_examples(tmp_path: Path) -> None:
    embedder = HashEmbedder(8)
    with Pool.open(tmp_path / "p.db") as pool:
        pool.add([Example("one", "x")])
        pool.embed(embedder)
        vectors = pool.view().text_vectors(embedder, ["two", "one", "two", "three"])
        np.testing.assert_array_equal(vectors, HashEmbedder(8).encode_documents(["two", "one", "two", "three"]))
        assert embedder.calls["documents"] == 3
        pool.view().text_vectors(embedder, ["three", "two"])
        assert embedder.calls["documents"] == 3
        assert pool.view().text_vectors(embedder, []).shape == (0, 8)


def test_a_field_can_be_the_key() -> None:
    with Pool.of([Example({"question": "how many?", "table": "rivers"}, "3")]) as pool:
        assert pool.view().keys(FieldKey("table")).texts == (("rivers",),)
        with pytest.raises(DataError, match=r"no field 'tabel' .* it has question, table"):
            pool.view().keys(FieldKey("tabel"))
        with pytest.raises(DataError, match="one text without fields"):
            pool.view().keys_of_queries(FieldKey("table"), ["plain"])


def test_a_transform_that_writes_too_few_keys_is_named() -> None:
    class Short(Shout):
        def write(self, inputs: Sequence[Fields], number: int) -> list[str]:
            return super().write(inputs, number)[:-1]

    with Pool.of(some(2)) as pool, pytest.raises(DataError, match="shout wrote 1 keys for 2 inputs"):
        pool.view().keys(Short())
