"""A fitted selector kept in a folder, loaded again, and asked within a part of the pool."""

import tempfile
from pathlib import Path

from iclkit import Example, Kit, Pool, Query, load_selector, load_task, make_selector

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    with Pool.open(path / "messages.db") as pool:
        rows = load_task("support").train[:100]
        pool.add([Example(e.input, e.output, meta={"shop": ("north", "south")[n % 2]}) for n, e in enumerate(rows)])
        make_selector("bm25").fit(pool.view(), Kit()).save(path / "kept", k=3, copy_pool=True)
    kept = load_selector(path / "kept")  # another process, or another machine
    for where in (None, {"shop": "north"}):
        picked = kept.select(Query("my parcel is late"), where=where)
        print(where, [example.output for example in picked.examples])
