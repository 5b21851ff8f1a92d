"""JSON texts that Python's own reader takes, or answers with errors of other kinds; files that are no plain files."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from iclkit.errors import DataError
from iclkit.files import parse_json, read_jsonl, replace_file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("{oops", "not JSON"),
        (b"\xff{}", r"not UTF-8 text \(byte 0\)"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("\ud800", "not JSON"),
        ('"\ud800"', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        ('{"a\\udfff": 1}', "half of a surrogate pair"),
        ("[" * 101 + "]" * 101, "nested too deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(text: str | bytes, told: str) -> None:
    with pytest.raises(DataError, match=f"f, line 3: .*{told}"):
        parse_json(text, "f, line 3")


@pytest.mark.parametrize("value", ["\U0001f600 \u2028", "\\u", [[1]] * 200, {"a": {"b": [None, True]}}])
def test_what_is_json_comes_back(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value).encode()):
        assert parse_json(text, "f") == value


def test_lines_end_at_the_newline_alone(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0bh\x0ci\x1cj\x1dk\x1el", "m\rn"]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8", newline="\n")
    assert [value for _, value in read_jsonl(file)] == texts


# -- what replaces a file --


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "real.txt")
    replace_file(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "real.txt").read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link.txt", "real.txt", "there"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to_and_stays_one(tmp_path) -> None:
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    replace_file(pipe, "text")
    reader.join()
    assert got == [b"text"]
    assert pipe.is_fifo()


def test_a_folder_in_the_place_is_an_error_and_stays(tmp_path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "place", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["place"]
