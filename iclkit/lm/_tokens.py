"""Text to token ids, and the one definition of the boundary between a context and its continuation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iclkit.errors import ModelError, RequestError, UsageError
from iclkit.lm._lines import line_tokenizer
from iclkit.models import first_words
from iclkit.records import Message, without_system

TokenIds = tuple[int, ...]
_COUNTED = 256  # texts that were counted and may be encoded next: more than a batch of prompts


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Token ids of a request: ``ids`` of the whole text, of which the first ``n_context`` are given, not scored."""

    ids: TokenIds
    n_context: int


class PromptTokenizer:
    """A tokenizer with the rules that make a score well defined.

    - The whole text is tokenised jointly, as the evaluation harness of EleutherAI does: white space at the end of the
      context belongs to the continuation, and the continuation is what follows the context's own tokens.
    - The end of a rendered chat is the template's own and stays in the context, white space and all: the newline behind
      "assistant" is no part of the answer.
    - Where a token spans the boundary (the context's tokens are no prefix of the whole's), the longest common prefix is
      the context, so the spanning token is scored whole rather than cut.
    - The tokens that the tokenizer puts in front (BOS) are put there once: a chat rendering that already starts with
      them keeps its own. Nothing is put behind. With an empty context and no BOS, the end-of-text token stands first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._lines = line_tokenizer(tokenizer)
        plain = self._plain(["a"])[0]
        full = tuple(tokenizer("a")["input_ids"])
        at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        self.prefix: TokenIds = full[:at]
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.start: TokenIds = self.prefix or (() if start is None else (start,))
        self.eos: int | None = tokenizer.eos_token_id
        self._chat = ChatTemplate(tokenizer)
        self._counted: dict[str, TokenIds] = {}  # prompts are counted when they are made, and encoded when asked

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that a tokenizer of this kind may be read from, beside those that all kinds share."""
        return tuple(getattr(self.tokenizer, "vocab_files_names", {}).values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how texts are read."""
        return self._chat.notes

    def _plain(self, texts: Sequence[str]) -> list[TokenIds]:
        if not texts:
            return []
        if self._lines:
            return self._lines.encode(texts)
        return [tuple(ids) for ids in self.tokenizer([*texts], add_special_tokens=False)["input_ids"]]

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text with the special tokens in front, once."""
        known = {text: ids for text in texts if (ids := self._counted.get(text)) is not None}
        new = [text for text in texts if text not in known]
        encoded = iter(self._with_prefix(self._plain(new)))
        return [known[text] if text in known else next(encoded) for text in texts]

    def _with_prefix(self, rows: Sequence[TokenIds]) -> list[TokenIds]:
        n = len(self.prefix)
        return [ids if n and ids[:n] == self.prefix else self.prefix + ids for ids in rows]

    def _wholes(self, split: Sequence[tuple[str, str]]) -> dict[tuple[str, str], TokenIds]:
        """Token ids of context and continuation as one text."""
        tails: dict[str, dict[str, None]] = {}
        for context, continuation in split:
            tails.setdefault(context, {})[continuation] = None
        if self._lines is not None:
            found = self._lines.encode_behind(tails)
            return dict(zip(found, self._with_prefix([*found.values()]), strict=True))
        keys = [(context, tail) for context, its_tails in tails.items() for tail in its_tails]
        return dict(zip(keys, self.encode([c + t for c, t in keys]), strict=True))

    def count(self, text: str) -> int:
        """Number of tokens of ``encode``, which finds the last texts that were counted encoded already."""
        (ids,) = self.encode([text])
        if len(self._counted) >= _COUNTED:
            self._counted.clear()
        self._counted[text] = ids
        return len(ids)

    def pairs(self, requests: Sequence[tuple[str, str]]) -> list[TokenPair]:
        """(context, continuation) -> Pair. RequestError for a continuation without any token."""
        split = []
        for context, continuation in requests:
            kept = context if self._chat.ends(context) else context.rstrip()
            split.append((kept, context[len(kept) :] + continuation))
        contexts = list(dict.fromkeys(c for c, _ in split))
        of_context = dict(zip(contexts, self.encode(contexts), strict=True))
        of_whole = self._wholes(split)
        out = []
        for i, (context, continuation) in enumerate(split):
            whole, head = of_whole[context, continuation], of_context[context]
            n = len(head)
            if whole == head:
                raise RequestError(i, f"the continuation {continuation!r} has no token of its own; give it some text")
            if whole[:n] != head:
                same = next(n for n, (a, b) in enumerate(zip((*whole, -1), head, strict=False)) if a != b)
                n = min(same, len(whole) - 1)
            if n == 0:
                if not self.start:
                    raise RequestError(
                        i, "an empty context needs a tokenizer with a BOS or EOS token; give some context"
                    )
                whole, n = self.start + whole, len(self.start)
            out.append(TokenPair(whole, n))
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode([*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's answer begins.

        UsageError without a chat template, ModelError for one that fails.
        """
        return self._chat.render(messages)


_PROBE = "iclkit-probe"


class ChatTemplate:
    """A tokenizer's chat template, tried out once: how a rendering ends, and whether it shows a system message."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._takes_system = True
        self.notes: tuple[str, ...] = ()
        self._tails: tuple[str, ...] = ()
        if not getattr(tokenizer, "chat_template", None):
            return
        user = [Message("user", _PROBE)]
        try:
            plain = self._apply(user)
            tails = {plain.rpartition(_PROBE)[2], plain.removeprefix(self._apply(user, opening=False))}
        except ModelError:
            return  # said when a chat is asked for; plain prompts need no template
        # only white space that markup stands before: any plain prompt may end in a bare newline
        self._tails = tuple(t for t in tails if t.strip() and t != t.rstrip() and _PROBE not in t)
        try:
            self._takes_system = "iclkit-system" in self._apply([Message("system", "iclkit-system"), *user])
        except ModelError:
            self._takes_system = False
        if not self._takes_system:
            self.notes = ("the chat template takes no system message: its text is put before the first user message",)

    def ends(self, text: str) -> bool:
        """Whether ``text`` ends as a rendered chat does, in white space that belongs to the template."""
        return text.endswith(self._tails)

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as text. UsageError without a template, ModelError for one that fails."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise UsageError("this model has no chat template; use a plain-text prompt template")
        return self._apply(messages if self._takes_system else without_system(messages))

    def _apply(self, messages: Sequence[Message], *, opening: bool = True) -> str:
        turns = [m.as_dict() for m in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opening))
        except Exception as error:  # a template is a foreign program, and raises what it likes
            raise ModelError(
                f"this model's chat template fails ({first_words(error)}); use a plain-text prompt template"
            ) from error
