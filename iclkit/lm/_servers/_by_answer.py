"""Ways of scoring by what a server answers: along its answer, bound to given labels, or compared with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from iclkit.errors import ModelError
from iclkit.lm._servers._capabilities import CHAT_WIDTHS
from iclkit.lm._servers._http import HttpError, RequestRejected
from iclkit.lm._servers._model import PROBE, UNSUPPORTED_STATUSES, Unanswered, is_no, turns
from iclkit.lm._servers._parse import (
    NotSupported,
    after_thought,
    estimate_tokens,
    label_similarity,
    score_along,
)
from iclkit.lm._servers._way import Way
from iclkit.records import GenerateRequest, Generation, Json, Score, fold_text

_FENCE_LINE = re.compile(r"\s*(?:`{3,}|~{3,})")
_OTHER = -100.0
"""Rank of a label that was not answered, as in ``label_similarity``."""
_FEWEST = 1e-9
"""Probability in place of one that was rounded to nothing."""


class FirstTokenWay(Way):
    """Top log-probabilities along a chat's own answer."""

    name = "first-token"
    endpoint = "chat"
    note = (
        "scoring first-token: this server serves chats, so a label counts up to the first token that differs from the "
        "server's own answer"
    )

    def find(self) -> None:
        """How many candidates are given."""
        refused = ""
        for width in CHAT_WIDTHS:
            try:
                answer = self.server.chat(PROBE, max_tokens=1, logprobs=True, top_logprobs=width)
                if any(p.tops for p in self.server.positions(answer)):
                    self.server.found(chat_width=width)
                    return
                break  # what it takes without a word it does not offer
            except HttpError as error:
                if error.status not in UNSUPPORTED_STATUSES:
                    raise
                refused = f" ({error.reason})"
        raise NotSupported(f"{self.server} gives no log-probabilities of chats{refused}")

    def check(self, prompt: str = PROBE) -> float | None:  # noqa: ARG002
        """None: which answer is given is the server's affair."""
        return None

    def ask(self) -> None:
        """As ``Way``."""
        self.server.chat(PROBE, max_tokens=1, logprobs=True, top_logprobs=self.server.can.chat_width)

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """One answer serves all continuations."""
        server = self.server
        wanted = {
            "max_tokens": server.config.answer_tokens,
            "logprobs": True,
            "top_logprobs": server.can.chat_width,
        }
        answer, reply = server.chat_reply(context, wanted)
        positions = server.positions(answer)
        if reply.thought:
            positions = after_thought(positions, reply.text) if reply.text.strip() else []
        if reply.refused or not positions or not positions[0].tops:
            why = "declined to answer" if reply.refused else "gave no log-probabilities for an answer"
            raise Unanswered(f"{server} {why}, so its labels have no scores")
        scored = [score_along(positions, c.strip().encode()) for c in continuations]
        if not all(known for _, known in scored):
            self.tell_bound(len(positions[0].tops))
        return [score for score, _ in scored]


class DecisionsWay(Way):
    """OpenAI's /decisions: a probability for each of the choices."""

    name = "decisions"
    endpoint = "chat"
    note = (
        "scoring decisions: the server tells how probable each label is among the given ones; the prompt is shown in a "
        "form of its own"
    )

    def check(self, prompt: str = PROBE) -> float | None:  # noqa: ARG002
        """None: the figures are those of the choices alone."""
        return None

    def ask(self) -> None:
        """As ``Way``."""
        self._ask(PROBE, ["Germany", "France"])

    def find(self) -> None:
        """Whether it is offered."""
        self.ask()

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """Log-probabilities among the continuations."""
        labels = _different(self, continuations)
        if len(labels) < 2:
            raise Unanswered(f"scoring decisions weighs labels against each other, and there is one: {labels}")
        told = self._ask(context, labels)
        values = [math.log(max(told[c.strip()], _FEWEST)) for c in continuations]
        return [Score(v, estimate_tokens(c), v >= max(values)) for v, c in zip(values, continuations, strict=True)]

    def _ask(self, context: str, labels: Sequence[str]) -> dict[str, float]:
        question = {
            "type": "choice",
            "instructions": "Which of these comes next?",
            "choices": [{"value": label} for label in labels],
        }
        said: Json = [*turns(context)] if len(turns(context)) > 1 else turns(context)[0]["content"]  # type: ignore[list-item]
        body = {"model": self.server.name, "input": said, "questions": [question]}
        answer = self.server.send("/decisions", body, answers="answers")
        with self.server.expected_shape():
            (one,) = answer["answers"]
            if one.get("type") == "refusal":
                raise Unanswered(f"{self.server} declined to answer")
            told = {str(p["value"]): float(p["probability"]) for p in one["probabilities"]}
        if told.keys() != {*labels} or not all(0 <= p <= 1.001 for p in told.values()):
            raise NotSupported(f"{self.server} gives no probability for each of the choices")
        if abs(math.fsum(told.values()) - 1) > 0.05:
            raise ModelError(
                f"{self.server} is of no use for scores: the choices have a probability of "
                f"{math.fsum(told.values()):.3g} together"
            )
        return told


