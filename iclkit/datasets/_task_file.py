"""A task as a person writes it, in TOML: where the rows are, which columns, how test rows were drawn, how it is judged.

Everything that ``load_task`` and the command line can be told of a task stands in one ``TaskFile``, whether it was read
from a file or made of a call's options.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from iclkit.datasets._formats import FileOptions
from iclkit.datasets._readers import Columns, make_columns
from iclkit.errors import DataError, UnknownName, UsageError
from iclkit.files import path_kind, read_text, replace_file
from iclkit.prompts import Template
from iclkit.schema import read_as

ENDING = ".toml"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows are. ``train``: a file, folder, pool, hub set or name; ``test`` and ``dev``: files of their own.

    The rest says how the files are read (see ``FileOptions``); ``header`` names the columns of tables that have no
    header line. ``on_bad_row``: stop, or skip, which leaves a row out and counts it.
    """

    train: str = ""
    test: str = ""
    dev: str = ""
    format: str = ""
    rows: str = ""
    delimiter: str = ""
    encoding: str = ""
    header: tuple[str, ...] = ()
    on_bad_row: str = "stop"

    def placed(self, change: Callable[[str, Path], str], folder: Path) -> Source:
        """The same with its paths changed by a function of path and folder."""
        train, test, dev = (change(place, folder) for place in (self.train, self.test, self.dev))
        return replace(self, train=train, test=test, dev=dev)


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Which columns make an example; see ``iclkit.datasets.Columns``. Empty: found out from the first rows."""

    input: tuple[str, ...] = ()
    output: str = ""
    choices: tuple[str, ...] = ()
    choice_keys: str = ""
    label_names: Mapping[str, str] = field(default_factory=dict)
    null_label: str = ""
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """How test (and dev) rows are drawn from the train rows where the source has none of its own.

    ``test_size``: rows, or below 1 a share of them; 0: a fifth, at most 500. ``by``: rows with the same value in this
    column stay together. ``train_rows``, ``test_rows`` and ``digest`` record what was drawn, so that a later load can
    say when the file has changed.
    """

    test_size: float = 0
    dev_size: float = 0
    by: str = ""
    seed: int = 0
    train_rows: int = 0
    test_rows: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """How a demonstration is worded; see ``iclkit.prompts.Template``. An empty ``demo``: the task's default."""

    demo: str = ""
    instruction: str = ""
    system: str = ""
    separator: str = "\n\n"
    stop: tuple[str, ...] = ()
    chat: bool = False
    demo_separator: str | None = None
    turns: bool = True

    @classmethod
    def of(cls, template: Template) -> Words:
        """The words of a template."""
        return cls(**{f.name: getattr(template, f.name) for f in fields(cls)})

    @property
    def given(self) -> bool:
        """Whether anything is said."""
        return self != Words()

    def template(self, default: Template) -> Template:
        """The default with these words in the place of its own; with a ``demo`` nothing of the default is left. Without
        chat turns the system text stands where the instruction does."""
        default = Template(self.demo) if self.demo else default
        instruction = self.instruction or default.instruction
        if self.system and not self.chat:
            instruction = "\n\n".join(part for part in (self.system, instruction) if part)
        return replace(
            default,
            instruction=instruction,
            system=self.system if self.chat else "",
            separator=self.separator if self.separator != Words().separator else default.separator,
            stop=self.stop or default.stop,
            chat=self.chat or default.chat,
            demo_separator=default.demo_separator if self.demo_separator is None else self.demo_separator,
            turns=self.turns and default.turns,
        )


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task's description. Empty values are found out when it is loaded."""

    name: str = ""
    kind: str = ""
    metric: str = ""
    labels: tuple[str, ...] = ()
    max_answer_tokens: int = 0
    description: str = ""
    source: Source = field(default_factory=Source)
    columns: ColumnNames = field(default_factory=ColumnNames)
    split: Split = field(default_factory=Split)
    template: Words = field(default_factory=Words)

    def __post_init__(self) -> None:
        for name in ("test_size", "dev_size"):
            size = getattr(self.split, name)
            if size < 0 or not math.isfinite(size) or (size >= 1 and size != int(size)):
                raise UsageError(f"{name} is {size}; it must be a number of rows, or a share of them between 0 and 1")

    @classmethod
    def read(cls, path: Path) -> TaskFile:
        """The task file at ``path``, its paths made absolute. DataError names file and key that are wrong."""
        found = cls.parse(read_text(path), str(path))
        return replace(found, name=found.name or path.stem, source=found.source.placed(_absolute, path.parent))

    @classmethod
    def parse(cls, text: str, where: str) -> TaskFile:
        """The description that a text of TOML holds. DataError names ``where`` and the key that is wrong."""
        try:
            found = read_as(cls, tomllib.loads(text), where)
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"{where} is not TOML: {error}") from error
        if not found.source.train:
            raise DataError(f"{where}: source.train is missing; it names the file with the rows")
        return found

    def absolute(self) -> TaskFile:
        """The same with its paths absolute, for use from another folder."""
        return replace(self, source=self.source.placed(_absolute, Path.cwd()))

    def write(self, path: Path) -> None:
        """Write it as TOML, paths relative to the file where they lie beside or below it. DataError when it cannot."""
        text = replace(self, source=self.source.placed(_relative, path.parent)).text()
        try:
            replace_file(path, text)
        except OSError as error:
            raise DataError(f"cannot write {path} ({error.strerror})") from error

    def text(self) -> str:
        """Itself as TOML, empty values left out."""
        lines = [
            "# A task of iclkit. Paths are relative to this file; what is left out is found out when it is loaded.",
            f"# Look at it:  iclkit task show {self.name or 'FILE'}    look for trouble:  iclkit task check "
            f"{self.name or 'FILE'}",
            *_lines(self),
        ]
        for name in ("source", "columns", "split", "template"):
            if section := _lines(getattr(self, name)):
                lines += ["", f"[{name}]", *section]
        return "\n".join(lines) + "\n"

    def with_options(self, **options: Any) -> TaskFile:
        """The task with flat options in their places: ``input``, ``test_size``, ``kind``, ``template`` …; None and
        empty ones change nothing. UnknownName for one that there is not."""
        found = self
        for name, value in options.items():
            if name not in _PLACES:
                raise UnknownName("option of a task", name, _PLACES)
            if value is None or value == () or value == "" or value == {}:
                continue
            section, key = _PLACES[name]
            if name == "template" and isinstance(value, Template):
                words = Words.of(value)
                found = replace(found, template=replace(words, system=words.system or found.template.system))
            elif section:
                found = replace(found, **{section: replace(getattr(found, section), **{key: value})})
            else:
                found = replace(found, **{key: value})
        return found

    @property
    def file_options(self) -> FileOptions:
        """How its files are read."""
        s = self.source
        return FileOptions(s.format, s.rows, s.delimiter, s.encoding, s.header)

    @property
    def column_map(self) -> Columns:
        """How its rows become examples; the column that the split goes by is kept."""
        c = self.columns
        keep = dict.fromkeys((*c.keep, *([self.split.by] if self.split.by else [])))
        return make_columns(c.input, c.output, c.choices, c.choice_keys, c.label_names, [*keep], null=c.null_label)


