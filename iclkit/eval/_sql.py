"""Text-to-SQL judged by what the queries return."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from iclkit.errors import DataError
from iclkit.eval._metrics import Metric
from iclkit.pool import run_read_only

_ORDERED = re.compile(r"\border\s+by\b", re.I)


def sql_execution(database: str | Path, *, budget: int = 50_000_000) -> Metric:
    """Execution accuracy on one SQLite file: 1 when the output returns what the gold query returns.

    Rows are compared as a multiset, as a sequence where the gold query orders them; numbers to 9 digits. The file is
    opened read-only and only SELECT runs. An output that fails, or needs more than ``budget`` steps of SQLite's virtual
    machine (a count and not a time, so that a loaded machine judges alike), is wrong; DataError when the gold fails.
    """
    path = Path(database)
    if not path.is_file():
        raise DataError(f"no database {path}; sql_execution needs the SQLite file that the queries are about")
    golds: dict[str, list[tuple[object, ...]]] = {}

    def judge(output: str, gold: str) -> float:
        if gold not in golds:
            try:
                golds[gold] = run_read_only(path, gold, budget=budget)
            except DataError as error:
                raise DataError(f"the gold query {gold!r} fails: {error}") from error
        try:
            said = run_read_only(path, output, budget=budget)
        except DataError:
            return 0.0
        return float(same_rows(said, golds[gold], ordered=bool(_ORDERED.search(gold))))

    return Metric("sql_execution", judge=judge)


def same_rows(said: Sequence[tuple[object, ...]], true: Sequence[tuple[object, ...]], *, ordered: bool) -> bool:
    """Whether two results are the same rows, in the same order where it matters."""
    left, right = ([tuple(_rounded(v) for v in row) for row in rows] for rows in (said, true))
    return left == right if ordered else Counter(left) == Counter(right)


def _rounded(value: object) -> object:
    return float(f"{value:.9g}") if isinstance(value, float) else value
