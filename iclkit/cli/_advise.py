"""``iclkit advise``: a small pilot, and what it says one should do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    LMOptions,
    Numbers,
    data_options,
    lm_options,
    load_embedder,
    load_lm,
    load_task,
    open_pool,
    typed_options,
)
from iclkit.cli._tables import say
from iclkit.cli._terminal import console, emit_json
from iclkit.secrets import redact


@click.command()
@click.argument("task_name", metavar="TASK")
@click.option("--lm", "lm_name", default="smollm2-135m", show_default=True, help="The LM to advise on.")
@click.option("--prompts", default=1200, show_default=True, type=click.IntRange(1), help="The budget: at most so many "
              "prompts.")  # fmt: skip
@click.option("-k", "--num_fewshot", "-f", "shots", type=Numbers(), default="1,4,8,16", show_default=True,
              help="Shots to try.")  # fmt: skip
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For likeness; none leaves knn out. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--pool", "pool_path", type=click.Path(path_type=Path), help="Choose from this pool.")
@click.option("--chat", is_flag=True, help="Demonstrations as chat turns, in the LM's own chat template.")
@lm_options
@data_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    task_name: str,
    lm_name: str,
    prompts: int,
    shots: tuple[int, ...],
    embedder: str,
    pool_path: Path | None,
    chat: bool,
    lm_options: LMOptions,
    data: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Say whether to show TASK's LM nothing, more random shots, balanced or similar ones, or to train a retriever.

    The pilot asks about train rows, each hidden from itself; the test rows stay unseen.
    """
    from iclkit.eval import advise

    task = load_task(task_name, data, chat=chat)
    pool = open_pool(pool_path) if pool_path else None
    vectors = load_embedder(embedder, lm_options.device) if embedder != "none" else None
    lm = load_lm(lm_name, lm_options)
    say(f"pilot on {task.name}: at most {prompts:,} prompts, with up to {max(shots, default=0)} demonstrations each")
    step = iter(range(1, 1000))
    found = advise(
        task, lm, embedder=vectors, pool=pool, prompts=prompts, shots=shots,
        say=lambda what: say(f"run {next(step)}: {what}"),
    )  # fmt: skip
    same = shlex.join([task_name, *typed_options(data)])
    confirm = f"iclkit eval {same} --lm {redact(lm_name)} -s random -k {found.k or max(shots)}"
    confirm += " --chat" if chat else ""
    confirm += f" -s {found.choice}" if found.choice != "random" else " -s zero"
    if as_json:
        facts = asdict(found) | {
            "figures": [{"way": w, "k": k, **asdict(e)} for (w, k), e in found.figures.items()],
            "findings": [asdict(f) | {"verdict": f.verdict} for f in found.findings],
            "confirm": confirm,
        }
        emit_json(facts, indent=1)
        return
    _print(found, task.metric, confirm)


def _print(found: object, metric: str, confirm: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from iclkit.eval import Advice
    from iclkit.report import bar

    assert isinstance(found, Advice)
    out = console()
    table = Table(title=f"Pilot: {found.queries} train rows as queries", title_justify="left", title_style="bold",
                  box=None, padding=(0, 2, 0, 0))  # fmt: skip
    for head in ("way", "k", metric.replace("_", " "), "95 % interval", ""):
        table.add_column(head, justify="right" if head in ("k", metric.replace("_", " ")) else "left")
    for (way, k), e in found.figures.items():
        style = "bold green" if (way, k) == (found.choice, found.k) else ""
        cells = (way, str(k), f"{100 * e.value:.1f}", f"{100 * e.low:.1f} … {100 * e.high:.1f}", bar(e))
        table.add_row(*(Text(c, style) for c in cells))
    out.print(table)
    for n, reason in enumerate(found.reasons):
        out.print(Text(f"- {reason}", style="bold" if n == 0 else ""))
    out.print(Text(f"Confirm it on the test rows: {confirm}", style="cyan"))