_SECTIONS: Mapping[str, type] = {"source": Source, "columns": ColumnNames, "split": Split, "template": Words}
_FLAT = {"by": "split_by", "demo": "template", "chat": ""}
_PLACES: dict[str, tuple[str, str]] = {
    _FLAT.get(f.name, f.name): (section, f.name)
    for section, kind in _SECTIONS.items()
    for f in fields(kind)
    if _FLAT.get(f.name, f.name)
} | {f.name: ("", f.name) for f in fields(TaskFile) if f.name not in _SECTIONS}


def _absolute(place: str, folder: Path) -> str:
    """A path of a file beside a task file; names and hub sets stay what they are."""
    if not place or ":" in place:
        return place
    path = folder / place
    return str(path) if path.exists() or "/" in place or "." in place else place


def _relative(place: str, folder: Path) -> str:
    path = Path(place)
    if not place or ":" in place or not path.exists():
        return place
    here, there = folder.resolve(), path.resolve()
    return str(there.relative_to(here)) if there.is_relative_to(here) else str(there)


def _lines(section: Any) -> list[str]:
    """``key = value`` of a section's fields that say something."""
    kept = [(f.name, getattr(section, f.name)) for f in fields(section) if f.name not in _SECTIONS]
    default = type(section)()
    said = {name for name, value in kept if value != getattr(default, name)}
    if isinstance(section, Split) and said:
        said.add("seed")  # a part of how the rows were drawn, also where nobody said it
    return [f"{name} = {_toml(value)}" for name, value in kept if name in said]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _block(value) if "\n" in value.strip("\n") else _string(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_string(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    items = [_toml(item) for item in value]
    short = ", ".join(items)
    return f"[{short}]" if len(short) <= 100 else "[\n" + "".join(f"  {item},\n" for item in items) + "]"


def _string(text: str) -> str:
    """A basic string of TOML: what JSON writes, but for a character that TOML escapes and JSON does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _block(text: str) -> str:
    """A string over several lines: line ends as they are, everything else as in a string on one line."""
    return '"""\n' + _string(text)[1:-1].replace("\\n", "\n") + '"""'


def label_names(text: str) -> dict[str, str]:
    """``neg,pos`` (names of 0, 1, …) or ``0=neg,1=pos`` as a mapping. UsageError when both are mixed."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    named = [part.partition("=") for part in parts]
    if all(equals for _, equals, _ in named):
        return {key.strip(): name.strip() for key, _, name in named}
    if any(equals for _, equals, _ in named):
        raise UsageError(f"label names {text!r}: name all of them as ID=NAME, or none")
    return {str(n): name for n, name in enumerate(parts)}


def rows_of(size: float, total: int) -> int:
    """A size as a number of rows: 0 is a fifth of them, at most 500; below 1 it is a share.

    >>> rows_of(0, 100), rows_of(0.1, 50), rows_of(7, 50)
    (20, 5, 7)
    """
    if size == 0:
        return max(1, min(500, total // 5))
    return max(1, round(size * total)) if size < 1 else int(size)


def find_task_file(name: str | Path) -> Path | None:
    """The task file that a name or path means: itself, or ``NAME.toml`` in the working folder."""
    path = Path(name)
    if path.suffix == ENDING:
        return path if path_kind(path) == "file" else None
    beside = path.with_name(path.name + ENDING) if path.name else path
    return beside if path.name and path_kind(beside) == "file" else None
