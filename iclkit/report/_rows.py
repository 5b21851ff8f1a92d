"""The rows of runs for the page: columns of small numbers, one package per group, and the texts they point at.

A text is stored once per task and template, as the pieces a template makes of it, so that a browser puts a prompt
together by joining pieces and need not know how templates work.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from iclkit.prompts import Template, template_of
from iclkit.records import Example, Query, Row, Run, canonical_json
from iclkit.report._condensed import rows_of
from iclkit.report._drafts import answered
from iclkit.report._records import Board, Group

Texts = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""What ``iclkit.eval.load_texts`` reads of runs, by task hash and then by id of the query or example."""

_PROBES = (100, 400)


def pack(board: Board, runs: Mapping[str, Run], texts: Texts, limit: int) -> tuple[list[str], list[str]]:
    """A package per group and one per sheet of texts, as base64 of gzipped JSON, together at most ``limit`` characters.

    Where not all queries fit, every group keeps as many as do, evenly spaced over its queries.
    """
    most = max(group.queries for group in board.groups)
    sizes = []
    for count in [n for n in _PROBES if n < most]:
        packed = _pack(board, runs, texts, count)
        sizes.append(_size(packed))
        if sizes[-1] > limit:
            most = count
    if most > _PROBES[-1]:
        # texts that several queries share make every further query cheaper: this never overshoots by much
        slope = (sizes[1] - sizes[0]) / (_PROBES[1] - _PROBES[0])
        most = min(most, _PROBES[1] + int((limit - sizes[1]) / slope))
    packed = _pack(board, runs, texts, most)
    while (size := _size(packed)) > limit and most > 1:
        most = max(1, int(most * 0.95 * limit / size))
        packed = _pack(board, runs, texts, most)
    return packed


def prompt_parts(
    run: Run, row: Row, texts: Mapping[str, Mapping[str, Any]]
) -> tuple[Template, Query | None, list[Example | None]]:
    """What a row's prompt was made of: template, query, and the shown examples in prompt order; None where unknown."""
    found = texts.get(row.query_id)
    query = Query(found["input"], tuple(found.get("choices", ())), id=row.query_id) if found else None
    return template_of(run), query, [_example(i, texts.get(i)) for i in row.shown]


def values_of(rows: Sequence[Row], metric: str) -> list[float]:
    """What its metric gives each answer; for a metric of whole runs, whether it is the expected text."""
    if any(metric in row.metrics for row in rows):
        return [row.metrics[metric] for row in rows]
    return [float(row.output == row.gold) for row in rows]


def _example(example_id: str, found: Mapping[str, Any] | None) -> Example | None:
    if found is None:
        return None
    return Example(found["input"], found["output"], choices=tuple(found.get("choices", ())), id=example_id)


class _TextTable:
    """The texts of one task under one template, numbered in order of first use."""

    def __init__(self, template: Template, texts: Mapping[str, Mapping[str, Any]]) -> None:
        self.template, self.texts = template, texts
        self.queries: dict[str, int] = {}
        self.demos: dict[str, int] = {}

    def query(self, query_id: str) -> int:
        return self.queries.setdefault(query_id, len(self.queries))

    def demo(self, example_id: str) -> int:
        return self.demos.setdefault(example_id, len(self.demos))

    def content(self) -> dict[str, Any]:
        t = self.template
        queries, demos = [], []
        for query_id in self.queries:
            found = self.texts.get(query_id)
            query = Query(found["input"], tuple(found.get("choices", ())), id=query_id) if found else None
            queries.append([[p.kind, p.text] for p in t.query_pieces(query)] if query else None)
        for example_id in self.demos:
            example = _example(example_id, self.texts.get(example_id))
            demos.append([[p.kind, p.text] for p in t.demo_pieces(example)] if example else None)
        return {
            "chat": t.chat and t.turns,
            "opening": t.separator.join(x for x in (t.system, t.instruction) if x) if t.chat else t.instruction,
            "separator": t.separator,
            "demoSeparator": t.behind_demos,
            "queryIds": [*self.queries],
            "queries": queries,
            "demoIds": [i[:12] for i in self.demos],  # the pool takes any beginning of an id that is not ambiguous
            "demos": demos,
        }


