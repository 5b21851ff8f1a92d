"""Nothing secret leaves in a text: API keys, passwords in addresses, tokens.

``redact`` is applied where a text may hold what others said: in every IclkitError, in what is told on stderr, in
tracebacks of the command line, in what the HTTP client logs. It knows the secrets of this process (``remember``, and
the environment variables whose names say so) in the spellings in which servers echo them, and the shapes in which
secrets of others are written.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode, urlsplit, urlunsplit

HIDDEN = "***"
_NO_SECRETS = {"", "empty", "none", "null", "true", "false"}
"""What is customarily given as a key where none is needed."""
_LONG = 8
"""A secret of so many characters is hidden wherever it stands; a shorter one only where it stands as a word."""

_SHORTEST_CODE = 5
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_?KEY(?:_ID)?|SECRET_?KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.I
)
_SECRET_NAME = r"[\w.\-]*(?:key|token|secret|passw(?:or)?d|passwd|pwd|auth|sig|signature|credentials?|code)"
_PUBLIC_PARAMETERS = {"api-version", "api_version", "version", "deployment", "model", "region", "location"}
_USERINFO = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]*@|[^\s/@:'\"<>]*:(?!\d*(?:[/?#,]|$))[^\s'\"<>]*@)")
# the same with a password that is not spelled as addresses want it: up to the last @, rather too much than too little
_LONGEST_USERINFO = re.compile(r"(?<=://)(?:[^\s/@:'\"<>]*:(?!\d*(?:[/?#,]|$))[^\s'\"<>]*@|[^\s/?#'\"<>]*@)")
_ADDRESSES = [
    (_LONGEST_USERINFO, f"{HIDDEN}@"),
    (re.compile(rf"(?i)([?&;]{_SECRET_NAME}=)[^\s&#'\"<>;,)]+"), rf"\1{HIDDEN}"),
]
_SHAPES = [
    *_ADDRESSES,
    (
        re.compile(
            r"(?i)\b((?:x-)?(?:api[_-]?key|access[_-]?key|access[_-]?token|auth[_-]?token|id[_-]?token|"
            r"refresh[_-]?token|session[_-]?token|client[_-]?secret|secret[_-]?key|subscription-key|password|passwd|"
            r"(?:proxy-)?authorization|set-cookie|cookie)[\\\"']*\s*[:=]\s*[\\\"']*(?:(?:bearer|basic)\s+)?)"
            r"[^\s\"'\\&,;<>{})]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(r"(?i)\b(bearer|basic)(\s+|%20|\+)(?=[\w.~+/%-]*[\d=_+/]|[\w-]{20})[\w.~+/%-]{6,}=*"),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"\b[sprg](?:k|sk)[-_](?=[\w*-]*[\d*])[\w*-]{8,}"), HIDDEN),  # OpenAI's and its like
    (re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AIza|AKIA|pypi-|npm_)[\w-]{12,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), HIDDEN),  # a JSON web token
]

_known: dict[str, None] = {}


def remember(*secrets: str | None) -> None:
    """From now on hide these values wherever ``redact`` meets them."""
    for secret in secrets:
        if secret and secret.strip().lower() not in _NO_SECRETS:
            _known[secret.strip()] = None


def redact(text: str) -> str:
    """``text`` with known secrets, in any usual spelling, and whatever is shaped like a secret, as ``***``.

    >>> redact("no such host: https://ann:pw@example.org/v1?api_key=abc")
    'no such host: https://***@example.org/v1?api_key=***'
    >>> redact("max_tokens is 5, tokenizer=gpt2, http://127.0.0.1:80/v1")
    'max_tokens is 5, tokenizer=gpt2, http://127.0.0.1:80/v1'
    """
    text = redact_known(text)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def redact_addresses(text: str) -> str:
    """``text`` with long known secrets and those within addresses hidden: for what may hold a user's own data."""
    text = redact_known(text, _LONG)
    for shape, instead in _ADDRESSES:
        text = shape.sub(instead, text)
    return text


def redact_known(text: str, shortest: int = 1) -> str:
    """``text`` with the known secrets alone hidden, of so many characters or more."""
    for secret in _all_known():
        if len(secret) < shortest:
            continue
        text = _spellings(secret).sub(HIDDEN, text)
        if len(secret) > _LONG:
            text = _hide_beginning(text, secret)
    return text


