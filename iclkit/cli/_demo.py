"""``iclkit demo``: the whole story on the bundled set with the default models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import embedder_for, load_lm
from iclkit.cli._runs import plan_with_estimate, run_jobs, run_plain_rules, source_of
from iclkit.cli._tables import say, show
from iclkit.cli._terminal import console, emit_json_text

if TYPE_CHECKING:
    from iclkit.eval import Bench
    from iclkit.records import Prompt, Row, Run
    from iclkit.report import Board

LM, EMBEDDER, TASK = "smollm2-135m", "all-minilm-l6-v2", "support"
SELECTORS = ("zero", "random", "bm25", "knn")


@click.command()
@click.option("-k", "k", default=8, show_default=True, type=click.IntRange(1), help="How many demonstrations.")
@click.option("--limit", default=120, show_default=True, type=click.IntRange(2), help="How many test messages.")
@click.option("--out", default=Path("runs/demo"), show_default=True, type=click.Path(path_type=Path), help="Where the "
              "runs are kept.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON, and nothing else.")
def command(k: int, limit: int, out: Path, as_json: bool) -> None:
    """Show the whole story on the bundled set: does choosing demonstrations beat random ones, and is an LM needed?"""
    from dataclasses import replace

    from iclkit.datasets import load_task
    from iclkit.eval import Grid, make_bench, plan
    from iclkit.predictors import Tools
    from iclkit.report import leaderboard, plain_words, to_json

    grid, alone = Grid(SELECTORS, (k,), 3), Grid(("zero",), calibrations=("batch",))
    task = load_task(TASK)
    say(
        f"Task: which of {len(task.labels)} intents has a customer's message? A small model ({LM}) reads {k} labeled "
        f"messages and then the question.\nFour ways to choose the {k}: none at all, at random (3 times), by shared "
        f"words (bm25), by likeness of meaning (knn). Beside them, what needs no LM: the vote of the nearest messages, "
        f"logistic regression, the most frequent intent."
    )
    bench = replace(make_bench(task, limit=limit), source=source_of(TASK))
    embedder = embedder_for(grid.needs, EMBEDDER)
    lm = load_lm(LM)
    tools = Tools(lm, embedder)
    runs = run_jobs(plan_with_estimate([bench], tools, grid, out), out)
    runs += run_jobs(plan([bench], tools, alone), out)  # of the same scores: the LM is asked nothing more
    runs += run_plain_rules([bench], embedder, out)
    board = leaderboard(runs)
    if as_json:
        emit_json_text(to_json(board))
        return
    show(board)
    _example(bench, {r.spec.selector.name: r for r in reversed(runs) if r.spec.lm is not None})
    terminal = console()
    terminal.rule("What was found", align="left", style="dim")
    terminal.print(plain_words(board, board.groups[0]), highlight=False)
    terminal.print(f"\n{_true_story(board, leaderboard(runs, 'majority'))}", highlight=False)
    terminal.rule("Go on", align="left", style="dim")
    for line in (
        f"iclkit leaderboard {out} --html board.html",
        f"iclkit eval support --selector random --selector knn --selector mmr -k 4,8 --limit {limit}",
        "iclkit pool add demos.db examples.jsonl && iclkit select demos.db 'your query' --selector bm25 --prompt",
        "iclkit eval path/to/your/task --selector random --selector knn    # a folder with train.jsonl and test.jsonl",
    ):
        terminal.print(f"  {line}", style="cyan", soft_wrap=True, markup=False)


def _true_story(board: Board, of_majority: Board) -> str:
    """Where the LM is needed here, and where it is not: the same figures as on the board, in words."""
    from iclkit.report import interval, signed

    lines = {line.name: line for line in board.groups[0].lines}
    vote, knn = lines["knn-vote"].figure, lines["knn"].figure
    said = (
        "Labeled messages can be voted with, and so small a model does not make more of them than a vote does."
        if vote.value >= knn.value
        else "Here the model makes more of the labeled messages than a vote of the nearest does."
    )
    alone = next(line for line in of_majority.groups[0].lines if line.name == "zero + batch")
    assert alone.diff is not None
    return (
        f"{said} Without any labeled message there is nothing to vote with, and what is known then is the LM's: alone "
        f"it is right on {100 * lines['zero'].figure.value:.1f} %, and with its leaning to some of the labels taken "
        f"out (zero + batch, from the same scores, without labels) on {100 * alone.figure.value:.1f} %, "
        f"{signed(alone.diff.value)} points against the most frequent label "
        f"({interval(alone.diff.low, alone.diff.high, sign=True)})."
    )


def _example(bench: Bench, runs: dict[str, Run]) -> None:
    """One query's prompt under knn, the first that random demonstrations got wrong and chosen ones right, if any."""
    from rich.text import Text

    from iclkit.predictors import recorded_prompt

    chosen, random = runs["knn"].rows, runs["random"].rows
    at = next((i for i, (c, r) in enumerate(zip(chosen, random, strict=True)) if c.output == c.gold != r.output), 0)
    row = chosen[at]
    examples = {e.id: e for e in bench.view.examples}
    prompt = recorded_prompt(bench.task.template, bench.queries[at], [examples[i] for i in row.shown])
    terminal = console()
    terminal.rule("One query, and what knn showed the model for it", align="left", style="dim")
    terminal.print(painted(prompt, row), highlight=False, soft_wrap=True)
    verdict = "right" if row.output == row.gold else f"wrong: it is {row.gold}"
    terminal.print(Text.assemble("The model's answer: ", (row.output, "bold"), f" ({verdict}); {_beliefs(row)}"))
    terminal.print(f"With random demonstrations (seed 0) it answered: {random[at].output}", markup=False)


def painted(prompt: Prompt, row: Row) -> Any:
    """A prompt with its demonstrations' inputs and outputs, and the query, in colours of their own."""
    from rich.text import Text

    styles = {"input": "cyan", "output": "bold cyan", "query": "bold yellow", "instruction": "magenta", "glue": "dim"}
    text = Text()
    for span in prompt.spans:
        text.append(prompt.text[span.start : span.end], styles[span.kind])
    return text.append(f"{prompt.answer_prefix}{row.output}", "bold green" if row.output == row.gold else "bold red")


def _beliefs(row: Row, most: int = 3) -> str:
    """The likeliest labels with their shares of the probability."""
    top = max(row.label_logprobs.values())
    shares = {label: math.exp(value - top) for label, value in row.label_logprobs.items()}
    total = sum(shares.values())
    best = sorted(shares, key=shares.__getitem__, reverse=True)[:most]
    return "its belief: " + ", ".join(f"{label} {100 * shares[label] / total:.0f} %" for label in best)
