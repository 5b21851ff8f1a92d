"""``iclkit eval``: run selectors over tasks with an LM, and rank them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    PRESET,
    SELECTOR,
    LMOptions,
    Numbers,
    data_options,
    dedupe,
    embedder_for,
    lm_loader,
    lm_options,
    load_lm,
    load_task,
    of_paper,
    open_pool,
    reranker_for,
    stand_in_loader,
    tell_language,
    typed_names,
    unescape,
)
from iclkit.cli._runs import (
    estimate_cost,
    note,
    plan_with_estimate,
    run_jobs,
    run_plain_rules,
    source_of,
    write_page,
)
from iclkit.cli._tables import say, show
from iclkit.cli._terminal import echo, emit_json, emit_json_text
from iclkit.errors import DataError, NothingAnswered, UnknownName, UsageError
from iclkit.files import parse_json, read_json
from iclkit.secrets import redact

if TYPE_CHECKING:
    from iclkit.embed import Embedder
    from iclkit.eval import Grid
    from iclkit.records import CostEstimate, Run
    from iclkit.report import Primary


def tell_training(vectors: Embedder, folder: str, tasks: Sequence[str]) -> None:
    """Say of a trained retriever which of the tasks it has seen, and which it has no instruction for."""
    from iclkit.embed import CARD

    for task in tasks:
        if task in vectors.trained_on:
            say(f"note: {folder} was trained on {task}; its figures there say nothing of tasks it has not seen")
        if vectors.lacks_instruction(task):
            say(
                f"note: {folder} was trained with an instruction for each task and has none for {task}, whose texts it "
                f"reads without; add one to rendering.instructions in {folder}/{CARD}"
            )


def read_sweep(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Take what a TOML file says as the defaults of the other options."""
    if value is None:
        return
    try:
        found = tomllib.loads(value.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {value} ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{value} is not TOML: {error}") from error
    by_key: dict[str, click.Parameter] = {}
    for known in ctx.command.params:
        names = {o.lstrip("-").replace("-", "_") for o in known.opts} | {known.name or ""}
        by_key |= dict.fromkeys(names, known)
    defaults: dict[str, Any] = {}
    for key, given in found.items():
        known_ = by_key.get(key.replace("-", "_"))
        if known_ is None or known_ is param or known_.name is None:
            raise UnknownName(f"setting in {value}", key, [p.name for p in ctx.command.params if p.name])
        many = known_.multiple if isinstance(known_, click.Option) else known_.nargs == -1
        defaults[known_.name] = (given if isinstance(given, list) else [given]) if many else given
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), is_eager=True, expose_value=False,
              callback=read_sweep, help="A TOML file with these settings; the command line goes first.")  # fmt: skip
@click.option("--selector", "-s", "selectors", multiple=True, type=SELECTOR, help="See iclkit selectors "
              "ls; or my_module:MyClass. May repeat.")  # fmt: skip
@PRESET
@click.option("--predictor", "predictors", multiple=True, metavar="NAME[,KEY=VALUE...]", help="What answers without "
              "an LM: knn-vote, logreg, majority, or none; repeat for several.  [default: majority where there "
              "are labels, and the others where an embedder is used anyway]")  # fmt: skip
@click.option("--lm", "lms", multiple=True, default=("smollm2-135m",), show_default=True, help="Repeat for several.")
@click.option("-k", "--num_fewshot", "-f", "ks", type=Numbers(), multiple=True, default=((8,),), help="How many "
              "demonstrations; several with commas.  [default: 8]")  # fmt: skip
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="How many seeds, where a selector draws at random.  [default: 10 where it "
    "draws once for the task, 3 where it draws for each query]",
)
@click.option("--order", "orders", multiple=True, default=("best-last",), show_default=True, help="Order of the "
              "demonstrations; repeat for several.")  # fmt: skip
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For selectors that need one. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option(
    "--reranker", "reranker_name", help="A cross-encoder, for selector rerank; ,dtype=bf16 may stand behind it."
)
@click.option("--pool", "pool_path", type=click.Path(path_type=Path), help="Choose from this pool, not from the task's "
              "train rows.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Only so many test rows, drawn by --sample-seed.")
@click.option(
    "--first", type=click.IntRange(1), help="Only the first N test rows; of a sorted file they are no sample."
)
@click.option("--sample-seed", default=0, show_default=True, help="Draws the rows of --limit.")
@click.option("--budget", type=click.IntRange(1), help="Tokens for prompt and answer.  [default: the LM's context]")
@click.option("--chat", is_flag=True, help="Demonstrations as chat turns, in the LM's own chat template.")
@click.option("--normalize", default="sum", show_default=True, help="Compare labels by the sum, or the "
              "mean per token, of log-probabilities.")  # fmt: skip
