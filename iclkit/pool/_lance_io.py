"""LanceDB: connections, filters, and what goes wrong with it. The only module that imports it to connect."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclkit.errors import IclkitError, NeedError, PoolError
from iclkit.extras import install_command

ASKED = 10_000  # values in a filter: each filter is a look at all rows, or into an index


def connect(place: Path | str) -> Any:
    """A connection. NeedError without the extra, PoolError, in one line, where the place cannot be reached."""
    try:
        os.environ.setdefault("LANCEDB_LOG", "error")  # what matters comes as an error, and stderr is the user's
        import lancedb
    except ImportError as error:
        raise NeedError(f"a pool in LanceDB needs the extra: {install_command('lance')}") from error
    with explained(place):
        if isinstance(place, Path):
            return lancedb.connect(str(place))
        # what the store needs to know (keys, region, endpoint) comes from the environment, as for its own tools
        return lancedb.connect(place, storage_options={"client_max_retries": "2", "timeout": "30s"})


@contextmanager
def explained(place: Path | str) -> Iterator[None]:
    """Whatever LanceDB or Arrow says inside, as one line. What a caller does between its calls does not belong there:
    its errors would be taken for the pool's."""
    try:
        yield
    except IclkitError:
        raise
    except (ValueError, RuntimeError, OSError, TypeError) as error:  # all of LanceDB's and Arrow's are one of these
        raise PoolError(f"the pool {place} cannot be used: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What is at the bottom of an error that LanceDB wraps several times."""
    text = re.sub(r"^(lance error: )?LanceError\(\w+\): ", "", " ".join(str(error).split()))
    told = re.findall(r'(?:message: |ConnectError\()"([^"]+)"', text)
    found: str = told[-1] if told else re.split(r"[:,] ?(?:location|\{)|, /", text)[0]
    return found if len(found) <= 200 else f"{found[:199]}…"


def table_names(database: Any) -> list[str]:
    """All of a database's tables."""
    names, token = list[str](), None
    while True:
        answer = database.list_tables(page_token=token)
        names += answer.tables
        token = answer.page_token
        if not token:
            return names


def quoted(text: str) -> str:
    """A text in a filter."""
    return "'" + text.replace("'", "''") + "'"


def one_of(column: str, values: Sequence[Any]) -> str:
    """A filter: the column has one of some texts or numbers."""
    listed = ",".join(quoted(v) if isinstance(v, str) else str(int(v)) for v in values)
    return f"{column} IN ({listed})" if values else "false"


def batches(table: Any, columns: Sequence[str], where: str = "") -> Iterator[Any]:
    """Arrow batches of some columns, one after another."""
    asked = table.search().select([*columns])
    return iter((asked.where(where) if where else asked).to_batches())


def rows_of(table: Any, columns: Sequence[str], where: str) -> list[dict[str, Any]]:
    """The rows that a filter gives."""
    return [row for batch in batches(table, columns, where) for row in batch.to_pylist()]


def facts_of(table: Any) -> dict[str, Any]:
    """What iclkit wrote of a table into its schema; empty for a table of something else."""
    told = (table.schema.metadata or {}).get(b"iclkit")
    return json.loads(told) if told else {}


def number_of(hash_: bytes) -> int:
    """The number of a text, by its hash."""
    return int.from_bytes(hash_[:8], "big") >> 1
