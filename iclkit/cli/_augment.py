"""``iclkit augment``: let a model write demonstrations into a pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import (
    POOL,
    QUERY_OPTIONS,
    LMOptions,
    data_options,
    lm_options,
    load_lm,
    load_queries,
    load_task,
    parse_template,
)
from iclkit.cli._terminal import echo, emit_json
from iclkit.errors import DataError, UsageError
from iclkit.files import read_text
from iclkit.records import clean_text

if TYPE_CHECKING:
    from iclkit.augment import AugmentResult
    from iclkit.datasets import Task
    from iclkit.lm import LM
    from iclkit.pool import Pool
    from iclkit.prompts import Template
    from iclkit.records import Query

METHODS = {
    "auto-icl": "new inputs like each of --queries, answered by the model itself",
    "answer": "the model's own answers to the unlabeled inputs of --queries",
    "labels": "-n inputs for each label of --labels",
    "recycle": "-n questions and answers about paragraphs of each --document",
    "bootstrap": "-n traces for the pool's examples that --metric accepts",
    "synthesize": "-n new examples after random ones of the pool, the better half kept",
}


@click.command(epilog="\n\n".join(f"{name}: {text}." for name, text in METHODS.items()))
@POOL
@click.option("--method", required=True, type=click.Choice([*METHODS]), help="See below.")
@click.option("--lm", "lm_name", default="smollm2-135m", show_default=True, help="Who writes.")
@click.option("-n", "--count", type=click.IntRange(0), help="How many.  [default: the method's own]")
@click.option("--task", "task_name", help="Take template, labels and metric from this data set, and keep its test and "
              "dev inputs out.")  # fmt: skip
@click.option(
    "--queries", type=click.Path(path_type=Path), help="A file of queries: rows (see --input), or one a line."
)
@click.option("--document", "documents", multiple=True, type=click.Path(path_type=Path), help="A text file with blank "
              "lines between paragraphs; may repeat.")  # fmt: skip
@click.option("--chat", is_flag=True, help="For auto-icl and recycle: ask in the LM's own chat template.")
@lm_options
@click.option("--verbatim", is_flag=True, help="For recycle: only answers that stand in their paragraph.")
@click.option("--cue", default="", help='Words that an answer or trace begins with, e.g. "Let\'s think step by step."')
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: the method's own]")
@click.option("--seed", default=0, show_default=True, help="For whatever is random.")
@data_options()
@click.option("--dry-run", is_flag=True, help="Generate and report, but leave the pool alone.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made and what was rejected as JSON.")
def command(
    pool: Path,
    method: str,
    lm_name: str,
    count: int | None,
    task_name: str | None,
    queries: Path | None,
    documents: tuple[Path, ...],
    chat: bool,
    lm_options: LMOptions,
    verbatim: bool,
    cue: str,
    temperature: float | None,
    seed: int,
    data: Mapping[str, Any],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let an LM write demonstrations into POOL, which is made when it is not there.

    What it writes carries its provenance as metadata, so that it can be listed and removed:
    iclkit pool ls POOL --where generated=recycle. The same command again takes what was done from the LM's cache.
    """
    from iclkit.augment import add_to_pool
    from iclkit.pool import Pool

    order = _Order(
        method,
        count,
        data.get("template"),
        data.get("labels"),
        queries,
        documents,
        chat,
        verbatim,
        data.get("metric"),
        cue,
        temperature,
        seed,
        {} if task_name else data,
    )
    alone = ("template", "labels", "metric", *(QUERY_OPTIONS if queries else ()))
    if others := [key for key in data if key not in alone and not task_name]:
        raise UsageError(f"--{others[0].replace('_', '-')} says how the rows of a task are read; name it with --task")
    task = load_task(task_name, data) if task_name else None
    order.check(task)
    if method in ("bootstrap", "synthesize") and not pool.exists():
        raise DataError(f"{method} starts from real examples and there is no pool at {pool}; see --method labels")
    with Pool.open(pool) as store:
        made = order.run(load_lm(lm_name, lm_options), store, task)
        added = None if dry_run else add_to_pool(store, made)
        total = len(store)
    if as_json:
        emit_json(_facts(made, added.added if added else 0), indent=2)
        return
    for reason, times in made.reasons.items():
        echo(f"rejected {times:,}: {reason}", err=True)
    if added is None:
        echo(f"made {len(made.examples):,} examples with {made.calls:,} LM calls; {pool} is as it was")
        return
    known = f"; {added.known:,} were there already" if added.known else ""
    echo(f"added {added.added:,} examples{known}; {pool} holds {total:,}")
    echo(f"list them with: iclkit pool ls {pool} --where generated={made.method}", err=True)


