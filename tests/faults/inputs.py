"""Files that are not what they should be, in every place where a user may name one."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .children import call
from .trials import Trial
from .worlds import rows, write_jsonl

GOOD = rows("train", 12)
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 5000
# fmt: off
ODD = ["\ud800", "\x00", "\x1b]0;x\x07", "\u2028", "\x85", "\u202e", "\ufeff", "e\u0301", "\u00a0", "=1+1",
       "<img onerror=x>", "{input}", "{", "%s", "\\", '"', "\r", "\x0c", "\U0001f469\u200d\U0001f469",
       "\u0915\u094d\u0937", "9" * 400]
# fmt: on


def jsonl(data: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in data).encode()


def as_csv(data: list[dict[str, str]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["input", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(data)
    return out.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(data: list[dict[str, str]], metadata: dict[bytes, bytes] | None = None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(data)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, sink)
    return sink.getvalue()


def changed(**values: object) -> bytes:
    """Good rows, and one whose fields have other values (None: left out)."""
    bad: dict[str, object] = {**GOOD[4], **values}
    return jsonl([*GOOD[:4], {k: v for k, v in bad.items() if v is not _ABSENT}, *GOOD[5:]])


_ABSENT = object()


def hostile_files(rng: random.Random) -> Iterator[tuple[str, str, bytes]]:
    """(what is wrong, file name, content)."""
    good = {"jsonl": jsonl([*GOOD]), "json": json.dumps(GOOD).encode(), "csv": as_csv(GOOD), "tsv": as_csv(GOOD, "\t"),
            "parquet": as_parquet(GOOD)}  # fmt: skip
    for kind, data in good.items():
        name = f"rows.{kind}"
        yield f"{kind}: empty", name, b""
        yield f"{kind}: white space", name, b" \n\n\t\n"
        yield f"{kind}: zero bytes", name, b"\x00" * 64
        yield f"{kind}: byte order mark", name, b"\xef\xbb\xbf" + data
        yield f"{kind}: UTF-16", name, data.decode("latin-1").encode("utf-16")
        yield f"{kind}: not UTF-8", name, data.replace(b"animal", b"caf\xe9")
        yield f"{kind}: carriage returns alone", name, data.replace(b"\n", b"\r")
        yield f"{kind}: gzip bytes", name, b"\x1f\x8b\x08\x00" + data
        for _ in range(3):
            yield f"{kind}: cut off", name, data[: rng.randrange(1, len(data))]
            at = rng.randrange(len(data))
            yield f"{kind}: a byte changed", name, data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    for odd in ODD:
        for field in ("input", "output", "task", "id"):
            yield f"jsonl: odd character in {field}", "rows.jsonl", changed(**{field: f"a{odd}b"})
        yield "jsonl: odd character in a field name", "rows.jsonl", changed(**{f"a{odd}b": "x"})
        yield "jsonl: odd character in a named field", "rows.jsonl", changed(input={f"a{odd}b": "x"})
        if odd != "\ud800":
            yield "csv: odd character", "rows.csv", as_csv([*GOOD, {"input": f"a{odd}b", "output": odd}])
    for value in (None, True, 5, 1.5, [], {}, ["a"], [1], {"a": 1}, {"a": {"b": "c"}}, "", "  ", [{"role": "user"}]):
        for field in ("input", "output", "choices", "meta", "task"):
            yield f"jsonl: {field} of another type", "rows.jsonl", changed(**{field: value})
    yield "jsonl: a field missing", "rows.jsonl", changed(output=_ABSENT)
    yield (
        "jsonl: deep",
        "rows.jsonl",
        good["jsonl"] + b'{"input": "x", "output": "y", "meta": ' + DEEP.encode() + b"}\n",
    )
    yield "json: deep", "rows.json", DEEP.encode()
    yield "jsonl: huge integer", "rows.jsonl", good["jsonl"] + b'{"input": "x", "output": ' + HUGE.encode() + b"}\n"
    yield "jsonl: NaN", "rows.jsonl", good["jsonl"] + b'{"input": "x", "output": NaN}\n'
    yield "jsonl: the same key twice", "rows.jsonl", good["jsonl"] + b'{"input": "x", "input": "z", "output": "y"}\n'
    yield "jsonl: rows in a list", "rows.jsonl", json.dumps(GOOD).encode()
    yield "jsonl: numbers", "rows.jsonl", b"1\n2\n"
    yield "json: an object", "rows.json", b'{"input": "x"}'
    yield "json: a number", "rows.json", b"7"
    yield "csv: ragged", "rows.csv", good["csv"] + b"one\nfour,four,four,four\n"
    yield "csv: unclosed quote", "rows.csv", good["csv"] + b'"never closed,\nx,y\n'
    yield "csv: another delimiter", "rows.csv", as_csv(GOOD, ";")
    yield "csv: cell over the csv module's limit", "rows.csv", good["csv"] + b'"' + b"x" * 200_000 + b'",animal\n'
    yield "csv: header alone", "rows.csv", b"input,output\n"
    yield "csv: header twice", "rows.csv", b"input,input,output\na,b,c\n"
    yield "csv: 5,000 columns", "rows.csv", b",".join(b"c%d" % n for n in range(5000)) + b"\n"
    for metadata in (b"{not json", b"[]", b"5", b'{"info": []}', b'{"info": {"features": 5}}', b"\xff"):
        yield "parquet: damaged metadata", "rows.parquet", as_parquet(GOOD, {b"huggingface": metadata})


def selector_files(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    demonstrations = [{"input": r["input"], "output": r["output"]} for r in GOOD[:3]]
    good = {"kind": "fixed", "demonstrations": demonstrations, "instruction": "Say which."}
    for value in (None, True, 5, "x", [], {}, [5], [[]], [{}], [{"input": 5, "output": "y"}], [{"input": "x"}]):
        for key in good:
            yield f"{key} of another type", json.dumps({**good, key: value}).encode()
    for text in (
        b"",
        b"{oops",
        b"[]",
        b"5",
        b"null",
        DEEP.encode(),
        b"\xff\xfe",
        b'{"demonstrations": ' + HUGE.encode() + b"}",
    ):
        yield "no selector file", text


def input_trials(folder: Path, rng: random.Random, least: int) -> Iterator[Trial]:
    """``least`` inputs at least: each file through ``pool add``, ``select`` or a task folder, in turn and by chance."""
    folder.mkdir(parents=True)
    files = list(hostile_files(rng))
    wanted: list[tuple[str, Callable[[int], Trial]]] = []
    for what, name, data in files:
        wanted.append((what, lambda n, w=what, f=name, d=data: _added(folder / str(n), w, f, d)))  # type: ignore[misc]
    for what, data in selector_files(rng):
        wanted.append((what, lambda n, w=what, d=data: _selector_file(folder / str(n), w, d)))  # type: ignore[misc]
    for what, name, data in files:
        wanted.append((what, lambda n, w=what, f=name, d=data: _asked(folder / str(n), w, f, d)))  # type: ignore[misc]
    for what, name, data in files:
        for split in ("train", "test"):
            wanted.append((what, lambda n, w=what, f=name, d=data, s=split: _in_task(folder / str(n), w, f, d, s)))  # type: ignore[misc]
    wanted.append(("name", lambda n: _long_name(folder / str(n))))
    wanted.append(("kind of file", lambda n: _directory(folder / str(n))))
    wanted.append(("kind of file", lambda n: _fifo(folder / str(n))))
    special, rest = wanted[-3:], wanted[:-3]
    rng.shuffle(rest)
    for number, (_, trial) in enumerate([*special, *rest[: max(0, least - len(special))]]):
        (folder / str(number)).mkdir()
        yield trial(number)


def _pool(folder: Path) -> list[str]:
    from iclkit.pool import Pool
    from iclkit.records import Example

    with Pool.open(folder / "demos.db") as pool:
        pool.add([Example(r["input"], r["output"]) for r in rows("kept", 6)])
    return _ids(folder)


def _ids(folder: Path) -> list[str]:
    from iclkit.pool import Pool

    with Pool.open(folder / "demos.db", create=False) as pool:
        examples = pool.view().examples
        for example in examples:  # what a pool holds can be written and read
            json.dumps([example.text, example.output, example.task, dict(example.meta)], ensure_ascii=False).encode()
        return sorted(e.id for e in examples)


def _added(folder: Path, what: str, name: str, data: bytes) -> Trial:
    kept = _pool(folder)
    (folder / name).write_bytes(data)
    outcome = call(["pool", "add", "demos.db", name], folder, folder / "home", limit=60)
    wrong = outcome.fault
    if not wrong and outcome.code and _ids(folder) != kept:
        wrong = "refused, and the pool has changed"
    if not wrong and outcome.code and name not in outcome.err:
        wrong = f"the line does not name the file: {outcome.err.strip()}"
    if not wrong and outcome.code == 0 and not set(kept) <= set(_ids(folder)):
        wrong = "examples are lost"
    if not wrong and outcome.code == 0:
        # what went in comes out, and goes in again as the same
        out = call(["pool", "export", "demos.db", "out.jsonl"], folder, folder / "home", limit=60)
        back = call(["pool", "add", "again.db", "out.jsonl"], folder, folder / "home", limit=60)
        wrong = out.fault or back.fault or ("" if back.code == 0 else f"its export is refused: {back.err.strip()}")
    return Trial("hostile input, pool add", what, f"{wrong} [{data[:60]!r}]" if wrong else "")


def _asked(folder: Path, what: str, name: str, data: bytes) -> Trial:
    _pool(folder)
    (folder / name).write_bytes(data)
    words = ["select", "demos.db", "--queries", name, "--selector", "bm25", "-k", "2"]
    outcome = call(words, folder, folder / "home", limit=60)
    return Trial("hostile input, select --queries", what, f"{outcome.fault} [{data[:60]!r}]" if outcome.fault else "")


def _selector_file(folder: Path, what: str, data: bytes) -> Trial:
    _pool(folder)
    (folder / "best.json").write_bytes(data)
    words = ["select", "demos.db", "some query", "--selector", "best.json", "-k", "2"]
    outcome = call(words, folder, folder / "home", limit=60)
    return Trial("hostile input, selector file", what, f"{outcome.fault} [{data[:60]!r}]" if outcome.fault else "")


def _in_task(folder: Path, what: str, name: str, data: bytes, split: str) -> Trial:
    other = "test" if split == "train" else "train"
    write_jsonl(folder / "task" / f"{other}.jsonl", [*rows(other, 12)])
    (folder / "task" / f"{split}{Path(name).suffix}").write_bytes(data)
    words = ["diagnose", "task", "--selector", "bm25", "-k", "2"]
    outcome = call(words, folder, folder / "home", limit=60)
    return Trial("hostile input, task folder", what, f"{outcome.fault} [{data[:60]!r}]" if outcome.fault else "")


def _long_name(folder: Path) -> Trial:
    outcome = call(["pool", "add", "demos.db", "x" * 300 + ".jsonl"], folder, folder / "home", limit=60)
    return Trial(
        "hostile input, pool add", "file name of 300 characters", outcome.fault or ("" if outcome.code else "taken")
    )


def _directory(folder: Path) -> Trial:
    (folder / "rows.jsonl").mkdir()
    outcome = call(["pool", "add", "demos.db", "rows.jsonl"], folder, folder / "home", limit=60)
    return Trial("hostile input, pool add", "a folder", outcome.fault or ("" if outcome.code else "taken"))


def _fifo(folder: Path) -> Trial:
    os.mkfifo(folder / "rows.jsonl")
    writer = threading.Thread(target=lambda: (folder / "rows.jsonl").write_bytes(jsonl([*GOOD])), daemon=True)
    writer.start()
    outcome = call(["pool", "add", "demos.db", "rows.jsonl"], folder, folder / "home", limit=20)
    return Trial(
        "hostile input, pool add", "a FIFO", outcome.fault or ("" if outcome.code == 0 else outcome.err.strip())
    )