@click.option(
    "--calibrate",
    "calibrations",
    multiple=True,
    default=("none",),
    show_default=True,
    help="none, contextual, domain, batch (all test rows), pool (pool rows) or given (--prior); repeat for several.",
)
@click.option("--prior", metavar="JSON", help="For --calibrate given: the probability of each label, as a JSON object "
              "or a file that holds one.")  # fmt: skip
@click.option("--answer-tokens", type=click.IntRange(1), help="Most tokens of an answer that is written.  [default: "
              "what the longest answer that may be shown needs, and some more]")  # fmt: skip
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="What ends an answer that is written; repeat for "
              "several.  [default: separator and line's end, unless a shown answer holds them]")  # fmt: skip
@click.option("--primary", multiple=True, metavar="'NAME[@K][ on TASK]'", help="Declare a question before its runs are "
              "made: does NAME differ from random. Kept in --out with the time; leaderboards of that folder test it "
              "first, at full strength. May repeat.")  # fmt: skip
@click.option("--on-error", default="record", show_default=True, help="A row that cannot be answered: record it as "
              "failed, or stop.")  # fmt: skip
@click.option("--on-leak", default="exclude", show_default=True, help="Test rows in the pool: exclude, stop or ignore.")
@click.option("--out", default=Path("runs"), show_default=True, type=click.Path(path_type=Path), help="Where runs are "
              "kept; the same command again resumes there.")  # fmt: skip
@lm_options
@data_options()
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also write the board as "
              "one page for a browser.")  # fmt: skip
