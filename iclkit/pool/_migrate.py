"""A pool moved to another back end, with everything in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iclkit.errors import PoolError, UsageError
from iclkit.pool._place import as_place, discard, in_lance, open_table
from iclkit.pool._sqlite import SQLiteTable
from iclkit.pool._table import Contents, Table


@dataclass(frozen=True, slots=True)
class MigrateReport:
    """What the new pool holds. ``vectors``: per embedder."""

    examples: int
    removed: int
    vectors: dict[str, int]
    keys: int


def migrate(source: str | Path, target: str | Path) -> MigrateReport:
    """Write everything that a pool holds to a new one, in a file or in LanceDB by its name; the old one stays.

    Ids, handles and with them the order, metadata, what was removed and why, vectors, keys and the pool's uid are kept:
    whatever is picked from the one is picked from the other, and runs with either are the same runs. Term and
    approximate indexes are made anew where they are used. The new pool is there when all of it is: after a kill, the
    same call begins again. UsageError for two names of one back end, PoolError where something is at ``target``
    already.
    """
    old, new = as_place(source), as_place(target)
    if in_lance(old) == in_lance(new):
        kind = "in LanceDB" if in_lance(old) else "a file"
        raise UsageError(
            f"{source} and {target} are both {kind}; give one that ends in .lance or is a URI, and one that does not "
            "(a pool is copied like any file or folder)"
        )
    table = open_table(old, create=False, read_only=False)
    try:
        table.snapshot(None)  # brings an older pool's texts to their spelling now
        with table.contents() as contents:
            made = _into_lance(new, contents) if in_lance(new) else _into_file(Path(new), contents)
        try:
            with made.contents() as written:
                keys = sum(1 for _ in written.keys)
            return MigrateReport(made.count(), made.count_removed(), made.reader.vectors.counts(), keys)
        finally:
            made.close()
    finally:
        table.close()


def _into_file(path: Path, contents: Contents) -> Table:
    """A file that takes its name when it is whole."""
    if path.exists():
        raise PoolError(f"{path} is there already; name another file")
    unfinished = path.with_name(f"{path.name}.part")
    discard(unfinished)  # of a call that was killed
    made = SQLiteTable.open(unfinished, create=True, read_only=False)
    try:
        made.fill(contents)
        made.close()
        unfinished.rename(path)
    except BaseException:
        made.close()
        discard(unfinished)
        raise
    return SQLiteTable.open(path, create=False, read_only=False)


def _into_lance(place: Path | str, contents: Contents) -> Table:
    """Tables, of which that of the examples comes last: without it there is no pool, and the rest is written over."""
    from iclkit.pool._lance import KEYS, LanceTable
    from iclkit.pool._lance_io import connect, explained, table_names

    there = PoolError(f"{place} is there already; name another place")
    if isinstance(place, Path):
        if place.is_file():
            raise there
        if not place.parent.is_dir():
            raise PoolError(f"cannot make the pool {place}: there is no folder {place.parent}")
        ours = (f"{KEYS}.lance", "vectors_", ".lock")
        if place.is_dir() and any(not f.name.startswith(ours) for f in place.iterdir()):
            raise there
    else:
        database = connect(place)
        with explained(place):
            if any(n != KEYS and not n.startswith("vectors_") for n in table_names(database)):
                raise there
    return LanceTable.make(place, contents)
