"""``iclkit view``: a pool in the browser."""

from __future__ import annotations

import logging
import os
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path

import click

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    TEMPLATE,
    LMOptions,
    lm_loader,
    lm_options,
    load_embedder,
    load_lm,
    load_reranker,
    open_pool,
    parse_template,
    tell_language,
)
from iclkit.cli._progress import bar
from iclkit.cli._tables import say
from iclkit.errors import UsageError
from iclkit.extras import install_command


@click.command()
@click.argument("pool", type=click.Path(path_type=Path))
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For selectors that need one and for "
              f"the map; none: the map goes by words. {EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--lm", help="For selectors that ask one, and to count tokens.")
@click.option("--reranker", help="A cross-encoder for rerank; ,dtype=bf16 may stand behind it.")
@click.option("--template", "template_text", metavar="TEXT|FILE", help=f"{TEMPLATE}  [default: that of a task made of "
              "the pool]")  # fmt: skip
@click.option("--chat", is_flag=True, help="Demonstrations as chat turns, in the LM's own chat template.")
@click.option("--task-name", "task", help="Choose only from the examples of the task of this name.")
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="The folder of runs "
              "whose boards can be opened.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 takes a free one.")
@click.option("--no-open", is_flag=True, help="Print the address, and open no browser.")
@lm_options
def command(
    pool: Path,
    embedder: str,
    lm: str | None,
    reranker: str | None,
    template_text: str | None,
    chat: bool,
    task: str | None,
    runs: Path,
    port: int,
    no_open: bool,
    lm_options: LMOptions,
) -> None:
    """Show POOL as a page in the browser: ask queries, compare two selectors, look at and edit examples, open boards.

    The page is served to this machine alone. Its address holds a key, without which it answers nobody.
    """
    if any(find_spec(package) is None for package in ("starlette", "uvicorn")):
        raise UsageError(f"the page needs the extra: {install_command('serve')}")
    from iclkit.predictors import Tools
    from iclkit.view import Workbench, run_view

    template = parse_template(template_text)
    with open_pool(pool) as store:
        view = store.view(task=task)
        if task is not None and not len(view):
            known = ", ".join(repr(name) for name, _ in store.count_values("task", 20)) or "none"
            raise UsageError(f"no example of {pool} belongs to task {task!r}; there are: {known}")
        device = lm_options.device
        encoder = None if embedder == "none" else load_embedder(embedder, device)
        if encoder is not None and len(view):
            tell_language(view.examples, embedder)
            with bar("embedding the pool") as progress:
                view.index(encoder, progress)
        model = load_lm(lm, lm_options) if lm else None
        cross = load_reranker(reranker, device) if reranker else None
        workbench = Workbench(store, Tools(model, encoder, cross, lm_loader(lm_options)), template, task, chat)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")

        def ready(address: str) -> None:
            say(f"open {address} in a browser; end with Ctrl-C")
            if not no_open and _has_screen():
                webbrowser.open(address)

        run_view(workbench, runs, port=port, ready=ready)


def _has_screen() -> bool:
    """Whether a browser would have a window of its own; one in the terminal would take that over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
