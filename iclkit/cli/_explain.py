"""``iclkit explain``: which demonstrations a run showed, why, and the effect of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import (
    LMOptions,
    data_options,
    lm_loader,
    lm_options,
    load_embedder,
    load_lm,
    load_reranker,
    open_pool,
    task_file,
)
from iclkit.cli._progress import bar
from iclkit.cli._tables import say
from iclkit.cli._terminal import console, emit_json
from iclkit.errors import DataError, IclkitError, UsageError

EFFECT = {
    "nats": "nats that showing it adds to the right answer's log-probability, all others in place",
    "answer": (
        "what showing it adds to the value of the LM's answer by the task's metric (+1 where the answer turns right by "
        "it, -1 where it turns wrong), all others in place"
    ),
}

if TYPE_CHECKING:
    from iclkit.embed import Embedder, Reranker
    from iclkit.eval import Bench, DemonstrationInfluence, Explanation, Suspect
    from iclkit.records import Example, Row, Run


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("query_id", required=False)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="For a whole run: so many of "
              "its queries, drawn by --sample-seed.")  # fmt: skip
@click.option("--first", type=click.IntRange(1), help="For a whole run: its first N queries instead.")
@click.option("--sample-seed", default=0, show_default=True, help="Draws the queries of --limit.")
@click.option("--suspects/--no-suspects", "with_suspects", default=True, show_default=True, help="For a whole run: ask "
              "the LM about the label of every demonstration shown.")  # fmt: skip
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="How many of each kind to list.")
@click.option("--task", help="The run's data set (name or folder), if it has moved.")
@click.option("--lm", "lm_name", help="The LM, if the run's name for it does not find it.")
@click.option("--embedder", "embedder_name", help="The embedder, if the run's name for it does not find it.")
@click.option("--reranker", "reranker_name", help="The reranker, if the run's name for it does not find it.")
@lm_options
@data_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    run_folder: Path,
    query_id: str | None,
    limit: int,
    first: int | None,
    sample_seed: int,
    with_suspects: bool,
    top: int,
    task: str | None,
    lm_name: str | None,
    embedder_name: str | None,
    reranker_name: str | None,
    lm_options: LMOptions,
    data: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Explain one query of a RUN (its folder), or without QUERY_ID the whole run.

    For a query: each demonstration with its score, rank, position, tokens, and its effect: the change in the right
    answer's log-probability that showing it made. For a run: the demonstrations that help and hurt most, and those
    whose own label the LM does not believe. QUERY_ID is an id, the beginning of one, or a position from 0.

    An LM that tells no log-probabilities is asked for its answers: the effect is then whether the answer turns right or
    wrong.
    """
    from iclkit.datasets import sample_rows
    from iclkit.eval import explain, influences, load_run, load_texts, predictor_of, suspects, with_runner_up
    from iclkit.lm import ranks_only
    from iclkit.predictors import Tools

    run = load_run(run_folder)
    if run.spec.lm is None:
        name = run.spec.selector.name
        raise UsageError(
            f"{run_folder} is a run of predictor {name!r}, which shows an LM nothing; there is nothing to explain"
        )
    answered = [row for row in run.rows if not row.failure]
    if query_id:
        rows = [_row(run, query_id)]
    else:
        rows = answered[:first] if first else sample_rows(answered, limit, seed=sample_seed)
    texts = load_texts(run_folder)
    bench, why_not = _bench(run, task, data)
    lm = load_lm(lm_name or run.spec.lm.name, lm_options)
    if lm.fingerprint != run.spec.lm.fingerprint:
        say("note: this LM is not bit for bit the run's (weights, dtype or versions differ); effects are this LM's")
    if ranks_only(lm):
        say(
            f"note: {lm.name} tells no log-probabilities, so its answers are compared: the effect is {EFFECT['answer']}"
        )
    tools = Tools(
        lm,
        _embedder(run, embedder_name, lm_options.device) if bench else None,
        _reranker(run, reranker_name, lm_options.device) if bench else None,
        lm_loader(lm_options),
    )
    prompts = sum(len(r.shown) + 2 for r in rows)
    say(f"{len(rows)} queries: {prompts:,} prompts, each less one demonstration; most of their beginnings are shared")
    with bar("leaving out") as progress:
        found = explain(run, texts, lm, rows, progress, bench)
    if missing := len(rows) - len(found):
        say(f"note: {missing} of {len(rows)} queries are left out: this LM does not take their prompts")
    if query_id:
        if bench:
            found = [with_runner_up(found[0], run, bench, tools)]
        else:
            say(f"note: no runner-up: {why_not}")
        _print_query(found[0], run.spec.task.metric, as_json)
        return
    ranked = influences(found)
    doubted: list[Suspect] = []
    if with_suspects and ranks_only(lm):
        say("note: no labels are checked: that takes log-probabilities")
    elif with_suspects and run.spec.task.labels and bench:
        known = bench.view.examples_of(i.example.id for i in ranked)
        say(f"asking about the labels of {len(known)} demonstrations")
        with bar("own labels") as progress:
            doubted = suspects(bench, predictor_of(run, tools, plain=True), known, progress=progress)
    elif with_suspects and not bench:
        say(f"note: no labels are checked: {why_not}")
    _print_run(ranked, doubted, len(found), found[0].unit if found else "nats", top, as_json)


