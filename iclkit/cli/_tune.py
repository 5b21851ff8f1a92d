"""``iclkit tune``: find one ordered list of demonstrations for a whole task."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    LMOptions,
    data_options,
    lm_options,
    load_embedder,
    load_lm,
    load_task,
    open_pool,
    typed_options,
)
from iclkit.cli._progress import bar
from iclkit.cli._tables import say
from iclkit.cli._terminal import console, echo, emit, emit_json
from iclkit.errors import DataError

if TYPE_CHECKING:
    from iclkit.datasets import Task
    from iclkit.tuners import SearchPrice, TuneProblem, TuneResult, TuneSettings


@click.group()
def command() -> None:
    """Find one ordered list of demonstrations for a whole task, as a selector file."""


@command.command()
@click.argument("source", metavar="POOL|TASK")
@click.option("--lm", "lm_name", default="smollm2-135m", show_default=True, help="Who reads the prompts.")
@click.option("--preset", default="small", show_default=True, help="What the other options are by default: small, for "
              "a 2-core CPU; paper: EASE as its reference code runs it.")  # fmt: skip
@click.option("-k", "--num_fewshot", "-f", "k", default=4, show_default=True, type=click.IntRange(1), help="How many "
              "demonstrations.")  # fmt: skip
@click.option("--trials", default=60, show_default=True, type=click.IntRange(1), help="How many lists to score, those "
              "of earlier calls and other workers included.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The selector file, to be "
              "used as --selector FILE.")  # fmt: skip
@click.option("--sampler", default="ease", show_default=True, metavar="NAME[,KEY=VALUE...]", help="Who proposes: ease, "
              "random, tpe, best-of-n or evolution.")  # fmt: skip
@click.option("--storage", help="Where the search is kept: sqlite:///search.db, another URL of Optuna's, or "
              "journal:FILE. Several workers share one.  [default: a journal beside --out]")  # fmt: skip
@click.option("--study", "study_name", default="", help="Name of the search in the storage.  [default: from its "
              "settings]")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Splits, draws and the network's first weights.")
@click.option("--validation", default=20, show_default=True, type=click.IntRange(1), help="Queries that score a list.")
@click.option(
    "--confirm", default=60, show_default=True, type=click.IntRange(0), help="Fresh queries for the best few."
)
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="How many of the best are confirmed.")
@click.option("--candidates", default=100, show_default=True, type=click.IntRange(1), help="Examples to choose from.")
@click.option("--draw", default="random", show_default=True, help="Which examples these are, of more: random, "
              "validation (the nearest to the validation queries) or vote-k (what represents the rest).")  # fmt: skip
@click.option("--instructions", type=click.Path(path_type=Path), help="Choose one of these too: a file, one a line.")
@click.option("--write-instructions", "written", type=click.IntRange(1), help="Let the LM write so many instructions "
              "to choose from.")  # fmt: skip
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="The bandit's eyes; also "
              f"prompteol:MODEL. For ease and --draw. {EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--features", default="positions", show_default=True, help="What it sees: positions (demonstrations side "
              "by side) or block (the whole text).")  # fmt: skip
@click.option("--objective", default="auto", show_default=True, help="How a trial is judged: metric, greedy (the right "
              "answers that greedy decoding gives, read in one pass where possible), logprob, or auto.")  # fmt: skip
@click.option("--pruner", default="none", show_default=True, help="median gives lists up that are behind half-way.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Lists proposed at a time.")
@click.option("--task", "task_name", help="For a POOL: labels, template, metric and test rows of this data set.")
@click.option("--chat", is_flag=True, help="Demonstrations as chat turns, in the LM's own chat template.")
@lm_options
@data_options()
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the best value so far by trial, of "
              "all searches in the storage for the same task and LM, as SVG.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and stop; no model is needed.")
@click.option("--json", "as_json", is_flag=True, help="Print the selector file.")
def ease(
    source: str,
    lm_name: str,
    preset: str,
    k: int,
    trials: int,
    out: Path,
    sampler: str,
    storage: str | None,
    study_name: str,
    seed: int,
    validation: int,
    confirm: int,
    top: int,
    candidates: int,
    draw: str,
    instructions: Path | None,
    written: int | None,
    embedder: str,
    features: str,
    objective: str,
    pruner: str,
    batch: int,
    task_name: str | None,
    chat: bool,
    lm_options: LMOptions,
    data: Mapping[str, Any],
    plot: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Search for the ordered list of POOL's examples (or TASK's train rows) that answers best for every query.

    Validation and confirmation queries come from TASK's dev rows, or are set aside from POOL; test rows are not
    touched. The same command again goes on where it stopped; run it in several places at once to share the work.
    """
    from iclkit.registry import parse_spec
    from iclkit.tuners import curves as curves_in
    from iclkit.tuners import (
        make_problem,
        price_search,
        read_instructions,
        search_plot,
        storage_for,
        tune,
        tune_preset,
        write_instructions,
    )

    for path in (out, *([plot] if plot else [])):
        _check_place(path)
    given = {
        "k": k, "trials": trials, "sampler": sampler, "seed": seed, "validation": validation, "confirm": confirm,
        "top": top, "candidates": candidates, "features": features, "pruner": pruner, "batch": batch,
        "objective": objective, "draw": draw,
    }  # fmt: skip
    settings = tune_preset(preset, **_typed(given))
    k, sampler, objective = settings.k, settings.sampler, settings.objective
    if preset == "paper" and not _typed({"embedder": embedder}):
        embedder = "all-mpnet-base-v2"
    choices = read_instructions(instructions) if instructions else []
    task = _task(source, task_name, data, chat)
    if dry_run:
        _say_price(price_search(task, settings))
        return
    lm = load_lm(lm_name, lm_options)
    bandit = parse_spec(sampler).name == "ease"
    eyes = load_embedder(embedder, lm_options.device) if bandit or settings.draw != "random" else None
    problem = make_problem(task, lm, settings, embedder=eyes, report=say)
    if written:
        say(f"{lm.name} writes {written} instructions")
        choices += write_instructions(lm, task.template, problem.view.examples, written, seed=seed)
    if choices:
        problem = replace(problem, instructions=tuple(dict.fromkeys(choices)))
        say(f"{len(problem.instructions)} instructions to choose from")
    problem.objective(objective)  # an LM that cannot tell it is found out before it is asked
    storage = storage or storage_for(out)
    _say_cost(settings, storage)
    with bar(f"{task.name} {sampler}") as progress:
        found = tune(
            problem, settings, embedder=eyes if bandit else None, storage=storage, study_name=study_name,
            progress=progress,
        )  # fmt: skip
    found.file.write(out)
    if plot:
        drawn = search_plot(
            curves_in(storage, problem.facts()),
            title=f"{task.name}, {lm.name}, k = {k}",
            value=problem.objective(objective),
        )
        _write(plot, drawn)
    if as_json:
        emit(out.read_text(encoding="utf-8"), nl=False)
        return
    _show(found, problem, objective)
    same = shlex.join([source, *typed_options(data)])
    say(f"{out} is a selector: iclkit eval {same} --lm {lm_name} -k {k} --selector {out}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def demos(file: Path) -> None:
    """Print the demonstrations of a selector FILE as JSON lines, for iclkit pool add."""
    from iclkit.pool import example_dict
    from iclkit.selectors import SelectorFile

    for example in SelectorFile.read(file).demonstrations:
        emit_json(example_dict(example))


def _task(source: str, name: str | None, data: Mapping[str, Any], chat: bool) -> Task:
    """A task by name, file or pool; or a pool with the form of another task."""
    if name is None:
        return load_task(source, data, chat=chat)
    with open_pool(Path(source)) as pool:
        rows = pool.view().examples
    if not rows:
        raise DataError(f"the pool {source} is empty; add examples with: iclkit pool add {source} FILE")
    return replace(load_task(name, data, chat=chat), train=rows, dev=())


def _check_place(path: Path) -> None:
    """DataError for a file that could not be written once all is done."""
    where = path.parent
    if path.is_dir():
        raise DataError(f"cannot write {path} (it is a folder); give the path of a file")
    if not where.is_dir() or not os.access(path if path.exists() else where, os.W_OK):
        why = "is not writable" if where.is_dir() else "is no folder"
        raise DataError(f"cannot write {path} ({where} {why}); give another path")


def _say_price(price: SearchPrice) -> None:
    echo(
        f"lists                 {price.lists:,}\n"
        f"prompts, at most      {price.prompts:,}\n"
        f"tokens, about         {price.tokens:,}  (by a rule of thumb of four letters each; no tokenizer was loaded)\n"
        f"to compute, about     {price.read:,}  (each list's demonstrations are read once)\n"
        f"proposals             {price.proposals:,}\n"
        f"texts to embed        {price.encoded:,}"
    )


def _say_cost(settings: TuneSettings, storage: str) -> None:
    from iclkit.tuners import without_password

    judged = settings.trials * settings.validation + settings.top * settings.confirm
    say(
        f"at most {judged:,} prompts: {settings.trials} lists on {settings.validation} queries, then the best "
        f"{settings.top} on {settings.confirm}; each list's demonstrations are read once. Kept in "
        f"{without_password(storage)}"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror})") from error


