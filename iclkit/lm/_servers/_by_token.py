"""Ways of scoring by the log-probabilities of tokens, on servers that complete texts or token ids."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from iclkit.lm._servers._capabilities import AGREES, WIDTHS
from iclkit.lm._servers._http import HttpError, RequestRejected
from iclkit.lm._servers._model import PROBE, UNSUPPORTED_STATUSES, Unanswered, usage_of
from iclkit.lm._servers._parse import (
    NextToken,
    NotSupported,
    Position,
    PositionScore,
    Prompt,
    ServerPrompt,
    TokenCandidate,
    logprob_of,
    longest_prefix_token,
    native_next_tokens,
    native_scores,
    next_tokens,
    only_choice,
    scored_next_tokens,
    speller,
)
from iclkit.lm._servers._trie import Trie
from iclkit.lm._servers._way import Way
from iclkit.lm._tokens import TokenIds, TokenPair
from iclkit.records import Score

MOST_IDS = 128
"""Ids whose log-probabilities may be asked for at once (vLLM's limit)."""
MOST_PROMPTS = 64
"""Prompts in one request; vLLM takes 1,024, and so many answers would come in one long piece."""
_UNLIKELY = "~ zyx"


class TrieWay(Way):
    """Scores as sums over next-token distributions, one prompt for each beginning that the labels share."""

    per_token = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.whole: Way | None = None
        """The way for continuations that cost less when they are read whole."""

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """Sums over the trie of the continuations, or whole where that is less to read."""
        pairs = self.server.pairs(context, continuations)
        trie = Trie.of(pairs)
        if self.whole is not None and trie.plain_cost < trie.cost:
            return self.whole.scores(context, continuations)
        told: dict[TokenIds, dict[int, float]] = {}
        best: dict[TokenIds, float] = {}
        for prompts, ids in trie.calls(MOST_IDS, MOST_PROMPTS):
            for prompt, next_ in zip(prompts, self.next(prompts, ids), strict=True):
                told.setdefault(prompt, {}).update(next_.logprobs)
                best[prompt] = max(best.get(prompt, next_.best), next_.best)
        try:
            return trie.scores({prompt: NextToken(told[prompt], best[prompt]) for prompt in told})
        except KeyError as error:
            raise Unanswered(
                f"{self.server} gave no log-probability for a token that was asked about (token {error})"
            ) from None

    @abstractmethod
    def next(self, prompts: Sequence[TokenIds], ids: Sequence[int]) -> list[NextToken]:
        """The log-probabilities of these ids as the next token of each prompt."""

    def find(self) -> None:
        """Two ids that nobody would guess have to come back: servers leave out unknown parameters without a word."""
        server = self.server
        if server.codec is None:
            raise NotSupported(f"{server} does not take token ids")
        with server.tokenizing:
            prompt = server.codec.encode([PROBE])[0]
            unlikely = [*dict.fromkeys(server.codec.encode([_UNLIKELY])[0])]
        alone = self.next([prompt], unlikely)
        self._expect(alone, unlikely)
        try:
            together = self.next([prompt[:-1], prompt], unlikely)
            self._expect(together, unlikely)
            server.found(lists=all(abs(together[1].logprobs[i] - alone[0].logprobs[i]) <= AGREES for i in unlikely))
        except (HttpError, NotSupported) as error:
            if isinstance(error, HttpError) and error.status not in UNSUPPORTED_STATUSES:
                raise

    def _expect(self, told: Sequence[NextToken], ids: Sequence[int]) -> None:
        if not all(one.logprobs.keys() >= {*ids} for one in told):
            raise NotSupported(f"{self.server} does not give the log-probabilities of given tokens")

    def _parts(self, prompts: Sequence[TokenIds]) -> list[Sequence[TokenIds]]:
        """The prompts of each request: all, or one by one where the server takes no lists."""
        return [prompts] if self.server.can.lists or not self.server.can.scoring else [[p] for p in prompts]


class TokenIdsWay(TrieWay):
    """vLLM's ``logprob_token_ids``: exact over the whole vocabulary, and its prefix cache is used."""

    name = "token-ids"

    def next(self, prompts: Sequence[TokenIds], ids: Sequence[int]) -> list[NextToken]:
        """As ``TrieWay.next``."""
        out: list[NextToken] = []
        for part in self._parts(prompts):
            body = {
                "model": self.server.name,
                "prompt": [[*p] for p in part] if len(part) > 1 else [*part[0]],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 1,
                "logprob_token_ids": [*ids],
                "return_tokens_as_token_ids": True,
                "add_special_tokens": False,
            }
            answer = self.server.send("/completions", body, look=True)
            with self.server.expected_shape(), self.server.useful():
                out += next_tokens(answer, len(part))
        return out


class NativeWay(TrieWay):
    """SGLang's own /generate: next tokens for labels of one token, else their own rows behind a cached context."""

    name = "native"

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """The rows of the continuation alone are computed; the context is read once."""
        pairs = self.server.pairs(context, continuations)
        if all(len(p.ids) == p.n_context + 1 for p in pairs) and len({p.ids[:-1] for p in pairs}) == 1:
            return super().scores(context, continuations)
        return [*self._read(pairs[:1]), *(self._read(pairs[1:]) if pairs[1:] else [])]  # the first fills the cache

    def _read(self, pairs: Sequence[TokenPair]) -> list[Score]:
        out = []
        for at in range(0, len(pairs), MOST_PROMPTS):
            part = pairs[at : at + MOST_PROMPTS]
            starts = [p.n_context - 1 for p in part]
            items = self._ask([p.ids for p in part], 0, logprob_start_len=starts, top_logprobs_num=1)
            with self.server.expected_shape(), self.server.useful():
                out += native_scores(items, [p.ids[p.n_context :] for p in part])
        return out

    def next(self, prompts: Sequence[TokenIds], ids: Sequence[int]) -> list[NextToken]:
        """As ``TrieWay.next``."""
        items = self._ask(prompts, 1, logprob_start_len=-1, token_ids_logprob=[[*ids]] * len(prompts))
        with self.server.expected_shape(), self.server.useful():
            return native_next_tokens(items)

    def _ask(self, prompts: Sequence[TokenIds], max_new_tokens: int, **body: Any) -> list[Any]:
        sampling = {"max_new_tokens": max_new_tokens, "temperature": 0}
        body |= {"input_ids": [[*p] for p in prompts], "sampling_params": sampling, "return_logprob": True}
        answer = self.server.send("/generate", body, root=self.server.root, answers="items")
        items: list[Any] = answer["items"]
        if len(items) != len(prompts):
            raise NotSupported(f"{len(prompts)} prompts were sent and {len(items)} answers came")
        return items


class ScoreWay(TrieWay):
    """SGLang's /score: next tokens of given ids, where its own /generate cannot be reached."""

    name = "score"

    def next(self, prompts: Sequence[TokenIds], ids: Sequence[int]) -> list[NextToken]:
        """As ``TrieWay.next``."""
        out: list[NextToken] = []
        for part in self._parts(prompts):
            body = {
                "model": self.server.name,
                "query": [],
                "items": [[*p] for p in part],
                "label_token_ids": [*ids],
                "apply_softmax": False,
                "return_token_logprobs": True,
            }
            answer = self.server.send("/score", body, look=True, answers="scores")
            with self.server.expected_shape(), self.server.useful():
                out += scored_next_tokens(answer, ids, len(part))
        return out


class _WholeWay(Way):
    """Ways that send a whole text and read the log-probabilities of its end."""

    one_by_one = True

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """A request per continuation."""
        return [self.read(whole) for whole in self._wholes(context, continuations)]

    @abstractmethod
    def read(self, whole: ServerPrompt) -> Score:
        """The score of one prompt."""

    def _wholes(self, context: str, continuations: Sequence[str]) -> list[ServerPrompt]:
        if self.server.codec:
            return [ServerPrompt(pair.ids, pair.n_context, b"") for pair in self.server.pairs(context, continuations)]
        # white space at the end of a context belongs to the continuation, as in PromptTokenizer
        kept = context.rstrip()
        rests = [context[len(kept) :] + c for c in continuations]
        return [ServerPrompt(kept + rest, None, rest.encode()) for rest in rests]

    def _logprob(self, value: object, field: str) -> float:
        with self.server.useful():
            return logprob_of(value, field)


class EchoWay(_WholeWay):
    """/completions repeats the prompt with the log-probability of every token."""

    name = "echo"

    def read(self, whole: ServerPrompt) -> Score:
        """The score of one prompt."""
        answer = self.server.complete(whole.prompt, look=True, max_tokens=1, echo=True, logprobs=1)
        with self.server.expected_shape():
            logprobs = only_choice(answer).get("logprobs") or {}
            values: list[Any] = logprobs.get("token_logprobs") or []
            written: list[str] = logprobs.get("tokens") or []
            texts = [*map(speller(written), written)]
            tops = logprobs.get("top_logprobs") or [None] * len(values)
            end = whole.tokens or usage_of(answer, "prompt_tokens") or len(values) - 1
            if not len(values) == len(texts) == len(tops) >= end > 1 or all(v is None for v in values[1:end]):
                raise NotSupported(f"{self.server} does not repeat prompts with log-probabilities")
            at = range(whole.start(texts[:end]), end)
            # every one, also of the tokens that are not scored: a model that is broken there is broken
            known = {i: self._logprob(values[i], f"token_logprobs[{i}]") for i in range(1, end)}
            kept = [(known[i] if i else self._logprob(values[0], "token_logprobs[0]"), tops[i]) for i in at]
            best = all(not top or value >= self._highest(top.values()) for value, top in kept)
        return Score(float(sum(value for value, _ in kept)), len(kept), best)

    def _highest(self, values: Iterable[Any]) -> float:
        return max(self._logprob(v, "top_logprobs") for v in values)


class PromptLogprobsWay(_WholeWay):
    """The same as a field of its own (vLLM)."""

    name = "prompt-logprobs"

    def read(self, whole: ServerPrompt) -> Score:
        """The score of one prompt."""
        answer = self.server.complete(whole.prompt, look=True, max_tokens=1, prompt_logprobs=1)
        with self.server.expected_shape():
            listed = only_choice(answer).get("prompt_logprobs") or []
            # per position {id: facts}: the prompt's own token first, then the likeliest where that is another one
            tokens = [next(iter(e.values())) if e else {} for e in listed]
            if whole.tokens and len(tokens) == whole.tokens:
                tokens = [(e or {}).get(str(i), {}) for e, i in zip(listed, whole.prompt, strict=True)]
            if (
                len(tokens) < 2
                or len(tokens) != (whole.tokens or len(tokens))
                or not all("logprob" in o for o in tokens[1:])
            ):
                raise NotSupported(f"{self.server} does not give log-probabilities of prompts")
            start = whole.start([(o.get("decoded_token") or "").encode(errors="surrogatepass") for o in tokens])
            values = [self._logprob(o["logprob"], "logprob of prompt_logprobs") for o in tokens[1:]]
            kept = values[start - 1 :]
            return Score(float(sum(kept)), len(kept), all(o.get("rank") == 1 for o in tokens[start:]))


_Candidates = dict[Prompt, tuple[int, list[TokenCandidate]]]
"""For each prompt how many candidates were asked for, and those that came."""


class NextTokenWay(Way):
    """Top log-probabilities of the next token, token after token."""

    name = "next-token"
    per_token = True

    def find(self) -> None:
        """How many candidates are given, then as others."""
        self.server.found(widths=self._widths())
        super().find()

    def _widths(self) -> tuple[int, ...]:
        for width in (WIDTHS[0], 20, 5, 1):  # OpenAI gives 5, vLLM 20 unless set otherwise
            try:
                answer = self.server.complete("Hi", look=True, max_tokens=1, logprobs=width)
                if any(p.tops for p in self.server.positions(answer)):
                    return WIDTHS if width == WIDTHS[0] else (width,)
            except HttpError as error:
                if error.status not in UNSUPPORTED_STATUSES:
                    raise
        raise NotSupported(f"{self.server} gives no log-probabilities")

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """Continuations that begin alike share the answers."""
        candidates: _Candidates = {}
        if not self.server.codec:
            kept = context.rstrip()
            return [self._spell(kept, (context[len(kept) :] + c).encode(), candidates) for c in continuations]
        scores = []
        for pair in self.server.pairs(context, continuations):
            positions = [
                self._look(pair.ids[:at], partial(self._with_id, pair.ids[at]), candidates)
                for at in range(pair.n_context, len(pair.ids))
            ]
            scores.append(Score(sum(f.logprob for f in positions), len(positions), all(f.best for f in positions)))
        return scores

    def _spell(self, context: str, rest: bytes, candidates: _Candidates) -> Score:
        positions: list[PositionScore] = []
        while rest:
            positions.append(self._look(context, partial(longest_prefix_token, rest), candidates))
            if positions[-1].token is None:
                break
            text = positions[-1].token.text
            context, rest = context + text.decode(errors="ignore"), rest[len(text) :]
        return Score(sum(f.logprob for f in positions), len(positions), all(f.best for f in positions))

    def _look(
        self,
        prompt: Prompt,
        pick: Callable[[Sequence[TokenCandidate]], TokenCandidate | None],
        candidates: _Candidates,
    ) -> PositionScore:
        """The wanted token after a prompt. More candidates are asked for until it is there or no more come.

        A server may give one fewer than asked for, so what was asked for is remembered, not what came.
        """
        asked, tops = candidates.get(prompt, (0, []))
        if asked and (token := pick(tops)):
            return PositionScore(token, token.logprob, token.logprob >= tops[0].logprob)
        for width in self.server.can.widths:
            if width <= asked:
                continue
            if asked and len(tops) < asked // 2:  # all there are, or all that this server gives
                break
            try:
                answer = self.server.complete(prompt, look=True, max_tokens=1, logprobs=width)
            except RequestRejected:
                if not tops:
                    raise
                self.server.found(widths=tuple(w for w in self.server.can.widths if w < width))
                break
            positions = self.server.positions(answer)
            if not positions or not positions[0].tops:
                raise Unanswered(f"{self.server} gave no log-probabilities for a prompt")
            more = len(positions[0].tops) > len(tops)
            asked, tops = width, [*positions[0].tops]
            candidates[prompt] = asked, tops
            if token := pick(tops):
                return PositionScore(token, token.logprob, token.logprob >= tops[0].logprob)
            if not more:  # it takes wider questions without a word, and answers them no wider
                self.server.found(widths=tuple(w for w in self.server.can.widths if w < width))
                break
        self.tell_bound(len(tops))
        return PositionScore(None, Position(tuple(tops), b"").bound, False)

    def _with_id(self, wanted: int, tops: Sequence[TokenCandidate]) -> TokenCandidate | None:
        if tops[0].id is not None:
            return next((t for t in tops if t.id == wanted), None)
        assert self.server.codec
        with self.server.tokenizing:
            text = self.server.codec.decode([wanted]).encode()
        return next((t for t in tops if t.text == text), None)
