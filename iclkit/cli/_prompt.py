"""``iclkit prompt``: the prompt of a task for one query, exactly as an evaluation sends it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iclkit.cli._kit import (
    EMBEDDER_SETTINGS,
    SELECTOR,
    TASK_OPTIONS,
    LMOptions,
    data_options,
    embedder_for,
    lm_options,
    load_lm,
    load_task,
    open_pool,
    reranker_for,
)
from iclkit.cli._tables import say
from iclkit.cli._terminal import emit, emit_json
from iclkit.errors import DataError, UsageError
from iclkit.files import parse_json
from iclkit.records import Query

if TYPE_CHECKING:
    from iclkit.datasets import Task
    from iclkit.eval import Bench
    from iclkit.predictors import PromptPredictor

FORMATS = ("text", "messages", "openai", "curl")
URL = "https://api.openai.com/v1"


@click.command()
@click.argument("task")
@click.argument("query", required=False)
@click.option("--row", metavar="ID|N", help="A test row in the place of QUERY: its id, or its number from 0.")
@click.option("--selector", "-s", default="knn", show_default=True, type=SELECTOR, help="See iclkit selectors "
              "ls; or my_module:MyClass.")  # fmt: skip
@click.option("-k", "--num_fewshot", "-f", "k", type=click.IntRange(0), default=8, show_default=True, help="How many.")
@click.option("--embedder", default="all-minilm-l6-v2", show_default=True, help="For selectors that need one. "
              f"{EMBEDDER_SETTINGS}.")  # fmt: skip
@click.option("--reranker", "reranker_name", help="A cross-encoder for rerank; ,dtype=bf16 may stand behind it.")
@click.option("--lm", help="The LM of the evaluation: fits its context, and shows a chat as the LM reads it.")
@click.option("--pool", "pool_path", type=click.Path(path_type=Path), help="Choose from this pool, not from the task's "
              "train rows.")  # fmt: skip
@click.option("--order", default="best-last", show_default=True, help="Order of the demonstrations.")
@click.option("--seed", default=0, show_default=True, help="For whatever is random.")
@click.option("--budget", type=click.IntRange(1), help="Tokens for prompt and answer.  [default: the LM's context]")
@click.option("--chat", is_flag=True, help="Demonstrations as chat turns.")
@click.option("--no-system", is_flag=True, help="For a model without a system role: its text in the first user turn.")
@lm_options
@data_options(TASK_OPTIONS[1:])  # --format is the prompt's own
@click.option("--format", "format_", type=click.Choice(FORMATS), default="text", show_default=True, help="openai: the "
              "body of a request to a chat API; curl: the command that sends it.")  # fmt: skip
@click.option("--model", default="MODEL", show_default=True, help="The model's name in openai and curl.")
@click.option("--url", default=URL, show_default=True, help="Where curl sends it.")
def command(
    task: str,
    query: str | None,
    row: str | None,
    selector: str,
    k: int,
    embedder: str,
    reranker_name: str | None,
    lm: str | None,
    pool_path: Path | None,
    order: str,
    seed: int,
    budget: int | None,
    chat: bool,
    no_system: bool,
    lm_options: LMOptions,
    format_: str,
    model: str,
    url: str,
    data: dict[str, Any],
) -> None:
    """Print the prompt of TASK for QUERY, byte for byte what iclkit eval sends with the same options.

    TASK is what eval takes. QUERY is a text or, for named fields and choices, a JSON object:
    '{"question": "...", "choices": ["...", "..."]}'. No LM is asked, nor needed.
    """
    from iclkit.eval import make_bench
    from iclkit.predictors import PromptPredictor, Settings, Tools
    from iclkit.selectors import make_selector

    if (query is None) == (row is None):
        raise UsageError("give one query: QUERY, or --row for one of the task's test rows")
    if budget is not None and lm is None:
        raise UsageError("--budget counts an LM's tokens; give one with --lm")
    chooser = make_selector(selector)
    settings = Settings(k=k, seed=seed, order=order, budget=budget)
    loaded = load_task(task, data, chat=chat)
    bench = make_bench(loaded, open_pool(pool_path) if pool_path else None)
    asked = _row(bench, row) if row is not None else _query(query or "", loaded)
    tools = Tools(
        load_lm(lm, lm_options) if lm else None,
        embedder_for([chooser.needs], embedder, lm_options.device),
        reranker_for([chooser.needs], reranker_name, lm_options.device),
    )
    predictor = PromptPredictor(chooser, tools, settings).fit(bench.context)
    (prompt,) = predictor.prompts([asked])
    for dropped in prompt.dropped:
        say(f"note: demonstration {dropped.example_id[:12]} is not shown: {dropped.reason}")
    if format_ == "text":
        emit(prompt.text)
        return
    if prompt.messages is None:
        say("note: the template is plain text, which is sent as one user message; --chat makes turns of it")
    messages = prompt.to_openai(system=not no_system)
    if format_ == "messages":
        emit_json(messages, indent=2)
        return
    body = _body(predictor, messages, model)
    if format_ == "openai":
        emit_json(body, indent=2)
    else:
        emit(_curl(url, body))


def _query(text: str, task: Task) -> Query:
    """What is typed as a query: a text or, for a task with named fields or choices, a JSON object."""
    first = task.train[0]
    if not text.lstrip().startswith("{") or (isinstance(first.input, str) and not first.choices):
        return Query(text)
    found = parse_json(text, "QUERY")
    if not isinstance(found, dict):
        raise DataError("QUERY is no JSON object")
    choices = found.pop("choices", [])
    if not isinstance(choices, list) or not all(isinstance(v, str) for v in (*choices, *found.values())):
        raise DataError("QUERY: every field is a text, and choices are a list of texts")
    if [*found] == ["input"]:
        return Query(found["input"], tuple(choices))
    return Query(found, tuple(choices))


def _row(bench: Bench, name: str) -> Query:
    """A test row by id or by number. UsageError when there is none."""
    for query in bench.queries:
        if query.id == name:
            return query
    if name.isdecimal() and int(name) < len(bench.queries):
        return bench.queries[int(name)]
    raise UsageError(f"--row {name!r} is neither an id of a test row nor a number below {len(bench.queries)}")


def _body(predictor: PromptPredictor, messages: list[dict[str, str]], model: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0}
    if predictor.context.writes and predictor.tools.lm is not None:
        bounds = predictor.bounds
        body |= {"max_tokens": bounds.tokens} | ({"stop": [*bounds.stops]} if bounds.stops else {})
    return body


def _curl(url: str, body: dict[str, Any]) -> str:
    sent = shlex.quote(json.dumps(body, ensure_ascii=False))
    return (
        f"curl {shlex.quote(url.rstrip('/') + '/chat/completions')} \\\n"
        '  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d {sent}"
    )
