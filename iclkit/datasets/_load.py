"""A task by name: bundled, from the catalogue, a task file, a folder, a file, a pool, or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iclkit.database import is_sqlite
from iclkit.datasets import _catalogue, _hub
from iclkit.datasets._formats import PACKED, STDIN, SUFFIXES
from iclkit.datasets._readers import Columns, Reading, Skipped, read_rows
from iclkit.datasets._task import (
    SPLITS,
    Card,
    Located,
    Task,
    build_task,
    infer_kind,
    sample_rows,
    shuffled,
    split_holdout,
)
from iclkit.datasets._task_file import ENDING, TaskFile, Words, find_task_file, rows_of
from iclkit.errors import DataError, UnknownName, UsageError
from iclkit.files import parse_json, path_kind
from iclkit.prompts import Template
from iclkit.records import Example, digest

BUNDLED = {"support": Path(__file__).parent / "support"}
_FILE_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
_SPLIT_COLUMN = "split"


def load_task(
    name: str | Path | Mapping[str, Any] | TaskFile,
    *,
    limit: int | None = None,
    seed: int = 0,
    dev: int | float | str | Path = 0,
    test: int | float | str | Path = 0,
    split_by: str = "",
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
    need_test: bool = True,
    on_skipped: Callable[[Sequence[Skipped]], None] | None = None,
    **more: Any,
) -> Task:
    """The task of that name; see ``iclkit datasets ls``.

    ``name``: the bundled ``support``; a catalogue name, once pulled; a task file (``tickets.toml``, or ``tickets`` in
    the working folder); a folder with ``train`` and ``test`` (``dev``) as .jsonl, .json, .csv, .tsv or .parquet, or in
    shards as the hub has them, and perhaps a ``card.md``; a folder of ``save_to_disk``; one file; a pool;
    ``hf:owner/name[:config]``, the only form that uses the network; or a ``datasets.DatasetDict``. Rows of Hugging Face
    sets are shuffled, always alike. Write ``./sst2`` for a folder named like a catalogue set.

    ``limit``: at most so many test rows, drawn by ``seed``; a smaller limit's rows are among a larger one's. ``test``:
    a file, or how many rows (below 1: which share) to hold out of train where the set has no such split; without it a
    fifth, at most 500, which a note says. ``dev``: the same, but none are held out unless asked. ``split_by``: rows
    with one value of this column stay together. ``input`` … ``meta`` map columns as in ``read_examples``; ``kind`` …
    ``max_answer_tokens`` override the card. ``more``: the other options of ``TaskFile.with_options``, e.g. ``rows``,
    ``delimiter``, ``on_bad_row``; ``on_skipped`` is told of rows that were left out. Without ``need_test`` nothing is
    held out, and there may be no test rows. DataError when the data is not what it should be, UnknownName when there is
    no such task.
    """
    described = describe(name)
    sizes: dict[str, Any] = {}
    for split, size in (("test", test), ("dev", dev)):
        is_file = isinstance(size, str | Path)
        sizes[split if is_file else f"{split}_size"] = str(size) if is_file else size or None
    names = label_names if isinstance(label_names, Mapping) or label_names is None else dict(enumerate(label_names))
    given: dict[str, Any] = {
        **sizes,
        "split_by": split_by,
        "input": (input,) if isinstance(input, str) else tuple(input or ()),
        "output": output,
        "choices": (choices,) if isinstance(choices, str) else tuple(choices or ()),
        "choice_keys": choice_keys,
        "label_names": {str(k).lower() if isinstance(k, bool) else str(k): v for k, v in (names or {}).items()},
        "keep": tuple(meta or ()),
        "kind": kind,
        "labels": tuple(labels or ()),
        "template": template,
        "metric": metric,
        "max_answer_tokens": max_answer_tokens,
        **more,
    }
    if not isinstance(name, TaskFile) and described.split == TaskFile().split:
        given["seed"] = seed
    described = described.with_options(**given)
    objects = name if isinstance(name, Mapping) else None
    if max_answer_tokens is not None and max_answer_tokens < 1:
        raise UsageError(f"max_answer_tokens is {max_answer_tokens}; it must be at least 1")
    loaded = _load(described, objects, need_test=need_test)
    if on_skipped is not None and loaded.skipped:
        on_skipped(loaded.skipped)
    whole = loaded.task
    if limit is None:
        return whole
    kept = tuple(sample_rows(whole.test, limit, seed=seed))
    return replace(whole, test=kept)


def record_task(
    described: TaskFile, on_skipped: Callable[[Sequence[Skipped]], None] | None = None
) -> tuple[TaskFile, Task]:
    """The description with everything that was found out, to be written and edited; and the task.

    Columns of a layout that is recognized are left to it. ``on_skipped`` as in ``load_task``.
    """
    loaded = _load(described)
    if on_skipped is not None and loaded.skipped:
        on_skipped(loaded.skipped)
    task, columns, source = loaded.task, described.columns, described.source
    if loaded.readings and loaded.readings[0].delimiter not in ("", ","):
        source = replace(source, delimiter=loaded.readings[0].delimiter)
    resolved = loaded.readings[0].columns if loaded.readings else None
    if resolved is not None:
        columns = replace(columns, input=resolved.input, output=resolved.output, choices=resolved.choices,
                          choice_keys=resolved.choice_keys)  # fmt: skip
    split = replace(
        described.split,
        test_size=loaded.drawn.get("test", 0),
        dev_size=loaded.drawn.get("dev", 0),
        train_rows=len(task.train),
        test_rows=len(task.test),
        digest=split_digest(task.test),
    )
    found = replace(
        described,
        name=task.name,
        source=source,
        kind=task.kind,
        metric=task.metric,
        labels=task.labels,
        columns=columns,
        split=split,
        template=Words.of(task.template),
    )
    return found, task


def describe(name: str | Path | Mapping[str, Any] | TaskFile) -> TaskFile:
    """The description that a name stands for: of a task file what it says, of anything else where its rows are.

    A bare word is a name of the catalogue first, whatever lies in this folder.
    """
    if isinstance(name, TaskFile):
        return name
    if isinstance(name, Mapping):
        return TaskFile(source=replace(TaskFile().source, train="dataset"))
    text = str(name)
    known = text in BUNDLED or text in _catalogue.catalogue()
    if not known and not text.startswith("hf:") and path_kind(Path(text)) in ("", "file"):
        found = find_task_file(text)
        if found is not None and (found == Path(text) or not path_kind(Path(text))):
            return TaskFile.read(found)
        if Path(text).suffix == ENDING:
            raise DataError(f"no task file {text}; make one with: iclkit task new {Path(text).stem} FILE")
    return TaskFile(source=replace(TaskFile().source, train=text))


@dataclass
class _Loaded:
    """A task with what was found out on the way."""

    title: str
    card: Card = field(default_factory=Card)
    splits: dict[str, list[Located]] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)
    task: Task = field(init=False)

    def read(self, path: str | Path, described: TaskFile, columns: Columns, rows: str = "") -> list[Located]:
        """The rows of a file; of one place in it."""
        bad, like = described.source.on_bad_row, next((r.columns for r in self.readings), None)
        options = replace(described.file_options, rows=rows) if rows else described.file_options
        return self.take(read_rows(path, columns, options, self.title, bad, also=(_SPLIT_COLUMN,), like=like))

    def read_objects(self, source: str, splits: Mapping[str, Any], columns: Columns) -> _Loaded:
        """The rows of Hugging Face objects, shuffled, as its splits."""
        for split, rows in _hub.task_splits(source, splits).items():
            records = _hub.object_records(rows, f"{source} {split}")
            self.splits[split] = shuffled(self.take(Reading(records, columns, self.title)))
        return self

    def take(self, reading: Reading) -> list[Located]:
        """The rows of a reading, its notes and skipped rows kept."""
        rows = reading.located()
        self.readings.append(reading)
        self.notes += [note for note in reading.notes if note not in self.notes]
        if reading.skipped:
            first = reading.skipped[0]
            self.notes.append(f"{len(reading.skipped):,} bad rows were left out, e.g. {first.reason}")
        self.skipped += reading.skipped
        return rows


def _load(described: TaskFile, objects: Mapping[str, Any] | None = None, *, need_test: bool = True) -> _Loaded:
    columns = described.column_map
    found = _open(described, objects, columns)
    title, splits, card = described.name or found.title, found.splits, found.card
    for split in ("test", "dev"):
        if place := getattr(described.source, split):
            splits[split] = found.read(place, described, columns)
    kind, metric = _suggested(described, found, card, splits["train"])
    labels = described.labels
    whole = [e for _, e in splits["train"]]  # what is drawn from them may lack a label
    _draw(described, found, need_test)
    if found.drawn and not labels and not card.kind:
        kind = kind or infer_kind(whole)
        labels = tuple(sorted({e.output for e in whole})) if kind == "classification" else ()
    words, system = described.template, ""
    if any(reading.layout == "chat" for reading in found.readings) and not words.given:
        system = _system_of([e for _, e in splits["train"]], found.notes)
    # label checks see every row; the sample is drawn last
    task = build_task(
        title,
        splits,
        kind,
        labels or None,
        words.template if words.given or not system else replace(words, system=system).template,
        metric,
        card,
        described.max_answer_tokens or None,
        need_test=need_test,
    )
    notes = [*found.notes, *task.notes]
    if not (described.kind or card.kind):
        many = f", {len(task.labels)} labels" if task.labels else ""
        notes.insert(0, f"kind {task.kind}{many}, metric {task.metric} (--kind, --labels, --metric)")
    if described.description:
        card = replace(card, description=described.description)
    found.task = replace(task, notes=tuple(notes), card=card)
    return found


def _system_of(train: Sequence[Example], notes: list[str]) -> str:
    """The one system text of a chat's rows; where they differ, a note."""
    texts = {str(e.meta.get("system", "")) for e in train}
    if len(texts) > 1:
        notes.append(f"{len(texts)} different system texts, kept as metadata (--system sets one for all)")
    return next(iter(texts)) if len(texts) == 1 else ""


