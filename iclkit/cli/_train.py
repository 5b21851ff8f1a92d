"""``iclkit train``: a retriever from an LM's feedback."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from iclkit.cli._kit import (
    LMOptions,
    assumed_lm,
    conditions,
    data_options,
    dedupe,
    lm_options,
    load_lm,
    load_task,
    open_pool,
    parse_template,
)
from iclkit.cli._progress import step_bars
from iclkit.cli._tables import say as say_aloud
from iclkit.cli._terminal import console, emit_json
from iclkit.errors import UsageError

if TYPE_CHECKING:
    from iclkit.trainers import TrainConfig, Trained, TrainingData

A100_FLOPS = 312e12
A100_SHARE = 0.4
"""Peak in bf16, and the part of it that long reading reaches."""
_FIRST = os.environ.get("RANK", "0") == "0"
"""Whether this is the first of several processes (``torchrun``, ``accelerate launch``), or alone."""


class MethodName(click.Choice[str]):
    """A training method. Of a method that nothing is trained for, the command that runs it is named."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "ease": "is a search: iclkit tune ease",
        "skill-knn": "is not trained: iclkit eval TASK -s skill-knn",
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name."""
        if value in self.elsewhere:
            self.fail(f"{value} {self.elsewhere[value]}; both have --preset paper and --dry-run", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("method", type=MethodName(["epr", "udr", "llm-r", "se2", "ceil"]))
@click.argument("sources", nargs=-1, required=True, metavar="POOL|TASK...")
@click.option("--lm", "lm_name", default="smollm2-135m", show_default=True, help="The LM whose feedback is "
              "learned from.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to make.")
@click.option("--preset", "preset_name", default="small", show_default=True, help="paper: the paper's settings. small: "
              "for a 2-core CPU and a 135M LM.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Another value for a setting; may repeat. "
              "--settings lists them.")  # fmt: skip
@click.option("--settings", "list_settings", is_flag=True, help="Print the settings this command would use, and stop.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="First weights, dropout, draws; --set data_seed=N draws other rows to ask about.",
)
@click.option("--instruction", "instructions", multiple=True, metavar="TASK=TEXT", help="What a task asks for, for "
              "retrievers of several tasks; may repeat.  [default: the data set's description]")  # fmt: skip
@click.option("--ledger", type=click.Path(dir_okay=False, path_type=Path), help="Keep scores in this file, which "
              "several trainings may share.  [default: OUT.work/ledger.db]")  # fmt: skip
@click.option("--import-scores", type=click.Path(path_type=Path), help="Take scores from this JSONL first: one made by "
              "--export-scores, or in the layout of LLM-R or FlagEmbedding.")  # fmt: skip
@click.option("--export-scores", type=click.Path(path_type=Path), help="Write all scores to this JSONL and stop.")
@click.option("--layout", default="iclkit", show_default=True, help="Of exported scores: iclkit, llm-r or "
              "flagembedding.")  # fmt: skip
@click.option("--score-only", is_flag=True, help="Score all prompts of the first iteration, and stop.")
@click.option("--restart", is_flag=True, help="Begin again after a change of settings; scores are kept.")
@click.option("--tracker", default="none", show_default=True, help="wandb, mlflow, tensorboard …, as transformers "
              "names them.")  # fmt: skip
@click.option("--chat", is_flag=True, help="Demonstrations as chat turns, in the LM's own chat template.")
@lm_options
@data_options()
@click.option("--batch", is_flag=True, help="Have the feedback of the first iteration answered by the server's batch "
              "API: half the price, up to a day; the same command goes on.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def command(
    method: str,
    sources: tuple[str, ...],
    lm_name: str,
    out: Path,
    preset_name: str,
    settings: tuple[str, ...],
    list_settings: bool,
    seed: int,
    instructions: tuple[str, ...],
    ledger: Path | None,
    import_scores: Path | None,
    export_scores: Path | None,
    layout: str,
    score_only: bool,
    restart: bool,
    tracker: str,
    chat: bool,
    lm_options: LMOptions,
    data: Mapping[str, Any],
    batch: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a retriever on what makes an LM answer right, for use with --embedder OUT.

    POOL is a pool file; TASK a catalogue name, a folder with train.jsonl and test.jsonl, or hf:owner/name. Several
    tasks train one retriever. A killed training goes on with the same command.
    """
    from iclkit.models import must_be_fetched
    from iclkit.trainers import Training, check_extra, preset

    config = preset(method, preset_name, **{"seed": seed, **conditions(settings, "--set")})
    if list_settings:
        emit_json(config.as_dict(), indent=2)
        return
    check_extra()
    wording = {key: str(value) for key, value in conditions(instructions, "--instruction").items()}
    corpus = _corpus(sources, config, data, wording, chat)
    lm = assumed_lm(lm_name) if dry_run and must_be_fetched(lm_name) else load_lm(lm_name, lm_options)
    with ExitStack() as stack:
        bar = stack.enter_context(step_bars(say, enabled=_FIRST))
        look = dry_run or bool(export_scores and not import_scores)
        training = stack.enter_context(
            Training(
                corpus, lm, out, config, ledger=ledger, restart=restart, dry=look, tracker=tracker, say=say, bar=bar
            )
        )
        if import_scores:
            from iclkit.trainers import import_scores as take

            say(f"{take(training.session, import_scores):,} scores taken from {import_scores}")
        if export_scores:
            from iclkit.trainers import export_scores as give

            say(f"{give(training.session, export_scores, layout):,} lines written to {export_scores}")
            return
        if training.finished:
            say(f"{out} is finished; nothing to do")
        else:
            cost = training.estimate()
            say(
                f"{lm.name}: {cost.prompts:,} prompts with {cost.requests:,} answers to score for a start, "
                f"{cost.requests - cost.calls:,} of them known; about {cost.tokens_computed:,} tokens, less where "
                f"prompts share a beginning; evaluations and the report have up to {training.later():,} prompts more"
                + (", and later iterations those that they mine" if config.iterations > 1 else "")
            )
            say(f"disk: {training.disk}")
            if arithmetic := reading_time(lm_name, cost.tokens_computed):
                say(arithmetic)
            for line in training.assumed:
                say(f"assumed: {line}")
        if dry_run:
            return
        start = time.monotonic()
        if batch and not training.finished:
            from iclkit.lm import answer_by_batch

            answer_by_batch(lm, lambda: lm.estimate(training.lacking()), say)
        if score_only:
            missing = training.score()
            say(
                f"the ledger holds the scores of {cost.prompts - missing:,} of these {cost.prompts:,} prompts, after "
                f"{time.monotonic() - start:,.0f} s"
            )
            return
        result = training.run()
    usage = lm.usage
    if usage.tokens_computed:
        say(f"LM: {usage.tokens_computed:,} tokens read for {usage.tokens_asked:,} asked, {usage.seconds:,.0f} s")
    if _FIRST:
        _show(result, as_json)
    selector = result.card.get("selector", "knn")
    say(
        f"{out} is ready after {time.monotonic() - start:,.0f} s: iclkit eval TASK -s {selector} --embedder {out}"
        + (" --chat" if chat else "")
    )


