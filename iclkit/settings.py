"""Settings that declare themselves: one line gives a field its default, its meaning and the values that it takes.

    @dataclass
    class MMRSelector(BaseSelector):
        trade_off: float = setting(0.5, "1: relevance only, 0: diversity only", ge=0, le=1)
        sort: str = setting("relevance", "order of the picks", choices=("relevance", "picks"))

``check_settings`` refuses what a declaration does not allow, ``read_settings`` turns texts and JSON into values of the
right type, ``describe_settings`` gives tables and help their rows. The type of a setting is its annotation: ``bool``,
``int``, ``float``, ``str``, a ``Literal`` of choices, a ``tuple`` of these, any of them with ``| None``.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from iclkit.errors import UnknownName, UsageError
from iclkit.records import Json

T = TypeVar("T")
Choices = Iterable[Any] | Callable[[], Iterable[Any]]
_KEY = "iclkit.setting"


@dataclass(frozen=True, slots=True)
class _Rule:
    """What ``setting`` was told, as the field's metadata keeps it."""

    meaning: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: Choices = ()
    added: bool = False

    def allows(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    @property
    def bounds(self) -> str:
        """The bounds in words, as they follow the noun; "" for none."""
        if self.ge is not None and self.le is not None:
            return f" from {self.ge:g} to {self.le:g}"
        lower = (
            f" of {self.ge:g} or more" if self.ge is not None else f" above {self.gt:g}" if self.gt is not None else ""
        )
        upper = f"at most {self.le:g}" if self.le is not None else f"below {self.lt:g}" if self.lt is not None else ""
        return f"{lower} and {upper}" if lower and upper else f" {upper}" if upper else lower

    @property
    def is_bounded(self) -> bool:
        """Whether nothing infinite could be meant."""
        return (self.ge, self.gt) != (None, None) and (self.le, self.lt) != (None, None)


_NO_RULE = _Rule()


def setting(
    default: T,
    meaning: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Choices = (),
    added: bool = False,
) -> T:
    """A dataclass field with its default, what it means (one line, with the unit) and the values that it takes.

    Bounds (at least, above, at most, below) hold for numbers, and for each member of a tuple of numbers. ``choices``
    are the texts or numbers to choose from, or a function that gives them where plug-ins may add some. None, where the
    annotation allows it, is outside bounds and choices. ``added``: it came after results were recorded under the
    object's settings, and stands among them only where it is not at its default, so that those results stay known.
    """
    rule = _Rule(meaning, ge, gt, le, lt, choices if callable(choices) else tuple(choices), added)
    made: T = field(default=default, metadata={_KEY: rule})
    return made


def required_setting(meaning: str, *, choices: Choices = ()) -> Any:
    """A setting without a default, which whoever makes the object has to give."""
    return field(metadata={_KEY: _Rule(meaning, choices=choices if callable(choices) else tuple(choices))})


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting for tables and help. ``default`` is ``dataclasses.MISSING`` where one has to be given.

    ``allowed`` says in words what can be given, e.g. "a number from 0 to 1"; ``choices`` are the values where there is
    one to choose.
    """

    name: str
    default: Any
    meaning: str
    allowed: str
    choices: tuple[Any, ...] = ()


def describe_settings(cls: type) -> tuple[SettingInfo, ...]:
    """The settings of a dataclass in the order of its fields: those that its constructor takes."""
    return tuple(
        SettingInfo(s.name, s.default, s.rule.meaning, s.allowed, () if s.many else s.choices)
        for s in _settings(cls).values()
    )


def check_settings(obj: object, owner: str) -> None:
    """Refuse values of the wrong type, out of bounds, not finite, or not among the choices.

    ``owner`` names the object in the UsageError, e.g. "selector 'mmr'". Call it from ``__post_init__``; what several
    settings must fulfil together is checked after it. A whole number given for a ``float`` is kept as a float.
    """
    cls: Any = type(obj)
    for name, known in _settings(cls).items():
        value = getattr(obj, name)
        known.check(value, owner)
        if known.kind is float and type(value) is int:
            object.__setattr__(obj, name, float(value))  # frozen dataclasses too: this is still their construction


def recorded_settings(obj: object) -> dict[str, Any]:
    """The settings of an object by name, as they are recorded: without added ones that are at their default."""
    cls: Any = type(obj)
    return {
        name: value
        for name, known in _settings(cls).items()
        if (value := getattr(obj, name)) != known.default or not known.rule.added
    }


def read_settings(cls: type, values: Mapping[str, Json], owner: str) -> dict[str, Any]:
    """Settings given as texts or as JSON values, each of the type of its field, ready for the constructor.

    A text setting keeps its text even where that could be read as a number; another one given as text is read as JSON.
    UnknownName for a setting that the class has not got (the nearest is offered), UsageError for a value that it does
    not take; both name ``owner``.
    """
    known = _settings(cls)
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UnknownName(f"setting of {owner}", name, known)
        result[name] = known[name].read(value, owner)
    return result


@dataclass(frozen=True, slots=True)
class _Setting:
    """A field with its resolved type."""

    name: str
    default: Any
    rule: _Rule
    kind: Any
    """``bool``, ``int``, ``float``, ``str``, or ``object`` for a type that is not checked here."""
    literals: tuple[Any, ...]
    many: bool
    """A tuple of ``kind``."""
    nullable: bool

    @property
    def choices(self) -> tuple[Any, ...]:
        """What the annotation or the declaration lets one choose from; () where that is open."""
        return self.literals or tuple(self.rule.choices() if callable(self.rule.choices) else self.rule.choices)

    @property
    def allowed(self) -> str:
        if self.choices:
            what = ("some of " if self.many else "") + ", ".join(map(_spelled, self.choices))
        elif self.kind in (int, float):
            plural = "s" if self.many else ""
            article = "" if self.many else "a "
            whole = "whole " if self.kind is int else "" if self.rule.is_bounded else "finite "
            what = f"{article}{whole}number{plural}{self.rule.bounds}"
        else:
            names = {bool: "true or false", str: "texts" if self.many else "a text"}
            what = names.get(self.kind, "a value")
        what += ", joined by +" if self.many and self.kind is not object else ""
        return f"{what}, or none" if self.nullable else what

    def check(self, value: Any, owner: str) -> None:
        if value is None and self.nullable:
            return
        if not (self._holds_all(value) if self.many else self._holds(value)):
            raise self._refused(value, owner)

    def read(self, value: Json, owner: str) -> Any:
        made: Any = value
        if self.kind is str and not self.many:
            if not isinstance(value, str) and not (value is None and self.nullable):
                made = json.dumps(value)
        elif isinstance(value, str) and self.kind is not object:
            made = _parsed(value)
            if self.many and self.kind is str and not isinstance(made, list):
                made = value.split("+")
            elif self.many and not isinstance(made, list):
                made = [made] if isinstance(made, int | float) else [*map(_parsed, re.split(r"(?<![eE])\+|,", value))]
        if self.many and isinstance(made, list):
            made = tuple(float(m) if self.kind is float and type(m) is int else m for m in made)
        if self.kind is float and type(made) is int:
            made = float(made)
        self.check(made, owner)
        return made

    def _holds_all(self, value: Any) -> bool:
        return isinstance(value, tuple) and all(map(self._holds, value))

    def _holds(self, value: Any) -> bool:
        if self.kind is object:
            return True
        if self.kind is float:
            good = type(value) in (int, float) and self.rule.allows(value)
        elif self.kind is int:
            good = type(value) is int and self.rule.allows(value)
        else:
            good = type(value) is self.kind
        return good and (not self.choices or value in self.choices)

    def _refused(self, value: Any, owner: str) -> UsageError:
        default = "" if self.default is MISSING else f" (default {_spelled(self.default)})"
        verb = "choose from" if self.choices and not self.many else "give"
        return UsageError(f"{owner}: {self.name} is {_spelled(value)}; {verb} {self.allowed}{default}")


def _parsed(text: str) -> Any:
    """A text read as JSON; the text itself where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _spelled(value: Any) -> str:
    """A value as the command line takes it, cut where it is long."""
    if isinstance(value, tuple):
        value = "+".join(map(_spelled, value)) or "[]"
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "none"}[value]
    text = value if isinstance(value, str) and value and value.isprintable() and " " not in value else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def _settings(cls: type) -> dict[str, _Setting]:
    return {f.name: _setting(cls, f) for f in fields(cls) if f.init}


