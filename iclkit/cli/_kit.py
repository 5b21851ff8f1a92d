"""What commands have in common: groups of options, and one loader each for language models, embedders, pools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click


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
