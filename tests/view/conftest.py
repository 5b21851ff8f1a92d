"""The page's server on loopback, over pools that are made for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from iclkit.pool import Pool
from iclkit.predictors import Tools
from iclkit.records import Example
from iclkit.testing import FakeLM, HashEmbedder

pytest.importorskip("starlette", reason="the page is not installed: pip install 'iclkit[serve]'")

KEY = "key-of-the-page"
HOSTILE = """</script><script>document.title="taken"</script><img src=x onerror="document.title='taken'">"""
ROWS = [
    Example("my parcel is late", "shipping", meta={"tenant": "acme"}),
    Example("the courier lost my parcel", "shipping"),
    Example("where is my parcel now", "shipping"),
    Example("I was charged twice", "billing", meta={"tenant": "globex"}),
    Example("send me an invoice", "billing"),
    Example("the invoice is wrong", "billing"),
    Example("I forgot my password", "account"),
    Example(f"{HOSTILE} & {{x}} parcel", HOSTILE, meta={HOSTILE: HOSTILE}),
    Example("طردي متأخر \u202eparcel\u202c", "shipping"),
    Example("a\u2028b\u2029c \x07 parcel", "odd\u0085"),
]


@dataclass
class Page:
    """A served pool: its address, a client that knows the key, and the pool itself."""

    address: str
    client: httpx.Client  # or what answers without a socket
    pool: Pool

    @property
    def url(self) -> str:
        return f"{self.address}/#{KEY}"

    def get(self, path: str, **given: Any) -> Any:
        answer = self.client.get(path, params=given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, body: Any) -> tuple[int, str]:
        answer = self.client.post(path, content=json.dumps(body))  # halves of characters too
        line = answer.json()["error"]["message"]
        assert "\n" not in line
        return answer.status_code, line

    def ask(self, query: str, *selectors: str | dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        sides = [{"selector": s} if isinstance(s, str) else s for s in selectors]
        found: list[dict[str, Any]] = self.post("/api/select", {"query": query, "k": 2, "sides": sides, **more})[
            "sides"
        ]
        return found


@pytest.fixture(scope="session")
def serve_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Page]]:
    """Serves a pool of these rows until the tests end."""
    from starlette.testclient import TestClient

    from iclkit.view import Workbench, make_view_app
    from tests.serve.conftest import on_a_socket

    with ExitStack() as stack:

        def serve(
            rows: list[Example] | Path = ROWS,
            *,
            runs: Path | None = None,
            lm: bool = True,
            live: bool = False,
            **more: Any,
        ) -> Page:
            folder = tmp_path_factory.mktemp("pool")
            path = rows if isinstance(rows, Path) else folder / "tickets.db"
            if not isinstance(rows, Path):
                with Pool.open(path) as made:
                    made.add(rows)
            pool = stack.enter_context(Pool.open(path, create=False))
            bench = Workbench(pool, Tools(FakeLM() if lm else None, more.pop("embedder", HashEmbedder())), **more)
            app, headers = make_view_app(bench, runs or folder / "runs", KEY), {"X-ICLKIT-Token": KEY}
            if not live:
                client = TestClient(app, "http://127.0.0.1", headers=headers)
                return Page("http://127.0.0.1", client, pool)
            address = stack.enter_context(on_a_socket(app))
            client = stack.enter_context(httpx.Client(base_url=address, headers=headers, timeout=60))
            return Page(address, client, pool)

        yield serve


@pytest.fixture
def page(serve_pool: Callable[..., Page]) -> Page:
    """One whose pool may be changed."""
    return serve_pool()


@pytest.fixture
def live_page(serve_pool: Callable[..., Page]) -> Page:
    """One that a browser can open, whose pool may be changed."""
    return serve_pool(live=True)


@pytest.fixture(scope="session")
def shared_page(serve_pool: Callable[..., Page]) -> Page:
    """One that a browser can open, for tests that change nothing."""
    return serve_pool(live=True)
