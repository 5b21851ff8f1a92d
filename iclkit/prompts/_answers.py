"""What a model's answer is: which of the options it gave, if any, and where one that it writes ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from iclkit.prompts._template import Template


def best_option(scores: Sequence[float]) -> int | None:
    """Index of the highest score, the first of equals; None where all of several options score the same.

    Such scores say nothing of the options: the model wrote nothing, refused, or named none of them. Taking the first
    option then would count no answer as that one.

    >>> best_option([-3.0, -1.0, -2.0]), best_option([-1.0]), best_option([-9.0, -9.0])
    (1, 0, None)
    """
    if len(scores) > 1 and min(scores) == max(scores):
        return None
    return max(range(len(scores)), key=lambda i: scores[i])


def answer_stops(template: Template, outputs: Collection[str], *, one_line: bool = True) -> tuple[str, ...]:
    """The strings that end a written answer: none of them stands inside an output that may be shown.

    They are the template's own, else its separator, and with ``one_line`` the end of the line (not in a chat, which
    ends its turn by itself). One that stands inside an output would cut right answers and is left out; in the place of
    a separator that does, the separator with the first words of the next demonstration ends the answer.
    """
    shown = "\0".join(output.strip() for output in outputs)
    stops = [stop for stop in template.stop if stop not in shown]
    if template.chat:
        return tuple(stops)
    if template.behind_demos and (not stops or len(stops) < len(template.stop)):
        longer = template.behind_demos + template.opening.rstrip()
        stops += [stop for stop in (template.behind_demos, longer) if stop not in shown][:1]
    if one_line and "\n" not in shown:
        stops.append("\n")
    return tuple(dict.fromkeys(stops))
