"""Whole-file replacement, where the place is no plain file."""

from __future__ import annotations

import os
import threading

import pytest

from iclkit.files import replace_file


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
