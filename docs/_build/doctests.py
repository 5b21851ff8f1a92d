"""For the documentation site: doctests in docstrings are shown as code, not as quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?m)^>>> .*(?:\n(?!\s*$).*)*")


class DoctestFences(griffe.Extension):
    """Puts a fence around every block that begins with the interpreter's prompt."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every module, class, function and attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(lambda m: f"```pycon\n{m[0]}\n```", obj.docstring.value)
