"""JSON values checked against type annotations: one reader for every file whose fields something later relies on."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from iclkit.errors import DataError

T = TypeVar("T")
Reader = Callable[[Any], Any]

_INT64 = 1 << 63
_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class _Wrong(Exception):
    """A value that is not of its type. ``path`` leads to it, outermost first."""

    def __init__(self, expected: str, value: object) -> None:
        self.expected, self.value = expected, value
        self.path: list[str] = []


def read_as(kind: type[T], value: object, where: str) -> T:
    """A value read from JSON as ``kind``: a plain type, a dataclass or TypedDict, or containers and unions of these.

    Lists become tuples where the annotation says so. A dataclass takes no field that it has not got, a TypedDict does.
    A whole number is good for a float as well, and must fit 64 bits; ``bool`` is no number. DataError names ``where``,
    the field, what was expected and what came.

    >>> read_as(tuple[int, ...], [1, 2], "line 3")
    (1, 2)
    """
    try:
        found: T = _reader(cast(Any, kind))(value)
        return found
    except _Wrong as wrong:
        field = "".join(wrong.path).removeprefix(".")
        raise DataError(
            f"{where}: {f'{field} should be' if field else 'expected'} {wrong.expected}, "
            f"{'and is' if field else 'and found'} {_shown(wrong.value)}"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: nested too deep") from None


def _shown(value: object) -> str:
    """A value in a few characters; of long ones the kind."""
    if value is _ABSENT:
        return "missing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= _INT64:
        return "a number beyond 64 bits"
    text = json.dumps(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_ABSENT = object()


@cache
def _reader(kind: Any) -> Reader:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return lambda value: value
    if origin in (Required, NotRequired):
        return _reader(args[0])
    if kind is float:
        return _read_float
    if kind is int:
        return _read_int
    if kind in (str, bool, type(None)):
        return _plain(kind)
    if origin is Literal:
        return _literal(args)
    if origin in (Union, types.UnionType):
        return _union(args)
    if is_typeddict(kind):
        return _typed_dict(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind)
    if origin is tuple:
        return _tuple(args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(args)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(args, list if origin is list else tuple)
    raise TypeError(f"no reader for {kind!r}")


def _read_float(value: Any) -> float:
    return value if type(value) is float else _read_int(value, "a number")


def _read_int(value: Any, expected: str = "a whole number") -> int:
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise _Wrong(expected, value)
    return value


def _plain(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _Wrong(_NAMES[kind], value)
        return value

    return read


def _literal(known: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, dict | list) or value not in known:
            raise _Wrong(f"one of {', '.join(map(repr, known))}", value)
        return value

    return read


def _union(kinds: tuple[Any, ...]) -> Reader:
    readers, nullable = [_reader(kind) for kind in kinds], type(None) in kinds

    def read(value: Any) -> Any:
        if value is None and nullable:
            return None
        wrongs = []
        for one in readers:
            try:
                return one(value)
            except _Wrong as wrong:
                wrongs.append(wrong.with_traceback(None))  # else it holds this frame, and all rows read so far
        # the alternative that went deepest into the value is the one that was meant
        deepest = max(wrongs, key=lambda w: len(w.path))
        if deepest.path:
            raise deepest
        raise _Wrong(" or ".join(w.expected for w in wrongs), value)

    return read


def _step(key: str) -> str:
    """A key as part of a path: as it is when it is a name, else quoted and cut."""
    return f".{key}" if key.isidentifier() and len(key) <= 40 else f"[{json.dumps(key[:40])}]"


# Each reader goes through its parts without bookkeeping, and again through _inside to find which one is wrong: files
# hold hundreds of thousands of right rows for a wrong one.
def _inside(reader: Reader, value: Any, step: str) -> Any:
    try:
        return reader(value)
    except _Wrong as wrong:
        wrong.path.insert(0, step)
        raise


def _tuple(args: tuple[Any, ...]) -> Reader:
    if len(args) == 2 and args[1] is Ellipsis:
        return _sequence(args[:1], tuple)
    readers = [_reader(kind) for kind in args]

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(readers):
            raise _Wrong(f"a list of {len(readers)}", value)
        try:
            return tuple([one(item) for one, item in zip(readers, value, strict=True)])
        except _Wrong:
            for n, (one, item) in enumerate(zip(readers, value, strict=True)):
                _inside(one, item, f"[{n}]")
            raise

    return read


def _sequence(args: tuple[Any, ...], make: Callable[[list[Any]], Any]) -> Reader:
    one = _reader(args[0])

    def read(value: Any) -> Any:
        if type(value) is not list:
            raise _Wrong("a list", value)
        try:
            return make([one(item) for item in value])
        except _Wrong:
            for n, item in enumerate(value):
                _inside(one, item, f"[{n}]")
            raise

    return read


def _mapping(args: tuple[Any, ...]) -> Reader:
    one = _reader(args[1])

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Wrong("an object", value)
        try:
            return {key: one(item) for key, item in value.items()}
        except _Wrong:
            for key, item in value.items():
                _inside(one, item, _step(key))
            raise

    return read


def _typed_dict(kind: Any) -> Reader:
    hints = get_type_hints(kind, include_extras=True)
    # not __required_keys__: it knows no NotRequired where annotations are texts
    required = {n for n, h in hints.items() if get_origin(h) is not NotRequired and kind.__total__}
    readers = {name: _reader(hint) for name, hint in hints.items()}
    return lambda value: value | _fields(value, readers, required, more=True)


def _dataclass(kind: type) -> Reader:
    hints = get_type_hints(kind)
    readers = {f.name: _reader(hints[f.name]) for f in fields(kind) if f.init}
    required = {f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING}
    return lambda value: kind(**_fields(value, readers, required, more=False))


def _fields(value: Any, readers: Mapping[str, Reader], required: set[str], *, more: bool) -> dict[str, Any]:
    """The known fields of an object; ``more`` lets others stand beside them."""
    if type(value) is not dict:
        raise _Wrong("an object", value)
    try:
        found = {name: readers[name](item) for name, item in value.items() if not more or name in readers}
    except (_Wrong, KeyError):
        for name, item in value.items():
            if name in readers or not more:
                _inside(readers.get(name, _surplus), item, _step(name))
        raise
    for name in required - found.keys():
        _inside(_missing, value, _step(name))
    return found


def _missing(value: Any) -> Any:  # noqa: ARG001
    raise _Wrong("there", _ABSENT)


def _surplus(value: Any) -> Any:
    raise _Wrong("absent (a newer iclkit may have written it)", value)