def _draw(described: TaskFile, found: _Loaded, need_test: bool) -> None:
    """Hold out the splits that are missing and asked for."""
    splits, notes = found.splits, found.notes
    drawn, total = described.split, len(splits["train"])
    for split, size in (("test", drawn.test_size), ("dev", drawn.dev_size)):
        if splits.get(split) or not (size or (split == "test" and need_test)):
            continue
        if split == "test" and not size and total < 2:
            raise DataError(
                f"task with {total} rows: there is nothing to hold out as test rows; add rows, or --test FILE"
            )
        count = found.drawn[split] = rows_of(size, total)
        splits["train"], splits[split] = split_holdout(splits["train"], count, seed=drawn.seed, by=drawn.by)
        if not size:
            notes.append(
                f"split: {len(splits[split]):,} of {total:,} rows drawn as test rows by seed {drawn.seed} "
                f"(--test FILE, --test-size, --split-by)"
            )
    if drawn.digest and drawn.digest != split_digest(e for _, e in splits.get("test", ())):
        notes.append("the test rows are not those that the task file records: its data have changed since it was made")


def split_digest(test: Any) -> str:
    """What a task file records of its test rows."""
    return digest([e.id for e in test], 8)


def _suggested(
    described: TaskFile, found: _Loaded, card: Card, train: Sequence[Located]
) -> tuple[str | None, str | None]:
    """Kind and metric: as described, as the card says, or as what the outputs are in their files suggests."""
    kind, metric = described.kind or None, described.metric or None
    if card.kind or not found.readings:
        return kind, metric
    kinds = sum((r.kinds for r in found.readings), start=type(found.readings[0].kinds)())
    only = next(iter(kinds)) if len(kinds) == 1 else ""
    if only == "text" and all(_is_object(e.output) for _, e in train):
        only = "object"
    if only in ("list", "object"):
        return kind or "generation", metric or {"list": "set_f1", "object": "json_match"}[only]
    suggested = found.readings[0].metric
    if suggested and not metric and (kind or infer_kind([e for _, e in train])) == "generation":
        metric = suggested
    return kind, metric


