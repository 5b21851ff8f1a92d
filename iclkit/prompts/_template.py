"""How one demonstration and one query look as text."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

from iclkit.errors import DataError, UsageError
from iclkit.files import read_text
from iclkit.records import Example, Json, Query
from iclkit.schema import read_as

_PART = re.compile(r"(\{\{|\}\})|\{([^\W\d]\w*)\}|([{}])")
_LABELS = re.compile(r"(?<!\{)\{labels\}(?!\})")
_DOUBLED = re.compile(r"([{}])\1")
_ANSWERS = ("output", "letter")


class Piece(NamedTuple):
    """A run of prompt text and what it is: a span kind, and the demonstration it belongs to, if any."""

    kind: str
    text: str
    example_id: str = ""


@lru_cache(maxsize=256)  # it is asked for with every demonstration that is rendered
def _parts_of(demo: str) -> tuple[tuple[str, str], ...]:
    """A template's text as ("glue", text) and ("field", name) in order. UsageError for a brace that is neither."""
    parts: list[tuple[str, str]] = []
    glue, at = "", 0
    for found in _PART.finditer(demo):
        glue += demo[at : found.start()]
        at = found.end()
        double, name, lone = found.groups()
        if lone:
            raise UsageError(
                f"{demo!r}: {lone!r} at character {found.start()} is neither a field like {{input}} nor a "
                f"literal brace; write {lone * 2!r} for a literal one"
            )
        if double:
            glue += double[0]
            continue
        parts += [("glue", glue)] if glue else []
        parts.append(("field", name))
        glue = ""
    glue += demo[at:]
    return (*parts, ("glue", glue)) if glue else tuple(parts)


