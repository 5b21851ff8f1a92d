"""Where examples come from: tasks, readers, the catalogue, the bundled set, and the search for leaks."""

from __future__ import annotations

from iclkit.datasets._catalogue import Entry, catalogue, entry, is_pulled, pull
from iclkit.datasets._check import Finding, check_task
from iclkit.datasets._formats import FORMATS, FileOptions, known_suffix, open_rows
from iclkit.datasets._layouts import LAYOUTS
from iclkit.datasets._leaks import Leak, find_leaks
from iclkit.datasets._load import BUNDLED, bundled_cards, describe, is_pool, load_task, record_task
from iclkit.datasets._readers import Columns, Reading, Skipped, make_columns, read_examples, read_queries, read_rows
from iclkit.datasets._task import KINDS, SPLITS, Card, Task, infer_template, make_task, sample_rows
from iclkit.datasets._task_file import TaskFile, label_names

__all__ = [
    "BUNDLED",
    "FORMATS",
    "KINDS",
    "LAYOUTS",
    "SPLITS",
    "Card",
    "Columns",
    "Entry",
    "FileOptions",
    "Finding",
    "Leak",
    "Reading",
    "Skipped",
    "Task",
    "TaskFile",
    "bundled_cards",
    "catalogue",
    "check_task",
    "describe",
    "entry",
    "find_leaks",
    "infer_template",
    "is_pool",
    "is_pulled",
    "known_suffix",
    "label_names",
    "load_task",
    "make_columns",
    "make_task",
    "open_rows",
    "pull",
    "read_examples",
    "read_queries",
    "read_rows",
    "record_task",
    "sample_rows",
]
