"""Inspect: a solver that puts demonstrations in front of the question, as messages.

from iclkit.integrations.inspect_ai import show_demonstrations

task = Task(dataset=…, solver=[show_demonstrations("kept/", k=8), generate()], scorer=match())
"""

from __future__ import annotations

from typing import Any

from iclkit.integrations._demonstrations import SelectorLike, as_chooser, in_prompt_order
from iclkit.integrations._extras import require
from iclkit.prompts import Template
from iclkit.records import Example, Query

require("inspect", "inspect-ai", "0.3.100")

from anyio import to_thread  # noqa: E402
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser  # noqa: E402
from inspect_ai.solver import Generate, Solver, TaskState, solver  # noqa: E402

STORE_KEY = "iclkit:demonstrations"
"""Where the ids of what was shown stand in a sample's store, and so in its log."""


@solver
def show_demonstrations(selector: SelectorLike, k: int | None = None, *, plain: bool = True) -> Solver:
    """Insert a user and an assistant message for each demonstration before the first user message.

    ``selector``: a ``Chooser``, a fitted selector, or the folder of a saved one; ``k``: how many, as it was saved where
    None. ``plain``: inputs and outputs as they are, as Inspect shows its samples; False renders them with the
    selector's template. The query is the sample's input. Ids and scores of what was shown are kept in the sample's
    store, under ``iclkit:demonstrations``, and the id in each message's metadata.
    """
    chooser = as_chooser(selector, k)
    template = Template("{input}\n{output}") if plain else chooser.template

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001
        selection = await to_thread.run_sync(chooser.select, Query(state.input_text), k)
        shown = in_prompt_order(chooser, selection)
        scores = {p.example_id: p.score for p in selection}
        turns = [turn for example in shown for turn in _turns(example, template)]
        first = next((n for n, m in enumerate(state.messages) if m.role == "user"), len(state.messages))
        state.messages[first:first] = turns
        state.store.set(STORE_KEY, [{"id": e.id, "score": scores[e.id]} for e in shown])
        return state

    return solve


def _turns(example: Example, template: Template) -> list[Any]:
    pieces = template.demo_pieces(example)
    answer = next(n for n, piece in enumerate(pieces) if piece.kind == "output")
    asked = "".join(p.text for p in pieces[:answer]).rstrip()
    about = {"iclkit_id": example.id}
    return [
        ChatMessageUser(content=asked, metadata=about),
        ChatMessageAssistant(content="".join(p.text for p in pieces[answer:]), metadata=about),
    ]
