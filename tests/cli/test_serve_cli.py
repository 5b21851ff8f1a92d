"""``iclkit serve`` as a process: it answers, follows its pool, ends when told to; why it cannot start is one line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from iclkit.cli import main
from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import Kit, make_selector

pytest.importorskip("uvicorn", reason="the service is not installed: pip install 'iclkit[serve]'")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "tickets.db") as pool:
        pool.add([Example("my parcel is late", "shipping"), Example("I was charged twice", "billing")])
        return make_selector("bm25").fit(pool.view(), Kit()).save(tmp_path / "kept", k=1, follow=True)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return stop.value.code, lines[0]  # type: ignore[return-value]


def ask(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{address}/select", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_it_answers_follows_the_pool_and_ends_with_ctrl_c(kept: Path) -> None:
    command = [sys.executable, "-m", "iclkit", "serve", str(kept), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "listening on" in line)
            address = line.split("listening on ")[1].split(",")[0]
            assert [p["output"] for p in ask(address, {"input": "where is my parcel"})["picks"]] == ["shipping"]
            with Pool.open(kept.parent / "tickets.db") as pool:
                pool.add([Example("drones deliver parcels on sundays", "drones")])
            assert ask(address, {"input": "drones on sundays"})["picks"][0]["output"] == "drones"
            server.send_signal(signal.SIGINT)
            assert server.stderr.read().strip() == ""
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_what_is_missing_is_one_line(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys, "nowhere")
    assert (code, "no folder nowhere" in line) == (1, True)
    (kept.parent / "tickets.db").rename(kept.parent / "moved.db")
    code, line = said(capsys, str(kept))
    assert (code, "tickets.db" in line) == (1, True)


def test_what_has_to_change_is_one_line(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, line = said(capsys, str(kept), "--key-env", "NO_SUCH_VARIABLE")
    assert (code, "NO_SUCH_VARIABLE" in line) == (2, True)
    code, line = said(capsys, str(kept), "--proxy", "localhost:8080")
    assert (code, "--proxy is the base URL of a chat API" in line) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, line = said(capsys, str(kept), "--port", str(taken.getsockname()[1]))
        assert (code, "give another --host or --port" in line) == (2, True)
    monkeypatch.setattr("iclkit.cli._serve.find_spec", lambda package: None)
    code, line = said(capsys, str(kept))
    assert (code, "the service needs the extra: pip install" in line, "[serve]" in line) == (2, True, True)
