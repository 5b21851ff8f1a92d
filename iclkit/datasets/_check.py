"""What will hurt later in a task: doubles, leaks, spellings of one label, imbalance, rows that do not fit."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclkit.datasets._leaks import find_leaks, near_pairs
from iclkit.datasets._task import SPLITS, Task
from iclkit.records import Example, fold_text
from iclkit.text import visible

RARE = 5
"""Train rows of a label below which it is called rare."""
SKEWED = 0.8
"""Share of the rows of one label from which on a metric that counts rows says little."""
_NAMED = 5
_SAYS_NOTHING = {"n a", "na", "nan", "none", "null", "tbd", "todo", "unknown"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at. ``kind`` is a short name; ``rows`` are the ids of some of the rows it is about."""

    kind: str
    count: int
    text: str
    rows: tuple[str, ...] = ()


def check_task(
    task: Task, count_tokens: Callable[[str], int] | None = None, context: int | None = None
) -> list[Finding]:
    """Everything in a task that is likely to spoil a result. Nothing is changed.

    Test rows among the train rows are found whatever their case, punctuation, accents and order of options; near
    duplicates by the overlap of their four-character pieces (see ``find_leaks``). ``context``: the tokens that a
    demonstration and a query have to fit into, as ``count_tokens`` counts them.
    """
    checks = (_leaks, _doubles, _contradictions, _spellings, _rare_labels, _imbalance, _empty)
    found = [finding for check in checks for finding in check(task)]
    if count_tokens is not None and context:
        found += _too_long(task, count_tokens, context)
    return found


def _key(example: Example) -> str:
    """An input and its options, without case, punctuation, accents and the order of the options."""
    parts = [example.text, *sorted(example.choices, key=_plain)]
    return "\n".join(map(_plain, parts))


def _plain(text: str) -> str:
    apart = unicodedata.normalize("NFKD", fold_text(text))
    return "".join(c for c in apart if not unicodedata.combining(c))


def _places(task: Task, rows: Sequence[Example]) -> str:
    shown = [place or f"{e.text[:40]!r}" for e, place in zip(rows[:_NAMED], task.places_of(rows), strict=False)]
    return ", ".join(shown) + (f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else "")


def _finding(task: Task, kind: str, what: str, rows: Sequence[Example]) -> Finding:
    return Finding(kind, len(rows), f"{what}: {_places(task, rows)}", tuple(e.id for e in rows[:_NAMED]))


def _leaks(task: Task) -> list[Finding]:
    found = []
    for split in ("test", "dev"):
        rows = task.split(split)
        known = {_key(e) for e in task.train}
        same = [e for e in rows if _key(e) in known]
        ids = {e.id for e in same}
        near_ids = {leak.test_id for leak in find_leaks(task.train, rows) if leak.test_id not in ids}
        near = [e for e in rows if e.id in near_ids]
        if same:
            found.append(_finding(task, "leak", f"{len(same):,} {split} rows stand among the train rows", same))
        if near:
            found.append(
                _finding(task, "near-leak", f"{len(near):,} {split} rows are nearly equal to train rows", near)
            )
    return found


def _doubles(task: Task) -> list[Finding]:
    groups: dict[str, list[Example]] = {}
    for example in task.train:
        groups.setdefault(_key(example) or example.text, []).append(example)
    again = [e for rows in groups.values() for e in rows[1:]]
    found = [_finding(task, "double", f"{len(again):,} train rows repeat another", again)] if again else []
    first = [rows[0] for rows in groups.values()]
    texts = [_key(e) for e in first]
    left, right, _ = near_pairs(texts, texts, 0.9)
    near = [first[i] for i in sorted({int(b) for a, b in zip(left, right, strict=True) if a < b})]
    if near:
        found.append(_finding(task, "near-double", f"{len(near):,} train rows are nearly equal to another", near))
    return found


def _contradictions(task: Task) -> list[Finding]:
    outputs: dict[str, set[str]] = {}
    for example in task.train:
        outputs.setdefault(_key(example) or example.text, set()).add(example.output)
    bad = [e for e in task.train if len(outputs[_key(e) or e.text]) > 1]
    what = f"{len(bad):,} train rows have the input of another and a different output"
    return [_finding(task, "contradiction", what, bad)] if bad else []


def _spellings(task: Task) -> list[Finding]:
    alike: dict[str, list[str]] = {}
    for label in task.labels:
        alike.setdefault(_plain(label) or visible(label), []).append(label)
    return [
        Finding("label-spelling", len(same), f"the labels {', '.join(map(repr, same))} differ only in case, accents or "
                "punctuation; write them alike if they mean the same")
        for same in alike.values() if len(same) > 1
    ]  # fmt: skip


def _rare_labels(task: Task) -> list[Finding]:
    counts = Counter(e.output for e in task.train)
    rare = [label for label in task.labels if counts[label] < RARE]
    names = ", ".join(f"{label!r} ({counts[label]})" for label in rare[:10]) + (" …" if len(rare) > 10 else "")
    text = f"{len(rare)} labels have fewer than {RARE} train rows: {names}"
    return [Finding("rare-label", len(rare), text)] if rare else []


def _imbalance(task: Task) -> list[Finding]:
    counts = Counter(e.output for e in task.test)
    if not task.labels or not task.test:
        return []
    label, most = counts.most_common(1)[0]
    if len(task.labels) < 2 or most < SKEWED * len(task.test):
        return []
    text = f"{most:,} of {len(task.test):,} test rows have the label {label!r}; --metric macro_f1 weighs labels alike"
    return [Finding("imbalance", most, text)]


def _empty(task: Task) -> list[Finding]:
    rows = [e for split in SPLITS for e in task.split(split) if not fold_text(e.output) and not e.choices]
    rows += [e for split in SPLITS for e in task.split(split)
             if fold_text(e.output) in _SAYS_NOTHING and e.output not in task.labels]  # fmt: skip
    return [_finding(task, "empty-output", f"{len(rows):,} outputs say nothing", rows)] if rows else []


def _too_long(task: Task, count_tokens: Callable[[str], int], context: int) -> list[Finding]:
    rows = [
        e for split in SPLITS for e in task.split(split) if count_tokens(task.template.render_demo(e)) > context // 2
    ]
    what = f"{len(rows):,} rows take more than half of the context of {context:,} tokens"
    return [_finding(task, "too-long", what, rows)] if rows else []
