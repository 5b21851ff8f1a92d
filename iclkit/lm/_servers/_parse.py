"""What OpenAI-compatible servers answer, read into tokens and scores; and what is known without asking them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from iclkit.errors import ModelError
from iclkit.lm._servers._http import broke_off
from iclkit.lm._tokens import TokenIds
from iclkit.records import Score, fold_text

Prompt: TypeAlias = "str | TokenIds"
# a space before a letter is not a piece: tokenizers join it to the word
_PIECES = re.compile(r"[A-Za-z]+|[^\S ]| +(?![A-Za-z])|[!-~]|[^\s!-~]+")


class NotSupported(ModelError):
    """The server answered, but without what was asked for."""


@dataclass(frozen=True, slots=True)
class TokenCandidate:
    """A candidate for the next token, as the server names it."""

    text: bytes
    logprob: float
    id: int | None = None


@dataclass(frozen=True, slots=True)
class ServerPrompt:
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
            raise NotSupported("the server's tokens do not spell the prompt, so the continuation cannot be found in it")
        return at


@dataclass(frozen=True, slots=True)
class NextToken:
    """Log-probabilities of the ids that were asked about as the next token; ``best``: of the likeliest of all."""

    logprobs: Mapping[int, float]
    best: float


@dataclass(frozen=True, slots=True)
class PositionScore:
    """What was found for one position: the token, or None and the bound that holds for it."""

    token: TokenCandidate | None
    logprob: float
    best: bool


@dataclass(frozen=True, slots=True)
class Position:
    """A token of an answer: the candidates that the server gave for it, likeliest first, and the one it wrote."""

    tops: tuple[TokenCandidate, ...]
    said: bytes

    @property
    def bound(self) -> float:
        """Upper bound of a token that was not given, in nats: the last one given, and what all of them leave."""
        left = max(0.0, 1.0 - math.fsum(math.exp(t.logprob) for t in self.tops)) + _LEFT
        return min(self.tops[-1].logprob, math.log(left)) - _BELOW


_BELOW = 1e-6
"""Nats by which a token that was not given ranks behind the last one that was: it does not win a tie."""
_LEFT = 1e-4
"""Probability that rounding to four places may hide."""
_PLACEHOLDER = -5000.0
"""Servers write -9999 and the like for "not known" or "impossible"; no softmax in float32 gives a number below this."""
_ROUNDING = 1e-3
"""How far above 0 rounding may bring a log-probability, and above 1 a sum of probabilities."""


def logprob_of(value: object, field: str) -> float:
    """A log-probability as a server wrote it. ModelError, naming field and value, for what can be none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{field} is {_shown(value)}, which is not a log-probability")
    if not _PLACEHOLDER < value <= _ROUNDING:  # NaN too
        raise ModelError(f"{field} is {value:g}, which is not a log-probability")
    return min(float(value), 0.0)


def count_of(value: object) -> int | None:
    """A number of tokens as a server wrote it, None where it wrote none that can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def only_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one choice of an answer to one prompt. ValueError for another number of them or another place."""
    choices = answer["choices"]
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        count = len(choices) if isinstance(choices, list) else _shown(choices)
        raise ValueError(f"one choice was asked for, choices are {count}")
    if choices[0].get("index", 0) not in (0, None):
        raise ValueError(f"the choice has index {_shown(choices[0]['index'])}")
    if broke_off(choices[0]):  # in the file of a batch; elsewhere it does not come so far
        raise NotSupported("the answer broke off")
    return choices[0]


