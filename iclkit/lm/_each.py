"""Many requests, of which some can never be answered: all the others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from iclkit.errors import RequestError

Q = TypeVar("Q")
A = TypeVar("A")


def ask_each(
    ask: Callable[[Sequence[Q], Callable[[Sequence[tuple[int, A]]], None]], Sequence[A]],
    requests: Sequence[Q],
    owners: Sequence[int] | None = None,
) -> tuple[dict[int, A], dict[int, RequestError]]:
    """(answers by request number, errors by owner). ``ask`` is an LM's ``score`` or ``generate``.

    ``owners`` (one per request, the request's own number by default) says which requests are of no use without each
    other, e.g. the labels of one prompt: once one of them is refused, its siblings are not asked for any more. What was
    answered before a refusal is kept and not asked again. Errors of other kinds are raised as they come.
    """
    owners = range(len(requests)) if owners is None else owners
    answered: dict[int, A] = {}
    failed: dict[int, RequestError] = {}
    todo = list(range(len(requests)))
    while todo:
        numbers = todo

        def done(part: Sequence[tuple[int, A]], numbers: list[int] = numbers) -> None:
            answered.update((numbers[i], answer) for i, answer in part)

        try:
            answers = ask([requests[n] for n in numbers], done)
        except RequestError as error:
            failed[owners[numbers[error.index]]] = error
        else:
            answered.update(zip(numbers, answers, strict=True))
        todo = [n for n in todo if n not in answered and owners[n] not in failed]
    return answered, failed