@dataclass(frozen=True)
class _Order:
    """What the command line asked for."""

    method: str
    count: int | None
    template: str | None
    labels: tuple[str, ...] | None
    queries: Path | None
    documents: tuple[Path, ...]
    chat: bool
    verbatim: bool
    metric: str | None
    cue: str
    temperature: float | None
    seed: int
    data: Mapping[str, Any]

    def check(self, task: Task | None) -> None:
        """What is missing is said before a model is loaded."""
        if self.method in ("auto-icl", "answer") and not self.queries:
            raise UsageError(f"--method {self.method} needs --queries FILE")
        if self.method == "recycle" and not self.documents:
            raise UsageError("--method recycle needs --document FILE")
        if self.method == "labels" and not self._labels(task):
            raise UsageError("--method labels needs --labels A,B,..., or a --task with labels")

    def run(self, lm: LM, pool: Pool, task: Task | None) -> AugmentResult:
        """Call the method once; says before how often it may ask the LM."""
        from iclkit import augment
        from iclkit.prompts import infer_labels

        template, labels = self._template(task), self._labels(task)
        shared: dict[str, Any] = {"seed": self.seed, "task": task.name if task else ""}
        if self.method == "recycle":
            texts = [augment.Document.of(read_text(path)) for path in self.documents]
            _say_cost(sum(len(d.paragraphs) for d in texts))
            return augment.recycle(lm, texts, verbatim=self.verbatim, chat=self.chat, **self._given("k"), **shared)
        if self.method == "labels":
            _say_cost(len(labels) * self._number(2))
            return augment.write_for_labels(lm, template, labels, **self._given("per_label", heat=True), **shared)
        if self.method == "auto-icl":
            queries = self._queries()
            _say_cost(len(queries) * (1 + self._number(4)))
            given = self._given("questions", heat=True) | {"chat": self.chat}
            return augment.auto_icl(lm, template, queries, labels=labels, cue=self.cue, **given, **shared)
        if self.method == "answer":
            inputs = [q.input for q in self._queries()[: self.count]]
            _say_cost(len(inputs))
            return augment.label_inputs(lm, template, inputs, labels=labels, cue=self.cue, **shared)
        real = [
            e for e in pool.view().examples if "generated" not in e.meta and (task is None or e.task in ("", task.name))
        ]
        if self.method == "bootstrap":
            judge = self._judge(task)
            _say_cost(len(real))
            given = self._given("most")
            return augment.bootstrap(lm, template, real, judge, cue=self.cue, seed=self.seed, **given)
        hidden = [e.text for e in (*task.test, *task.dev)] if task else []
        outputs = labels or infer_labels(e.output for e in real)
        _say_cost(self._number(100) * (1 + 5 * 3))
        given = self._given("count", heat=True)
        return augment.synthesize(lm, template, real, labels=outputs, avoid=hidden, **given, **shared)

    def _number(self, default: int) -> int:
        return default if self.count is None else self.count

    def _given(self, count: str, heat: bool = False) -> dict[str, Any]:
        """What was said about number and temperature, under the names of the method."""
        found: dict[str, Any] = {} if self.count is None else {count: self.count}
        return found | ({"temperature": self.temperature} if heat and self.temperature is not None else {})

    def _template(self, task: Task | None) -> Template:
        from iclkit.prompts import Template

        return parse_template(self.template) or (task.template if task else Template())

    def _labels(self, task: Task | None) -> tuple[str, ...]:
        if self.labels is not None:
            return tuple(dict.fromkeys(map(clean_text, self.labels)))
        return task.labels if task else ()

    def _queries(self) -> list[Query]:
        assert self.queries is not None
        return load_queries(self.queries, self.data)

    def _judge(self, task: Task | None) -> Any:
        from iclkit.eval import METRICS

        name = self.metric or (task.metric if task else "number_match")
        judge = METRICS.get(name).judge
        if judge is None:
            raise UsageError(f"metric {name!r} judges whole runs, not single answers; choose e.g. number_match")
        return judge


def _say_cost(calls: int) -> None:
    echo(f"the LM is asked at most {calls:,} times", err=True)


def _facts(made: AugmentResult, added: int) -> Mapping[str, Any]:
    from iclkit.pool import example_dict

    return {
        "method": made.method,
        "added": added,
        "calls": made.calls,
        "examples": [example_dict(e) for e in made.examples],
        "rejected": [{"reason": r.reason, "text": r.text} for r in made.rejected],
    }