def token_candidates(answer: Mapping[str, Any]) -> list[Position]:
    """Per generated token what was given; [] when the answer has no log-probabilities. Both of OpenAI's layouts.

    Candidates whose value is a placeholder ("not known", "impossible") are left out. ModelError for a value that is no
    log-probability, and for candidates that are likelier than 1 together; NotSupported where all are placeholders.
    """
    logprobs = only_choice(answer).get("logprobs") or {}
    if "content" in logprobs:  # chats, and llama.cpp everywhere
        entries = logprobs["content"] or []
        rows = [[*(e.get("top_logprobs") or []), e] for e in entries]
        tokens = [[(_bytes(t), t["logprob"], t.get("id")) for t in row] for row in rows]
        written = [_bytes(e) for e in entries]
    else:
        tops = logprobs.get("top_logprobs") or []
        listed = logprobs.get("tokens") or []
        spelt = speller([*listed, *(text for top in tops for text in top or {})])
        tokens = [[(spelt(text), value, None) for text, value in (top or {}).items()] for top in tops]
        written = [spelt(t) for t in listed] if len(listed) == len(tops) else []
    out = []
    for i, row in enumerate(tokens):
        known = [
            TokenCandidate(text, logprob_of(v, "top_logprobs"), id_) for text, v, id_ in row if not _is_placeholder(v)
        ]
        if row and not known:
            raise NotSupported("the server gives placeholders in the place of log-probabilities")
        best = sorted(dict.fromkeys(known), key=lambda t: -t.logprob)
        together = math.fsum(math.exp(v) for v in {t.text: t.logprob for t in reversed(best)}.values())
        if together > 1.05:  # values may be rounded to two or three places
            raise ModelError(
                f"the candidates in top_logprobs have a probability of {together:.3g} together: they are no "
                "log-probabilities"
            )
        out.append(Position(tuple(best), written[i] if written else (best[0].text if best else b"")))
    return out


_NAMED_ID = re.compile(r"token_id:(\d+)")


def next_tokens(answer: Mapping[str, Any], count: int) -> list[NextToken]:
    """What each of ``count`` prompts has for its next token, by id, of a server that was asked to name tokens so.

    NotSupported where there are none. ModelError for a value that is no log-probability. KeyError, TypeError or
    ValueError for an answer of another shape.
    """
    choices = answer["choices"]
    if len(choices) != count:
        raise NotSupported(f"{count} prompts were sent and {len(choices)} answers came")
    if count > 1:  # which answer is whose has to be said
        if sorted(c.get("index", -1) for c in choices) != [*range(count)]:
            raise NotSupported("the answers to several prompts are not numbered")
        choices = sorted(choices, key=lambda c: c["index"])
    out = []
    for choice in choices:
        tops = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
        found = {int(m[1]): v for text, v in (tops[0] or {}).items() if (m := _NAMED_ID.fullmatch(text))}
        known = {id_: logprob_of(v, "top_logprobs") for id_, v in found.items() if not _is_placeholder(v)}
        if not known:
            raise NotSupported("tokens are not named by their ids")
        out.append(_next_token(known))
    return out


def _next_token(known: Mapping[int, float]) -> NextToken:
    together = math.fsum(map(math.exp, known.values()))
    if together > 1.05:
        raise ModelError(f"the tokens asked about have a probability of {together:.3g} together: no log-probabilities")
    return NextToken(known, max(known.values()))


def native_next_tokens(items: Sequence[Mapping[str, Any]]) -> list[NextToken]:
    """The same of SGLang's /generate. Errors as ``next_tokens``."""
    out = []
    for item in items:
        meta = item["meta_info"]
        rows = [*(meta.get("output_token_ids_logprobs") or [[]])[0], *(meta.get("output_token_logprobs") or [])[:1]]
        known = {int(row[1]): logprob_of(row[0], "output_token_ids_logprobs") for row in rows}
        if not known:
            raise NotSupported("no log-probabilities of the tokens asked about")
        out.append(_next_token(known))
    return out


def scored_next_tokens(answer: Mapping[str, Any], ids: Sequence[int], count: int) -> list[NextToken]:
    """The same of SGLang's /score, which tells of the ids asked about alone: whether one of them is the likeliest of
    all is known where it is likelier than not. Errors as ``next_tokens``.
    """
    told = answer.get("token_logprobs")
    rows = told or [[math.log(p) if p else _PLACEHOLDER for p in row] for row in answer["scores"]]
    if len(rows) != count:
        raise NotSupported(f"{count} prompts were sent and {len(rows)} answers came")
    out = []
    for row in rows:
        known = {
            id_: logprob_of(v, "token_logprobs") for id_, v in zip(ids, row, strict=True) if not _is_placeholder(v)
        }
        found = _next_token(known) if known else NextToken({}, 0.0)
        out.append(replace(found, best=found.best if found.best > math.log(0.5) else 0.0))
    return out


def native_scores(items: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[int]]) -> list[Score]:
    """Scores of the last tokens of each prompt, from SGLang's log-probabilities of input. Errors as ``next_tokens``."""
    out = []
    for item, ids in zip(items, wanted, strict=True):
        meta = item["meta_info"]
        rows = (meta.get("input_token_logprobs") or [])[-len(ids) :]
        if [row[1] for row in rows] != [*ids]:
            raise NotSupported("the log-probabilities are those of other tokens")
        values = [logprob_of(row[0], "input_token_logprobs") for row in rows]
        tops = (meta.get("input_top_logprobs") or [])[-len(ids) :]
        best = [max((logprob_of(top[0], "input_top_logprobs") for top in row or []), default=0.0) for row in tops]
        greedy = len(best) == len(values) and all(v >= b for v, b in zip(values, best, strict=True))
        out.append(Score(float(sum(values)), len(values), greedy))
    return out


