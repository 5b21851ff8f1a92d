"""The way back: demonstrations out of text that follows a template, as a language model writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from iclkit.errors import UsageError
from iclkit.prompts._assemble import assemble
from iclkit.prompts._template import Template
from iclkit.records import Example, Fields, Query

_MARK = "\ue000"  # stands for the input that is about to be written
_ANSWERS = ("output", "letter")
_CHOICE = re.compile(r"^(?:[A-Z]|\d+)[.)] +(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ParsedDemonstration:
    """One attempt at a demonstration: its ``text``, the fields that could be read, and whether the answer was reached.

    ``complete``: every field is there and none is empty. ``asks``: every field before the answer is.
    """

    text: str
    fields: Mapping[str, str]
    asks: bool
    complete: bool

    @property
    def input(self) -> Fields:
        """The fields before the answer, choices left out; the text itself when that is all there is."""
        fields = {k: v for k, v in self.fields.items() if k not in (*_ANSWERS, "choices")}
        return fields["input"] if [*fields] == ["input"] else fields

    def example(self, *, task: str = "") -> Example | None:
        """The example that the block shows, or None when a field is missing or a letter names no choice."""
        if not self.complete:
            return None
        choices = tuple(m.group(1).strip() for m in _CHOICE.finditer(self.fields.get("choices", "")))
        output = self.fields.get("output", "")
        if "letter" in self.fields:
            at = ascii_uppercase.find(self.fields["letter"].strip(" .()").upper()[:1] or "?")
            if not 0 <= at < len(choices):
                return None
            output = choices[at]
        return Example(self.input, output, task, choices)


def parse_demonstrations(template: Template, text: str) -> list[ParsedDemonstration]:
    """The demonstrations in a text that begins with one, cut where the template's separator or first words come again.

    White space around the template's words may differ; blocks of nothing but white space are left out.
    """
    return [_read(template, b) for b in _cut(template, text) if b.strip()]


def open_prompt(template: Template, examples: Sequence[Example], **settings: Any) -> str:
    """A plain text that shows the examples (best first) and ends where the input of one more would begin.

    For a model that is to go on with demonstrations of its own; ``settings`` are those of ``assemble`` (budget,
    count_tokens, reserve, order, seed). A chat would be answered rather than continued, so chat templates are made
    plain, with their system message in front. Read what comes back with ``parse_continuation``.
    """
    template = plain(template)
    names = [f for f in template.fields if f not in _ANSWERS]
    choices = (_MARK,) if "choices" in names else ()
    blank = Query(_MARK if "input" in names else dict.fromkeys(names, _MARK), choices)
    text = assemble(template, blank, examples, **settings).text
    return text[: text.index(_MARK)].rstrip(" \t")


def parse_continuation(template: Template, text: str) -> list[ParsedDemonstration]:
    """The demonstrations in what a model wrote after ``open_prompt``."""
    return parse_demonstrations(template, _fields(template)[0][0][0] + text)


def plain(template: Template) -> Template:
    """The same template without a chat: the system message is part of the instruction."""
    instruction = template.separator.join(t for t in (template.system, template.instruction) if t)
    return replace(template, chat=False, turns=True, system="", instruction=instruction)


def _fields(template: Template) -> tuple[list[tuple[str, str]], str]:
    """(words before it, name) of every field in order, and the words after the last."""
    pairs, words = list[tuple[str, str]](), ""
    for kind, value in template._parts():
        if kind == "glue":
            words = value
        else:
            pairs.append((words, value))
            words = ""
    if any(not before for before, _ in pairs[1:]):
        raise UsageError(f"{template.demo!r} has fields without words between them, so no text can be read back by it")
    return pairs, words


def _cut(template: Template, text: str) -> list[str]:
    between = template.behind_demos
    if between.strip():
        blocks = text.split(between)
    elif "\n\n" in between and "\n\n" not in template.demo:
        blocks = re.split(r"\n[ \t]*\n", text)
    elif "\n" in between and "\n" not in template.demo:
        blocks = text.split("\n")
    else:
        blocks = [text]  # what stands between demonstrations stands inside them too
    head = _fields(template)[0][0][0].strip()
    if not head:
        return blocks
    again = re.compile(rf"^(?=[ \t]*{_loose_pattern(head)})", re.MULTILINE)
    return [part for block in blocks for part in again.split(block)]


def _read(template: Template, block: str) -> ParsedDemonstration:
    pairs, tail = _fields(template)
    after = [words for words, _ in pairs[1:]] + [tail]
    found: dict[str, str] = {}
    start = re.match(_pattern(pairs[0][0].lstrip()), block)
    at = start.end() if start else -1
    for (_, name), words in zip(pairs, after if start else (), strict=False):
        end = re.compile(_pattern(words)).search(block, at) if words.strip() or words is not tail else None
        if end is None and words is not tail:
            break  # the words after this field never come: it may have been cut off
        found.setdefault(name, block[at : end.start() if end else len(block)].strip())
        at = end.end() if end else len(block)
    names = [name for _, name in pairs]
    before = names[: next(n for n, name in enumerate(names) if name in _ANSWERS)]
    return ParsedDemonstration(block, found, bool(before) and all(map(found.get, before)), all(map(found.get, names)))


def _pattern(words: str) -> str:
    """Template words as a pattern: white space inside and around them may differ."""
    if words.strip():
        return rf"\s{'+' if words[0].isspace() else '*'}{_loose_pattern(words.strip())}[ \t]*"
    return r"[ \t]*\n\s*" if "\n" in words else r"\s*" if not words else r"\s+"


def _loose_pattern(words: str) -> str:
    return r"\s+".join(re.escape(w) for w in words.split())
