"""What commands have in common: groups of options, and one loader each for LMs, embedders, rerankers and pools."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from iclkit.cli._progress import download_bar
from iclkit.cli._tables import say
from iclkit.errors import ModelError, UsageError
from iclkit.records import Example, Json, Query
from iclkit.secrets import redact

if TYPE_CHECKING:
    from iclkit.datasets import Skipped, Task, TaskFile
    from iclkit.embed import Embedder, Reranker
    from iclkit.lm import LM
    from iclkit.pool import Pool
    from iclkit.prompts import Template
    from iclkit.selectors import Needs

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

EMBEDDER_SETTINGS = "Settings stand behind it: ,dtype=bf16 ,query_prefix=TEXT ,document_prefix=TEXT"
"""What the help of every ``--embedder`` says; ``iclkit.embed.split_spec`` reads it."""


# ---- values as they are typed


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 0 on, with commas: ``1,4,8``."""

    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if isinstance(value, bool):
            self.fail(f"{value!r} is not a number", param, ctx)
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number, nor numbers with commas like 1,4,8", param, ctx)
        if min(numbers) < 0:
            self.fail(f"{min(numbers)} is less than 0", param, ctx)
        return numbers


class SelectorText(click.ParamType[str]):
    """A selector as a user types it: ``knn``, ``mmr,trade_off=0.3``, a selector file, or ``my_module:MyClass``.

    A class of a module of the working folder is found as well.
    """

    name = "NAME[,KEY=VALUE...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """The spec with loaded classes under their names."""
        if ":" not in str(value):
            return str(value)
        from iclkit.selectors import import_selectors

        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
        return import_selectors(str(value))


SELECTOR = SelectorText()


def unescape(text: str) -> str:
    """What is typed with ``\\n`` for a line's end and ``\\t`` for a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


TEMPLATE = "A demonstration with {input} and {output}, an instruction above it; or a file that holds one (.txt, .toml)."
"""What the help of every ``--template`` says."""


def parse_template(text: str | None) -> Template | None:
    """The template of ``--template``, if one is given: a text, or a file that holds one. See ``Template.read``."""
    from iclkit.files import path_kind
    from iclkit.prompts import Template

    if not text:
        return None
    if text.endswith((".txt", ".toml")) or path_kind(Path(text)) == "file":
        return Template.read(text)
    return Template.parse(unescape(text))


POOL = click.argument("pool", type=click.Path(path_type=Path))
TASK = click.option("--task-name", "task", help="Only examples of the task of this name.")
WHERE = click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="Only examples with this metadata; may repeat."
)


def conditions(pairs: Sequence[str], option: str = "--where") -> dict[str, Json]:
    """KEY=VALUE texts as a mapping; a value is JSON where it parses as JSON. UsageError names the one at fault."""
    values: dict[str, Json] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {pair!r} is not KEY=VALUE")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


def dedupe(values: Iterable[T]) -> tuple[T, ...]:
    """Each value once, in order."""
    return tuple(dict.fromkeys(values))


# ---- a user's own data


class Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "NAME[,NAME...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ARG002
        """The names without white space around them."""
        if isinstance(value, tuple | list):
            return tuple(map(str, value))
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class LabelNames(click.ParamType[Mapping[str, str]]):
    """``neg,pos`` or ``0=neg,1=pos``."""

    name = "NAME,NAME|ID=NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Mapping[str, str]:  # noqa: ARG002
        """The names by id."""
        from iclkit.datasets import label_names

        if isinstance(value, Mapping):
            return {str(k): str(v) for k, v in value.items()}
        return label_names(",".join(value) if isinstance(value, list | tuple) else str(value))


