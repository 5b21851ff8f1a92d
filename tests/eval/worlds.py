"""Small tasks and an LM with a memory, for the tests of eval, report and the command line."""

from __future__ import annotations

import random
from pathlib import Path

from iclkit.datasets import Task, make_task
from iclkit.prompts import Template
from iclkit.records import Example, PoolPart, Query, RunSpec, Spec, TaskPart
from iclkit.testing import ScriptedLM


def run_spec(queries: int) -> RunSpec:
    """The spec of a run of so many queries."""
    return RunSpec(
        TaskPart("t", "h", "classification", "accuracy", ("no", "yes"), queries),
        PoolPart("p", 5),
        Spec("prompt"),
        {
            "selector": Spec("knn").identity(), "lm": {"name": "fake", "fingerprint": "fake-1"},
            "template": {"demo": "{input} {output}"}, "k": 8, "seed": 0, "order": "best-last", "budget": None,
            "normalize": "sum", "calibrate": "none",
        },
    )  # fmt: skip


LABELS = ("animal", "food", "tool")
WORDS = {
    "animal": ["owl", "cat", "dog", "eel", "fox", "hen", "cow", "bee", "ant", "bat"],
    "food": ["pie", "ham", "jam", "egg", "fig", "nut", "pea", "oat", "rye", "bun"],
    "tool": ["saw", "axe", "hoe", "awl", "pin", "jig", "vise", "drill", "file", "rasp"],
}


def rows(count: int, seed: int) -> list[Example]:
    """Sentences of a few words, one or two of which give the label away."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        label = LABELS[n % 3]
        other = rng.choice(WORDS[rng.choice(LABELS)])
        made.append(Example(f"number {n}-{seed} a {rng.choice(WORDS[label])} and a {other}", label))
    return made


def classification(train: int = 45, test: int = 150) -> Task:
    return make_task("things", rows(train, 1), rows(test, 2), template=Template("Text: {input}\nKind: {output}"))


def generation() -> Task:
    train = [Example(f"say {n}", f"it is {n}") for n in range(30)]
    return make_task("echo", train, [Example(f"say {n}", f"it is {n}") for n in range(100, 120)], kind="generation")


def copying_lm() -> ScriptedLM:
    """Likes a label more the more often the prompt's demonstrations show it next to a word of the query."""

    def logprob(context: str, continuation: str) -> float:
        *demos, query = context.split("\n\n")
        words = set(query.split()[3:])
        votes = [d for d in demos if d.endswith(continuation) and words & set(d.split()[3:])]
        return float(len(votes) - 30 - len(continuation) / 100)

    return ScriptedLM(
        logprob, reply=lambda context: " it is " + context.split("say ")[-1].split("\n")[0] + "\n\nInput:"
    )


def leaky() -> tuple[Task, Query]:
    """A task whose first test row stands in its train rows with other letters and spaces."""
    task = classification()
    double = Example(task.test[0].text.upper().replace(" ", "  "), "tool")
    return make_task("leaky", [*task.train, double], task.test, template=task.template), task.queries()[0]


def rows_file(out: Path) -> dict[str, list[str]]:
    """Sorted lines of every rows.jsonl under a folder, by run."""
    return {p.parent.name: sorted(p.read_text().splitlines()) for p in out.glob("*/rows.jsonl")}
