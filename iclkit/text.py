"""Texts of all scripts: words for search and metrics, and what of a text may be sent to a terminal."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline, and the marks that change the direction of what follows
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """``text`` without characters that steer a terminal: escape sequences, C0 and C1 controls, direction overrides.

    Each is replaced by U+FFFD, so that a reader sees that something stood there. Tab and newline stay.

    >>> printable("a\\x1b[2Jb")
    'a\ufffd[2Jb'
    """
    return _UNPRINTABLE.sub("\ufffd", text)