def _setting(cls: type, given: Field[Any]) -> _Setting:
    default = given.default_factory() if given.default_factory is not MISSING else given.default
    kind, nullable = _type_of(cls, given), False
    if get_origin(kind) in (Union, types.UnionType):
        parts = [a for a in get_args(kind) if a is not type(None)]
        nullable = len(parts) < len(get_args(kind))
        kind = parts[0] if len(parts) == 1 else object
    many = get_origin(kind) is tuple and get_args(kind)[1:] == (...,)
    kind = get_args(kind)[0] if many else kind
    literals = get_args(kind) if get_origin(kind) is Literal else ()
    if literals:
        kind = type(literals[0])
    return _Setting(
        given.name,
        default,
        given.metadata.get(_KEY, _NO_RULE),
        kind if kind in (bool, int, float, str) else object,
        literals,
        many,
        nullable,
    )


def _type_of(cls: type, given: Field[Any]) -> Any:
    """The annotation of one field, resolved alone: names that only a type checker knows may stand in others."""
    owner = next(c for c in cls.__mro__ if given.name in inspect.get_annotations(c))
    alone = types.SimpleNamespace(__annotations__={given.name: owner.__annotations__[given.name]})
    try:
        return get_type_hints(alone, vars(sys.modules[owner.__module__]))[given.name]
    except NameError:
        return object
