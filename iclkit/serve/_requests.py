"""What is asked over HTTP, read and checked; and how everything that is wrong is answered: one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from iclkit.errors import DataError, IclkitError, PoolError, UnknownName, UsageError
from iclkit.files import parse_json
from iclkit.records import Query

MAX_K = 256
"""Most demonstrations that one request may ask for."""
FIELDS = ("input", "k", "where", "exclude")


class HttpError(Exception):
    """A request that is answered with ``status`` and one line."""

    def __init__(self, status: int, line: str) -> None:
        self.status = status
        super().__init__(line)


@dataclass(frozen=True, slots=True)
class Question:
    """A query and how many demonstrations it wants; None for as many as the selector was saved with."""

    query: Query
    k: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def refusal(status: int, line: str) -> JSONResponse:
    """An error as clients of chat APIs read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"WWW-Authenticate": "X-API-Key"} if status == 401 else None
    return JSONResponse({"error": {"message": line, "type": kind}}, status_code=status, headers=headers)


def refusal_of(error: IclkitError) -> JSONResponse:
    """An error of the library: of the request, unless it is the pool or a model that fails."""
    mine = isinstance(error, UsageError | DataError) and not isinstance(error, PoolError)
    return refusal(400 if mine else 503, " ".join(str(error).split()))


async def read_body(request: Request, limit: int) -> bytes:
    """The body. HttpError 413 for one over ``limit`` bytes, of which no more is read."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise HttpError(413, f"the body has {int(declared):,} bytes, and {limit:,} are taken")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HttpError(413, f"the body has more than the {limit:,} bytes that are taken")
        parts.append(part)
    return b"".join(parts)


def read_question(body: bytes) -> Question:
    """The question in a body. DataError or UsageError names the field at fault."""
    data = parse_json(body, "the body")
    if not isinstance(data, dict):
        raise DataError('the body is an object such as {"input": "my parcel is late", "k": 4}')
    for name in data:
        if name not in FIELDS:
            raise UnknownName("field of a request", name, FIELDS)
    if "input" not in data:
        raise DataError("`input` is missing: the text (or the named fields) to choose demonstrations for")
    text = data["input"]
    if isinstance(text, dict):
        if not text or not all(isinstance(v, str) for v in text.values()):
            raise DataError("`input` is a text, or an object whose values are texts")
    elif not isinstance(text, str):
        raise DataError(f"`input` is a text, or an object whose values are texts, not {type(text).__name__}")
    return Question(
        Query(text, where=_mapping(data.get("where")), exclude=_ids(data.get("exclude"))), read_k(data.get("k"))
    )


def read_k(value: Any) -> int | None:
    """How many demonstrations; None where nothing is said."""
    if value is None:
        return None
    # 4.0 is a whole number to JSON
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_K or value != int(value):
        raise DataError(f"`k` is a whole number from 0 to {MAX_K}, not {value!r:.40}")
    return int(value)


def _mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError('`where` is an object of metadata, such as {"tenant": "acme"}')
    return value


def _ids(value: Any) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(i, str) for i in value):
        raise DataError("`exclude` is a list of example ids")
    return frozenset(value)
