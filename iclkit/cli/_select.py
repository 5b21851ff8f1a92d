"""``iclkit select``: which demonstrations a selector shows for a query, and the prompt they make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._models import EMBEDDER_SETTINGS
from iclkit.cli._pool import conditions
from iclkit.cli._terminal import console, echo, emit, emit_json
from iclkit.errors import DataError, UsageError
from iclkit.records import Prompt, Query, Selection

if TYPE_CHECKING:
    from iclkit.lm import LM
    from iclkit.pool import PoolView
    from iclkit.prompts import Template
    from iclkit.selectors import Reranker


class _Shots(click.ParamType[int | None]):
    """A number of demonstrations, or ``max`` for as many as the LM's context holds."""

    name = "N|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "max" or value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor max", param, ctx)
        if number < 0:
            self.fail(f"{number} is less than 0", param, ctx)
        return number


@click.command()
@click.argument("pool", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[QUERY]...")
@click.option(
    "--queries", type=click.Path(path_type=Path), help="A file of queries: .jsonl rows with `input`, or lines."
)
@click.option(
    "--selector", "-s", default="knn", show_default=True, help="NAME[,key=value...]; see iclkit selectors ls."
)
@click.option("-k", "--num_fewshot", "-f", "k", type=_Shots(), default="8", show_default=True, help="How many; or max.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For selectors that need one. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--lm", help="For selectors that ask one, chat prompts, and the token budget.")
@click.option("--reranker", help="A cross-encoder for rerank; ,dtype=bf16 may stand behind it.")
@click.option("--task", help="Only the pool's examples of this task.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only examples with this metadata; may repeat.")
@click.option("--exclude", multiple=True, metavar="ID", help="Never show this example; may repeat.")
@click.option("--order", default="best-last", show_default=True, help="Order of the demonstrations in the prompt.")
@click.option("--seed", default=0, show_default=True, help="For whatever is random.")
@click.option("--template", "template_text", help="Demonstration with {input} and {output}, instruction above it.")
@click.option("--chat", is_flag=True, help="One chat turn pair per demonstration, in the LM's own chat template.")
@click.option("--prompt", "show_prompt", is_flag=True, help="Print the assembled prompt instead of the picks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of picks, or of queries with --prompt.")
def command(
    pool: Path,
    texts: tuple[str, ...],
    queries: Path | None,
    selector: str,
    k: int | None,
    embedder: str,
    lm: str | None,
    reranker: str | None,
    task: str | None,
    where: tuple[str, ...],
    exclude: tuple[str, ...],
    order: str,
    seed: int,
    template_text: str | None,
    chat: bool,
    show_prompt: bool,
    as_json: bool,
) -> None:
    """Choose demonstrations from POOL for each QUERY."""
    from dataclasses import replace

    from iclkit.pool import Pool
    from iclkit.prompts import ORDERS, Template
    from iclkit.selectors import Kit, make_selector, template_for

    chooser = make_selector(selector)
    ORDERS.get(order)
    given = Template.parse(template_text.replace("\\n", "\n")) if template_text else None
    template = replace(template_for(chooser, given) or Template(), chat=chat)
    asked = [Query(t, exclude=frozenset(exclude)) for t in texts]
    asked += _read_queries(queries, frozenset(exclude)) if queries else []
    if not asked:
        raise UsageError("no query; give QUERY on the command line or --queries FILE")
    if k is None and not lm:
        raise UsageError("-k max fills an LM's context; give one with --lm")
    with Pool.open(pool, create=False) as store:
        view = store.view(task=task, where=conditions(where) or None)
        model = _load_lm(lm) if lm else None
        kit = Kit(lm=model, template=template, seed=seed, order=order, task=task or "")
        if chooser.needs.embedder:
            kit = replace(kit, embedder=_load_embedder(embedder, view))
        if chooser.needs.reranker and reranker:
            kit = replace(kit, reranker=_load_reranker(reranker))
        chooser.fit(view, kit)
        shots = len(view) if k is None else k
        _say_cost(chooser, len(asked), shots)
        selections = chooser.select_many(asked, shots)
        prompts = [_assemble(template, s, view, model, order, seed) for s in selections] if show_prompt else []
        _print(selections, prompts, view, as_json)


def _print(selections: Sequence[Selection], prompts: Sequence[Prompt], view: PoolView, as_json: bool) -> None:
    for note, queries in _by_note(selections).items():
        which = f"{queries} of {len(selections)} queries: " if len(selections) > 1 else ""
        echo(f"note: {which}{note}", err=True)
    if dropped := sum(len(p.dropped) for p in prompts):
        reason = next(d.reason for p in prompts for d in p.dropped)
        echo(f"note: {dropped} demonstrations are not shown: {reason}", err=True)
    rows = [
        {
            "query": s.query.id,
            "rank": p.rank,
            "id": p.example_id,
            "score": round(p.score, 6),
            **_shown(view, p.example_id),
        }
        for s in selections
        for p in s
    ]
    if as_json and prompts:
        data: list[dict[str, Any]] = [
            {
                "query": {"id": s.query.id, "input": s.query.input},
                "picks": [row for row in rows if row["query"] == s.query.id],
                "notes": s.notes,
                "prompt": asdict(p),
            }
            for s, p in zip(selections, prompts, strict=True)
        ]
        emit_json(data, indent=2)
    elif as_json:
        emit_json(rows, indent=2)
    elif prompts:
        for n, prompt in enumerate(prompts):
            emit(("\n" + "-" * 40 + "\n" if n else "") + prompt.text)
    else:
        _tables(selections, view)


def _tables(selections: Sequence[Selection], view: PoolView) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console(piped_width=120)
    for selection in selections:
        out.print(Text(f"{' '.join(selection.query.text.split())}", style="bold"))
        table = Table("rank", "score", "id", "output", "input", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for pick in selection:
            shown = _shown(view, pick.example_id)
            text = " ".join(json.dumps(shown["input"]) if isinstance(shown["input"], dict) else shown["input"].split())
            cells = (str(pick.rank), f"{pick.score:.4f}", pick.example_id[:12], shown["output"], text)
            table.add_row(*(Text(c, overflow="ellipsis", no_wrap=True) for c in cells))
        out.print(table)


def _shown(view: PoolView, example_id: str) -> dict[str, Any]:
    row = view.row_of(example_id)
    assert row is not None
    example = view.examples[row]
    return {"input": example.input if isinstance(example.input, str) else dict(example.input), "output": example.output}


def _by_note(selections: Sequence[Selection]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for selection in selections:
        for note in selection.notes:
            counts[note] = counts.get(note, 0) + 1
    return counts


def _assemble(template: Template, chosen: Selection, view: PoolView, lm: LM | None, order: str, seed: int) -> Prompt:
    from iclkit.prompts import assemble

    rows = [view.row_of(i) for i in chosen.ids]
    return assemble(
        template,
        chosen.query,
        [view.examples[r] for r in rows if r is not None],
        order=order,
        budget=lm.context_size if lm else None,
        count_tokens=lm.count_tokens if lm else None,
        render_chat=lm.render_chat if lm else None,
        seed=seed,
        reserve=64 if lm else 0,
    )


def _say_cost(chooser: Any, queries: int, k: int) -> None:
    per_task, per_query = chooser.lm_calls(k) if hasattr(chooser, "lm_calls") else (0, 0)
    if per_task or per_query:
        total = per_task + per_query * queries
        echo(f"the LM reads at most {total:,} texts ({per_task:,} once, {per_query:,} per query)", err=True)


def _read_queries(path: Path, exclude: frozenset[str]) -> list[Query]:
    """One query per line: a JSON object with ``input`` (and ``id``, ``choices``) in a .jsonl file, else the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if path.suffix != ".jsonl":
        return [Query(line, exclude=exclude) for line in lines if line.strip()]
    queries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        value: Any = row.get("input") if isinstance(row, dict) else None
        fields = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        if not isinstance(value, str) and not fields:
            raise DataError(f"{path}, line {number}: no `input` that is a text or named texts; it holds {line[:60]}")
        choices = tuple(str(c) for c in row.get("choices", ()))
        queries.append(Query(value, choices, exclude, str(row.get("id", ""))))
    return queries


def _load_lm(name: str) -> LM:
    from iclkit.lm import load_lm

    return load_lm(name)


def _load_reranker(name: str) -> Reranker:
    from iclkit.pool import load_reranker

    return load_reranker(name)


def _load_embedder(name: str, view: PoolView) -> Any:
    from iclkit.pool import load_embedder

    embedder = load_embedder(name)
    with _bar("embedding the pool") as progress:
        view.vectors(embedder, progress)
    return embedder


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr that appears with the first report, with the rate and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        tasks: list[Any] = []

        def report(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(title, total=total))
            bar.update(tasks[0], completed=done, total=total)

        yield report
