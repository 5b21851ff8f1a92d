"""Sets known by name: where they are on the hub, how their columns map, what they may be used for."""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from iclkit.datasets import _hub
from iclkit.datasets._readers import Columns, make_columns, to_examples
from iclkit.datasets._task import Located, shuffled
from iclkit.errors import DataError, UnknownName

_FILE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, slots=True)
class Entry:
    """One set of the catalogue. ``splits`` maps our names to the set's; ``revision`` is a branch of the hub repository.

    ``labels`` maps the ids or texts of the output column to the names a prompt shows; ``skip`` are outputs whose rows
    are left out; ``remove`` is a pattern that is cut from every output.
    """

    name: str
    hub: str
    splits: Mapping[str, str]
    input: tuple[str, ...]
    output: str
    kind: str
    metric: str
    description: str
    template: str
    licence: str
    citation: str
    config: str = ""
    revision: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    choice_keys: str = ""
    skip: tuple[str, ...] = ()
    remove: str = ""
    notes: str = ""

    @property
    def source(self) -> str:
        """As ``load_task`` takes it."""
        return f"hf:{self.hub}" + (f":{self.config}" if self.config else "")

    @property
    def homepage(self) -> str:
        """The set's page on the hub."""
        return f"https://huggingface.co/datasets/{self.hub}"

    @property
    def columns(self) -> Columns:
        """How its rows become examples."""
        return make_columns(self.input, self.output, self.choices, self.choice_keys, self.labels, skip=self.skip)


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every set of ``catalogue.toml`` by name, sorted."""
    data = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {name: _entry(name, data[name]) for name in sorted(data)}


def _entry(name: str, data: Mapping[str, Any]) -> Entry:
    lists = {k: tuple(str(v) for v in data[k]) for k in ("input", "choices", "skip") if k in data}
    labels = data.get("labels", {})
    if isinstance(labels, list):
        labels = {str(i): label for i, label in enumerate(labels)}
    return Entry(**{**data, **lists, "name": name, "labels": labels})


def entry(name: str) -> Entry:
    """The entry of that name; UnknownName with the nearest on a miss."""
    if name not in catalogue():
        raise UnknownName("data set", name, catalogue())
    return catalogue()[name]


def folder_of(name: str) -> Path:
    """Where a pulled set lies: ``<home>/datasets/<name>``."""
    from iclkit.models import home

    return home() / "datasets" / name


def is_pulled(name: str) -> bool:
    """Whether the set of that name has been fetched."""
    return (folder_of(name) / "train.jsonl").is_file()


def pulled(name: str) -> Path:
    """The folder of a pulled set; DataError with the command that fetches it when it is not there."""
    folder = folder_of(entry(name).name)
    if not is_pulled(name):
        raise DataError(
            f"the data set {name!r} is not on this machine ({folder}); run: iclkit datasets pull {name}"
            + (f"; for the folder here write ./{name}" if Path(name).is_dir() else "")
        )
    return folder


def entry_for_source(source: str) -> Entry | None:
    """The entry of the set that ``hf:owner/name[:config]`` names, if the catalogue has it."""
    return next((item for item in catalogue().values() if item.source == source), None)


def fetch(item: Entry) -> dict[str, list[Located]]:
    """The rows of a set from the hub, shuffled, as the catalogue maps them. DataError as in ``pull``."""
    found = _hub.hub_splits(item.source, item.revision or None)
    rows = {}
    for ours, theirs in item.splits.items():
        records = _hub.object_records(_hub.pick_split(item.source, found, theirs), f"{item.source} {theirs}")
        rows[ours] = shuffled(to_examples(records, item.columns, item.name))
        if item.remove:
            rows[ours] = [(w, replace(e, output=re.sub(item.remove, "", e.output), id="")) for w, e in rows[ours]]
    return rows


def pull(name: str, *, again: bool = False) -> Path:
    """Fetch a set from the hub into the layout that ``load_task`` reads (train.jsonl, test.jsonl, card.md); its folder.

    A set that is there is not fetched again unless asked. All or nothing: the folder appears when it is complete.
    DataError when the hub cannot be reached, the set has changed its columns, or the folder cannot be written.
    """
    item = entry(name)
    folder = folder_of(name)
    if is_pulled(name) and not again:
        return folder
    rows = fetch(item)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
            new = Path(work) / "new"
            new.mkdir()
            for split, examples in rows.items():
                with (new / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                    for i, (_, e) in enumerate(examples, 1):
                        line: dict[str, object] = {
                            "id": f"{name}-{split}-{i:05d}",
                            "input": e.input,
                            "output": e.output,
                        }
                        if e.choices:
                            line["choices"] = list(e.choices)
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
            (new / "card.md").write_text(card_text(item, {s: len(r) for s, r in rows.items()}), encoding="utf-8")
            if folder.exists():
                folder.replace(Path(work) / "old")
            new.replace(folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}; free space or set ICLKIT_HOME") from error
    return folder


def card_text(item: Entry, rows: Mapping[str, int]) -> str:
    """The ``card.md`` of a pulled set, in the form that ``Card.parse`` reads."""
    lines = [
        f"# {item.name}",
        f"- Task: {item.description}; {item.kind.replace('_', ' ')}.",
        f"- Source: {item.source}{f', revision {item.revision}' if item.revision else ''}.",
        f"- Homepage: {item.homepage}",
        f"- Licence: {item.licence}.",
        f"- Splits: {', '.join(f'{s} {n:,} (the source calls it {item.splits[s]})' for s, n in rows.items())}.",
        f"- Suggested metric: {item.metric}.",
        f"- Citation: {item.citation}.",
        *([f"- Notes: {item.notes}"] if item.notes else []),
        "- Prompt template:",
        "```",
        item.template,
        "```",
    ]
    return "\n".join(lines) + "\n"
