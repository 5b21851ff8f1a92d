"""``iclkit keys``: what skill-knn searches by can be read, edited and used; annotations begin with a file."""

from __future__ import annotations

import json
import tomllib

import pytest

from iclkit.cli import _keys
from iclkit.pool import Pool, PoolView
from iclkit.records import Example
from iclkit.selectors import Kit, make_selector
from iclkit.testing import FakeLM, HashEmbedder

from .eval_worlds import call, fakes

__all__ = ["fakes"]


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "demos.db"
    with Pool.open(path) as store:
        store.add(Example(f"question {n}", f"answer {n}") for n in range(6))
        selector = make_selector("skill-knn,rewrites=2").fit(store.view(), Kit(HashEmbedder(8), FakeLM()))
        assert len(selector.keys_.texts) == 6
    return path


def test_keys_are_exported_edited_and_used(pool, tmp_path, capsys, fakes):
    code, out, _ = call("keys", "export", str(pool), capsys=capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 12
    assert {*rows[0]} == {"id", "number", "key", "input", "by"}
    file = tmp_path / "keys.jsonl"
    file.write_text("".join(json.dumps({**row, "key": "by hand"}) + "\n" for row in rows))
    spec = f"skill-knn,rewrites=2,keys={file}"
    with Pool.open(pool) as store:
        selector = make_selector(spec).fit(store.view(), Kit(HashEmbedder(8), FakeLM()))
        assert {*selector.keys_.texts} == {("by hand", "by hand")}
    code, _, err = call("keys", "export", str(pool), "--by", "nobody", capsys=capsys)
    assert (code, "no keys by 'nobody'; there are those by" in err) == (2, True)
    Pool.open(tmp_path / "new.db").close()
    code, _, err = call("keys", "export", str(tmp_path / "new.db"), capsys=capsys)
    assert (code, "has no keys" in err) == (1, True)


def test_keys_are_printed_as_they_are_read(pool, monkeypatch, capsys, fakes):
    read, printed_after = [], []
    stored_keys = PoolView.stored_keys

    def counted(view):
        for example, keys in stored_keys(view):
            read.append(example.id)
            yield example, keys

    monkeypatch.setattr(PoolView, "stored_keys", counted)
    monkeypatch.setattr(_keys, "emit", lambda line: printed_after.append(len(read)))
    assert call("keys", "export", str(pool), capsys=capsys)[0] == 0
    # all are read once before, for who wrote them
    assert printed_after == [6 + n for n in range(1, 7) for _ in range(2)]


def test_a_file_to_annotate_is_begun_and_never_written_over(pool, tmp_path, capsys, fakes):
    out = tmp_path / "mine.toml"
    code, _, err = call("keys", "annotate", str(pool), "--out", str(out), "-n", "3", capsys=capsys)
    assert (code, "3 inputs" in err) == (0, True)
    assert [*tomllib.loads(out.read_text())] == ["instruction", "stem", "pairs"]
    code, _, err = call("keys", "annotate", str(pool), "--out", str(out), capsys=capsys)
    assert (code, "is there already" in err) == (1, True)