def _is_object(text: str) -> bool:
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        return isinstance(parse_json(text, "output"), dict)
    except DataError:
        return False


def _open(described: TaskFile, objects: Mapping[str, Any] | None, columns: Columns) -> _Loaded:
    """Title, located rows per split, and card."""
    if objects is not None:
        return _Loaded("dataset").read_objects("dataset", objects, columns)
    text = described.source.train
    if text.startswith("hf:"):
        item = _catalogue.entry_for_source(text)
        if item and columns == Columns():  # the catalogue knows its columns, and the caller does not say others
            rows = _catalogue.fetch(item)
            card = Card.parse(_catalogue.card_text(item, {s: len(r) for s, r in rows.items()}))
            return _Loaded(item.name, card, rows)
        title = text.removeprefix("hf:").replace(":", "/").rsplit("/", 1)[-1]
        return _Loaded(title, Card(source=text)).read_objects(text, _hub.hub_splits(text), columns)
    path = Path(text)
    if path.name == text:  # a bare word
        if text in BUNDLED:
            return _from_folder(BUNDLED[text], described, columns)
        if text in _catalogue.catalogue():
            return _from_folder(_catalogue.pulled(text), described, columns)
    there = "stream" if text == STDIN else path_kind(path)
    if there == "folder":
        return _from_folder(path, described, columns)
    if there:
        return _from_file(path, described, columns)
    if path.suffix in (".db", ".sqlite"):
        raise DataError(f"no pool at {path}; make one with: iclkit pool add {path} FILE")
    if path.name != text:
        raise DataError(
            f"no folder or file {text}; a task is a file of rows, a folder with train.jsonl and test.jsonl, or a name"
        )
    raise UnknownName(
        "task",
        text,
        [*BUNDLED, *_catalogue.catalogue()],
        "Or give a file of rows, a folder with train.jsonl and test.jsonl, a pool, or hf:owner/name.",
    )


