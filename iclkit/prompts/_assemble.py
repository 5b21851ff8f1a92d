"""One prompt out of a template, a query and ranked demonstrations, under a token budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from iclkit.errors import OverBudget, UsageError
from iclkit.prompts._orders import order_picks
from iclkit.prompts._template import Piece, Template
from iclkit.records import Dropped, Example, Message, Prompt, Query, Span

RenderChat = Callable[[Sequence[Message]], str]
_CHARS_PER_TOKEN = 3.0  # a first guess, on the low side of English; corrected by the first count


def assemble(
    template: Template,
    query: Query,
    examples_best_first: Sequence[Example],
    *,
    order: str = "best-last",
    budget: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    render_chat: RenderChat | None = None,
    seed: int = 0,
    reserve: int = 0,
) -> Prompt:
    """The prompt for a query, with as many of the ranked demonstrations as the budget holds.

    ``budget`` is in tokens as ``count_tokens`` counts a text, and covers the prompt plus ``reserve`` tokens for the
    answer. Over budget, whole demonstrations go, worst rank first; the best m are kept for the largest m that fits,
    found in a few counts of whole prompts. ``render_chat`` turns the messages of a chat into the text that a model
    reads; without it they are what counts, and the text is for people (``plain_chat``).

    OverBudget when instruction and query alone do not fit, DataError for a missing field; UsageError when a budget
    comes without ``count_tokens``.
    """
    if template.words_name_labels:
        raise UsageError("the template names {labels}, and no labels were given; fill them in: template.with_labels")
    render = render_chat or plain_chat
    if budget is not None and count_tokens is None:
        raise UsageError("a token budget needs a tokenizer; give an LM (count_tokens)")
    shots = {e.id: template.demo_pieces(e) for e in examples_best_first}
    tail = template.query_pieces(query)

    def ordered(m: int) -> list[Example]:
        return order_picks(examples_best_first[:m], order, seed=seed, query_id=query.id)

    def turns(shown: Sequence[Example]) -> list[tuple[str, Sequence[Piece]]]:
        return _turns(template, [shots[e.id] for e in shown], tail)

    made: dict[int, _Made] = {}

    def show(m: int) -> _Made:
        """The prompt with the best m."""
        if m not in made:
            shown = ordered(m)
            its_turns = turns(shown)
            text = render(_messages(its_turns)) if template.chat else _text_of(its_turns[0][1])
            made[m] = _Made(shown, its_turns, text)
        return made[m]

    most = len(examples_best_first)
    if budget is None or count_tokens is None:
        kept, tokens = most, count_tokens(show(most).text) if count_tokens else 0
    else:
        lengths = (sum([len(p.text) for p in shots[e.id]]) for e in examples_best_first)
        fixed = len(show(0).text if template.chat else _text_of(turns([])[0][1]))
        sizes = list(accumulate(lengths, initial=fixed))
        kept, tokens = _most_that_fit(sizes, budget - reserve, lambda m: count_tokens(show(m).text))
        if kept < 0:
            raise OverBudget(
                f"query {query.id}: instruction and query take {tokens} tokens"
                + (f" and the answer {reserve}" if reserve else "")
                + f", and the budget is {budget}; shorten them or use a model with a longer context"
            )
    shown, final, text = show(kept)
    pieces = _chat_pieces(final, text, render) if template.chat else [p for _, turn in final for p in turn]
    reason = f"over the budget of {budget} tokens" + (f" with {reserve} for the answer" if reserve else "")
    return Prompt(
        text=text,
        shown=tuple(e.id for e in shown),
        dropped=tuple(Dropped(e.id, reason) for e in examples_best_first[kept:]),
        tokens=tokens,
        spans=_spans(pieces),
        messages=tuple(_messages(final)) if template.chat else None,
        answer_prefix=template.answer_prefix,
    )


class _Made(NamedTuple):
    """A prompt with some of the examples: those, in prompt order, its pieces, and its text."""

    shown: list[Example]
    turns: list[tuple[str, Sequence[Piece]]]
    text: str


def plain_chat(messages: Sequence[Message]) -> str:
    """A chat as people read it, where no model's own template is at hand."""
    return "".join(f"[{m.role}]\n{m.content}\n" for m in messages) + "[assistant]\n"


