"""Inspect's solver, called with states made by hand (a whole ``eval`` downloads a tokenizer)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iclkit.selectors import Chooser

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: pip install 'iclkit[inspect]'")

from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelName
from inspect_ai.solver import TaskState

from iclkit.integrations.inspect_ai import STORE_KEY, show_demonstrations


async def generate(state: TaskState, *args: Any, **kwargs: Any) -> TaskState:
    return state


def state(text: str) -> TaskState:
    messages = [ChatMessageSystem(content="Name the team {not a field}."), ChatMessageUser(content=text)]
    return TaskState(ModelName("mockllm/model"), 1, 1, text, messages)


def solved(solver: Any, text: str) -> TaskState:
    after: TaskState = asyncio.run(solver(state(text), generate))
    return after


def test_demonstrations_stand_as_turns_before_the_question_best_last(chooser: Chooser) -> None:
    after = solved(show_demonstrations(chooser, 2), "parcel late")
    ids = [*reversed(chooser.select("parcel late", 2).ids)]
    examples = chooser.view.examples_of(ids)
    assert [(m.role, m.text) for m in after.messages] == [
        ("system", "Name the team {not a field}."),
        *((role, text) for e in examples for role, text in (("user", e.input), ("assistant", e.output))),
        ("user", "parcel late"),
    ]
    assert [m.metadata["iclkit_id"] for m in after.messages[1:-1]] == [i for i in ids for _ in "ua"]
    assert [s["id"] for s in after.store.get(STORE_KEY)] == ids


def test_the_folder_of_a_saved_selector_and_its_template_are_taken(world) -> None:
    after = solved(show_demonstrations(str(world.kept), plain=False), "refund card twice")
    best = world.chooser.view.examples_of(world.chooser.select("refund card twice").ids[:1])[0]
    assert [m.text for m in after.messages[-3:]] == [f"Input: {best.input}\nOutput:", best.output, "refund card twice"]
    assert len(after.messages) == 2 + 2 * 4
