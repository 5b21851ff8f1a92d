"""Examples for people to look at: found by words, a page at a time, straight from the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from iclkit.database import Connection
from iclkit.pool._examples import COLUMNS, example_of
from iclkit.records import Example, clean_text

_FILTERS = {"task": "task = :task", "output": "output = :output"}


@dataclass(frozen=True, slots=True)
class ExamplePage:
    """Some of the examples that were found, in order; ``total`` found from ``start`` on, at this revision."""

    examples: tuple[Example, ...]
    total: int
    start: int
    revision: int


def words_filter(text: str) -> Callable[[str, str, str], bool] | None:
    """Whether an example holds every word of a text: of what is stored as JSON, what is stored as it is, and its id.

    None for a text without words.
    """
    words = clean_text(text).casefold().split()
    # inputs and metadata are stored as JSON, where a quotation mark has a backslash before it
    needles = [(word, json.dumps(word, ensure_ascii=False)[1:-1]) for word in words]

    def holds(stored: str, plain: str, example_id: str) -> bool:
        stored, plain = stored.casefold(), plain.casefold()
        return all(w in plain or escaped in stored or example_id.startswith(w) for w, escaped in needles)

    return holds if words else None


def find_examples(
    connection: Connection,
    revision: int,
    text: str,
    task: str | None,
    output: str | None,
    newest_first: bool,
    start: int,
    limit: int,
) -> ExamplePage:
    """See ``Pool.find``."""
    values = {"task": task, "output": output}
    conditions = [_FILTERS[name] for name, value in values.items() if value is not None]
    if holds := words_filter(text):
        connection.create_function("holds", 3, holds, deterministic=True)
        conditions.append("holds(input || meta || choices, output || char(10) || task, id)")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "DESC" if newest_first else "ASC"
    rows = [row for (row,) in connection.execute(f"SELECT seq FROM examples{where} ORDER BY seq {order}", values)]
    wanted = json.dumps(rows[start : start + limit])
    found = connection.execute(
        f"SELECT {COLUMNS} FROM examples WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq {order}", (wanted,)
    )
    return ExamplePage(tuple(map(example_of, found)), len(rows), start, revision)


def count_values(connection: Connection, column: Literal["task", "output"], limit: int) -> list[tuple[str, int]]:
    """See ``Pool.count_values``."""
    query = f"SELECT {column}, count(*) FROM examples GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?"
    return [(value, int(count)) for value, count in connection.execute(query, (limit,))]
