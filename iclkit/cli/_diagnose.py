"""``iclkit diagnose``: what selectors pick, judged in seconds without an LM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    SELECTOR,
    data_options,
    dedupe,
    embedder_for,
    load_task,
    open_pool,
    reranker_for,
    tell_language,
)
from iclkit.cli._tables import say
from iclkit.cli._terminal import console, emit_json

COLUMNS = (
    ("label_recall", "label recall"),
    ("label_match", "label match"),
    ("majority", "majority right"),
    ("labels", "labels"),
    ("relevance", "relevance"),
    ("redundancy", "redundancy"),
    ("words", "words"),
    ("coverage", "coverage"),
    ("exposure", "exposure"),
)


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--selector", "-s", "selectors", multiple=True, required=True, type=SELECTOR, help="See iclkit selectors "
              "ls; or my_module:MyClass. May repeat.")  # fmt: skip
@click.option("-k", "--num_fewshot", "-f", "k", default=8, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--seed", default=0, show_default=True, help="For whatever is random.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="Measures likeness; or none. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option(
    "--reranker", "reranker_name", help="A cross-encoder, for selector rerank; ,dtype=bf16 may stand behind it."
)
@click.option("--pool", "pool_path", type=click.Path(path_type=Path), help="Choose from this pool.")
@click.option("--limit", type=click.IntRange(1), help="Only so many test rows, drawn by --sample-seed.")
@click.option(
    "--first", type=click.IntRange(1), help="Only the first N test rows; of a sorted file they are no sample."
)
@click.option("--sample-seed", default=0, show_default=True, help="Draws the rows of --limit.")
@click.option("--on-leak", default="exclude", show_default=True, help="Test rows in the pool: exclude, stop or ignore.")
@data_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    tasks: tuple[str, ...],
    selectors: tuple[str, ...],
    k: int,
    seed: int,
    embedder: str,
    reranker_name: str | None,
    pool_path: Path | None,
    limit: int | None,
    first: int | None,
    sample_seed: int,
    on_leak: str,
    data: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Describe what selectors pick for the queries of TASKs, without asking an LM."""
    from rich.table import Table

    from iclkit.eval import Grid, diagnose, make_bench
    from iclkit.predictors import Tools

    grid = Grid(dedupe(selectors), (k,))
    benches = [
        make_bench(
            load_task(name, data),
            open_pool(pool_path) if pool_path else None,
            limit=limit,
            seed=sample_seed,
            first=first,
            on_leak=on_leak,
        )
        for name in dedupe(tasks)
    ]
    vectors = embedder_for(grid.needs, embedder, always=embedder != "none")
    for bench in benches if vectors else ():
        tell_language(bench.view.examples, embedder)
    tools = Tools(embedder=vectors, reranker=reranker_for(grid.needs, reranker_name))
    rows = []
    for bench in benches:
        found = []
        for number, selector in enumerate(grid.selectors, 1):
            say(f"{bench.task.name}: {number}/{len(grid.selectors)} {selector}")
            found.append(diagnose(bench, selector, tools, k=k, seed=seed))
        rows += [{"task": bench.task.name, **asdict(d)} for d in found]
        if as_json:
            continue
        table = Table(title=f"{bench.task.name} · k = {k} · {len(bench.queries)} queries · {len(bench.view)} examples",
                      title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))  # fmt: skip
        table.add_column("selector", overflow="fold")
        for _, head in COLUMNS:
            table.add_column(head, justify="right")
        for d in found:
            values = [getattr(d, name) for name, _ in COLUMNS]
            table.add_row(d.selector, *("–" if math.isnan(v) else f"{v:.2f}" for v in values))
        console().print(table)
    if as_json:
        emit_json(rows, indent=1)
        return
    console().print(
        "label recall: queries with a pick of their own label · label match: share of picks that have it · majority "
        "right: what copying the most frequent label would score · relevance: cosine with the query · redundancy: "
        "cosine between picks · words: the query's words that picks have · coverage: share of the pool shown · "
        "exposure: 0 all shown alike, 1 a few for all. No LM was asked: nothing here says that answers get better.",
        style="dim",
    )
