"""What an LM says to prompts: scores of the options, or texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iclkit.lm import LM, ask_each
from iclkit.predictors._stages import Failures
from iclkit.prompts import Template, answer_requests
from iclkit.records import GenerateRequest, Generation, Prompt, Score, ScoreRequest


@dataclass(frozen=True, slots=True)
class Reading:
    """Scores of the options after a prompt, and after each of its content-free ones."""

    options: tuple[str, ...]
    scores: tuple[Score, ...]
    content_free: tuple[tuple[Score, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with the options to weigh after it, and the content-free prompts that are asked about the same."""

    prompt: Prompt
    options: tuple[str, ...]
    choices: tuple[str, ...] = ()
    content_free: tuple[Prompt, ...] = ()


def read_options(
    lm: LM, template: Template, questions: Mapping[int, Question], failures: Failures
) -> dict[int, Reading]:
    """The scores of each question's options by its position, all asked in one call; failed questions are left out."""
    # the content-free prompts of a query stand beside it, so that the LM reads their demonstrations once
    requests, owners, places = list[ScoreRequest](), list[int](), dict[int, int]()
    for position, question in questions.items():
        with failures.of(position):
            its_requests = [
                request
                for prompt in (question.prompt, *question.content_free)
                for request in answer_requests(prompt, template, question.options, question.choices)
            ]
            places[position] = len(requests)
            requests += its_requests
            owners += [position] * len(its_requests)
    scores = _ask(lm.score, requests, owners, failures)
    readings = {}
    for position, start in places.items():
        if position not in failures:
            question, count = questions[position], len(questions[position].options)
            sets = [
                tuple(scores[i] for i in range(at, at + count))
                for at in range(start, start + count * (1 + len(question.content_free)), count)
            ]
            readings[position] = Reading(question.options, sets[0], tuple(sets[1:]))
    return readings


def read_texts(
    lm: LM, prompts: Mapping[int, Prompt], max_tokens: int, stop: tuple[str, ...], failures: Failures
) -> dict[int, Generation]:
    """What the LM writes after each prompt by its position; failed prompts are left out."""
    requests = [GenerateRequest(prompt.text, max_tokens, stop) for prompt in prompts.values()]
    answers = _ask(lm.generate, requests, [*prompts], failures)
    return {position: answers[n] for n, position in enumerate(prompts) if position not in failures}


def _ask(
    ask: Callable[..., Sequence[Any]], requests: Sequence[Any], owners: Sequence[int], failures: Failures
) -> dict[int, Any]:
    answers, refused = ask_each(ask, requests, owners)
    failures.update({position: str(error) for position, error in refused.items()})
    return answers