def _is_placeholder(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and value <= _PLACEHOLDER


def _bytes(token: Mapping[str, Any]) -> bytes:
    return bytes(token["bytes"]) if token.get("bytes") else _utf8(token["token"])


def _bytes_of_signs() -> dict[str, int]:
    """The bytes that byte-level vocabularies write as other signs (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _bytes_of_signs()
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def speller(tokens: Sequence[str]) -> Callable[[str], bytes]:
    """How the tokens of an answer are spelt: as text, or as they stand in a vocabulary (``Ġword``, ``▁word``).

    >>> speller([" is", "Ġ"])("Ġis").decode(), speller(["Ġis"])("Ġis"), speller(["▁is"])("▁is")
    ('Ġis', b' is', b' is')
    """
    if any(" " in token for token in tokens):
        return _utf8
    if any(token.startswith("Ġ") for token in tokens):
        return lambda token: (
            bytes(_BYTE_OF[sign] for sign in token) if all(sign in _BYTE_OF for sign in token) else _utf8(token)
        )
    if any(token.startswith("▁") for token in tokens):
        return lambda token: (
            bytes([int(m[1], 16)]) if (m := _BYTE_NAME.fullmatch(token)) else _utf8(token.replace("▁", " "))
        )
    return _utf8


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def longest_prefix_token(rest: bytes, tops: Sequence[TokenCandidate]) -> TokenCandidate | None:
    """The candidate that spells the most of the beginning of ``rest``; the likelier one on a tie."""
    fitting = [t for t in tops if t.text and rest.startswith(t.text)]
    return max(fitting, key=lambda t: (len(t.text), t.logprob), default=None)


def score_along(positions: Sequence[Position], rest: bytes) -> tuple[Score, bool]:
    """Score of an answer ``rest`` along the generated one: up to the first token at which the two part.

    Also whether every token of it was given; where not, the score is a bound that holds for it.
    """
    total, best, at, known = 0.0, True, 0, True
    for at, position in enumerate(positions, 1):
        tops = list(position.tops)
        if at == 1:  # chats may or may not begin an answer with a space
            tops = [replace(t, text=t.text.lstrip()) for t in tops]
        token = longest_prefix_token(rest, tops)
        total += token.logprob if token else position.bound
        known = known and token is not None
        best = best and token is not None and token.logprob >= tops[0].logprob
        rest = rest[len(token.text) :] if token else b""
        if not rest or not best:
            break
    return Score(total, at, best), known


def after_thought(positions: Sequence[Position], answer: str) -> list[Position]:
    """The tokens that spell ``answer``, which stands at the end of what was written; [] where they are not found."""
    wanted, rest = _utf8(answer.strip()), b""
    for at in range(len(positions) - 1, -1, -1):
        rest = positions[at].said + rest
        if len(rest) >= len(wanted) and rest.lstrip().startswith(wanted):
            return [*positions[at:]]
    return []


# -- what a model writes around its answer -----------------------------------------------------------------------------

_THOUGHT_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
_DECLINED = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,})[^\n`~]*(?:\n|\Z)")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server wrote: the ``text`` after its thoughts, and how it came to its end.

    ``thought``: it thought first. ``open``: its thoughts were cut before the answer began. ``refused``: a filter or the
    model itself declined. ``finish`` is the server's word.
    """

    text: str
    finish: str
    tokens: int | None
    thought: bool = False
    open: bool = False
    refused: bool = False
    unopened: bool = False
    """The thoughts ended without having begun."""

    @property
    def only_fence(self) -> bool:
        """Whether nothing but the opening of a code fence was written."""
        fence = _FENCE.match(self.text)
        return fence is not None and fence.end() == len(self.text)


def read_reply(answer: Mapping[str, Any], within: bool = False) -> Reply:
    """The one choice of an answer as text. Raises KeyError, TypeError or ValueError where it is none.

    ``within``: the model begins inside its thoughts (the template has written their opening into the prompt).
    """
    choice = only_choice(answer)
    finish = str(choice.get("finish_reason") or "")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    tokens = count_of(usage.get("completion_tokens"))
    refused = finish.lower() in _DECLINED
    if refused:  # some give no text at all then
        return Reply("", finish, tokens, refused=True)
    if "message" not in choice:
        text, beside = _text(choice["text"]), False
    else:
        message = choice["message"]
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        text = "".join(map(_part_text, parts))
        refused = refused or bool(message.get("refusal")) or any(_kind(p) == "refusal" for p in parts)
        details = usage.get("completion_tokens_details")
        hidden = count_of(details.get("reasoning_tokens")) if isinstance(details, Mapping) else None
        beside = bool(message.get("reasoning_content") or message.get("reasoning") or hidden) or any(
            _kind(p) in ("thinking", "reasoning") for p in parts
        )
        # a limit that leaves no answer at all was used up by thoughts, shown or not
        beside = beside or (finish == "length" and not text.strip() and hidden is None)
    if refused:
        return Reply("", finish, tokens, beside, refused=True)
    visible, inside, cut = split_thought(text)
    cut = cut or (beside and not visible.strip()) or (within and not inside)
    unopened = inside and not cut and not any(text.lstrip().startswith(opening) for opening, _ in _THOUGHT_TAGS)
    return Reply("" if cut else visible, finish, tokens, inside or beside or within, cut, unopened=unopened)


def split_thought(text: str) -> tuple[str, bool, bool]:
    """(what follows the thoughts, whether there were any, whether they are cut short).

    >>> split_thought("<think>or late?</think>\\n\\nlogin"), split_thought("<think>or"), split_thought("login")
    (('login', True, False), ('', True, True), ('login', False, False))
    """
    start = text.lstrip()
    for opening, closing in _THOUGHT_TAGS:
        if start.startswith(opening) or closing in text:  # a template may have written the opening into the prompt
            _, closed, after = text.rpartition(closing)
            return after.lstrip() if closed else "", True, not closed
        if start and len(start) < len(opening) and opening.startswith(start) and len(start) > 2:
            return "", True, True
    return text, False, False


def unfenced(text: str, stops: Iterable[str]) -> str | None:
    """The inside of a code fence where a stop string would leave no more of it than its opening; else None.

    >>> unfenced("```sql\\nselect 1\\n```", ["\\n"]), unfenced("```\\na\\n```", ["END"])
    ('select 1', None)
    """
    fence = _FENCE.match(text)
    if not fence or not any(0 <= text.find(s) < fence.end() for s in stops if s):
        return None
    return text[fence.end() :].partition("\n" + fence["mark"])[0].removesuffix(fence["mark"])


def _part_text(part: object) -> str:
    if part is None or isinstance(part, str):
        return _text(part)
    if not isinstance(part, Mapping):
        raise TypeError(f"a part of content is {_shown(part)}")
    return _text(part.get("text")) if _kind(part) in ("text", "output_text", "") else ""


def _kind(part: object) -> str:
    return str(part.get("type") or "") if isinstance(part, Mapping) else ""


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"the text of an answer is {_shown(value)}")
    return _LONE_SURROGATES.sub("\ufffd", value)


