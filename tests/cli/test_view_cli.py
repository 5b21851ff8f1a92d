"""``iclkit view`` as a process: it prints its address and ends when told to; why it cannot start is one line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from iclkit.cli import main
from iclkit.pool import Pool
from iclkit.records import Example

pytest.importorskip("uvicorn", reason="the page is not installed: pip install 'iclkit[serve]'")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "tickets.db") as made:
        made.add([Example("my parcel is late", "shipping", "support"), Example("I was charged twice", "billing")])
    return tmp_path / "tickets.db"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["view", *words])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return stop.value.code, line  # type: ignore[return-value]


def test_it_prints_an_address_with_a_key_answers_there_and_ends_with_ctrl_c(pool: Path) -> None:
    command = [sys.executable, "-m", "iclkit", "view", str(pool), "--embedder", "none", "--no-open"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "in a browser" in line)
            address, key = line.split()[1].split("/#")
            request = urllib.request.Request(f"{address}/api/rows", headers={"X-ICLKIT-Token": key})
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert b"my parcel is late" in answer.read()
            server.send_signal(signal.SIGINT)
            assert server.stderr.read().strip() == ""
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_why_it_cannot_start_is_one_line(
    pool: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, line = said(capsys, "nowhere.db", "--embedder", "none")
    assert (code, "make one with: iclkit pool add" in line) == (1, True)
    (pool.parent / "rows.csv").write_text("a,b\n1,2\n")
    code, line = said(capsys, str(pool.parent / "rows.csv"), "--embedder", "none")
    assert (code, "is not a pool" in line) == (1, True)
    code, line = said(capsys, str(pool), "--embedder", "none", "--task-name", "suport")
    assert (code, "there are: '', 'support'" in line) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, line = said(capsys, str(pool), "--embedder", "none", "--port", str(taken.getsockname()[1]))
        assert (code, "give another --port" in line) == (2, True)
    monkeypatch.setattr("iclkit.cli._view.find_spec", lambda package: None)
    code, line = said(capsys, str(pool))
    assert (code, "the page needs the extra: pip install" in line, "[serve]" in line) == (2, True, True)