def _row(run: Run, query_id: str) -> Row:
    if exact := [row for row in run.rows if row.query_id == query_id]:  # a number may be a row's own id
        return exact[0]
    if query_id.isdecimal() and len(query_id) <= len(str(len(run.rows))) and int(query_id) < len(run.rows):
        return run.rows[int(query_id)]
    found = [row for row in run.rows if row.query_id.startswith(query_id)]
    if len(found) == 1:
        return found[0]
    some = ", ".join(r.query_id for r in (found or run.rows)[:3])
    what = f"begins {len(found)} query ids" if found else "is no query id"
    raise UsageError(f"{query_id!r} {what} of this run; there are e.g. {some}, or give a position from 0")


def _bench(run: Run, task: str | None, data: Mapping[str, Any]) -> tuple[Bench | None, str]:
    """The run's task and pool, if they are still there and still the same; else why not."""
    from iclkit.datasets import TaskFile, load_task
    from iclkit.eval import make_bench

    source, asked = run.facts.get("source", {}), run.spec.task
    name: str | TaskFile | None = task or source.get("task")
    if not task and not data and "task_file" in source:
        name = TaskFile.parse(source["task_file"], "the run's task")
    elif name and data:
        name = task_file(str(name), data)
    if not name:
        return None, "the run does not say where its task is; give --task"
    try:
        pool = open_pool(Path(source["pool"])) if "pool" in source else None
        # a run that was not drawn asked the first of the test rows
        rows = {"first": asked.queries}
        if asked.sample is not None:
            rows = {"limit": asked.queries, "seed": asked.sample}
        bench = make_bench(load_task(name), pool, **rows, on_leak=run.spec.on_leak)
    except IclkitError as error:
        if task:
            raise
        return None, f"{error}; give --task"
    if bench.view.hash != run.spec.pool.hash:
        if task:
            raise DataError(f"the pool of {task!r} is not the one of this run")
        return None, "the pool has changed since the run"
    return bench, ""


def _embedder(run: Run, name: str | None, device: str | None) -> Embedder | None:
    if run.spec.embedder is None:
        return None
    embedder = load_embedder(name or run.spec.embedder.name, device)
    if embedder.fingerprint != run.spec.embedder.fingerprint:
        say("note: this embedder is not the run's (weights, dtype or prefixes differ): its neighbors may be others")
    return embedder