class CompareWay(Way):
    """The answer is generated and compared with the labels."""

    name = "generate"
    note = (
        "scoring generate: this server gives no probabilities; answers are generated and compared with the labels, so "
        "scores are a ranking, not log-probabilities: do not calibrate or average them"
    )

    def probe(self) -> None:
        """Whatever answers can be asked so."""

    def check(self, prompt: str = PROBE) -> float | None:  # noqa: ARG002
        """None: it tells no log-probabilities."""
        return None

    def ask(self) -> None:
        """As ``Way``."""
        self.server.generate(GenerateRequest(PROBE, 1))

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """Ranks by the first line of an answer. Without one all rank the same: no answer is not the first label."""
        answer = self.server.generate(GenerateRequest(context, self.server.config.answer_tokens))
        return self.rank(answer, continuations)

    def rank(self, answer: Generation, continuations: Sequence[str]) -> list[Score]:
        """The rank of each continuation by an answer."""
        lines = [line for line in answer.text.strip().split("\n") if not _FENCE_LINE.match(line)]
        first = next((line for line in lines if line.strip()), "")
        ranks = [label_similarity(first, c) for c in continuations]
        return [Score(r, estimate_tokens(c), r > -1) for r, c in zip(ranks, continuations, strict=True)]


class ForcedWay(CompareWay):
    """The answer is bound to be one of the labels, by what the server has for structured output."""

    name = "forced"
    note = (
        "scoring forced: this server gives no probabilities; each answer is bound to be one of the labels, so scores "
        "are a ranking, not log-probabilities: do not calibrate or average them"
    )
    KINDS: ClassVar = ("choice", "schema", "grammar", "regex")

    def probe(self) -> None:
        """Which kind of binding has an effect: what servers do not know they ignore without a word."""
        if not self.server.chats:
            raise NotSupported("forced is for chats")
        for kind in self.KINDS:
            self.server.found(force=kind)
            try:
                odd = ("zebra 17", "quartz 23")
                if self._ask("Answer with the one word OK.", odd) in odd:
                    return
            except (HttpError, Unanswered, ModelError) as error:
                if isinstance(error, HttpError) and not is_no(error):
                    raise
        self.server.found(force="")
        raise NotSupported(f"{self.server} has nothing that binds an answer to given ones")

    def ask(self) -> None:
        """As ``Way``."""
        self._ask(PROBE, ("Germany", "France"))

    def scores(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """The label that was answered first, all others alike; a single one is compared with a free answer."""
        labels = _different(self, continuations)
        if len(labels) < 2:
            return super().scores(context, continuations)
        try:
            said = self._ask(context, labels)
        except RequestRejected as error:
            raise ModelError(
                f"{self.server} does not bind an answer to these {len(labels)} labels ({error.reason}); "
                "use the setting scoring=generate"
            ) from error
        wanted = fold_text(said)
        chosen = [c for c in continuations if c.strip() == said] or [
            c for c in continuations if wanted and fold_text(c) == wanted
        ]
        if not chosen:
            self.server.note("an answer was none of the labels that it was bound to: it is compared with them")
            return self.rank(Generation(said, 0, "stop"), continuations)
        return [
            Score(-1 / (1 + len(wanted)) if c == chosen[0] else _OTHER, estimate_tokens(c), c == chosen[0])
            for c in continuations
        ]

    def _ask(self, context: str, labels: Sequence[str]) -> str:
        kind = self.server.can.force
        room = max(map(estimate_tokens, labels)) + 16
        answer = self.server.generate(GenerateRequest(context, room), _bound(kind, labels))
        text = answer.text.strip()
        if kind != "schema":
            return text
        try:
            found = json.loads(text)
        except ValueError:
            return text
        return str(found.get("answer", "")) if isinstance(found, dict) else text


def _bound(kind: str, labels: Sequence[str]) -> dict[str, Any]:
    """What of a request binds its answer to one of these."""
    if kind == "choice":  # vLLM
        return {"structured_outputs": {"choice": [*labels]}}
    if kind == "grammar":  # llama.cpp
        return {"grammar": "root ::= " + " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)}
    if kind == "regex":  # SGLang
        return {"regex": "(" + "|".join(re.escape(label) for label in labels) + ")"}
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": [*labels]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    named = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _different(way: Way, continuations: Sequence[str]) -> list[str]:
    labels = [*dict.fromkeys(c.strip() for c in continuations)]
    if not all(labels):
        raise Unanswered(f"scoring {way.name} needs labels that are not blank")
    return labels
