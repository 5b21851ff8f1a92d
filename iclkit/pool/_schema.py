"""The file format of a pool: every migration, in order, in this one place.

``PRAGMA application_id`` says that a file is a pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iclkit.database import MEMORY, Database, Explain, Failure, Format
from iclkit.errors import PoolError

APPLICATION_ID = 0x69636C70  # "iclp"
PRAGMAS: Mapping[str, str | int] = {"synchronous": "NORMAL", "foreign_keys": "ON", "cache_size": -65536}  # KiB
PRAGMAS_OF_NEW: Mapping[str, str | int] = {"page_size": 16384}  # about ten 384-d vectors per page, little waste

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # One row per change of content; its largest number is the pool's revision. Rows are only ever appended.
        """CREATE TABLE log (
            revision INTEGER PRIMARY KEY AUTOINCREMENT,
            at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
            action TEXT NOT NULL,
            rows INTEGER NOT NULL
        )""",
        # uid: tells an index file of this pool from one of another pool that stood at the same path.
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "INSERT INTO facts VALUES ('uid', lower(hex(randomblob(16))))",
        # Texts that were embedded or rewritten, by hash: equal texts share vectors and keys. Numbers are never reused.
        "CREATE TABLE texts (number INTEGER PRIMARY KEY AUTOINCREMENT, hash BLOB NOT NULL UNIQUE)",
        # seq is the insertion order and never reused.
        """CREATE TABLE examples (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            input TEXT NOT NULL,
            output TEXT NOT NULL,
            task TEXT NOT NULL,
            choices TEXT NOT NULL,
            meta TEXT NOT NULL,
            text INTEGER NOT NULL REFERENCES texts(number),
            revision INTEGER NOT NULL
        )""",
        "CREATE INDEX examples_by_text ON examples(text)",
        # What was removed: ids and reasons, no content.
        """CREATE TABLE tombstones (
            id TEXT NOT NULL,
            revision INTEGER NOT NULL,
            reason TEXT NOT NULL,
            replaced_by TEXT,
            PRIMARY KEY (id, revision)
        ) WITHOUT ROWID""",
        """CREATE TABLE embedders (
            number INTEGER PRIMARY KEY,
            fingerprint TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            side TEXT NOT NULL,
            dim INTEGER NOT NULL
        )""",
        # little-endian float32, unit length
        """CREATE TABLE vectors (
            embedder INTEGER NOT NULL REFERENCES embedders(number),
            text INTEGER NOT NULL REFERENCES texts(number),
            vector BLOB NOT NULL,
            PRIMARY KEY (embedder, text)
        )""",
    ),
    (
        """CREATE TABLE transforms (
            number INTEGER PRIMARY KEY,
            fingerprint TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL
        )""",
        # source: hash of the input, of an example or of a query. fallback: the input stands in for a key.
        """CREATE TABLE keys (
            transform INTEGER NOT NULL REFERENCES transforms(number),
            source TEXT NOT NULL,
            number INTEGER NOT NULL,
            text TEXT NOT NULL,
            fallback INTEGER NOT NULL,
            PRIMARY KEY (source, transform, number)
        ) WITHOUT ROWID""",
    ),
    # Without it every text that is dropped costs a look at all vectors, and so does the check of the foreign key.
    ("CREATE INDEX vectors_by_text ON vectors(text)",),
    # What large pools are asked for without reading all examples: those with provenance, and inputs without a label.
    (
        "CREATE INDEX traces ON examples(seq) WHERE instr(meta, '\"generated_from\"')",
        "CREATE INDEX unlabelled ON examples(seq) WHERE output = ''",
    ),
)
READABLE = 2
"""The oldest format that can be read as it is: what came later makes changes faster."""


def open_database(path: Path | str, *, create: bool, read_only: bool) -> Database:
    """Open a pool file and bring it to the current format. PoolError, in one line, when that cannot be done."""
    if path != MEMORY:
        path = Path(path)
        exists = path.exists() and path.stat().st_size > 0
        if path.is_dir():
            raise PoolError(f"{path} is a folder; a pool is a file, e.g. {path / 'demos.db'}")
        if not exists and (read_only or not create):
            raise PoolError(f"no pool at {path}; make one with: iclkit pool add {path} FILE")
        if not exists and not path.parent.is_dir():
            raise PoolError(f"cannot make the pool {path}: there is no folder {path.parent}")
    form = Format(MIGRATIONS, APPLICATION_ID, pragmas=PRAGMAS, pragmas_of_new=PRAGMAS_OF_NEW, readable_from=READABLE)
    return Database.open(path, form, _explain(path), read_only=read_only and path != MEMORY)


def _explain(path: Path | str) -> Explain:
    def error(failure: Failure) -> PoolError:
        return PoolError(
            {
                "foreign": f"{path} is not a pool: {failure.reason}",
                "newer": f"{path} was written by a newer iclkit (pool {failure.reason}); upgrade iclkit",
                "older": f"{path} has an older pool format; open it once for writing to bring it up to date",
                "closed": f"the pool {path} is closed",
                "gone": f"the pool {path} cannot be used: {failure.reason}; start again, or put it back",
            }.get(
                failure.kind,
                f"cannot use the pool {path}: {failure.reason}"
                if failure.opening
                else f"the pool {path} cannot be used: {failure.reason}",
            )
        )

    return error