def _reranker(run: Run, name: str | None, device: str | None) -> Reranker | None:
    if run.spec.reranker is None:
        return None
    reranker = load_reranker(name or run.spec.reranker.name, device)
    if reranker.fingerprint != run.spec.reranker.fingerprint:
        say("note: this reranker is not the run's (weights, dtype or versions differ): its order may be another")
    return reranker


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _print_query(found: Explanation, metric: str, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    row = found.row
    if as_json:
        nats = found.unit == "nats"
        values = {"logprob": found.logprob if nats else None, "logprob_without_any": found.without if nats else None}
        values |= {} if nats else {"value": found.logprob, "value_without_any": found.without}
        data = {
            "query": row.query_id, "input": found.query.text, "gold": row.gold, "output": row.output,
            "unit": found.unit, **values, "shares": found.shares,
            "shown": [_item(s.example) | {"score": s.score, "rank": s.rank, "position": s.position,
                                          "tokens": s.tokens, "effect": s.effect} for s in found.shown],
            "dropped": [{"id": d.example_id, "reason": d.reason} for d in row.dropped],
            "runner_up": _item(found.next[0]) | {"score": found.next[1]} if found.next else None,
            "story": found.story,
        }  # fmt: skip
        emit_json(data, indent=1)
        return
    out = console()
    value = row.metrics.get(metric, float(row.output == row.gold))
    is_right = value >= 1
    verdict = "right" if is_right else f"wrong, it is {row.gold}" if value <= 0 else f"{value:.2f}; it is {row.gold}"
    out.print(Text.assemble(("Query ", "dim"), row.query_id, "\n", (found.query.text, "bold yellow")))
    said = row.output or "none"
    out.print(Text(f"Answer: {said} ({verdict})", style="green" if is_right else "red"))
    best = sorted(found.shares, key=found.shares.__getitem__, reverse=True)[:4]
    if best:
        out.print(Text("Belief: " + ", ".join(f"{b} {100 * found.shares[b]:.0f} %" for b in best)))
    what = "Log-probability of the right answer" if found.unit == "nats" else "Value of the LM's answer by the metric"
    out.print(Text(f"{what}: {found.logprob:.2f}; without demonstrations {found.without:.2f}"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head, right in (
        ("position", 1),
        ("rank", 1),
        ("score", 1),
        ("tokens", 1),
        ("effect", 1),
        ("", 0),
        ("output", 0),
        ("input", 0),
    ):
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "input")
    most = max((abs(s.effect) for s in found.shown), default=1) or 1
    for s in found.shown:
        flat = abs(s.effect) < 0.005  # shown as 0.00
        style = "" if flat else "green" if s.effect > 0 else "red"
        drawn = "" if flat else ("+" if s.effect > 0 else "−") * max(1, round(8 * abs(s.effect) / most))
        shift = "0.00" if flat else f"{s.effect:+.2f}".replace("-", "−")
        table.add_row(str(s.position), str(s.rank), f"{s.score:.3f}", str(s.tokens), Text(shift, style),
                      Text(drawn, style), Text(s.example.output), Text(_short(s.example.text)))  # fmt: skip
    out.print(table)
    for d in row.dropped:
        out.print(Text(f"Not shown: {d.example_id[:12]}, {d.reason}", style="dim"))
    if found.next:
        example, score = found.next
        out.print(Text(f"Runner-up: score {score:.3f}, {example.output}: {_short(example.text)}", style="dim"))
    for line in found.story:
        out.print(Text(line, style="dim"))
    out.print(Text(f"Effect: {EFFECT[found.unit]}.", "dim"))


def _print_run(
    ranked: Sequence[DemonstrationInfluence],
    doubted: Sequence[Suspect],
    queries: int,
    unit: str,
    top: int,
    as_json: bool,
) -> None:
    from rich.table import Table
    from rich.text import Text

    if as_json:
        data = {
            "queries": queries,
            "unit": unit,
            "influence": [_item(f.example) | {"times": f.times, "effect": f.effect.value, "low": _finite(f.effect.low),
                                              "high": _finite(f.effect.high)} for f in ranked],
            "suspects": [_item(s.example) | {"own": s.own, "said": s.said, "said_share": s.shares.get(s.said)}
                         for s in doubted],
        }  # fmt: skip
        emit_json(data, indent=1)
        return
    out = console()
    for title, found in (("help most", ranked[:top]), ("hurt most", ranked[::-1][:top])):
        table = Table(title=f"Demonstrations that {title}", title_justify="left", title_style="bold", box=None,
                      padding=(0, 2, 0, 0))  # fmt: skip
        for head in ("shown", "effect", "95 % interval", "output", "input", "id"):
            table.add_column(head, justify="right" if head in ("shown", "effect") else "left", no_wrap=head != "input")
        for f in found:
            ends = "" if _finite(f.effect.low) is None else f"{f.effect.low:+.2f} … {f.effect.high:+.2f}"
            cells = (
                str(f.times),
                f"{f.effect.value:+.2f}",
                ends,
                f.example.output,
                _short(f.example.text),
                f.example.id[:12],
            )
            table.add_row(*map(Text, cells))
        out.print(table)
    wrong = [s for s in doubted if s.said != s.example.output]
    if doubted:
        title = f"Labels to look at: the LM believes another for {len(wrong)} of {len(doubted)}; least likely first"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for head in ("label", "its share", "the LM says", "share", "input", "id"):
            table.add_column(head, justify="right" if "share" in head else "left", no_wrap=head != "input")
        for s in wrong[:top]:
            own, said = 100 * s.shares.get(s.example.output, 0.0), 100 * s.shares.get(s.said, 0.0)
            table.add_row(*map(Text, (s.example.output, f"{own:.1f} %", s.said or "none", f"{said:.0f} %",
                                      _short(s.example.text), s.example.id[:12])))  # fmt: skip
        out.print(table)
    doubt = " A label that the LM doubts may be wrong, or the LM may be: look before you remove it." if doubted else ""
    out.print(Text(f"Over {queries} queries. Effect: {EFFECT[unit]}.{doubt}", "dim"))


def _item(example: Example) -> dict[str, Any]:
    return {"id": example.id, "input": example.text, "output": example.output}


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
