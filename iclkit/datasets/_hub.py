"""Hugging Face ``datasets``, an extra: sets of the hub, folders of ``save_to_disk``, and dataset objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclkit.datasets._formats import Record, name_labels
from iclkit.errors import DataError, UsageError
from iclkit.extras import install_command

_SPLIT_NAMES = {"train": ("train", "training"), "dev": ("validation", "dev", "valid", "val"), "test": ("test",)}


def library() -> Any:
    """The ``datasets`` module; UsageError when the extra is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"Hugging Face sets need the extra: {install_command('datasets')}") from error
    return datasets


def hub_splits(source: str, revision: str | None = None) -> Mapping[str, Any]:
    """All splits of ``hf:owner/name[:config]``. DataError in one line when the hub cannot be reached or says no."""
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise UsageError(f"{source!r} names no set; write hf:owner/name or hf:owner/name:config")
    datasets = library()
    try:
        with _quiet(datasets):
            found = datasets.load_dataset(name, config or None, revision=revision)
    except Exception as error:  # the library raises what its many loaders raise; all of it means: not loaded
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{source} cannot be loaded from the Hugging Face hub ({type(error).__name__}: {reason}); "
            f"check the name and the network, or use a local folder with train.jsonl and test.jsonl"
        ) from error
    return dict(found)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars of the library's own: talk belongs to the command line."""
    was = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was:
            datasets.enable_progress_bars()


def hub_records(source: str, split: str | None) -> list[Record]:
    """The rows of one split of a hub set."""
    wanted = split or "train"
    return object_records(pick_split(source, hub_splits(source), wanted), f"{source} {wanted}")


def saved_splits(folder: Path) -> Mapping[str, Any]:
    """The splits of a folder that ``save_to_disk`` wrote; a single dataset counts as the split train."""
    try:
        found = library().load_from_disk(str(folder))
    except Exception as error:  # same reason as above
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{folder} cannot be read as a saved dataset ({type(error).__name__}: {reason})") from error
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved_records(folder: Path, split: str | None) -> list[Record]:
    """The rows of one split of a saved folder. DataError when it is another kind of folder."""
    if not is_saved(folder):
        files = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} is a folder (it holds {files}); name a file in it")
    return object_records(pick_split(str(folder), saved_splits(folder), split or "train"), str(folder))


def pick_split(source: str, splits: Mapping[str, Any], wanted: str) -> Any:
    """The split of that name, or of a name that means the same; DataError with the names there are."""
    for name in (wanted, *_SPLIT_NAMES.get(wanted, ())):
        if name in splits:
            return splits[name]
    raise DataError(f"{source} has no split {wanted!r}; it has: {', '.join(splits) or 'none'}")


def task_splits(source: str, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Our train, dev, test from a set's own splits: without a test split, its validation split is the test."""
    named = {ours: next((splits[n] for n in names if n in splits), None) for ours, names in _SPLIT_NAMES.items()}
    if named["train"] is None:
        pick_split(source, splits, "train")
    if named["test"] is None:
        named["test"], named["dev"] = named["dev"], None
    return {ours: rows for ours, rows in named.items() if rows is not None}


def object_records(rows: Any, where: str) -> list[Record]:
    """The rows of a ``datasets.Dataset`` with label ids as names."""
    names = {c: f.names for c, f in (rows.features or {}).items() if hasattr(f, "names") and hasattr(f, "str2int")}
    return list(name_labels(((f"{where}, row {i}", row) for i, row in enumerate(rows, 1)), names))
