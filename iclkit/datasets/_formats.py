"""Files to rows: what a file is and what stands in it, row after row. Lines, tables and Parquet take bounded memory."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from iclkit.errors import DataError, UsageError
from iclkit.files import other_kind, parse_json, path_kind, read_bytes
from iclkit.records import clean_text

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "lines")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}
SUFFIXES = tuple(_SUFFIXES)
PACKED = (".gz", ".zst", ".zstd")
_DELIMITERS = (",", ";", "\t", "|")
STDIN = "-"

Record: TypeAlias = "tuple[str, Mapping[str, Any] | DataError]"
"""Where a row stands and what it holds; or why it cannot be read, where the rows after it can."""

Opener: TypeAlias = Callable[[], IO[bytes]]


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How a file is read, where it does not say so itself.

    ``format``: one of ``FORMATS``. ``rows``: where in a JSON file the rows stand, as keys with dots (``data.items``);
    lists on the way are gone through, and what stands beside the rows in them is a part of every row. ``delimiter`` and
    ``columns`` (the names, of a table without a header line) are for CSV and TSV. ``encoding``: of a text file that is
    not UTF-8.
    """

    format: str = ""
    rows: str = ""
    delimiter: str = ""
    encoding: str = ""
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise UsageError(f"no reader for format {self.format!r}; use one of {', '.join(FORMATS)}")
        if self.encoding:
            try:
                codecs.lookup(self.encoding)
            except (LookupError, ValueError) as error:
                raise UsageError(f"no text encoding {self.encoding!r}; e.g. utf-8, cp1252, shift_jis") from error
        if self.delimiter and len(self.delimiter) != 1:
            raise UsageError(f"the delimiter is {self.delimiter!r}; it must be one character (a tab: '\\t')")


@dataclass(slots=True)
class Rows:
    """The rows of a file, to be gone through once. ``notes``: what was found out about how to read it, with the flag
    that says otherwise; ``delimiter``: that of a table; ``places``: where in a JSON object lists of rows stand."""

    records: Iterator[Record]
    notes: list[str] = field(default_factory=list)
    delimiter: str = ""
    places: tuple[str, ...] = ()


def open_rows(path: Path, options: FileOptions | None = None, wanted: Sequence[str] = ()) -> Rows:
    """The rows of a file, unmapped. ``wanted``: columns that are known to be there, which tells delimiters apart.

    A file packed with gzip or Zstandard is unpacked on the way; ``-`` is standard input. DataError, here or while the
    rows are read, when it is not what it should be; UsageError when its format cannot be told.
    """
    options = options or FileOptions()
    if str(path) != STDIN and path_kind(path) in ("", "folder"):
        near = difflib.get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.6)
        raise DataError(f"no file {path}" + (f"; did you mean {path.with_name(near[0])}?" if near else ""))
    source = _Source.of(path)
    kind = options.format or format_of(path, source)
    if options.rows and kind not in ("json", "jsonl"):
        raise UsageError(f"--rows is for one JSON value that holds rows; {source.name} is read as {kind}")
    if kind == "parquet":
        return Rows(_read_parquet(source))
    encoding = options.encoding or _encoding(source)
    if kind == "lines":
        return Rows(_read_texts(source, encoding))
    if kind in ("csv", "tsv"):
        return _read_table(source, encoding, kind, options, wanted)
    if kind == "json" and not _is_lines(source, encoding):
        return _read_json(source, encoding, options.rows)
    if options.rows:
        raise UsageError(f"--rows is for one JSON value that holds rows; {source.name} has a JSON object on every line")
    return Rows(_read_lines(source, encoding))


def format_of(path: Path, source: _Source | None = None) -> str:
    """What the name's ending says, or, of a pipe and where the name has no ending, how the content begins."""
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    suffix = Path(name).suffix
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if source is not None and (not suffix or source.held is not None):
        return _format_by_content(source)
    if source is not None:
        with source.open() as file:
            if remedy := other_kind(file.read(16)):
                raise DataError(f"{source.name} is no file of rows: {remedy}")
    raise UsageError(
        f"{path} ends in none of {', '.join(SUFFIXES)}; say the format ({', '.join(FORMATS)}), e.g. --format csv"
    )


def known_suffix(path: Path) -> bool:
    """Whether the name's ending, that of the packing aside, says a format."""
    try:
        return bool(format_of(path))
    except UsageError:
        return False


