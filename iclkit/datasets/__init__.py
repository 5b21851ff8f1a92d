"""Where examples come from: tasks, readers, the catalogue, the bundled set, and the search for leaks."""

from __future__ import annotations

from iclkit.datasets._catalogue import Entry, catalogue, entry, is_pulled, pull
from iclkit.datasets._leaks import Leak, find_leaks
from iclkit.datasets._load import BUNDLED, bundled_cards, load_task
from iclkit.datasets._readers import FORMATS, read_examples, read_queries
from iclkit.datasets._task import KINDS, SPLITS, Card, Task, make_task, sample_rows

__all__ = [
    "BUNDLED",
    "FORMATS",
    "KINDS",
    "SPLITS",
    "Card",
    "Entry",
    "Leak",
    "Task",
    "bundled_cards",
    "catalogue",
    "entry",
    "find_leaks",
    "is_pulled",
    "load_task",
    "make_task",
    "pull",
    "read_examples",
    "read_queries",
    "sample_rows",
]