class Character(click.ParamType[str]):
    """One character; a tab may be typed as ``\\t``."""

    name = "CHARACTER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """The character itself."""
        return {"tab": "\t", "semicolon": ";", "comma": ",", "pipe": "|"}.get(str(value), unescape(str(value)))


NAMES = Names()
FILE_OPTIONS = (
    click.option("--format", help="jsonl, json, csv, tsv, parquet, or lines (an input on each).  [default: what the "
                 "file's name says]"),
    click.option("--rows", metavar="PATH", help="Where in a JSON file the rows stand, e.g. data.items."),
    click.option("--delimiter", type=Character(), help="Parts the columns of a table, e.g. ; or \\t.  [default: found "
                 "out]"),
    click.option("--encoding", help="Of a file that is not UTF-8, e.g. cp1252."),
    click.option("--header", type=NAMES, help="The columns of a table without a header line."),
    click.option("--on-bad-row", type=click.Choice(["stop", "skip"]), help="A row that makes no example: stop, or "
                 "leave it out and write it to a file.  [default: stop]"),
)  # fmt: skip
"""How files are read."""
COLUMN_OPTIONS = (
    click.option("--input", multiple=True, metavar="FIELD", help="Column of the input; repeat for named fields."),
    click.option("--output", metavar="FIELD", help="Column of the output."),
    click.option("--choices", type=NAMES, help="Columns of the options (A,B,C,D), or the one that lists them."),
    click.option(
        "--choice-keys", metavar="FIELD", help="Column that lists the options' keys, where the output is one."
    ),
    click.option("--label-names", type=LabelNames(), help="Names of label ids: neg,pos for 0 and 1, or 1=neg,2=pos."),
    click.option("--null-label", metavar="NAME", help="The label of rows whose output is null."),
    click.option("--keep", multiple=True, metavar="FIELD", help="Column to keep as metadata; may repeat."),
)
"""Which columns make an example."""
SPLIT_OPTIONS = (
    click.option("--test", metavar="FILE", help="The test rows, where they are in a file of their own."),
    click.option("--test-size", type=click.FloatRange(0, min_open=True), metavar="N", help="Rows to hold out as test "
                 "rows, or below 1 a share.  [default: a fifth, at most 500]"),
    click.option("--split-by", metavar="FIELD", help="Rows with one value of this column stay on one side."),
    click.option("--split-seed", type=int, help="Draws the rows that are held out.  [default: 0]"),
)  # fmt: skip
"""How test rows are drawn."""
JUDGE_OPTIONS = (
    click.option("--kind", help="classification, multiple_choice, generation or reasoning."),
    click.option("--labels", type=NAMES, help="The label set."),
    click.option("--metric", help="What scores an answer.  [default: the task's]"),
)
TEMPLATE_OPTIONS = (
    click.option("--template", metavar="TEXT|FILE", help=f"{TEMPLATE}  [default: the task's]"),
    click.option("--system", metavar="TEXT", help="The system text of a chat; without --chat it stands above all."),
    click.option("--separator", metavar="TEXT", help="Between demonstrations.  [default: a blank line]"),
)  # fmt: skip
TASK_OPTIONS = (*FILE_OPTIONS, *COLUMN_OPTIONS, *SPLIT_OPTIONS, *JUDGE_OPTIONS, *TEMPLATE_OPTIONS)
"""Everything that can be said of a task, by the names of ``TaskFile.with_options``."""


def data_options(options: Sequence[Callable[[Any], Any]] = TASK_OPTIONS) -> Callable[[F], F]:
    """These options for a command, which gets what was typed of them together, as ``data``: a mapping."""

    def decorate(command: F) -> F:
        names: list[str] = []

        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = {name: kwargs.pop(name) for name in names}
            return command(*args, data={k: v for k, v in found.items() if v not in (None, ())}, **kwargs)

        for option in reversed(options):
            wrapped = option(wrapped)
            names.append(wrapped.__click_params__[-1].name)  # type: ignore[attr-defined]
        return wrapped  # type: ignore[return-value]

    return decorate


def typed_options(data: Mapping[str, Any]) -> list[str]:
    """The options of ``data_options`` as they are typed, for a command that is suggested."""
    words: list[str] = []
    for name, value in data.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, Mapping):
            words += [flag, ",".join(f"{k}={v}" for k, v in value.items())]
        elif isinstance(value, tuple) and name in ("input", "keep"):
            words += [word for one in value for word in (flag, one)]
        else:
            words += [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def task_file(name: str, data: Mapping[str, Any]) -> TaskFile:
    """The description of the task that a name or path and the options give."""
    from iclkit.datasets import describe

    given = dict(data)
    if "split_seed" in given:
        given["seed"] = given.pop("split_seed")
    for key, read in (("template", parse_template), ("system", unescape), ("separator", unescape)):
        if key in given:
            given[key] = read(given[key])
    return describe(name).with_options(**given)


def load_task(name: str, data: Mapping[str, Any] | None = None, *, chat: bool = False, need_test: bool = True) -> Task:
    """The task of a name or path and the options given with it; says what was inferred, and writes down bad rows."""
    from iclkit import datasets

    described = task_file(name, data or {})
    task = datasets.load_task(
        described, need_test=need_test, on_skipped=lambda rows: write_skipped(described.name or Path(name).name, rows)
    )
    for note in task.notes:
        say(f"note: {task.name}: {note}")
    return replace(task, template=replace(task.template, chat=True)) if chat else task


QUERY_OPTIONS = ("input", "choices", "format", "rows", "delimiter", "encoding", "header")
"""The options of ``data_options`` that say how a file of queries is read."""


def load_queries(path: Path, data: Mapping[str, Any] | None = None) -> list[Query]:
    """The queries of a file, of which the options say columns and format; ``-`` is standard input."""
    from iclkit.datasets import TaskFile, read_queries

    given = {key: value for key, value in (data or {}).items() if key in QUERY_OPTIONS}
    described = TaskFile().with_options(**given)
    columns = described.columns
    return read_queries(path, input=columns.input, choices=columns.choices, options=described.file_options)


def write_skipped(name: str, rows: Sequence[Skipped]) -> None:
    """Write the rows that were left out beside the user, one JSON object a line, and say where."""
    from iclkit.files import replace_file

    path = Path(f"{name.removesuffix('.toml')}.skipped.jsonl")
    lines = [json.dumps({"where": r.where, "reason": r.reason, "row": r.row}, default=str) for r in rows]
    replace_file(path, "\n".join(lines) + "\n")
    say(f"note: {len(rows):,} bad rows were left out; they are in {path}")


# ---- how an LM is loaded


@dataclass(frozen=True, slots=True)
class LMOptions:
    """What the options of ``lm_options`` say."""

    dtype: str = "auto"
    device: str | None = None
    gpus: int | None = None
    engine: str | None = None
    workers: int | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    cache: bool = True
    price: str | None = None
    max_cost: float | None = None


def lm_options(command: F) -> F:
    """The options of every command that loads an LM; the command gets them together, as ``lm_options``."""

    @click.option("--dtype", default="auto", show_default=True, help="Of the LM: auto, bf16, fp32 or bf16-verified.")
    @click.option("--device", help="cpu, cuda, cuda:1, or several, a process on each: cuda:0,cuda:1.  [default: the "
                  "GPUs there are]")  # fmt: skip
    @click.option("--gpus", type=click.IntRange(1), help="The first so many GPUs, a process on each.  [default: all]")
    @click.option("--engine", metavar="ray[:HOST:PORT]", help="Share the LM's work on a Ray cluster.")
    @click.option("--workers", type=click.IntRange(1), help="Processes that share the LM's work.  [default: one per "
                  "device, or on CPU per core for a small LM]")  # fmt: skip
    @click.option(
        "--threads", type=click.IntRange(1), help="Threads of each worker on CPU.  [default: cores / workers]"
    )
    @click.option("--batch-tokens", type=click.IntRange(1), help="Tokens per pass of the LM.  [default: 2048 on CPU, "
                  "on a GPU as its memory allows]")  # fmt: skip
    @click.option("--no-cache", is_flag=True, help="Neither read nor write the LM cache.")
    @click.option("--price", metavar="in=X,out=Y", help="What a server's answers cost per million tokens read and "
                  "written (cached=Z for what its cache knows), or a JSON file of prices.")  # fmt: skip
    @click.option("--max-cost", type=float, help="Stop before a server's answers cost more; the same command goes on.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        dtype: str,
        device: str | None,
        gpus: int | None,
        engine: str | None,
        workers: int | None,
        threads: int | None,
        batch_tokens: int | None,
        no_cache: bool,
        price: str | None,
        max_cost: float | None,
        **kwargs: Any,
    ) -> Any:
        options = LMOptions(dtype, device, gpus, engine, workers, threads, batch_tokens, not no_cache, price, max_cost)
        return command(*args, lm_options=options, **kwargs)

    return wrapped  # type: ignore[return-value]


def load_lm(name: str, options: LMOptions | None = None) -> LM:
    """The LM, fetched with a progress bar if it is not here. Says how a server is asked, where that matters."""
    from iclkit import lm as lms

    options = options or LMOptions()
    fetch(name, "lm")
    say(f"loading {name} …")
    given: dict[str, Any] = {
        k: v for k, v in (("batch_tokens", options.batch_tokens), ("gpus", options.gpus)) if v is not None
    }
    lm = lms.load_lm(
        name, dtype=options.dtype, device=options.device, engine=options.engine, cache=options.cache,
        workers=options.workers, threads=options.threads, price=options.price, max_cost=options.max_cost, **given,
    )  # fmt: skip
    tell_notes(lm)
    if options.price is not None and (command := click.get_current_context(silent=True)):
        command.find_root().call_on_close(lambda: say(f"{redact(name)}: spent {lm.usage.cost:.4g}"))
    return lm


def lm_loader(options: LMOptions) -> Callable[[str], LM]:
    """Loads LMs that settings name, such as a rewriter, each once and under the options of the first."""
    return functools.cache(functools.partial(load_lm, options=options))


def stand_in_loader(options: LMOptions) -> Callable[[str], LM]:
    """As ``lm_loader``, for a dry run: an LM that is not here is not fetched, and what is assumed of it is said."""
    from iclkit.models import must_be_fetched

    return functools.cache(lambda name: assumed_lm(name) if must_be_fetched(name) else load_lm(name, options))


def assumed_lm(name: str) -> LM:
    """A stand-in for an LM that is not here, for a dry run; what it assumes is said."""
    from iclkit.trainers import AssumedLM

    lm = AssumedLM(name)
    for note in lm.notes:
        say(f"assumed: {note}")
    return lm


def tell_notes(lm: LM, said: Collection[str] = ()) -> None:
    """Say what the user should know about how the LM is asked, but for what was said before."""
    for note in lm.notes:
        if note not in said:
            say(f"note: {note}")


# ---- other things that are loaded


def load_embedder(name: str, device: str | None = None, *, few: bool = False) -> Embedder:
    """The embedder, fetched with a progress bar if it is not here. ``few``: for a few queries at most."""
    from iclkit import embed

    fetch(name, "embedder")
    say(f"loading {name} …")
    loaded = embed.load_embedder(name, device=device, few=few)
    tell_cuts(loaded)
    return loaded


def tell_cuts(*readers: object) -> None:
    """Say at the end of the command which texts were too long for embedders and rerankers to be read whole."""
    from iclkit.embed import CountsCuts

    def tell(reader: CountsCuts) -> None:
        if note := reader.cut_texts.note(redact(reader.name)):
            say(f"note: {note}")

    if command := click.get_current_context(silent=True):
        for reader in readers:
            if isinstance(reader, CountsCuts):
                command.find_root().call_on_close(functools.partial(tell, reader))


def tell_language(examples: Sequence[Example], embedder: str) -> None:
    """A note where an embedder that was trained on English alone is to compare texts of another language."""
    from iclkit.datasets import sample_rows
    from iclkit.embed import split_spec
    from iclkit.models import catalogue
    from iclkit.text import looks_english

    name, _ = split_spec(embedder)
    card = catalogue().get(name)
    if card is not None and card.languages == "en" and not looks_english(
        e.text for e in sample_rows(examples, 300, seed=0)
    ):  # fmt: skip
        say(
            f"note: the examples do not look English, and {name} was trained on English; a multilingual embedder may "
            f"find better neighbors: --embedder multilingual-e5-small"
        )


def load_reranker(name: str, device: str | None = None) -> Reranker:
    """The cross-encoder, from this machine or the hub."""
    from iclkit import embed

    say(f"loading {name} …")
    loaded = embed.load_reranker(name, device=device)
    tell_cuts(loaded)
    return loaded


def embedder_for(
    needs: Iterable[Needs], name: str, device: str | None = None, *, always: bool = False, dry: bool = False
) -> Embedder | None:
    """The embedder, if anything that is run needs one, or ``always``.

    ``dry``: one that is not here is not fetched; a stand-in draws neighbors, and that is said.
    """
    if not always and not any(n.embedder for n in needs):
        return None
    if dry:
        from iclkit.trainers import Assumed, is_absent

        if is_absent(name):
            assumed = Assumed(lambda note: say(f"assumed: {note}"))
            return assumed.embedder(name)
    return load_embedder(name, device)


def reranker_for(needs: Iterable[Needs], name: str | None, device: str | None = None) -> Reranker | None:
    """The reranker, if one was named and anything that is run needs one."""
    return load_reranker(name, device) if name is not None and any(n.reranker for n in needs) else None


PRESET = click.option(
    "--preset",
    type=click.Choice(["small", "paper"]),
    default="small",
    show_default=True,
    help="paper: settings, -k and --embedder as in the selector's paper, where you give none (skill-knn, se2, ceil).",
)


def of_paper(selectors: Sequence[str], typed: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """The selectors of ``--preset paper``, and of the options ``k`` and ``embedder`` those that it settles.

    ``typed``: names of the options that the user gave. UsageError where no selector has a paper's set-up, and where
    those of several differ.
    """
    from iclkit.selectors import BUILTINS, paper_setup

    pairs = [paper_setup(text) for text in selectors]
    setups = [setup for _, setup in pairs if setup is not None]
    if not setups:
        known = [name for name in BUILTINS if paper_setup(name)[1] is not None]
        raise UsageError(
            f"--preset paper is for {', '.join(known)}, and no selector here is one of them (given: "
            f"{', '.join(selectors) or 'none'}); trained retrievers have it in iclkit train, ease in iclkit tune"
        )
    found: dict[str, Any] = {}
    for name, values in (("k", {s.k for s in setups}), ("embedder", {s.embedder for s in setups} - {""})):
        if name in typed or not values:
            continue
        if len(values) > 1:
            flag = "-k" if name == "k" else "--embedder"
            raise UsageError(f"--preset paper: the selectors' papers have {flag} {sorted(values)}; give one")
        found[name] = values.pop()
    for note in dict.fromkeys(note for setup in setups for note in setup.notes):
        say(f"note: {note}")
    return [text for text, _ in pairs], found


def typed_names() -> set[str]:
    """Names of the options that the user gave, on the command line or in a file of settings."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}


def open_pool(path: Path) -> Pool:
    """The user's pool, which has to be there."""
    from iclkit.pool import Pool

    return Pool.open(path, create=False)


def fetch(name: str, kind: str) -> None:
    """Fetch a model that is not here, with a bar. Folders and served models (``openai:…``) look after themselves."""
    from iclkit.models import resolve

    if kind == "embedder":
        from iclkit.embed import split_spec

        name, _ = split_spec(name)
    if ":" in name or Path(name).is_dir():
        return
    if kind == "lm":
        from iclkit.lm import spread_spec

        name, _ = spread_spec(name)
    try:
        resolve(name, kind, pull=False)  # type: ignore[arg-type]
    except ModelError:
        with download_bar() as progress:
            resolve(name, kind, progress=progress)  # type: ignore[arg-type]
