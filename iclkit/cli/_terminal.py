"""The one door to the terminal: nothing that stands in data, in a name or in a server's answer can steer it.

A terminal obeys what it is sent: escape sequences in a row of a pool could change the window's title, hide text or
paint a verdict over the one that was measured. So commands print through ``echo``, ``emit`` and ``console`` alone
(``tests/cli/test_terminal.py`` holds them to it); colors and cursor movements are made here, from styles, after the
text has been made printable.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

import click

from iclkit.secrets import redact, redact_addresses
from iclkit.text import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 128
# what JSON leaves as it is and a terminal may obey, or may show as something else than what stands there
_UNESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line for people, on stdout or stderr: without secrets, of which stderr is told more (see ``secrets``)."""
    click.echo(printable(redact(text) if err else redact_addresses(text)), err=err, nl=nl)


def emit(text: str, *, nl: bool = True) -> None:
    """Print data on stdout: byte for byte into a pipe or a file, made printable on a terminal."""
    # not click.echo, which takes escape sequences out of what it pipes
    sys.stdout.write((printable(text) if sys.stdout.isatty() else text) + ("\n" if nl else ""))
    sys.stdout.flush()


def emit_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON on stdout; numbers that do not exist (NaN, infinity) are null, paths are text."""
    emit_json_text(json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=os.fspath) + "\n")


def emit_json_text(text: str) -> None:
    """Print JSON on stdout. Characters that a terminal could obey are escaped: the value stays the same."""
    sys.stdout.write(_UNESCAPED.sub(lambda match: f"\\u{ord(match.group()):04x}", text))
    sys.stdout.flush()


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console(*, err: bool = False, piped_width: int = WIDTH) -> Console:
    """A rich console on stdout, or on stderr, that makes printable what it prints.

    ``piped_width`` is the width of what does not go to a terminal, where tables need not be folded.
    """
    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else piped_width
    return _console_class()(file=stream, width=width, highlight=False)


@cache
def _console_class() -> type[Console]:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PrintableConsole(Console):
        """Every text passes ``render`` once it is laid out, apart from its style and from rich's own control codes."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    return PrintableConsole