def _format_by_content(source: _Source) -> str:
    with source.open() as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[:1] == b"[":
        return "json"
    if head[:1] == b"{":  # an object on one line, or one over several
        return "jsonl" if head.split(b"\n")[0].rstrip().endswith(b"}") else "json"
    return "csv"


def _names_in(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir()]
    except (OSError, ValueError):
        return []


# --- bytes and text -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Bytes that can be read from the beginning as often as needed, unpacked. ``held``: those of a pipe."""

    name: str
    path: Path
    held: bytes | None = None

    @classmethod
    def of(cls, path: Path) -> _Source:
        if str(path) == STDIN:
            return cls("standard input", path, sys.stdin.buffer.read())
        return cls(str(path), path, None if path_kind(path) == "file" else read_bytes(path))

    def open(self) -> Any:
        """Bytes to read, in order, with ``read`` and ``close``, also by ``with``."""
        try:
            file: IO[bytes] = io.BytesIO(self.held) if self.held is not None else self.path.open("rb")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self.name} ({getattr(error, 'strerror', None) or error})") from error
        head = file.read(4)
        file.seek(0)
        if head[:2] == b"\x1f\x8b":
            return _Unpacked(self.name, gzip.GzipFile(fileobj=file))
        if head == b"\x28\xb5\x2f\xfd":
            import pyarrow

            return _Unpacked(self.name, pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))
        return file

    def text(self, encoding: str, newline: str = "\n") -> IO[str]:
        """With ``newline`` as for ``open``; a byte order mark is dropped."""
        if encoding.replace("_", "-").lower() in ("utf-8", "utf8"):
            encoding = "utf-8-sig"
        return io.TextIOWrapper(io.BufferedReader(_Raw(self.open())), encoding=encoding, newline=newline)

    def whole(self, encoding: str) -> str:
        with self.text(encoding) as file, _decoding(self.name, encoding):
            return file.read()


class _Unpacked(io.RawIOBase):
    """A packed file; what is wrong with its packing is a DataError."""

    def __init__(self, name: str, inner: Any) -> None:
        self.name, self.inner = name, inner

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self.inner.read() if size is None or size < 0 else self.inner.read(size))
        except (OSError, EOFError, ValueError, zlib.error) as error:  # Arrow's derive from these
            reason = " ".join(str(error).split())
            raise DataError(f"{self.name} cannot be unpacked ({reason}); fetch or pack it anew") from error

    def close(self) -> None:
        self.inner.close()
        super().close()


class _Raw(io.RawIOBase):
    """Any open bytes as what ``io.BufferedReader`` takes."""

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.inner.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()


class _decoding:
    """Bytes that the encoding does not know are a DataError."""

    def __init__(self, name: str, encoding: str) -> None:
        self.name, self.encoding = name, encoding

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeError):
            raise DataError(f"{self.name} is not {self.encoding} text ({error}); name its --encoding") from error


_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMON = ("cp1252", "cp1250", "cp1251", "shift_jis", "gb18030", "euc_kr")


def _encoding(source: _Source) -> str:
    """UTF-8, or one of the wide encodings, which a mark or their zeros tell. DataError for any other, with what some of
    them would read: a guess among those would change letters without a word."""
    with source.open() as file:
        head = file.read(1 << 16)
        for mark, name in _MARKS:
            if head.startswith(mark):
                return name
        if wide := _wide(head):
            return wide
        if remedy := other_kind(head):
            raise DataError(f"{source.name} is no text file: {remedy}")
        decoder = codecs.getincrementaldecoder("utf-8")()
        line, before = 1, b""
        while head:
            try:
                decoder.decode(head)
            except UnicodeDecodeError as error:
                raise DataError(_not_utf8(source.name, before, error, line)) from error
            line += head.count(b"\n")
            before, head = head[-200:], file.read(1 << 20)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(source.name, before[:-1], error, line)) from error
    return "utf-8"


