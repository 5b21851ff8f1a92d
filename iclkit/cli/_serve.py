"""``iclkit serve``: a kept selector as an HTTP service, and as a proxy in front of a chat API."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import click

from iclkit.cli._kit import tell_cuts
from iclkit.cli._tables import say
from iclkit.errors import UsageError
from iclkit.extras import install_command

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--pool", type=click.Path(path_type=Path), help="Where its pool is on this machine.")
@click.option("--device", help="For the embedder: cpu, cuda, cuda:1 ...")
@click.option("--follow/--no-follow", default=None, help="Fit it anew whenever the pool changes.  [default: as kept]")
@click.option("--key-env", metavar="NAME", help="Environment variable with the key that clients give in X-API-Key.")
@click.option("--max-body", type=click.IntRange(1), default=1_048_576, show_default=True, help="Bytes of a request.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Threads that choose.  [default: one per core, at most 4; 1 with an LM]",
)
@click.option("--proxy", metavar="URL", help="Base URL of a chat API: /v1/... is passed on to it, with demonstrations "
              "in /v1/chat/completions.")  # fmt: skip
def command(
    folder: Path,
    host: str,
    port: int,
    pool: Path | None,
    device: str | None,
    follow: bool | None,
    key_env: str | None,
    max_body: int,
    workers: int | None,
    proxy: str | None,
) -> None:
    """Answer with the selector in FOLDER, which iclkit select POOL --save FOLDER has kept."""
    if any(find_spec(package) is None for package in ("starlette", "uvicorn")):
        raise UsageError(f"the service needs the extra: {install_command('serve')}")
    from iclkit.selectors import load_selector
    from iclkit.serve import ServeSettings, run_server

    key = ""
    if key_env:
        key = os.environ.get(key_env, "")
        if not key:
            raise UsageError(f"--key-env {key_env}: the environment has no such variable, or it is empty")
    settings = ServeSettings(key=key, max_body=max_body, proxy=proxy or "", workers=workers)
    say(f"loading {folder} …")
    chooser = load_selector(folder, pool=pool, device=device, follow=follow)
    tell_cuts(chooser.kit.embedder, chooser.kit.reranker)
    for note in chooser.notes:
        say(f"note: {note}")
    if host not in _LOOPBACK and not key:
        say(f"note: whoever reaches {host} can read the pool; set a key with --key-env NAME")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("iclkit.serve").setLevel(logging.INFO)
    run_server(chooser, settings, host=host, port=port, ready=lambda url: say(f"listening on {url}, end with Ctrl-C"))