_SIMILAR = 0.6  # what difflib takes for close, too


def label_similarity(answer: str, label: str) -> float:
    """How well a generated answer names a label: a rank below 0, the higher the better, no probability.

    Above -1 when the answer begins with the label (a longer label ranks higher), -10 to -11 when it names the label
    later (the earlier the higher), -50 to -70 by similarity of spelling otherwise, and -100 where there is little of
    that: such an answer, or none, is no answer to any label. Case and punctuation are ignored.
    """
    said, wanted = fold_text(answer), fold_text(label)
    if wanted and f"{said} ".startswith(f"{wanted} "):
        return -1 / (1 + len(wanted))
    if wanted and (at := f" {said} ".find(f" {wanted} ")) >= 0:
        return -10 - at / (1 + len(said))
    ratio = difflib.SequenceMatcher(None, said[: 2 * len(wanted)], wanted, autojunk=False).ratio()
    return -100 + 50 * ratio if ratio >= _SIMILAR else -100.0


def estimate_tokens(text: str) -> int:
    """An estimate on the high side: one per digit, sign, white space and 3 letters of a word, 2 per other character."""
    return 4 + sum(
        2 * len(p) if not p.isascii() else -(-len(p) // 3) if p.isalpha() else 1 for p in _PIECES.findall(text)
    )
