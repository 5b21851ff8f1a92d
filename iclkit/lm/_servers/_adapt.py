"""What servers refuse of a request although it is OpenAI's, and the same request without it.

A refusal that names a parameter is answered by one other try per change; what made the server answer is remembered by
the caller, so each costs one request in all. Nothing here decides that a server is of a certain make.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

LIMIT, TEMPERATURE, BLANK_STOPS, STOPS, SEED, TOP_P, SYSTEM, THOUGHTS = CHANGES = (
    "limit",
    "temperature",
    "blank stops",
    "stops",
    "seed",
    "top_p",
    "system",
    "thoughts",
)
"""The changes in the order in which they are tried."""
NOTES: Mapping[str, str] = {
    TEMPERATURE: "the server takes no temperature, so its answers are not greedy: another run may get others",
    SEED: "the server takes no seed, so sampled answers differ from run to run",
    SYSTEM: "the model takes no system role: the system text stands in the first user turn",
    THOUGHTS: "the model thinks before it answers; its thoughts are not part of the answer, and up to {thought_tokens} "
    "tokens more are allowed for them (setting: thought_tokens)",
}
_NAMED = {
    TEMPERATURE: re.compile(r"temperature"),
    STOPS: re.compile(r"\bstops?\b|stop[ _]?sequence|stop_?token"),
    SEED: re.compile(r"\bseed\b"),
    TOP_P: re.compile(r"\btop_?p\b"),
    SYSTEM: re.compile(r"system|\broles?\b|alternate"),
    LIMIT: re.compile(
        r"max_completion_tokens|max_tokens\W.*(?:not (?:supported|permitted|allowed)|unsupported|deprecated|unknown)|"
        r"(?:unsupported|unknown|unrecognized|unexpected|extra)\b.*max_tokens"
    ),
    THOUGHTS: re.compile(
        r"higher max_tokens|output limit|max_(?:completion_|output_)?tokens.*(?:at least|minimum|greater)"
    ),
}
MOST_STOPS = 4  # OpenAI takes four; the others are cut by the caller


def change_for(reason: str, parameter: str, body: Mapping[str, Any], tried: Collection[str]) -> str | None:
    """The next change to try after a refusal with these words, None where nothing that is sent is named in it."""
    refusal = f"{parameter} {reason}".lower()
    for change in CHANGES:
        if change not in tried and _applies(change, body) and _pattern(change).search(refusal):
            return change
    return None


def _pattern(change: str) -> re.Pattern[str]:
    return _NAMED[STOPS if change == BLANK_STOPS else change]


def _applies(change: str, body: Mapping[str, Any]) -> bool:
    stops = body.get("stop") or []
    if change == SYSTEM:
        return any(m["role"] == "system" for m in body.get("messages") or [])
    if change == BLANK_STOPS:
        return any(not s.strip() for s in stops)
    sent = {LIMIT: "max_tokens", THOUGHTS: "max_tokens", STOPS: "stop"}.get(change, change)
    return sent in body


def adapted(body: Mapping[str, Any], changes: Collection[str], thought_tokens: int) -> dict[str, Any]:
    """The request body with these changes made. ``max_tokens`` and ``stop`` are as OpenAI first called them."""
    out = {k: v for k, v in body.items() if k not in changes}
    if "stop" in out:
        kept = [] if STOPS in changes else [s for s in out["stop"] if BLANK_STOPS not in changes or s.strip()]
        out["stop"] = kept[:MOST_STOPS]
        if not kept:
            del out["stop"]
    if THOUGHTS in changes and "max_tokens" in out:
        out["max_tokens"] += thought_tokens
    if LIMIT in changes and "max_tokens" in out:
        out["max_completion_tokens"] = out.pop("max_tokens")  # what OpenAI's newer models call it
    if SYSTEM in changes and "messages" in out:
        out["messages"] = without_system(out["messages"])
    return out


def without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The chat with its system text at the beginning of the first user turn."""
    said = [t["content"] for t in turns if t["role"] == "system"]
    rest = [t for t in turns if t["role"] != "system"]
    at = next((i for i, t in enumerate(rest) if t["role"] == "user"), None)
    if at is None:
        return [{"role": "user", "content": "\n\n".join(said)}, *rest]
    first = {**rest[at], "content": "\n\n".join([*said, rest[at]["content"]])}
    return [*rest[:at], first, *rest[at + 1 :]]