def reading_time(name: str, tokens: int) -> str:
    """What reading so many tokens takes on a known card, for an LM whose name tells its size; "" for another, and for
    less than a minute."""
    from iclkit.trainers import named_parameters

    parameters = named_parameters(name)
    if not parameters or not tokens:
        return ""
    flops = 2.0 * parameters * tokens
    hours = flops / (A100_FLOPS * A100_SHARE) / 3600
    if hours < 1 / 60:
        return ""
    return (
        f"to read them takes {flops / 1e18:.2g} EFLOP ({parameters / 1e9:g} billion weights by its name): about "
        f"{hours:.2g} hours of an A100 at {100 * A100_SHARE:.0f} % of its peak in bf16, not measured"
    )


def say(text: str) -> None:
    """Said once, by the first process."""
    if _FIRST:
        say_aloud(text)


def _corpus(
    sources: tuple[str, ...],
    config: TrainConfig,
    data: Mapping[str, Any],
    instructions: dict[str, str],
    chat: bool,
) -> TrainingData:
    from dataclasses import replace

    from iclkit.datasets import is_pool
    from iclkit.trainers import corpus_of_pool, corpus_of_tasks

    pools = [s for s in sources if is_pool(Path(s)) or Path(s).suffix in (".db", ".sqlite")]
    if pools and len(sources) > 1:
        raise UsageError(f"{pools[0]} is a pool; give one pool alone, or tasks")
    if pools:
        if others := [name for name in data if name != "template"]:
            raise UsageError(
                f"--{others[0].replace('_', '-')} is for a task; of the pool {pools[0]} all examples are used"
            )
        template, view = parse_template(data.get("template")), open_pool(Path(pools[0])).view()
        corpus = corpus_of_pool(view, config, template=template, instructions=instructions, chat=chat)
    else:
        tasks = [load_task(name, data) for name in dedupe(sources)]
        corpus = corpus_of_tasks(tasks, config, chat=chat)
    names = [task.name for task in corpus.tasks]
    for name in instructions:
        if name not in names:
            raise UsageError(f"--instruction is for {name!r}, and the tasks here are {', '.join(names)}")
    return replace(
        corpus,
        tasks=tuple(replace(task, instruction=instructions.get(task.name, task.instruction)) for task in corpus.tasks),
    )


def _show(result: Trained, as_json: bool) -> None:
    if as_json:
        emit_json({**result.card, "folder": str(result.folder)}, indent=2)
        return
    from rich.table import Table

    from iclkit.trainers import headline, interval, percent

    out = console()
    for report in result.reports:
        table = Table(title=headline(report), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for head in ("chosen by", "pool", "gain, nats", "accuracy, %"):
            table.add_column(head, no_wrap=True)
        for each in report.strategies:
            accuracy = percent(each.accuracy) if each.accuracy else "-"
            table.add_row(each.name, each.pool, interval(each.gain), accuracy)
        out.print(table)
        out.print(f"share of the oracle's gain, %: {percent(report.oracle_share)}\n", style="dim")