def _show(found: TuneResult, problem: TuneProblem, objective: str) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    if (instruction := found.file.instruction) is not None:
        out.print(Text(f"Instruction: {instruction}", style="bold"))
    table = Table("", "id", "output", "input", box=None, pad_edge=False)
    for n, example in enumerate(found.file.demonstrations, 1):
        cells = (str(n), example.id[:12], example.output, " ".join(example.text.split()))
        table.add_row(*(Text(c, overflow="ellipsis", no_wrap=True) for c in cells))
    out.print(table)
    metric = problem.metric.replace("_", " ")
    v, c = found.validation, found.confirmation
    judged = problem.objective(objective)
    name = metric if judged == "metric" else judged
    pruned = sum(t.state.name == "PRUNED" for t in found.trials)
    out.print(
        f"validation {name} {100 * v.value:.1f} ± {100 * found.error:.1f} (standard error), the best of "
        f"{len(found.trials)} lists{f', {pruned} of them given up' if pruned else ''}: chosen for being high, so about "
        f"{100 * found.luck:.1f} points of it may be luck",
        highlight=False,
    )
    if c is not None:
        out.print(
            f"confirmation {metric} {100 * c.value:.1f}, 95 % interval {100 * c.low:.1f} … {100 * c.high:.1f}, on "
            f"{len(problem.confirmation)} fresh queries; best of {len(found.finalists)} that were confirmed",
            highlight=False,
        )
    if silent := int(found.usage.get("no_answer", 0)):
        say(f"note: {silent:,} answers of {problem.lm.name} were empty or refused; each counts as wrong")
    asked, computed = (found.usage.get(key, 0) for key in ("tokens_asked", "tokens_computed"))
    cached = found.usage.get("tokens_cached", 0)
    if asked:
        out.print(
            f"tokens asked {asked:,.0f}, from the cache {cached:,.0f}, computed {computed:,.0f}: shared demonstrations "
            f"and the cache saved {100 * (1 - computed / asked):.0f} %",
            highlight=False,
        )


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options among these that the user gave."""
    context = click.get_current_context()
    return {name: v for name, v in values.items() if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