def _wide(head: bytes) -> str:
    """UTF-16 or UTF-32 without a mark, told by the zeros beside the ASCII characters that any file begins with."""
    head = head[: min(40, len(head)) // 4 * 4]
    zeros = "".join(str(int(len(head) >= 8 and not any(head[i::4]))) for i in range(4))
    return {"0111": "utf-32-le", "1110": "utf-32-be", "0101": "utf-16-le", "1010": "utf-16-be"}.get(zeros, "")


def _not_utf8(name: str, before: bytes, error: UnicodeDecodeError, line: int) -> str:
    data, at = error.object, error.start
    line += data.count(b"\n", 0, at)
    text = (before + data) if at < 200 else data
    at += len(text) - len(data)
    first = text.rfind(b"\n", 0, at) + 1
    left = max(text.rfind(c, first, at) + 1 for c in (b" ", b"\t", b",", b";", b'"'))
    right = min((p for c in b' \t,;"\r\n' if (p := text.find(bytes([c]), at)) >= 0), default=len(text))
    word = text[max(first, left, at - 20) : min(right, at + 20)]
    read: dict[str, str] = {}
    for encoding in _COMMON:
        with suppress(UnicodeError):
            read.setdefault(word.decode(encoding), encoding)
    ways = ", ".join(f"{e} reads {clean_text(t)!r}" for t, e in read.items() if t.isprintable())
    return (
        f"{name}, line {line}: not UTF-8 (byte 0x{text[at]:02x} at byte {at - first + 1}); say how it is encoded, "
        f"e.g. --encoding cp1252" + (f" ({ways})" if ways else "")
    )


def _read_texts(source: _Source, encoding: str) -> Iterator[Record]:
    """An input on every line."""
    empty = True
    with source.text(encoding) as file, _decoding(source.name, encoding):
        for number, line in enumerate(file, 1):
            if line.strip():
                empty = False
                yield f"{source.name}, line {number}", {"input": line.rstrip("\r\n")}
    if empty:
        raise DataError(f"{source.name} is empty; expected an input on every line")


# --- JSON -----------------------------------------------------------------------------------------------------------


def _read_lines(source: _Source, encoding: str) -> Iterator[Record]:
    name, empty = source.name, True
    with source.text(encoding) as file, _decoding(name, encoding):
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text:
                continue
            if empty and "\r" in text and not line.endswith("\n"):
                raise DataError(f"{name}: its lines end with carriage returns alone; convert it, e.g. tr '\\r' '\\n'")
            empty = False
            where = f"{name}, line {number}"
            try:
                yield where, _object(where, parse_json(text, where, lone_surrogates=True))
            except DataError as error:
                more = "" if "expected a JSON object" in str(error) else "; every line holds one JSON object"
                yield where, DataError(f"{error}{more}")
    if empty:
        raise DataError(f"{name} is empty; a JSONL file has one JSON object per line")


def _is_lines(source: _Source, encoding: str) -> bool:
    """Whether a file called .json holds an object on every line, as is common: its first line is a whole one, and it is
    not the only one."""
    with source.text(encoding) as file, _decoding(source.name, encoding):
        lines = (line for line in file if line.strip())
        first = next(lines, "").strip()
        if not (first.startswith("{") and first.endswith("}")):
            return False
        try:
            parse_json(first, source.name, lone_surrogates=True)
        except DataError:
            return False
        return next(lines, None) is not None


def _read_json(source: _Source, encoding: str, path: str) -> Rows:
    name = source.name
    text = source.whole(encoding)
    if not text.strip():
        raise DataError(f"{name} is empty; a JSON file holds an array of objects")
    data = parse_json(text, name, lone_surrogates=True)
    rows = Rows(iter(()))
    if path:
        found = [*_rows_at(data, path.split("."), name)]
    elif isinstance(data, list):
        found = [(f"item {n}", row) for n, row in enumerate(data, 1)]
    elif isinstance(data, dict) and (table := _table_in(data)):
        found = [(f"row {n}", row) for n, row in enumerate(table, 1)]
    else:
        path, rows.places = _place_of_rows(data, name)
        found = [*_rows_at(data, path.split("."), name)]
        rows.notes.append(f"rows read from {path!r} (--rows)")
    if not found:
        raise DataError(f"{name} holds an empty array; expected an array of objects")
    if all(isinstance(row, str) for _, row in found):
        found = [(where, {"input": row}) for where, row in found]
    rows.records = (_checked(f"{name}, {where}", row) for where, row in found)
    return rows


def _checked(where: str, row: object) -> Record:
    try:
        return where, _object(where, row)
    except DataError as error:
        return where, error


def _object(where: str, record: object) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object with named fields, found {kind_of(record)}")
    return record


def _rows_at(data: Any, path: Sequence[str], name: str) -> Iterator[tuple[str, Any]]:
    """(place, row) at the end of a path. What stands beside the rows in a list's items is a part of each row."""
    nodes: list[tuple[str, Any, dict[str, Any]]] = [("", data, {})]
    gone = ""
    for part in path:
        inner: list[tuple[str, Any, dict[str, Any]]] = []
        for place, node, beside in nodes:
            items = [(f"{place}[{n}]", item, True) for n, item in enumerate(node)] if isinstance(node, list) else [
                (place, node, False)
            ]  # fmt: skip
            for here, item, listed in items:
                if not isinstance(item, dict) or part not in item:
                    keys = ", ".join(map(str, item)) if isinstance(item, dict) else kind_of(item)
                    raise DataError(
                        f"{name}: --rows {'.'.join(path)}: there is no {part!r} at {gone + here or 'the top'}; it has: "
                        f"{keys[:120] or 'nothing'}"
                    )
                others = {k: v for k, v in item.items() if k != part and not isinstance(v, dict | list)}
                inner.append((f"{here}.{part}".lstrip("."), item[part], beside | others if listed else beside))
        nodes = inner
    for place, node, beside in nodes:
        if not isinstance(node, list):
            raise DataError(f"{name}: --rows {'.'.join(path)} leads to {kind_of(node)}; expected a list of rows")
        for n, item in enumerate(node):
            yield f"{place}[{n}]", ({**beside, **item} if isinstance(item, dict) else item)


def _table_in(data: Mapping[str, Any]) -> list[Any]:
    """The rows of an object that is one table, in one of the ways in which tables are written as JSON."""
    return _by_header(data) or _by_viewer(data) or _by_column(data) or _by_key(data)


def _by_header(data: Mapping[str, Any]) -> list[Any]:
    """The rows of pandas' ``split``: names of columns, and lists of cells."""
    columns, rows = data.get("columns"), data.get("data")
    if not ({*data} <= {"columns", "index", "data"} and _are_texts(columns) and isinstance(rows, list)):
        return []
    if not all(isinstance(cells, list) and len(cells) == len(columns or ()) for cells in rows):
        return []
    return [dict(zip(columns or (), cells, strict=True)) for cells in rows]


def _by_viewer(data: Mapping[str, Any]) -> list[Any]:
    """The rows that the hub's data set viewer sends, labels by their names."""
    rows = data.get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("row"), dict) for r in rows):
        return []
    if not all("row_idx" in r for r in rows):
        return []
    features = data.get("features")
    types = {
        f["name"]: f.get("type") for f in (features if isinstance(features, list) else ())
        if isinstance(f, dict) and isinstance(f.get("name"), str)
    }  # fmt: skip
    return [row for _, row in name_labels((("", r["row"]) for r in rows), _names_of(types))]


