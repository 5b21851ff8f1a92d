"""SQL as text: what of an answer is the query, and when two queries are the same but for their spelling."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# an info string is a word at the end of its line, or "sql" before a query on the same line
_FENCE = re.compile(
    r"(?:```|~~~)[^\S\n]*(?P<info>sqlite\b|sql\b|(?!select\b|with\b)\w+[^\S\n]*\n)?(?P<code>.*?)(?:```|~~~|\Z)",
    re.S | re.I,
)
_TICKS = re.compile(r"`([^`]*)`")
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
      | (?P<text>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")*")
      | (?P<name>`(?:[^`]|``)*`|\[[^\][\n]*\]|[^\W\d]\w*)
      | (?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?\b|\.\d+(?:e[+-]?\d+)?\b|\w+)
      | (?P<sign><>|!=|==|<=|>=|\|\||<<|>>|->>?|[^\w\s])""",
    re.S | re.X | re.I,
)
_SIGNS = {"!=": "<>", "==": "="}
_VALUE_AFTER = {"=", "<>", "<", ">", "<=", ">=", "like", "glob", "regexp", "match", "between", "in", "is", "not"}
"""What stands before a value: a double-quoted text there is one, as SQLite and MySQL read it, and else a name."""


class SqlToken(NamedTuple):
    """``kind``: ``text`` (a quoted value), ``quoted`` (in double quotes where either may stand), or ``other``."""

    kind: str
    text: str


def bare_sql(text: str) -> str:
    """The query in an answer: what stands in the first code fence, of several in the first for SQL; else all of it.

    Backticks around the whole are left out.

    >>> bare_sql("Here it is:\\n```sql\\nSELECT 1\\n```")
    'SELECT 1'
    """
    text = unicodedata.normalize("NFC", text).strip()
    if fences := [*_FENCE.finditer(text)]:
        found = next((f for f in fences if (f["info"] or "").lower().startswith("sql")), fences[0])
        return found["code"].strip()
    ticks = _TICKS.fullmatch(text)
    return ticks[1].strip() if ticks else text


def sql_tokens(text: str) -> list[SqlToken]:
    """A query as tokens, without comments, closing semicolons and the difference between != and <>.

    Names and keywords are in lower case, whatever they are quoted in; quoted values are as they are.
    """
    tokens = list[SqlToken]()
    opened = [False]  # for each open bracket whether it holds the values of an IN or of a VALUES
    found = [m for m in _TOKEN.finditer(bare_sql(text)) if m.lastgroup != "comment"]
    for at, match in enumerate(found):
        kind, raw = match.lastgroup, match.group()
        before = tokens[-1].text if tokens and tokens[-1].kind == "other" else ""
        if kind == "text":
            tokens.append(SqlToken("text", raw[1:-1].replace("''", "'")))
        elif kind == "quoted":
            inside = raw[1:-1].replace('""', '"')
            column = before == "." or (at + 1 < len(found) and found[at + 1].group() == ".")
            value = before in _VALUE_AFTER or (opened[-1] and before in ("(", ","))
            tokens.append(
                SqlToken("other", inside.lower()) if column else SqlToken("text" if value else "quoted", inside)
            )
        elif kind == "name" and raw[0] in "`[":
            inside = raw[1:-1].replace("``", "`") if raw[0] == "`" else raw[1:-1]
            tokens.append(SqlToken("other", inside.lower()))
        else:
            if raw == "(":
                opened.append(before in ("in", "values"))
            elif raw == ")" and len(opened) > 1:
                opened.pop()
            tokens.append(SqlToken("other", _SIGNS.get(raw, raw.lower())))
    while tokens and tokens[-1] == SqlToken("other", ";"):
        tokens.pop()
    return tokens


def equal_sql(output: str, gold: str) -> float:
    """1 when both queries have the same tokens.

    White space, comments, code fences, the case of names and keywords, the quotes around names, != for <> and a closing
    semicolon make no difference; the case of values does. Double quotes hold a value after a comparison and in the list
    of an IN; elsewhere they are equal to a name and to a value.
    """
    said, true = sql_tokens(output), sql_tokens(gold)
    return float(len(said) == len(true) and all(_same(a, b) for a, b in zip(said, true, strict=True)))


def _same(a: SqlToken, b: SqlToken) -> bool:
    kinds = {a.kind, b.kind}
    if kinds == {"text"} or kinds == {"text", "quoted"}:
        return a.text == b.text
    return "text" not in kinds and a.text.lower() == b.text.lower()


def sets_order(query: str) -> bool:
    """Whether a query orders its rows: ORDER BY outside of all brackets."""
    depth, before = 0, ""
    for kind, text in sql_tokens(query):
        word = text if kind == "other" else ""
        depth += (word == "(") - (word == ")")
        if depth == 0 and (before, word) == ("order", "by"):
            return True
        before = word
    return False
