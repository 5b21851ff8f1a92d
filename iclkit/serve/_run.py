"""A socket and a loop for the application."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from iclkit.errors import UsageError
from iclkit.models import share_threads
from iclkit.selectors import Chooser
from iclkit.serve._app import ServeSettings, make_app, workers_for

LONG = 40  # words: more tokens than an embedder computes as it does those of a short query


def run_server(
    chooser: Chooser,
    settings: ServeSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer requests until a signal ends it. ``ready`` is called with the address; port 0 takes a free one.

    UsageError for an address that cannot be had.
    """
    share_threads(workers_for(chooser, settings.workers))

    def warmed(address: str) -> None:
        # what a selector makes with its first query is made now, and what an embedder finds out with its first batch
        chooser.select_many([" ".join(["warm"] * LONG)], chooser.k)
        # all that stands by now stays; to look through it for garbage takes tenths of a second, and nobody is answered
        gc.collect()
        gc.freeze()
        if ready is not None:
            ready(address)

    run_app(make_app(chooser, settings), host=host, port=port, ready=warmed, remedy="give another --host or --port")


def run_app(app: Starlette, *, host: str, port: int, ready: Callable[[str], None], remedy: str) -> None:
    """Answer with any application until a signal ends it; see ``run_server``. ``remedy`` ends the UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(2048)  # a client that reads the address may connect at once
        except (OSError, OverflowError) as error:
            raise UsageError(f"cannot listen on {host}:{port} ({error}); {remedy}") from error
        ready(f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        with contextlib.suppress(KeyboardInterrupt):  # when all is closed, uvicorn raises the signal that ended it
            uvicorn.Server(config).run(sockets=[listening])
