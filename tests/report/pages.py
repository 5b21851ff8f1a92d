"""Real runs of a small task with an LM without weights, made to be looked at in a page."""

from __future__ import annotations

import random
from pathlib import Path

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.eval import load_texts
from iclkit.prompts import Template
from iclkit.records import Example, Run
from iclkit.report import Texts, leaderboard, to_html
from iclkit.testing import HashEmbedder, ScriptedLM

WORDS = {"animal": ["owl", "cat", "dog", "eel", "fox"], "food": ["pie", "ham", "jam", "egg", "fig"]}
NASTY = """</script><script>document.title="taken"</script><img src=x onerror="document.title='taken'"> & {x} "q" """
NASTY_TASK = "<b>bold</b>"


def rows(count: int, seed: int) -> list[Example]:
    rng = random.Random(seed)
    labels = [*WORDS]
    return [Example(f"{NASTY}{rng.choice(WORDS[labels[n % 2]])} no. {n}-{seed}", labels[n % 2]) for n in range(count)]


def likes_what_it_saw(context: str, continuation: str) -> float:
    """Log-probability of a label: how many demonstrations show it with a word of the query."""
    *demos, query = context.split("\n\n")
    words = {w for w in query.split() if w in WORDS["animal"] + WORDS["food"]}
    votes = sum(d.endswith(continuation) and bool(words & set(d.split())) for d in demos)
    return float(votes - 20 - len(continuation) / 99)


def make(out: Path, *, ks: tuple[int, ...] = (2, 4), test: int = 60) -> tuple[list[Run], Texts]:
    """Runs of five selectors on a task whose every text and name is hostile, and their texts."""
    template = Template("Text: {input}\nKind: {output}", instruction="What is it? <i>Say</i>.")
    task = make_task(NASTY_TASK, rows(24, 1), rows(test, 2), template=template)
    lm, runs = ScriptedLM(likes_what_it_saw), []
    for k in ks:
        for selector, seeds in (("random", 3), ("knn", 1), ("bm25", 1), ("balanced", 2), ("zero", 1)):
            for seed in range(seeds):
                runs.append(evaluate(task, selector, lm, k=k, seed=seed, embedder=HashEmbedder(), out=out))
    unique = {run.id: run for run in runs}
    texts = {k: v for i in unique for k, v in load_texts(out / i).items()}
    return [*unique.values()], {task.hash: texts}


def write(page: Path, runs: list[Run], texts: Texts | None, **more: object) -> Path:
    page.write_text(to_html(leaderboard(runs), runs, texts, **more), encoding="utf-8", newline="\n")  # type: ignore[arg-type]
    return page
