"""Long arrays that grow by a few rows at a time."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array", bound=NDArray[Any])

_LEAST = 16  # rows that a room has at least
_CLAIM = threading.Lock()


class _Room(np.ndarray[Any, Any]):
    """What arrays are taken of that begin alike. ``used``: rows of the longest of them."""

    used: int = 0


def appended(array: Array, more: Array) -> Array:
    """Both, one after the other. ``array`` stays as it is.

    What is returned has room behind it, so that appending to it again copies only what is new: a row in n costs about
    one row's copy, however large n is.
    """
    if not len(more):
        return array
    start, end = len(array), len(array) + len(more)
    room: Any = array.base
    with _CLAIM:  # two threads may append to the same array: one of them gets the room, the other a copy
        fits = isinstance(room, _Room) and _starts(array) == _starts(room) and room.used == start and end <= len(room)
        if fits:
            room.used = end
    if not fits:
        room = np.ndarray.__new__(_Room, (max(_LEAST, end + end // 2), *array.shape[1:]), array.dtype)
        room[:start] = array
        room.used = end
    room[start:end] = more
    whole: Any = np.ndarray((end, *array.shape[1:]), array.dtype, buffer=room)
    return whole  # type: ignore[no-any-return]


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each number once, ascending, as ``np.unique``, which hashes and takes fifty times as long for a million."""
    found = np.sort(numbers)
    return found[np.diff(found, prepend=found[:1] - 1) > 0]


def begins_with(longer: Array, shorter: Array) -> bool:
    """Whether the first rows of one array are those of another; at once where one was appended to make the other."""
    if len(shorter) > len(longer):
        return False
    room = longer.base
    if isinstance(room, _Room) and shorter.base is room and _starts(longer) == _starts(shorter):
        return True
    return bool(np.array_equal(longer[: len(shorter)], shorter))


def _starts(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