@dataclass(frozen=True, slots=True)
class Template:
    """The look of a demonstration; the query is the same text up to the answer.

    ``demo`` names fields in braces: ``{input}`` (the whole input), any named field of a mapping input, ``{choices}``
    (the options, one lettered line each), and exactly one answer: ``{output}``, or ``{letter}`` for the letter of the
    output among the choices. ``{{`` and ``}}`` are literal braces. ``instruction``, ``system`` and the separators are
    plain text, braces and all. Whatever stands in the data is inserted in one pass and never read as a field. All is
    NFC, as examples are, so that fields are found under their names however those were typed.

    ``{labels}``, in ``demo``, ``instruction`` or ``system``, is the task's label set, which ``with_labels`` puts there.

    ``separator`` stands behind the instruction and behind each demonstration, ``demo_separator``, where it is given,
    behind each demonstration in its place. With ``chat`` every demonstration is a user turn and an assistant turn, and
    ``system`` and ``instruction`` together are the system message; with ``turns=False`` instruction, demonstrations and
    query are one user turn. ``stop`` are the strings that end a generated answer.
    """

    demo: str = "Input: {input}\nOutput: {output}"
    instruction: str = ""
    separator: str = "\n\n"
    chat: bool = False
    system: str = ""
    stop: tuple[str, ...] = ()
    demo_separator: str | None = None
    turns: bool = True

    def __post_init__(self) -> None:
        for name in ("demo", "instruction", "separator", "system"):
            object.__setattr__(self, name, unicodedata.normalize("NFC", getattr(self, name)))
        if self.demo_separator is not None:
            object.__setattr__(self, "demo_separator", unicodedata.normalize("NFC", self.demo_separator))
        object.__setattr__(self, "stop", tuple(unicodedata.normalize("NFC", s) for s in self.stop))
        names = [value for kind, value in self._parts() if kind == "field"]
        answers = [n for n in names if n in _ANSWERS]
        if len(answers) != 1:
            raise UsageError(f"a template has one {{output}} (or {{letter}}), and {self.demo!r} has {len(answers)}")
        if self.system and not self.chat:
            raise UsageError("a system message needs a chat template; set chat=True, or move the text to instruction")
        if not self.turns and not self.chat:
            raise UsageError("turns=False puts a chat's demonstrations into one turn; it needs chat=True")

    def identity(self) -> dict[str, Json]:
        """What decides how demonstrations look, under names that no renaming touches: task hashes, ledgers and runs
        hold it. A field that is added later joins only where it is not at its default, so that what is stored stays
        valid.
        """
        return {
            "demo": self.demo,
            "instruction": self.instruction,
            "separator": self.separator,
            "chat": self.chat,
            "system": self.system,
            "stop": [*self.stop],
            **({} if self.demo_separator is None else {"demo_separator": self.demo_separator}),
            **({} if self.turns else {"turns": False}),
        }

    @classmethod
    def parse(cls, text: str) -> Template:
        """A template from a text: paragraphs before the first one that holds a field are the instruction.

        ``{{`` and ``}}`` are literal braces in all of it. ``{labels}`` may stand in the instruction and makes no
        demonstration.
        """
        paragraphs = text.strip("\n").split("\n\n")
        for n, paragraph in enumerate(paragraphs):
            if any(m.group(2) not in (None, "labels") for m in _PART.finditer(paragraph)):
                instruction = "\n\n".join(paragraphs[:n])
                return cls(demo="\n\n".join(paragraphs[n:]), instruction=_DOUBLED.sub(r"\1", instruction))
        raise UsageError(f"a template names its fields in braces, e.g. 'Input: {{input}}'; there is none in {text!r}")

    @classmethod
    def read(cls, path: str | Path) -> Template:
        """A template from a file: a text as ``parse`` reads it or, named ``.toml``, the fields of this class by name.

        DataError for a file that cannot be read, UsageError for one that is no template; both name it.
        """
        path = Path(path)
        text = read_text(path)
        try:
            if path.suffix != ".toml":
                return cls.parse(text)
            return read_as(cls, tomllib.loads(text), str(path))
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"{path} is not TOML: {error}") from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    @property
    def words_name_labels(self) -> bool:
        """Whether ``{labels}`` stands in the instruction or the system message."""
        return any(_LABELS.search(text) for text in (self.instruction, self.system))

    def with_labels(self, labels: Sequence[str], fields: Collection[str] = ()) -> Template:
        """The template with ``{labels}`` filled in, ``"a, b, c"``; itself where it does not name them.

        ``fields`` of the input that has such names: a field ``labels`` of the data's own stays one. UsageError where
        there are no labels.

        >>> Template(instruction="Answer with one of: {labels}").with_labels(["no", "yes"]).instruction
        'Answer with one of: no, yes'
        """
        in_demo = "labels" in self.fields and "labels" not in fields
        if not (in_demo or self.words_name_labels):
            return self
        if not labels:
            raise UsageError("the template names {labels}, and there are none: the task has no label set")
        listed = unicodedata.normalize("NFC", ", ".join(labels))
        braces = listed.replace("{", "{{").replace("}", "}}")
        return replace(
            self,
            demo=_PART.sub(lambda m: braces if m[2] == "labels" else m[0], self.demo) if in_demo else self.demo,
            instruction=_LABELS.sub(lambda _: listed, self.instruction),
            system=_LABELS.sub(lambda _: listed, self.system),
        )

    @property
    def behind_demos(self) -> str:
        """What stands behind each demonstration."""
        return self.separator if self.demo_separator is None else self.demo_separator

    @property
    def _letters(self) -> bool:
        """Whether an answer is shown by its letter."""
        return ("field", "letter") in self._parts()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the template names, in order, the answer among them."""
        return tuple(dict.fromkeys(value for kind, value in self._parts() if kind == "field"))

    @property
    def answer_prefix(self) -> str:
        """The blanks between the end of a rendered query and its answer; "" in a chat, whose turn they would begin."""
        return "" if self.chat else _head_of(self.demo)[1]

    @property
    def opening(self) -> str:
        """The words that a demonstration begins with, before its first field."""
        kind, value = self._parts()[0]
        return value if kind == "glue" else ""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What ends a generated answer: ``stop``, else the separator (a chat ends its turn by itself)."""
        if self.stop or self.chat:
            return self.stop
        return (self.behind_demos,) if self.behind_demos else ()

    def answer(self, output: str, choices: Sequence[str] = ()) -> str:
        """The text shown as the answer: the output itself, or its letter among the choices. DataError if not there."""
        if not self._letters:
            return output
        if output not in choices:  # both are spelled alike: Example and Query see to that
            raise DataError(
                f"the output {output!r} is not one of the choices {list(choices)}; {{letter}} needs it there"
            )
        return _letter(list(choices).index(output))

    def render_demo(self, example: Example) -> str:
        """A demonstration as text. DataError names a field that the example has not got."""
        return "".join(p.text for p in self.demo_pieces(example))

    def demo_pieces(self, example: Example) -> tuple[Piece, ...]:
        """A demonstration as glue, input and output pieces."""
        return _demo_pieces(self, example)

    def _demo_pieces(self, example: Example) -> Iterator[Piece]:
        for kind, value in self._parts():
            if kind == "glue":
                yield Piece("glue", value, example.id)
            elif value in _ANSWERS:
                yield Piece("output", self.answer(example.output, example.choices), example.id)
            else:
                yield Piece("input", self._value(value, example, "example"), example.id)

    def query_pieces(self, query: Query) -> list[Piece]:
        """A query as glue and query pieces up to where the answer begins, without blanks at the end."""
        return [
            Piece("glue", value) if kind == "glue" else Piece("query", self._value(value, query, "query"))
            for kind, value in _head_of(self.demo)[0]
        ]

    def _parts(self) -> tuple[tuple[str, str], ...]:
        """The template as ("glue", text) and ("field", name) in order."""
        return _parts_of(self.demo)

    @staticmethod
    def _value(name: str, item: Example | Query, kind: str) -> str:
        """The text of a field; ``kind`` is what messages call the item."""
        if not isinstance(item.input, str) and name in item.input:
            return item.input[name]
        if name == "input":
            return item.text
        if name == "choices" and item.choices:
            return "\n".join(f"{_letter(n)}. {choice}" for n, choice in enumerate(item.choices))
        where = f"{kind} {item.id}"
        if name == "labels":
            raise DataError(f"{where}: the template names {{labels}}, and no labels were given (Template.with_labels)")
        known = ["input"] if isinstance(item.input, str) else [*item.input]
        known += ["choices"] if item.choices else []
        raise DataError(f"{where} has no field {name!r}, which the template names; it has: {', '.join(known)}")


@lru_cache
def _head_of(demo: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """The parts before the answer, and the blanks cut from their end."""
    parts = _parts_of(demo)
    head = parts[: next(n for n, part in enumerate(parts) if part[0] == "field" and part[1] in _ANSWERS)]
    if not head or head[-1][0] != "glue":
        return head, ""
    text = head[-1][1]
    kept = text.rstrip(" \t")
    return (*head[:-1], *([("glue", kept)] if kept else [])), text[len(kept) :]


@lru_cache(maxsize=2048)  # a demonstration stands in many prompts
def _demo_pieces(template: Template, example: Example) -> tuple[Piece, ...]:
    return tuple(template._demo_pieces(example))


def _letter(n: int) -> str:
    return ascii_uppercase[n] if n < 26 else str(n + 1)