def _hide_beginning(text: str, secret: str) -> str:
    """Hide what a server has cut short: the secret's first characters, as many as stand there."""
    chars = _characters(secret)
    least = min(_LONG, len(chars) * 2 // 3)
    start, at = re.compile("".join(chars[:least]), re.I), 0
    while found := start.search(text, at):
        end = found.end()
        for char in chars[least:]:
            if not (more := re.compile(char, re.I).match(text, end)):
                break
            end = more.end()
        text, at = text[: found.start()] + HIDDEN + text[end:], found.start() + len(HIDDEN)
    return text


def _all_known() -> Iterator[str]:
    found = dict(_known)
    for name, value in os.environ.items():
        if len(value) >= _LONG and _SECRET_VARIABLE.search(name) and value.lower() not in _NO_SECRETS:
            found[value.strip()] = None
    return iter(sorted(found, key=lambda s: -len(s)))  # a secret that holds another goes first


@lru_cache(maxsize=256)
def _characters(secret: str) -> tuple[str, ...]:
    """A pattern per character: as it is, or as addresses, HTML and JSON write it."""
    out = []
    for char in secret:
        ways = {char, html.escape(char), json.dumps(char)[1:-1], repr(char)[1:-1], f"\\{char}"}
        if not (char.isascii() and char.isalnum()):
            coded = quote(char, safe="")
            ways |= {coded, quote(coded, safe=""), quote_plus(char), f"&#{ord(char)};", f"&#x{ord(char):x};"}
        out.append(f"(?:{'|'.join(re.escape(w) for w in sorted(ways, key=lambda w: -len(w)))})")
    return tuple(out)


@lru_cache(maxsize=256)
def _spellings(secret: str) -> re.Pattern[str]:
    raw = secret.encode("utf-8", "replace")
    spelled = f"(?:{''.join(_characters(secret))}|{re.escape(secret[::-1])})"
    if len(secret) < _LONG:  # as a word, also within an address
        spelled = rf"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{{2}})){spelled}(?![A-Za-z0-9])"
    texts = {raw.hex(), unquote(secret) if len(secret) >= _LONG else ""}
    for shift in range(3):  # within the base64 of a longer text the bytes may begin at any of three places
        coded = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
        inner = coded[-(-shift * 8 // 6) : len(coded) - (1 if (shift + len(raw)) % 3 else 0)]
        texts |= {t for t in (inner, inner.replace("+", "-").replace("/", "_")) if len(inner) >= _SHORTEST_CODE}
    plain = [re.escape(t) for t in sorted(texts, key=lambda t: -len(t)) if len(t) >= _SHORTEST_CODE]
    return re.compile("|".join([spelled, *plain]), re.I)


def split_userinfo(text: str) -> tuple[str, tuple[str, str] | None]:
    """``text`` without the ``user:password@`` of the address in it, and that pair; None where there is none."""
    found = _USERINFO.search(text)
    if not found:
        return text, None
    user, _, password = found.group()[:-1].partition(":")
    return text[: found.start()] + text[found.end() :], (unquote(user), unquote(password))


def split_query(url: str) -> tuple[str, str, str]:
    """(address without its query, the query as sent, what of the query may be written down: no secret value).

    Parameters that are known to be harmless stay as they are, secret ones are left out, and of others the name stays
    and a mark that tells two values apart.
    """
    parts = urlsplit(url)
    kept = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name.lower() in _PUBLIC_PARAMETERS:
            kept.append((name, value))
        elif not re.fullmatch(_SECRET_NAME, name, re.I):
            kept.append((name, _mark(value)))
        if name.lower() not in _PUBLIC_PARAMETERS and (len(value) >= _LONG or re.fullmatch(_SECRET_NAME, name, re.I)):
            remember(value)
    bare = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    return bare, parts.query, urlencode(kept)


def _mark(value: str) -> str:
    import hashlib

    return f"~{hashlib.blake2b(value.encode(), digest_size=4).hexdigest()}"


class RedactingFilter(logging.Filter):
    """A logging filter that redacts what passes it (the HTTP client logs addresses with their queries)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record; nothing is held back."""
        record.msg, record.args = redact(record.getMessage()), ()
        return True