def _from_file(path: Path, described: TaskFile, columns: Columns) -> _Loaded:
    title = "task" if str(path) == STDIN else path.name.partition(".")[0] or path.stem
    found = _Loaded(described.name or title)
    if is_pool(path):
        found.splits["train"] = _pool_rows(path)
        return found
    split_known = not described.source.test and not described.split.test_size and not described.split.by
    rows = found.read(path, described, columns)
    places = found.readings[0].places
    if split_known and "train" in places and "test" in places:
        found.splits["train"] = rows
        for split in ("dev", "test"):
            for name in {*places}.intersection(_FILE_NAMES[split]):
                found.splits[split] = found.read(path, described, columns, name)
        return found
    named: dict[str, list[Located]] = {}
    for where, example in rows:
        own = str(example.meta.get(_SPLIT_COLUMN, "")).lower()
        split = next((ours for ours, names in _FILE_NAMES.items() if own in names), "")
        named.setdefault(split, []).append((where, example))
    if split_known and "" not in named and {"train", "test"} <= set(named):
        found.splits = named
        found.notes.append(f"split as its column {_SPLIT_COLUMN!r} says (--test, --test-size)")
    else:
        found.splits["train"] = rows
    return found


def is_pool(path: Path) -> bool:
    """Whether a file is an SQLite file, or a name is that of a pool in LanceDB."""
    from iclkit.pool import as_place, in_lance

    if in_lance(as_place(path)):
        return True
    return path_kind(path) == "file" and is_sqlite(path)


def _pool_rows(path: Path) -> list[Located]:
    """A pool's examples. Those that a model wrote come last: they may be shown, and make no test rows (``make_bench``
    refuses them)."""
    from iclkit.pool import Pool

    with Pool.open(path, create=False, read_only=True) as pool:
        rows: list[Example] = list(pool.view().examples)
    if not rows:
        with Pool.open(path, create=False, read_only=True) as pool:
            many = len(pool)
        if many:
            raise DataError(f"the {many:,} inputs of {path} have no labels; see: iclkit pool label {path} --write FILE")
        raise DataError(f"the pool {path} is empty; add examples with: iclkit pool add {path} FILE")
    return [(f"{path}, example {e.id[:12]}", e) for e in rows]


def bundled_cards() -> dict[str, Card]:
    """The cards of the sets that come with the package, by name."""
    return {name: _card(folder) for name, folder in BUNDLED.items()}


def _card(folder: Path) -> Card:
    file = folder / "card.md"
    return Card.parse(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else Card()


def _from_folder(folder: Path, described: TaskFile, columns: Columns) -> _Loaded:
    title = folder.resolve().name
    card = _card(folder)
    if _hub.is_saved(folder):
        return _Loaded(title, card).read_objects(str(folder), _hub.saved_splits(folder), columns)
    found = _Loaded(title, card)
    for split in SPLITS:
        if files := _split_files(folder, split):
            found.splits[split] = [row for file in files for row in found.read(file, described, columns)]
    if "train" not in found.splits:
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} has no train.jsonl (nor .json, .csv, .tsv, .parquet, nor shards); it holds {held}")
    return found


_SHARD = re.compile(r"(?P<split>[a-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.[a-z.]+)")
_ENDINGS = [suffix + packed for suffix in SUFFIXES for packed in ("", *PACKED)]


def _split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split; or its shards, as the hub has them, also in a folder ``data``."""
    names = _FILE_NAMES[split]
    found = [folder / f"{n}{s}" for n in names for s in _ENDINGS if (folder / f"{n}{s}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has {' and '.join(f.name for f in found)}; keep one of them as the {split} split")
    return found or _shards(folder, names) or _shards(folder / "data", names)


def _shards(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files ``train-00000-of-00002.parquet`` … of a split in their order. DataError where one is missing."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = _SHARD.fullmatch(path.name)
        if name and name["split"] in names and name["ending"] in _ENDINGS:
            found[name["split"], name["count"], name["number"]] = path
    if not found:
        return []
    whole = {(split, count) for split, count, _ in found}
    (split, count), *others = sorted(whole)
    if others or len(found) != int(count):
        raise DataError(
            f"{folder} has {len(found)} of {int(count)} files {split}-…-of-{count}"
            + (f", and others of {', '.join(f'{s}-…-of-{c}' for s, c in others)}" if others else "")
            + "; fetch the set again"
        )
    return [*found.values()]
