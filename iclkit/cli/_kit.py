"""What commands have in common: groups of options, and one loader each for LMs, embedders, rerankers and pools."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from iclkit.cli._progress import download_bar
from iclkit.cli._tables import say
from iclkit.errors import ModelError, UsageError
from iclkit.records import Json

if TYPE_CHECKING:
    from iclkit.embed import Embedder, Reranker
    from iclkit.lm import LM
    from iclkit.pool import Pool
    from iclkit.prompts import Template
    from iclkit.selectors import Needs

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

EMBEDDER_SETTINGS = "Settings stand behind it: ,dtype=bf16 ,query_prefix=TEXT ,document_prefix=TEXT"
"""What the help of every ``--embedder`` says; ``iclkit.embed.split_spec`` reads it."""


# ---- values as they are typed


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 0 on, with commas: ``1,4,8``."""

    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if isinstance(value, bool):
            self.fail(f"{value!r} is not a number", param, ctx)
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number, nor numbers with commas like 1,4,8", param, ctx)
        if min(numbers) < 0:
            self.fail(f"{min(numbers)} is less than 0", param, ctx)
        return numbers


class SelectorText(click.ParamType[str]):
    """A selector as a user types it: ``knn``, ``mmr,trade_off=0.3``, a selector file, or ``my_module:MyClass``.

    A class of a module of the working folder is found as well.
    """

    name = "NAME[,KEY=VALUE...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """The spec with loaded classes under their names."""
        if ":" not in str(value):
            return str(value)
        from iclkit.selectors import import_selectors

        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
        return import_selectors(str(value))


SELECTOR = SelectorText()


def unescape(text: str) -> str:
    """What is typed with ``\\n`` for a line's end and ``\\t`` for a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def parse_template(text: str | None) -> Template | None:
    """The template of ``--template``, if one is given."""
    from iclkit.prompts import Template

    return Template.parse(unescape(text)) if text else None


def conditions(pairs: Sequence[str], option: str = "--where") -> dict[str, Json]:
    """KEY=VALUE texts as a mapping; a value is JSON where it parses as JSON. UsageError names the one at fault."""
    values: dict[str, Json] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {pair!r} is not KEY=VALUE")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


def dedupe(values: Iterable[T]) -> tuple[T, ...]:
    """Each value once, in order."""
    return tuple(dict.fromkeys(values))


# ---- how an LM is loaded


@dataclass(frozen=True, slots=True)
class LMOptions:
    """What the options of ``lm_options`` say."""

    dtype: str = "auto"
    device: str | None = None
    workers: int | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    cache: bool = True


def lm_options(command: F) -> F:
    """The options of every command that loads an LM; the command gets them together, as ``lm_options``."""

    @click.option("--dtype", default="auto", show_default=True, help="Of the LM: auto, bf16, fp32 or bf16-verified.")
    @click.option("--device", help="cpu, cuda, cuda:1 ...  [default: a GPU where there is one]")
    @click.option("--workers", type=click.IntRange(1), help="Processes that share the LM's work.  [default: one per "
                  "GPU, or on CPU per core for a small LM]")  # fmt: skip
    @click.option(
        "--threads", type=click.IntRange(1), help="Threads of each worker on CPU.  [default: cores / workers]"
    )
    @click.option("--batch-tokens", type=click.IntRange(1), help="Tokens per pass of the LM.  [default: 2048 on CPU, "
                  "on a GPU as its memory allows]")  # fmt: skip
    @click.option("--no-cache", is_flag=True, help="Neither read nor write the LM cache.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        dtype: str,
        device: str | None,
        workers: int | None,
        threads: int | None,
        batch_tokens: int | None,
        no_cache: bool,
        **kwargs: Any,
    ) -> Any:
        options = LMOptions(dtype, device, workers, threads, batch_tokens, not no_cache)
        return command(*args, lm_options=options, **kwargs)

    return wrapped  # type: ignore[return-value]


def load_lm(name: str, options: LMOptions | None = None) -> LM:
    """The LM, fetched with a progress bar if it is not here. Says how a server is asked, where that matters."""
    from iclkit import lm as lms

    options = options or LMOptions()
    fetch(name, "lm")
    say(f"loading {name} …")
    given: dict[str, Any] = {} if options.batch_tokens is None else {"batch_tokens": options.batch_tokens}
    lm = lms.load_lm(
        name, dtype=options.dtype, device=options.device, cache=options.cache, workers=options.workers,
        threads=options.threads, **given,
    )  # fmt: skip
    tell_notes(lm)
    return lm


def tell_notes(lm: LM, said: Collection[str] = ()) -> None:
    """Say what the user should know about how the LM is asked, but for what was said before."""
    for note in lm.notes:
        if note not in said:
            say(f"note: {note}")


# ---- other things that are loaded


def load_embedder(name: str, device: str | None = None, *, few: bool = False) -> Embedder:
    """The embedder, fetched with a progress bar if it is not here. ``few``: for a few queries at most."""
    from iclkit import embed

    fetch(name, "embedder")
    say(f"loading {name} …")
    return embed.load_embedder(name, device=device, few=few)


def load_reranker(name: str, device: str | None = None) -> Reranker:
    """The cross-encoder, from this machine or the hub."""
    from iclkit import embed

    say(f"loading {name} …")
    return embed.load_reranker(name, device=device)


def embedder_for(
    needs: Iterable[Needs], name: str, device: str | None = None, *, always: bool = False
) -> Embedder | None:
    """The embedder, if anything that is run needs one, or ``always``."""
    return load_embedder(name, device) if always or any(n.embedder for n in needs) else None


def reranker_for(needs: Iterable[Needs], name: str | None, device: str | None = None) -> Reranker | None:
    """The reranker, if one was named and anything that is run needs one."""
    return load_reranker(name, device) if name is not None and any(n.reranker for n in needs) else None


def open_pool(path: Path) -> Pool:
    """The user's pool, which has to be there."""
    from iclkit.pool import Pool

    return Pool.open(path, create=False)


def fetch(name: str, kind: str) -> None:
    """Fetch a model that is not here, with a bar. Folders and served models (``openai:…``) look after themselves."""
    from iclkit.models import resolve

    if kind == "embedder":
        from iclkit.embed import split_spec

        name, _ = split_spec(name)
    if ":" in name or Path(name).exists():
        return
    try:
        resolve(name, kind, pull=False)  # type: ignore[arg-type]
    except ModelError:
        with download_bar() as progress:
            resolve(name, kind, progress=progress)  # type: ignore[arg-type]
