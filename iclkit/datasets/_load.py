"""A task by name: bundled, from the catalogue, a folder, a file, or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclkit.datasets import _catalogue, _hub
from iclkit.datasets._readers import Columns, make_columns, records, to_examples
from iclkit.datasets._task import SPLITS, Card, Located, Task, build_task, sample_rows, shuffled, split_holdout
from iclkit.errors import DataError, UnknownName
from iclkit.files import path_kind
from iclkit.prompts import Template

BUNDLED = {"support": Path(__file__).parent / "support"}
_FILE_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def load_task(
    name: str | Path | Mapping[str, Any],
    *,
    limit: int | None = None,
    seed: int = 0,
    dev: int = 0,
    test: int = 0,
    input: str | Sequence[str] | None = None,
    output: str | None = None,
    choices: str | Sequence[str] | None = None,
    choice_keys: str | None = None,
    label_names: Sequence[str] | Mapping[Any, str] | None = None,
    meta: Sequence[str] | None = None,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    template: Template | None = None,
    metric: str | None = None,
    max_answer_tokens: int | None = None,
) -> Task:
    """The task of that name; see ``iclkit datasets ls``.

    ``name``: the bundled ``support``; a catalogue name, once pulled; a folder with ``train`` and ``test`` (``dev``) as
    .jsonl, .json, .csv, .tsv or .parquet and perhaps a ``card.md``; a folder of ``save_to_disk``; one file;
    ``hf:owner/name[:config]``, the only form that uses the network; or a ``datasets.DatasetDict``. Rows of Hugging Face
    sets are shuffled, always alike. Write ``./sst2`` for a folder named like a catalogue set.

    ``limit``: at most so many test rows, drawn by ``seed``; a smaller limit's rows are among a larger one's. ``dev``,
    ``test``: rows to hold out of train where the set has no such split; nothing is held out unless asked.
    ``input`` … ``meta`` map columns as in ``read_examples``; ``kind`` … ``max_answer_tokens`` override the card.
    DataError when the data is not what it should be, UnknownName when there is no such task.
    """
    columns = make_columns(input, output, choices, choice_keys, label_names, meta)
    title, splits, card = _open(name, columns)
    for split, count in (("test", test), ("dev", dev)):
        if count and not splits.get(split):
            splits["train"], splits[split] = split_holdout(splits["train"], count, seed=seed)
    if not splits.get("test"):
        raise DataError(f"task {title!r} has no test rows; add a test file, or hold some out of train (test=100)")
    # label checks see every row; the sample is drawn last
    whole = build_task(title, splits, kind, labels, template, metric, card, max_answer_tokens)
    if limit is None:
        return whole
    kept = tuple(e for _, e in sample_rows(splits["test"], limit, seed=seed))
    return Task(**{**vars(whole), "test": kept})


def _open(name: str | Path | Mapping[str, Any], columns: Columns) -> tuple[str, dict[str, list[Located]], Card]:
    """Title, located rows per split, and card."""
    if isinstance(name, Mapping):
        return "dataset", _from_objects("dataset", name, columns, "dataset"), Card()
    text = str(name)
    if text.startswith("hf:"):
        item = _catalogue.entry_for_source(text)
        if item and columns == Columns():  # the catalogue knows its columns, and the caller does not say others
            rows = _catalogue.fetch(item)
            return item.name, rows, Card.parse(_catalogue.card_text(item, {s: len(r) for s, r in rows.items()}))
        title = text.removeprefix("hf:").replace(":", "/").rsplit("/", 1)[-1]
        return title, _from_objects(text, _hub.hub_splits(text), columns, title), Card(source=text)
    path = Path(name)
    if isinstance(name, str) and path.name == name:  # a bare word: catalogue first, whatever lies in this folder
        if name in BUNDLED:
            return _from_folder(BUNDLED[name], columns)
        if name in _catalogue.catalogue():
            return _from_folder(_catalogue.pulled(name), columns)
    there = path_kind(path)
    if there == "folder":
        return _from_folder(path, columns)
    if there:
        return path.stem, {"train": to_examples(records(path), columns, path.stem)}, Card()
    if path.name != text:
        raise DataError(f"no folder or file {text}; a task is a folder with train.jsonl and test.jsonl, or a name")
    raise UnknownName(
        "task",
        text,
        [*BUNDLED, *_catalogue.catalogue()],
        "Or give a folder with train.jsonl and test.jsonl, or hf:owner/name.",
    )


def bundled_cards() -> dict[str, Card]:
    """The cards of the sets that come with the package, by name."""
    return {name: _card(folder) for name, folder in BUNDLED.items()}


def _card(folder: Path) -> Card:
    file = folder / "card.md"
    return Card.parse(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else Card()


def _from_folder(folder: Path, columns: Columns) -> tuple[str, dict[str, list[Located]], Card]:
    title = folder.resolve().name
    card = _card(folder)
    if _hub.is_saved(folder):
        return title, _from_objects(str(folder), _hub.saved_splits(folder), columns, title), card
    splits = {}
    for split in SPLITS:
        if file := _split_file(folder, split):
            splits[split] = to_examples(records(file), columns, title)
    if "train" not in splits:
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} has no train.jsonl (nor .json, .csv, .tsv, .parquet); it holds {held}")
    return title, splits, card


def _split_file(folder: Path, split: str) -> Path | None:
    found = [folder / f"{n}{s}" for n in _FILE_NAMES[split] for s in _SUFFIXES if (folder / f"{n}{s}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has {' and '.join(f.name for f in found)}; keep one of them as the {split} split")
    return found[0] if found else None


def _from_objects(source: str, splits: Mapping[str, Any], columns: Columns, title: str) -> dict[str, list[Located]]:
    return {
        split: shuffled(to_examples(_hub.object_records(rows, f"{source} {split}"), columns, title))
        for split, rows in _hub.task_splits(source, splits).items()
    }
