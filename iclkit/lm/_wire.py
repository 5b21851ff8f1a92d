"""What OpenAI-compatible servers answer, read into tokens and scores; and what can be told without asking them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from iclkit.errors import ModelError
from iclkit.lm._protocol import Score
from iclkit.lm._tokens import Ids
from iclkit.records import fold_text

Prompt: TypeAlias = "str | Ids"
# a space before a letter is not a piece: tokenizers join it to the word
_PIECES = re.compile(r"[A-Za-z]+|[^\S ]| +(?![A-Za-z])|[!-~]|[^\s!-~]+")


class NotOffered(ModelError):
    """The server answered, but without what was asked for."""


@dataclass(frozen=True, slots=True)
class Token:
    """A candidate for the next token, as the server names it."""

    text: bytes
    logprob: float
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """A prompt with its continuation: ids, the first ``n_context`` of them given, or a text that ends in ``rest``."""

    prompt: Prompt
    n_context: int | None
    rest: bytes

    @property
    def tokens(self) -> int:
        """How many tokens were sent; 0 when it was a text."""
        return 0 if self.n_context is None else len(self.prompt)

    def start(self, texts: Sequence[bytes]) -> int:
        """Index of the first token that is scored: the one in which the continuation begins."""
        if self.n_context is not None:
            return self.n_context
        at = len(texts)
        while at > 1 and len(b"".join(texts[at:])) < len(self.rest):
            at -= 1
        if not b"".join(texts[at:]).endswith(self.rest):
            raise NotOffered("the server's tokens do not spell the prompt, so the continuation cannot be found in it")
        return at


@dataclass(frozen=True, slots=True)
class Look:
    """What was found for one position: the token, or None and the bound that holds for it."""

    token: Token | None
    logprob: float
    best: bool


def positions_of(answer: Mapping[str, Any]) -> list[list[Token]]:
    """Per generated token its candidates, likeliest first; [] when the answer holds none. Both of OpenAI's layouts."""
    told = (answer["choices"][0] or {}).get("logprobs") or {}
    if "content" in told:  # chats, and llama.cpp everywhere
        rows = [[*(e.get("top_logprobs") or []), e] for e in told["content"] or []]
        tokens = [[Token(_bytes(t), float(t["logprob"]), t.get("id")) for t in row] for row in rows]
    else:
        tops = told.get("top_logprobs") or []
        tokens = [[Token(text.encode(), float(value)) for text, value in (top or {}).items()] for top in tops]
    return [sorted(dict.fromkeys(row), key=lambda t: -t.logprob) for row in tokens]


def _bytes(token: Mapping[str, Any]) -> bytes:
    return bytes(token["bytes"]) if token.get("bytes") else str(token["token"]).encode()


def longest_start(rest: bytes, tops: Sequence[Token]) -> Token | None:
    """The candidate that spells the most of the beginning of ``rest``; the likelier one on a tie."""
    fitting = [t for t in tops if t.text and rest.startswith(t.text)]
    return max(fitting, key=lambda t: (len(t.text), t.logprob), default=None)


def along(positions: Sequence[Sequence[Token]], rest: bytes) -> Score:
    """Score of an answer ``rest`` along the generated one: up to the first token at which the two part."""
    total, best, at = 0.0, True, 0
    for at, tops in enumerate(positions, 1):
        if at == 1:  # chats may or may not begin an answer with a space
            tops = [replace(t, text=t.text.lstrip()) for t in tops]
        token = longest_start(rest, tops)
        total += token.logprob if token else tops[-1].logprob
        best = best and token is not None and token.logprob >= tops[0].logprob
        rest = rest[len(token.text) :] if token else b""
        if not rest or not best:
            break
    return Score(total, at, best)


def likeness(answer: str, label: str) -> float:
    """How well a generated answer names a label: a rank below 0, the higher the better, no probability.

    Above -1 when the answer begins with the label (a longer label ranks higher), -10 to -11 when it names the label
    later (the earlier the higher), -50 to -100 by similarity of spelling otherwise. Case and punctuation are ignored.
    """
    said, wanted = fold_text(answer), fold_text(label)
    if wanted and f"{said} ".startswith(f"{wanted} "):
        return -1 / (1 + len(wanted))
    if wanted and (at := f" {said} ".find(f" {wanted} ")) >= 0:
        return -10 - at / (1 + len(said))
    return -100 + 50 * difflib.SequenceMatcher(None, said[: 2 * len(wanted)], wanted, autojunk=False).ratio()


def estimate_tokens(text: str) -> int:
    """An estimate on the high side: one per digit, sign, white space and 3 letters of a word, 2 per other character."""
    return 4 + sum(
        2 * len(p) if not p.isascii() else -(-len(p) // 3) if p.isalpha() else 1 for p in _PIECES.findall(text)
    )