def _turns(
    template: Template, shots: Sequence[Sequence[Piece]], tail: Sequence[Piece]
) -> list[tuple[str, Sequence[Piece]]]:
    """The prompt as (role, pieces). A plain prompt has no roles and carries its separators."""
    if not template.chat:
        return [("", [piece for block in _blocks(template, shots, tail) for piece in block])]
    if not template.turns:
        system = [("system", [Piece("instruction", template.system)])] if template.system else []
        pieces = [piece for block in _blocks(template, shots, tail) for piece in block]
        return [*system, ("user", _trimmed(pieces))]
    opening = template.separator.join(t for t in (template.system, template.instruction) if t)
    turns: list[tuple[str, Sequence[Piece]]] = [("system", [Piece("instruction", opening)])] if opening else []
    for shot in shots:
        cut = next(n for n, p in enumerate(shot) if p.kind == "output")
        turns += [("user", _trimmed(shot[:cut])), ("assistant", shot[cut:])]
    return [*turns, ("user", _trimmed(tail))]


def _blocks(template: Template, shots: Sequence[Sequence[Piece]], tail: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Instruction, demonstrations and query, with what stands between them."""
    if template.instruction:
        yield [Piece("instruction", template.instruction)]
        yield [Piece("glue", template.separator)]
    for shot in shots:
        yield shot
        yield [Piece("glue", template.behind_demos)]
    yield tail


def _trimmed(pieces: Sequence[Piece]) -> list[Piece]:
    """Without the template's white space at the end of a turn; the data's own is kept."""
    if pieces and pieces[-1].kind == "glue":
        return [*pieces[:-1], pieces[-1]._replace(text=pieces[-1].text.rstrip())]
    return list(pieces)


def _messages(turns: Sequence[tuple[str, Sequence[Piece]]]) -> list[Message]:
    return [Message(role, _text_of(pieces)) for role, pieces in turns]


def _text_of(pieces: Sequence[Piece]) -> str:
    return "".join([p.text for p in pieces])


def _most_that_fit(sizes: Sequence[int], limit: int, count: Callable[[int], int]) -> tuple[int, int]:
    """The largest m whose prompt takes at most ``limit`` tokens, and its tokens; (-1, tokens of m = 0) if none does.

    ``sizes`` (n + 1,): characters of a prompt with the first m. Interpolates on characters, corrected by every count,
    and halves the interval when that stops helping; ends with m known to fit and m + 1 known not to.
    """
    low, high = -1, len(sizes)  # low fits, high does not
    tokens, ratio, steps = 0, 1 / _CHARS_PER_TOKEN, 0
    while high - low > 1:
        guess = bisect_right(sizes, limit / ratio) - 1 if steps < 6 else (low + high) // 2
        m = min(max(guess, low + 1), high - 1)
        seen = count(m)
        if seen <= limit:
            low, tokens = m, seen
        elif m == 0:
            return -1, seen
        else:
            high = m
        ratio, steps = max(seen, 1) / max(sizes[m], 1), steps + 1
    return low, tokens


def _chat_pieces(turns: Sequence[tuple[str, Sequence[Piece]]], text: str, render: RenderChat) -> list[Piece]:
    """The pieces of a rendered chat: contents where the model's template put them, its own markup as glue.

    The template is rendered once more with a mark in place of each content, which shows what it puts in between.
    Templates may strip contents; where the marks do not explain the text, what is unexplained is glue.
    """
    marks = [f"\ue000{n}\ue001" for n in range(len(turns))]
    skeleton = render([Message(role, mark) for (role, _), mark in zip(turns, marks, strict=True)])
    between, rest = [], skeleton
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            return [Piece("glue", text)]
        between.append(before)
    pieces, at = list[Piece](), 0
    for glue, (_, turn) in zip(between, turns, strict=True):
        for parts in (turn, _stripped(turn)):
            content = "".join(p.text for p in parts)
            if text.startswith(glue + content, at):
                pieces += [Piece("glue", glue), *parts]
                at += len(glue + content)
                break
        else:
            return [*pieces, Piece("glue", text[at:])]
    return [*pieces, Piece("glue", text[at:])]


def _stripped(turn: Sequence[Piece]) -> list[Piece]:
    """The pieces of a turn whose joined text is stripped at both ends."""
    whole = "".join(p.text for p in turn)
    start, end = len(whole) - len(whole.lstrip()), len(whole.rstrip())
    kept, at = [], 0
    for piece in turn:
        kept.append(piece._replace(text=piece.text[max(0, start - at) : max(0, end - at)]))
        at += len(piece.text)
    return kept


def _spans(pieces: Sequence[Piece]) -> tuple[Span, ...]:
    spans, at = list[Span](), 0
    for kind, text, example_id in pieces:
        if text:
            end = at + len(text)
            spans.append(Span(kind, at, end, example_id))
            at = end
    return tuple(spans)