def _pack(board: Board, runs: Mapping[str, Run], texts: Texts, count: int) -> tuple[list[str], list[str]]:
    sheets: dict[str, _TextTable] = {}
    packages = list[str]()  # compressed one by one: those of all groups are many times the page
    for group in board.groups:
        members = [runs[i] for line in group.lines for i in line.runs]
        run = next((run for run in members if run.spec.lm is not None), members[0])  # one whose template an LM read
        key = canonical_json([run.spec.task.hash, template_of(run).identity()])
        sheet = sheets.setdefault(key, _TextTable(template_of(run), texts.get(run.spec.task.hash, {})))
        kept = _spaced(group.queries, count)
        packages.append(_compress(_group(group, runs, sheet, [*sheets].index(key), kept)))
    return packages, [_compress(_json(s.content())) for s in sheets.values()]


def _spaced(total: int, count: int) -> list[int]:
    """``count`` positions of ``total``, evenly spaced; all of them when there are no more."""
    return [*range(total)] if count >= total else [i * total // count for i in range(count)]


def _group(group: Group, runs: Mapping[str, Run], sheet: _TextTable, number: int, kept: Sequence[int]) -> str:
    """The package of a group as JSON, made a run at a time, so that the rows of one run are held."""
    answers: dict[str, int] = {}

    def answer(text: str) -> int:
        return answers.setdefault(text, len(answers))

    names = [i for line in group.lines for i in line.runs]
    runs = dict(zip(names, answered([runs[i] for i in names])[0], strict=True))  # as the board counts them
    first = rows_of(runs[group.lines[0].runs[0]]).answers
    queries, gold = [sheet.query(first.queries[i]) for i in kept], [answer(first.golds[i]) for i in kept]

    def columns(run: Run) -> str:
        return _json(_columns(run, [*rows_of(run).read(kept)], group.metric, sheet, answer))

    lines = [",".join(columns(runs[i]) for i in line.runs) for line in group.lines]
    return (
        f'{{"sheet":{number},"queries":{_json(queries)},"gold":{_json(gold)},'
        f'"lines":[{",".join(f"[{line}]" for line in lines)}],"answers":{_json([*answers])}}}'
    )


def _columns(run: Run, rows: Sequence[Row], metric: str, sheet: _TextTable, answer: Any) -> dict[str, Any]:
    ranks = [{i: n for n, (i, _) in enumerate(row.picks, 1)} for row in rows]
    scores = [dict(row.picks) for row in rows]
    return {
        "id": run.id,
        "seed": run.spec.seed,
        "output": [answer(row.output) for row in rows],
        "value": [_short(value) for value in values_of(rows, metric)],
        "tokens": [row.prompt_tokens for row in rows],
        "chance": [
            _short(math.exp(row.metrics["gold_logprob"])) if "gold_logprob" in row.metrics else None for row in rows
        ],
        "shown": [[sheet.demo(i) for i in row.shown] for row in rows],
        "rank": [[rank.get(i, 0) for i in row.shown] for row, rank in zip(rows, ranks, strict=True)],
        "score": [[_short(score.get(i, 0.0)) for i in row.shown] for row, score in zip(rows, scores, strict=True)],
        "dropped": [len(row.dropped) for row in rows],
        "notes": [answer("; ".join(row.notes)) if row.notes else -1 for row in rows],
    }


def _short(value: float) -> float | int | None:
    """Three decimals are what a reader sees; what is no number is null."""
    if not math.isfinite(value):
        return None
    return int(value) if value in (0, 1) else round(value, 3)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _compress(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode("ascii")


def _size(packed: tuple[list[str], list[str]]) -> int:
    return sum(len(part) for parts in packed for part in parts)