@click.option("--batch", is_flag=True, help="Have what the cache lacks answered by the server's batch API: half the "
              "price, up to a day; the same command goes on.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and stop; no model is needed.")
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON.")
def command(
    tasks: tuple[str, ...],
    selectors: tuple[str, ...],
    preset: str,
    predictors: tuple[str, ...],
    lms: tuple[str, ...],
    ks: tuple[tuple[int, ...], ...],
    seeds: int | None,
    orders: tuple[str, ...],
    embedder: str,
    reranker_name: str | None,
    pool_path: Path | None,
    limit: int | None,
    first: int | None,
    sample_seed: int,
    budget: int | None,
    chat: bool,
    normalize: str,
    calibrations: tuple[str, ...],
    prior: str | None,
    answer_tokens: int | None,
    stops: tuple[str, ...],
    primary: tuple[str, ...],
    on_error: str,
    on_leak: str,
    out: Path,
    lm_options: LMOptions,
    data: Mapping[str, Any],
    html: Path | None,
    batch: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run selectors over TASKs with an LM, record every query, and print the leaderboard.

    A TASK is a catalogue name, a folder with train.jsonl and test.jsonl, or hf:owner/name.
    """
    from dataclasses import replace

    from iclkit.eval import Grid, RunStore, break_evens, make_bench
    from iclkit.lm import answer_by_batch
    from iclkit.predictors import Tools
    from iclkit.report import board_with_questions, run_texts, to_json

    beside = not predictors
    predictors = tuple(name for name in predictors if name != "none")
    if not selectors and not predictors:
        raise UsageError("nothing to run: give at least one --selector, or a --predictor")
    if preset == "paper":
        chosen, settled = of_paper(selectors, {"k" if name == "ks" else name for name in typed_names()})
        selectors, embedder = tuple(chosen), settled.get("embedder", embedder)
        ks = ((settled["k"],),) if "k" in settled else ks
    grid = Grid(
        dedupe(selectors),
        dedupe(k for part in ks for k in part),
        seeds,
        dedupe(orders),
        budget,
        normalize,
        dedupe(calibrations),
        read_prior(prior) if prior is not None else (),
        answer_tokens,
        tuple(unescape(stop) for stop in dedupe(stops)) or None,
        dedupe(predictors),
    )
    questions = declared_questions(primary, grid)
    loaded = [load_task(name, data, chat=chat) for name in dedupe(tasks)]
    pool = open_pool(pool_path) if pool_path else None
    benches = [make_bench(t, pool, limit=limit, seed=sample_seed, first=first, on_leak=on_leak) for t in loaded]
    if (answer_tokens or stops) and not any(bench.writes for bench in benches):
        raise UsageError("--answer-tokens and --stop are for answers that are written; these tasks have labels")
    benches = [replace(b, source=source_of(n, pool_path, data)) for b, n in zip(benches, dedupe(tasks), strict=True)]
    for bench in benches:
        if bench.leaks["queries"]:
            say(f"note: {bench.task.name}: {bench.leaks['queries']} test rows stand in the pool; {on_leak}d")
    vectors = embedder_for(grid.needs, embedder, lm_options.device, dry=dry_run)
    for bench in benches if vectors else ():
        tell_language(bench.view.examples, embedder)
    if vectors:
        tell_training(vectors, embedder, [task.name for task in loaded])
    reranker = reranker_for(grid.needs, reranker_name, lm_options.device)
    if unknown := sorted({q.task for q in questions} - {"", *(task.name for task in loaded)}):
        raise UnknownName("task of --primary", unknown[0], [task.name for task in loaded])
    if questions and not dry_run:
        RunStore(out).declare([str(question) for question in questions])
    runs: list[Run] = []
    lost: list[NothingAnswered] = []
    prices: dict[str, tuple[CostEstimate, list[str]]] = {}
    if predictors and not dry_run:
        jobs = plan_with_estimate(benches, Tools(None, vectors, reranker), replace(grid, selectors=()), out)
        runs += run_jobs(jobs, out, on_error, lost)
    second = stand_in_loader(lm_options) if dry_run else lm_loader(lm_options)
    for name in dedupe(lms) if selectors else ():
        lm = second(name) if dry_run else load_lm(name, lm_options)
        jobs = plan_with_estimate(benches, Tools(lm, vectors, reranker, second), replace(grid, predictors=()), out)
        if dry_run:
            prices[redact(name)] = estimate_cost([job for job in jobs if not job.finished(out)]), break_evens(jobs)
        else:
            if batch and (todo := [job for job in jobs if not job.finished(out)]):
                answer_by_batch(lm, partial(estimate_cost, todo), say)
            runs += run_jobs(jobs, out, on_error, lost)
    if dry_run:
        print_cost(prices, as_json)
        return
    if beside:
        answered = {run.spec.task.hash for run in runs}
        runs += run_plain_rules([bench for bench in benches if bench.task.hash in answered], vectors, out)
    if runs:
        declared = RunStore(out).declared()
        board = board_with_questions(
            runs, declared={str(q): declared[str(q)] for q in questions if str(q) in declared}, note=note
        )
        if html:
            write_page(html, board, runs, run_texts([out], runs, note))
        if as_json:
            emit_json_text(to_json(board))
        else:
            show(board)
            say(f"Runs are in {out}; see them again with: iclkit leaderboard {out}")
    if lost:
        raise lost[0]


def declared_questions(texts: Sequence[str], grid: Grid) -> list[Primary]:
    """The questions of ``--primary``; UsageError for one that these runs could never answer."""
    from iclkit.predictors import display_name
    from iclkit.report import BASELINES, Primary
    from iclkit.selectors import make_selector

    baseline, names = BASELINES["selector"], [display_name(make_selector(s).spec) for s in grid.selectors]
    questions = [Primary.parse(text) for text in dedupe(texts)]
    if questions and baseline not in names:
        raise UsageError(f"a declared question is about the difference to {baseline}; add --selector {baseline}")
    for question in questions:
        name = question.line.partition(" ")[0]  # behind it may stand an order, a calibration or an embedder
        if name not in names or name == baseline:
            raise UnknownName("line of --primary", name, [n for n in names if n != baseline])
        if question.k not in (None, 0, *grid.ks):
            raise UsageError(f"--primary {question}: k is not among {', '.join(map(str, grid.ks))}")
    return questions


def read_prior(text: str) -> tuple[tuple[str, float], ...]:
    """(label, probability) pairs of a JSON object, or of a file that holds one. DataError when it is none."""
    found = parse_json(text, "--prior") if text.lstrip().startswith("{") else read_json(Path(text))
    if not isinstance(found, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()
    ):
        raise DataError(f"--prior {text}: expected a JSON object with a number for each label")
    return tuple(sorted((label, float(value)) for label, value in found.items()))


def print_cost(prices: Mapping[str, tuple[CostEstimate, list[str]]], as_json: bool) -> None:
    """What each LM would be asked, and when shared demonstrations pay, on stdout."""
    from dataclasses import asdict

    if as_json:
        data = {name: {**asdict(price), "break_even": evens} for name, (price, evens) in prices.items()}
        emit_json(data, indent=2)
        return
    for name, (p, evens) in prices.items():
        time_ = "not known for this LM" if p.seconds is None else f"{p.seconds:,.0f} s by a short probe here"
        echo(
            f"{name}\n  requests              {p.requests:,}\n  calls                 {p.calls:,}\n"
            f"  tokens asked          {p.tokens_asked:,}\n  known from the cache  {p.tokens_cached:,}\n"
            f"  to compute            {p.tokens_computed:,}  (after sharing)\n"
            f"  to generate, at most  {p.tokens_generated:,}\n  time                  {time_}"
            + (", at most" if p.tokens_generated and p.seconds is not None else "")
            + (f"\n  cost, about           {p.cost:.4g}" if p.cost is not None else "")
            + "".join(f"\n  {line}" for line in evens)
        )
