"""A service on a socket of loopback, and a pool that it answers from."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iclkit.pool import Pool
from iclkit.records import Example
from iclkit.selectors import Chooser, Kit, make_selector
from iclkit.testing import HashEmbedder

pytest.importorskip("starlette", reason="the service is not installed: pip install 'iclkit[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="the service is not installed: pip install 'iclkit[serve]'")

EXAMPLES = [
    Example("my parcel is late", "shipping", meta={"tenant": "acme"}),
    Example("the courier lost my parcel", "shipping", meta={"tenant": "globex"}),
    Example("I was charged twice", "billing", meta={"tenant": "acme"}),
    Example("send me an invoice", "billing", meta={"tenant": "globex"}),
    Example("I forgot my password", "account", meta={"tenant": "acme"}),
]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(tmp_path / "tickets.db") as pool:
        pool.add(EXAMPLES)
        yield pool


@pytest.fixture
def chooser(pool: Pool) -> Chooser:
    view, kit = pool.view(), Kit(embedder=HashEmbedder())
    return Chooser(make_selector("knn").fit(view, kit), view, kit, k=2, pool=pool)


@contextmanager
def on_a_socket(app: Any) -> Iterator[str]:
    """The application on a free port of loopback; its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture
def serving() -> Callable[[Any], Any]:
    return on_a_socket