def _by_column(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an object of columns, as pandas writes them: lists of one length, or objects of equal keys."""
    columns = [*data.values()]
    if len(columns) < 2:
        return []
    if all(isinstance(c, list) and c and not isinstance(c[0], dict) for c in columns):
        if len({len(c) for c in columns}) == 1:
            return [dict(zip(data, cells, strict=True)) for cells in zip(*columns, strict=True)]
    elif all(isinstance(c, dict) and c and c.keys() == columns[0].keys() for c in columns):
        plain = all(not isinstance(v, dict | list) for c in columns for v in c.values())
        if plain and all(key.isdecimal() for key in columns[0]):
            return [{name: data[name][key] for name in data} for key in columns[0]]
    return []


def _by_key(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an object of rows, whose keys are their ids: plain values under the same names in all of them."""
    rows = [*data.values()]
    if len(rows) < 2 or not all(
        isinstance(row, dict) and len(row) > 1 and row.keys() == rows[0].keys() for row in rows
    ):
        return []
    if any(isinstance(value, dict | list) for row in rows for value in row.values()):
        return []
    return [{"id": key, **row} for key, row in data.items()]


_NESTED = ("data.paragraphs.qas",)
"""Where rows stand inside rows: SQuAD."""
_TELLING = {"data", "demos", "examples", "instances", "items", "questions", "records", "rows", "samples", "train"}


def _place_of_rows(data: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """The place in an object whose list of objects is meant, and all such places; DataError that lists them where it
    could be several."""
    for place in _NESTED:
        with suppress(DataError):
            if isinstance(data, dict) and next(_rows_at(data, place.split("."), name), None):
                return place, (place,)
    found: dict[str, int] = {}

    def look(node: Any, path: tuple[str, ...]) -> None:
        for key, value in node.items() if isinstance(node, dict) and len(path) < 6 else ():
            if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
                found[".".join([*path, key])] = len(value)
            look(value, (*path, key))

    look(data, ())
    telling = [place for place in found if place.rpartition(".")[2] in _TELLING]
    if len(found) == 1 or len(telling) == 1:
        return telling[0] if telling else next(iter(found)), tuple(found)
    places = ", ".join(f"--rows {place} ({count})" for place, count in sorted(found.items(), key=lambda i: -i[1])[:6])
    raise DataError(
        f"{name} holds {kind_of(data)}; expected an array of objects, or one object per line (.jsonl)"
        + (f"; say which rows are meant: {places}" if places else "")
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def _read_table(source: _Source, encoding: str, kind: str, options: FileOptions, wanted: Sequence[str]) -> Rows:
    name = source.name
    with source.text(encoding, "") as file, _decoding(name, encoding):
        sample = file.read(1 << 18)
    if not sample.strip():
        raise DataError(f"{name} is empty; its first line names the columns")
    # old Macs end lines with carriage returns alone; elsewhere one may stand in a cell
    newline = "\n" if "\n" in sample else ""
    usual = "\t" if kind == "tsv" else ","
    said = _EXCEL.match(sample)
    told = said.group(1) if said else ""
    delimiter = options.delimiter or told or _delimiter(sample, usual, options.columns or wanted)
    rows = Rows(iter(()), delimiter=delimiter)
    if not options.delimiter and delimiter != usual:
        rows.notes.append(f"columns parted by {delimiter!r} (--delimiter)")
    before = 1 if said else 0
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    if delimiter == "\t" and ('"' in sample or len(sample) == 1 << 18):
        with _field_limit():
            if _quotes_are_letters(source, encoding, newline, delimiter, before):
                quoting = csv.QUOTE_NONE
                rows.notes.append("quotes are letters: read as quotes, rows would not have the header's columns")
    rows.records = _table_rows(source, encoding, newline, delimiter, options.columns, before, quoting)
    return rows


_EXCEL = re.compile(r"sep=(.)\r?\n")
"""The line that Excel reads a delimiter from, above the header."""


def _delimiter(sample: str, usual: str, wanted: Sequence[str]) -> str:
    """The delimiter under which every row of the sample has as many cells as the first: the usual one where it does,
    else the one that makes most columns. ``wanted`` columns have to be there, where they are under any."""
    rows = {d: _cells(sample, d) for d in dict.fromkeys((usual, *_DELIMITERS))}
    fitting = [d for d, found in rows.items() if found and len(found[0]) > 1 and len({len(r) for r in found}) == 1]
    named = [d for d in fitting if {c.partition(".")[0] for c in wanted} <= {*rows[d][0]}] if wanted else fitting
    if (named or fitting) and usual not in (named or fitting):
        return max(named or fitting, key=lambda d: len(rows[d][0]))
    if not fitting and len(rows[usual][0] if rows[usual] else []) < 2:
        # none fits every row; the one that the header has then lets the row at fault be named
        return max(rows, key=lambda d: len(rows[d][0]) if rows[d] else 0)
    return usual


def _cells(sample: str, delimiter: str) -> list[list[str]]:
    """The whole rows of the sample that can be read with a delimiter."""
    rows: list[list[str]] = []
    lines = io.StringIO(sample, newline="\n" if "\n" in sample else "")
    reader = csv.reader(lines, delimiter=delimiter)
    with suppress(csv.Error):
        for cells in reader:
            if cells:
                rows.append(cells)
            if len(rows) == 200:
                return rows
    return rows[:-1] if len(sample) >= 1 << 18 else rows  # the last one may be cut


@contextmanager
def _field_limit() -> Iterator[None]:
    """Fields may be long; the default refuses those over 131,072 characters."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _quotes_are_letters(source: _Source, encoding: str, newline: str, delimiter: str, before: int) -> bool:
    """Whether every line has as many cells as the header with quotes taken as letters, and not with them as quotes: so
    are GLUE's tables written. Between commas an open quote is a mistake more often."""

    def widths(quoting: Literal[0, 3]) -> Iterator[int]:
        with source.text(encoding, newline) as file, _decoding(source.name, encoding):
            for _ in range(before):
                next(file)
            yield from map(len, filter(None, csv.reader(file, delimiter=delimiter, strict=True, quoting=quoting)))

    lines, wide = 0, 0
    try:
        for width in widths(csv.QUOTE_NONE):
            wide = wide or width
            if width != wide:
                return False
            lines += 1
    except csv.Error:
        return False
    read = 0
    try:
        for width in widths(csv.QUOTE_MINIMAL):
            if width != wide:
                return True
            read += 1
    except csv.Error:
        return True
    return read != lines


def _table_rows(
    source: _Source,
    encoding: str,
    newline: str,
    delimiter: str,
    columns: Sequence[str],
    before: int,
    quoting: Literal[0, 3],
) -> Iterator[Record]:
    """The rows below the header, which stands ``before`` lines down. Columns at the right end without a name, which
    spreadsheets leave, are no columns while their cells are empty."""
    name, start, count = source.name, 1, 0
    try:
        with source.text(encoding, newline) as file, _decoding(name, encoding), _field_limit():
            for _ in range(before):
                next(file)
            reader = csv.reader(file, delimiter=delimiter, strict=True, quoting=quoting)
            header = list(columns) or [c.strip() for c in next((cells for cells in reader if cells), [])]
            while len(header) > 1 and not header[-1]:
                header.pop()
            if len(set(header)) < len(header):
                twice = next(c for c in header if header.count(c) > 1)
                raise DataError(f"{name}, line 1: the column {twice!r} is named twice; rename one")
            start = before + reader.line_num + 1
            for cells in reader:
                where, start = f"{name}, line {start}", before + reader.line_num + 1
                if not cells:
                    continue
                count += 1
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(header):
                    yield (
                        where,
                        DataError(
                            f"{where}: {len(cells)} fields where the header names {len(header)} ({', '.join(header)}); "
                            f"quote a field that holds the delimiter {delimiter!r} or a line break, or say --delimiter"
                        ),
                    )
                else:
                    yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{name}, line {start}: {error}; a field that begins with a quote must end with one, a quote inside it is "
            f"doubled, and a field with a line break in it is quoted"
        ) from error
    if not count:
        raise DataError(f"{name} has a header ({', '.join(header)}) and no rows")


# --- Parquet, and names of labels -----------------------------------------------------------------------------------


def _read_parquet(source: _Source) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    name = source.name
    try:
        file_: Any = source.open()
        # what is packed or no plain file cannot be searched, and is read as a whole
        searched = source.held is None and not isinstance(file_, _Unpacked)
        file = pyarrow.parquet.ParquetFile(file_ if searched else pyarrow.BufferReader(file_.read()))
        columns = file.schema_arrow.names
        if twice := [c for c, n in Counter(columns).items() if n > 1]:
            raise DataError(f"{name}: the column {twice[0]!r} is there twice; rename one")
        names = _class_labels((file.schema_arrow.metadata or {}).get(b"huggingface", b""))
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            rows = batch.to_pylist()
            yield from name_labels(((f"{name}, row {number + n}", row) for n, row in enumerate(rows, 1)), names)
            number += len(rows)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{name} cannot be read as Parquet: {reason}") from error
    if not number:
        raise DataError(f"{name} has no rows; columns: {', '.join(columns)}")


def _class_labels(metadata: bytes) -> dict[str, list[str]]:
    """Label names per column from the schema metadata that Hugging Face ``datasets`` writes into Parquet.

    Metadata of another shape says nothing: label ids then stay numbers.
    """
    try:
        found: Any = parse_json(metadata, "metadata")
    except DataError:
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return _names_of(found if isinstance(found, dict) else {})


def _names_of(features: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and _are_texts(feature.get("names"))
    }


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class LabelId(int):
    """A label's number that knows the label's name, as Hugging Face sets store labels."""

    name: str


class NoLabel(int):
    """The number -1 in the place of a label, by which Hugging Face sets say that there is none."""


def name_labels(
    rows: Iterable[tuple[str, Mapping[str, Any]]], names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows with label ids that know their names."""
    ids: dict[str, list[LabelId]] = {}
    for column, labels in names.items():
        ids[column] = [LabelId(i) for i in range(len(labels))]
        for label, name in zip(ids[column], natural_names(labels), strict=True):
            label.name = name
    for where, row in rows:
        named = {
            c: known[row[c]] for c, known in ids.items() if isinstance(row.get(c), int) and 0 <= row[c] < len(known)
        }
        hidden = {c: NoLabel(-1) for c in ids if row.get(c) == -1}
        yield where, ({**row, **named, **hidden} if named or hidden else row)


def natural_names(labels: Sequence[str]) -> list[str]:
    """Label names as words: underscores to spaces; left alone where two names would become one.

    >>> natural_names(["card_arrival", "atm support"])
    ['card arrival', 'atm support']
    """
    words = [" ".join(label.replace("_", " ").split()) or label for label in labels]
    return words if len(set(words)) == len(set(labels)) else list(labels)


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "nothing (null)"
    kinds: dict[type, str] = {bool: "a truth value", int: "a number", float: "a number", str: "a text"}
    return kinds.get(
        type(value),
        "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__,
    )
