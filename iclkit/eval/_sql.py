"""Text-to-SQL judged by what the queries return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from iclkit.errors import DataError
from iclkit.eval._metrics import Metric
from iclkit.eval._sql_text import bare_sql, sets_order
from iclkit.pool import run_read_only


def sql_execution(database: str | Path, *, budget: int = 50_000_000, seconds: float = 20.0) -> Metric:
    """Execution accuracy on one SQLite file: 1 when the output returns what the gold query returns.

    Rows are compared as a multiset, as a sequence where the gold query orders them; numbers to 9 digits. The file is
    opened read-only and only SELECT runs, in a process of its own with bounded memory. An output that fails, or needs
    more than ``budget`` steps of SQLite's virtual machine (a count and not a time, so that a loaded machine judges
    alike), or ``seconds`` for what is done within a step, is wrong; DataError when the gold fails.
    """
    path = Path(database)
    if not path.is_file():
        raise DataError(f"no database {path}; sql_execution needs the SQLite file that the queries are about")

    @lru_cache(maxsize=64)  # results may be large, and rows with one gold answer often stand together
    def true_rows(gold: str) -> list[tuple[object, ...]]:
        try:
            return run_read_only(path, bare_sql(gold), budget=budget, seconds=seconds)
        except DataError as error:
            shown = gold if len(gold) <= 200 else f"{gold[:200]}..."
            raise DataError(f"the gold query {shown!r} fails: {error}") from error

    def judge(output: str, gold: str) -> float:
        true = true_rows(gold)
        try:
            said = run_read_only(path, bare_sql(output), budget=budget, seconds=seconds)
        except DataError:
            return 0.0
        return float(same_rows(said, true, ordered=sets_order(gold)))

    return Metric("sql_execution", judge=judge)


def same_rows(said: Sequence[tuple[object, ...]], true: Sequence[tuple[object, ...]], *, ordered: bool) -> bool:
    """Whether two results are the same rows, in the same order where it matters."""
    if len(said) != len(true):
        return False
    left, right = ([tuple(_rounded(v) for v in row) for row in rows] for rows in (said, true))
    return left == right if ordered else Counter(left) == Counter(right)


def _rounded(value: object) -> object:
    """A number by which it is compared: whole ones exactly, others to 9 digits, whichever type they have."""
    if not isinstance(value, float) or value in (float("inf"), float("-inf")):
        return value
    whole = round(value)
    return whole if abs(value - whole) <= 1e-9 * abs(value) else float(f"{value:.9g}")
