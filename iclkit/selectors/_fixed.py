"""The same ordered demonstrations for every query, read from a selector file such as ``iclkit tune`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Self, TypedDict

import numpy as np

from iclkit.errors import DataError, IclkitError, UsageError
from iclkit.files import read_json, replace_file
from iclkit.pool import Candidates
from iclkit.prompts import Template, order_picks
from iclkit.records import Example, Json, Spec, clean_text, digest, input_text
from iclkit.schema import read_as
from iclkit.selectors._base import BaseSelector, Choice, IntArray, Needs
from iclkit.settings import setting

FORMAT = 1


@dataclass(frozen=True)
class SelectorFile:
    """An ordered list of demonstrations, first shown first, as one JSON file.

    ``instruction`` stands above them; None leaves the run's own template as it is, "" shows none. ``template`` is what
    the list was found with. ``facts`` is everything else the file says: how the list was found and what it scored.
    """

    demonstrations: tuple[Example, ...]
    instruction: str | None = None
    template: Template | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all. DataError when that is not possible."""
        data = {
            "iclkit_selector_file": FORMAT,
            "k": len(self.demonstrations),
            "instruction": self.instruction,
            "demonstrations": [_example_json(e) for e in self.demonstrations],
            "template": self.template.identity() if self.template else None,
            **self.facts,
        }
        try:
            replace_file(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"cannot write the selector file {path} ({error.strerror})") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file back. DataError names file, field and remedy."""
        try:
            data = read_json(path)
        except DataError as error:
            raise DataError(f"{error}; give the path of a selector file, or make it again with iclkit tune") from error
        if not isinstance(data, dict) or "iclkit_selector_file" not in data:
            raise DataError(f"{path} has no field `iclkit_selector_file`: it is not one that iclkit tune wrote")
        if data.pop("iclkit_selector_file") != FORMAT:
            raise DataError(
                f"{path}: `iclkit_selector_file` is not {FORMAT}: another version wrote it; make it again with this one"
            )
        demos, instruction, template = (data.pop(key, None) for key in ("demonstrations", "instruction", "template"))
        if not isinstance(demos, list) or not demos:
            raise DataError(f"{path}: `demonstrations` is not a list of at least one; make it again with iclkit tune")
        instruction = _read(str | None, instruction, path, "instruction")
        examples = tuple(_example(path, n, demo) for n, demo in enumerate(demos, 1))
        if len({e.id for e in examples}) < len(examples):
            raise DataError(f"{path}: `demonstrations` holds one example twice; take one of them out")
        return cls(examples, instruction, _template(path, template), data)

    @property
    def hash(self) -> str:
        """Hash of what is shown: the demonstrations in order, and the instruction."""
        return digest([[e.id for e in self.demonstrations], self.instruction], 6)


def _example_json(example: Example) -> dict[str, Any]:
    whole = example.input if isinstance(example.input, str) else dict(example.input)
    return {
        "id": example.id, "input": whole, "output": example.output, "task": example.task, "choices": [*example.choices],
    }  # fmt: skip


class _Demonstration(TypedDict):
    input: str | dict[str, str]
    output: str
    id: NotRequired[str]
    task: NotRequired[str]
    choices: NotRequired[tuple[str, ...]]


def _read(kind: Any, value: object, path: Path, field_name: str) -> Any:
    try:
        return read_as(kind, value, f"{path}: `{field_name}`")
    except DataError as error:
        raise DataError(f"{error}; correct it, or make the file again with iclkit tune") from error


def _example(path: Path, number: int, value: object) -> Example:
    where = f"demonstration {number}"
    data = _read(_Demonstration, value, path, where)
    if not data["input"]:
        raise DataError(f"{path}: {where} has an empty `input`; correct it, or make the file again with iclkit tune")
    example = Example(data["input"], data["output"], data.get("task", ""), data.get("choices", ()))
    if data.get("id", example.id) != example.id:
        raise DataError(
            f"{path}: {where}: `id` is not that of its content; take `id` out if the content was changed on purpose"
        )
    return example


def _template(path: Path, data: object) -> Template | None:
    if data is None:
        return None
    try:
        template: Template = _read(Template, data, path, "template")
    except IclkitError as error:
        raise DataError(f"{path}: `template` is none that can be used ({error}); set it to null") from error
    return template


def _content_key(example: Example) -> tuple[str, ...]:
    """What an example shows, whatever task its id was made for."""
    return clean_text(input_text(example.input)), clean_text(example.output), *example.choices


@dataclass
class FixedSelector(BaseSelector):
    """Shows every query the ordered list in a selector file.

    The file comes from `iclkit tune`, or is written by hand; its path in place of a selector's name means the same. A
    query that excludes some of the list gets the others, in their order.
    Use it for one prompt for all: the cheapest to serve, since everything before the query is read once.
    Cost: nothing.
    """

    name: ClassVar[str] = "fixed"
    summary: ClassVar[str] = (
        "the ordered list in a selector file, the same for every query, e.g. one that `iclkit tune` found"
    )
    source: ClassVar[str] = "task-level demonstrations, e.g. Wu et al. 2024, NeurIPS, arXiv 2405.16122"
    example: ClassVar[str] = "fixed,file=tuned.json"
    needs: ClassVar[Needs] = Needs()

    file: str = setting("", "a selector file; its path (….json) in place of a selector's name means the same")

    @classmethod
    def showing(cls, demonstrations: Sequence[Example], instruction: str | None = None) -> Self:
        """A selector of these, first shown first, without a file."""
        selector = cls()
        selector.content = SelectorFile(tuple(demonstrations), instruction)
        return selector

    @cached_property
    def content(self) -> SelectorFile:
        """What the file says. UsageError without one, DataError for one that cannot be used."""
        if not self.file:
            raise UsageError("selector 'fixed' needs a selector file: fixed,file=best.json, or just best.json")
        return SelectorFile.read(Path(self.file))

    @property
    def spec(self) -> Spec:
        """Name, file and the hash of what it says, so that a changed file makes another run."""
        content = self.content.hash if self.file or "content" in self.__dict__ else ""
        return Spec(self.name, {"file": self.file}, self.version, content)

    def template_for(self, given: Template | None) -> Template:
        """The run's template, or the file's where none is given, with the file's instruction."""
        from dataclasses import replace

        base = given or self.content.template or Template()
        return base if self.content.instruction is None else replace(base, instruction=self.content.instruction)

    def prepare(self) -> None:
        """Find the demonstrations in the pool, by id or else by content.

        DataError when one is not there; UsageError for an order policy under which the list could not keep its order.
        """
        by_content: dict[tuple[str, ...], int] = {}
        rows = []
        for number, demo in enumerate(self.content.demonstrations, 1):
            row = self.pool_.row_of(demo.id)
            if row is None:
                by_content = by_content or {
                    _content_key(e): r
                    for e, r in reversed([*zip(self.pool_.examples, self.pool_.rows.tolist(), strict=True)])
                }
                row = by_content.get(_content_key(demo))
            if row is None:
                raise DataError(
                    f"{self.file or 'fixed'}: demonstration {number} ({' '.join(demo.text.split())[:60]!r}) is not in "
                    f"the pool; use the pool it was tuned on, or add it: iclkit tune demos FILE > demos.jsonl and "
                    f"iclkit pool add POOL demos.jsonl"
                )
            rows.append(row)
        self.rows_ = np.array(rows, dtype=np.int64)
        if len(rows) > 1:
            self._ranked(self.rows_)

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """The list less what the query excludes, ranked so that the run's order policy shows it in its own order.

        With k below its length the last k are shown, those nearest to the query. Every score is 0.
        """
        kept = self.rows_[candidates.allowed(self.rows_)]
        rows = self._ranked(kept[max(0, len(kept) - k) :])
        return Choice(rows, np.zeros(len(rows)))

    def capacity(self, k: int) -> int:
        """No more than the list has."""
        return min(k, len(self.content.demonstrations))

    def shared(self, k: int) -> int:
        """All of the list."""
        return self.capacity(k)

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:
        size = len(self.rows_)
        held = int(candidates.allowed(self.rows_).sum())
        if 0 < k < held:
            return (f"the last {k} of the file's {size} demonstrations: -k is {k}",)
        if got == k or (got == size and k > size):
            return () if got == k else (f"{got} of {k} demonstrations: the file holds {size}",)
        return (f"{got} of {k} demonstrations: the file holds {size}, and {held} of them were allowed",)

    def _ranked(self, rows: IntArray) -> IntArray:
        """Rows (m,) in prompt order -> in rank order, best first, such that the order policy gives the prompt order."""
        examples = self.pool_.examples_at(rows)
        ranked = np.empty_like(rows)
        position = {e.id: n for n, e in enumerate(examples)}
        places = [position[e.id] for e in self._ordered(examples)]
        ranked[places] = rows
        if [e.id for e in self._ordered(self.pool_.examples_at(ranked))] != [e.id for e in examples]:
            raise UsageError(
                f"the order of a selector file is part of what was found, and order policy {self.kit_.order!r} does "
                f"not keep it; use best-last"
            )
        return ranked

    def _ordered(self, examples: Sequence[Example]) -> list[Example]:
        return order_picks(examples, self.kit_.order, seed=self.kit_.seed, query_id="")
