"""Which back end a pool is kept in, from the name of its place."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from iclkit.database import MEMORY
from iclkit.errors import UsageError
from iclkit.pool._sqlite import SQLiteTable
from iclkit.pool._table import Table

SUFFIX = ".lance"
_URI = re.compile(r"(s3|s3\+ddb|gs|az|abfss|oss):/+(.+)")
"""Places that LanceDB reads and writes; any other address is no pool."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/")


def as_place(path: str | Path) -> Path | str:
    """A path, a URI or ``:memory:``. A URI may come as a ``Path``, which folds its slashes (``s3:/bucket``).

    >>> as_place(Path("s3://bucket/demos.lance"))
    's3://bucket/demos.lance'
    """
    text = str(path)
    if text == MEMORY:
        return MEMORY
    uri = _URI.fullmatch(text)
    return f"{uri[1]}://{uri[2]}" if uri else Path(path)


def in_lance(place: Path | str) -> bool:
    """Whether a pool at this place is one in LanceDB: the name ends in ``.lance``, or is a URI."""
    return place != MEMORY and (isinstance(place, str) or place.suffix == SUFFIX)


def is_there(place: Path | str) -> bool:
    """Whether something is at a place already. PoolError for a store that cannot be reached."""
    if isinstance(place, Path):
        return place.exists()
    if place == MEMORY:
        return False
    from iclkit.pool._lance_io import connect, explained, table_names

    database = connect(place)
    with explained(place):
        return bool(table_names(database))


def discard(place: Path | str) -> None:
    """Take away a pool that was just made, with what stands beside it."""
    if isinstance(place, str):
        from iclkit.pool._lance_io import connect, explained

        database = connect(place)
        with explained(place):
            database.drop_all_tables()
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        for end in ("", "-wal", "-shm"):
            place.with_name(place.name + end).unlink(missing_ok=True)


def open_table(place: Path | str, *, create: bool, read_only: bool) -> Table:
    """See ``Pool.open``. UsageError for an address where no pool can be."""
    if isinstance(place, Path) and _ADDRESS.match(str(place)) and not place.exists():
        raise UsageError(
            f"{place} is an address where no pool can be; give a file, a folder that ends in .lance, or a URI of a "
            "store (s3://, gs://, az://, abfss://, oss://)"
        )
    if in_lance(place):
        from iclkit.pool._lance import LanceTable

        return LanceTable.open(place, create=create, read_only=read_only)
    return SQLiteTable.open(place, create=create, read_only=read_only)
