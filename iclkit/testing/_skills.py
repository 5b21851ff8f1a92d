"""A made-up task in which what a text is about says nothing about its label, and what it asks for says everything."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from iclkit.datasets import Task
from iclkit.lm import GenerateRequest, Generation, OnDone
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.testing._lm import FakeLM

TOPICS = {
    "garden": "rose tulip hedge soil spade seed",
    "kitchen": "oven pan recipe flour knife salt",
    "harbour": "boat anchor quay sail tide crane",
    "school": "pupil chalk lesson desk exam teacher",
    "hospital": "nurse ward patient bed doctor pill",
    "railway": "train platform ticket signal driver track",
    "theatre": "stage actor curtain script seat balcony",
    "farm": "cow tractor barn field hen fence",
}
SKILLS = {
    "counting": ("how many are there", "tell the number", "give the total tally", "enumerate"),
    "ranking": ("which is largest", "put biggest first", "order by size", "arrange descending"),
    "comparing": ("what differs", "contrast both", "set side against side", "spot unlike features"),
    "averaging": ("what is typical", "find mean value", "middle figure please", "work out usual amount"),
    "negating": ("which lack this", "name those without", "leave out any having it", "except such ones"),
    "dating": ("when did it happen", "say what year", "on which day", "since what time"),
}
KEYS = {
    "counting": "count items",
    "ranking": "sort by magnitude",
    "comparing": "describe differences",
    "averaging": "compute an average",
    "negating": "exclude by a property",
    "dating": "look up a point in time",
}


def hidden_skill_task(train: int = 240, test: int = 60, seed: int = 0, *, surface: bool = False) -> Task:
    """Texts of five topic words and one phrase that asks for a skill; the label is the skill.

    Every topic goes with every skill, and a skill is asked for in four phrases without a word in common, so texts that
    look alike seldom need the same skill. ``surface=True`` is the control: the same texts, with the topic as label.
    """
    rng = random.Random(seed)
    rows = [_row(rng, surface) for _ in range(train + test)]
    return Task(
        name="hidden-skill" if not surface else "hidden-skill-control",
        kind="classification",
        train=tuple(rows[:train]),
        test=tuple(rows[train:]),
        template=Template("Input: {input}\nLabel: {output}"),
        labels=tuple(TOPICS if surface else SKILLS),
    )


def _row(rng: random.Random, surface: bool) -> Example:
    topic, skill = rng.choice([*TOPICS]), rng.choice([*SKILLS])
    words = rng.sample(TOPICS[topic].split(), 5)
    words.insert(rng.randrange(6), rng.choice(SKILLS[skill]))
    return Example(" ".join(words), topic if surface else skill)


def hidden_skill(text: str) -> str:
    """The skill that a text of the task asks for; ValueError for another text."""
    for skill, phrases in SKILLS.items():
        if any(p in text for p in phrases):
            return skill
    raise ValueError(f"no skill is asked for in {text!r}")


class OracleRewriter(FakeLM):
    """An LM that, asked to rewrite a text of the task, names its skill, and nothing else about it.

    It reads the last ``Input:`` line of what it is shown. ``keys`` may replace what it says of each skill.
    """

    def __init__(self, keys: Mapping[str, str] = KEYS) -> None:
        super().__init__(context_size=1 << 20, name="oracle-rewriter")
        self._keys = keys

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """One key per request."""
        self.generated += requests
        asked = [r.context.rsplit("Input: ", 1)[1].split("\n")[0] for r in requests]
        answers = [Generation(f" {self._keys[hidden_skill(a)]}", 4, "stop") for a in asked]
        if on_done:
            on_done([*enumerate(answers)])
        return answers
