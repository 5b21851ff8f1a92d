"""The nouns that cross room borders: frozen dataclasses without I/O.

``Example`` and ``Query`` go into a selector, a ``Selection`` of ``Pick`` comes out, ``Prompt`` shows it, ``Row`` and
``Run`` record what an LM made of it. ``Spec`` is enough to build the same selector again. ``ScoreRequest`` and
``GenerateRequest`` go to an LM; ``Usage`` is what it has done, ``CostEstimate`` what it would have to do.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, Literal, TypeAlias

from iclkit.errors import DataError, ModelError, NeedError, UsageError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Fields: TypeAlias = "str | Mapping[str, str]"
"""An input: one text, or named fields that a template places. Fields have no order of their own: see ``input_text``."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) units of work; a room below ``cli`` never prints."""

SeedScope: TypeAlias = Literal["none", "query", "task"]
"""What a seed stands for: nothing, a draw for each query by itself, or one draw for all queries of a task."""


def canonical_json(value: object) -> str:
    """One spelling per value: sorted keys, no spaces, no escapes; what hashes are taken of."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


def digest(value: object, size: int = 16) -> str:
    """Hex BLAKE2b of the canonical JSON of ``value``, ``size`` bytes long."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=size).hexdigest()


def clean_text(text: str) -> str:
    """The spelling of every text of an example or query: NFC, Unix newlines, no white space at either end."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def one_line(text: str) -> str:
    """The spelling that answers are compared in: clean, and white space inside folded to single spaces."""
    return " ".join(clean_text(text).split())


def fold_text(text: str) -> str:
    """The spelling that leak checks compare: NFKC, case folded, punctuation and white space folded to one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if unicodedata.category(c)[0] not in "PZC" else " " for c in folded)
    return " ".join(kept.split())


def input_text(value: Fields) -> str:
    """An input as one text, for search and comparison: the text itself, or the field values, a line each, by name.

    Sorted by field name, so that it does not depend on the order in which a row happens to give its fields.
    """
    return value if isinstance(value, str) else "\n".join(value[name] for name in sorted(value))


def meta_value(meta: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """A value of some metadata by its name, or by a path of names with dots where it stands inside another value.

    A name that holds dots itself comes before a path.

    >>> meta_value({"attrs": {"tenant": "acme"}}, "attrs.tenant")
    'acme'
    """
    if path in meta:
        return meta[path]
    at = path.find(".")
    while at > 0:
        inside = meta.get(path[:at])
        if isinstance(inside, Mapping):
            missing = object()
            found = meta_value(inside, path[at + 1 :], missing)
            if found is not missing:
                return found
        at = path.find(".", at + 1)
    return default


def set_meta(meta: dict[str, Any], path: str, *value: Any) -> None:
    """Put a value where ``meta_value`` would find it, or take it out where none is given.

    >>> meta = {"attrs": {"tenant": "acme"}}
    >>> set_meta(meta, "attrs.tenant", "beta")
    >>> meta
    {'attrs': {'tenant': 'beta'}}
    """
    at = path.find(".")
    while path not in meta and at > 0:
        inside = meta.get(path[:at])
        if isinstance(inside, dict):
            return set_meta(inside, path[at + 1 :], *value)
        at = path.find(".", at + 1)
    if value:
        meta[path] = value[0]
    else:
        meta.pop(path, None)
    return None


def unique_names(names: Iterable[str]) -> list[str]:
    """The names in order, each different: the second ``a`` becomes ``a#2``, and so on.

    >>> unique_names(["a", "a", "a#2", "b"])
    ['a', 'a#3', 'a#2', 'b']
    """
    given = list(names)
    taken, last, unique = set(given), Counter[str](), list[str]()
    for name in given:
        number = last[name] + 1
        while number > 1 and f"{name}#{number}" in taken:
            number += 1
        last[name] = number
        unique.append(f"{name}#{number}" if number > 1 else name)
        taken.add(unique[-1])
    return unique


def _clean(value: Any) -> Any:
    """Texts and the names and values of fields as ``clean_text`` spells them; what is neither is left as it is."""
    if isinstance(value, str):
        return clean_text(value)
    if not isinstance(value, Mapping):
        return value
    fields = {_clean(k): _clean(v) if isinstance(v, str) else v for k, v in value.items()}
    if len(fields) < len(value):
        names = ", ".join(map(repr, value))
        raise DataError(f"two fields of an input have one name ({names}); rename one")
    return fields


def _content_hash(content: Mapping[str, Any]) -> str:
    """Hash of the parts of an example or query. DataError, naming the part, for what is not made of texts."""
    for name, part in content.items():
        texts = [*part, *part.values()] if isinstance(part, Mapping) else part if isinstance(part, list) else [part]
        for text in texts:
            if not isinstance(text, str):
                expected = "a text or named texts" if name == "input" else "a text"
                raise DataError(f"{text!r} in the {name} is not {expected}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = text[error.start]
                raise DataError(f"half of a surrogate pair ({half!r}) in the {name} is no character") from error
    return digest(list(content.values()))


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a ``pandas.DataFrame``. NeedError without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise NeedError("to_pandas needs pandas; install it with: pip install 'iclkit[pandas]'") from error
    return pd.DataFrame([dict(row) for row in rows])


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table for notebooks; whatever stands in them is text."""
    if not rows:
        return "<p>nothing</p>"
    head = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
    cells = ("".join(f"<td>{escape(_cell(v))}</td>" for v in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration: an input and its output.

    All texts, field names among them, are spelled as ``clean_text`` spells them, whoever makes the example: two
    examples of equal content are equal, and no two labels differ by what a metric does not see.
    ``id`` is a hash of the content (input, output, task, choices); leave it empty to have it computed.
    ``choices`` are the options of a multiple-choice item; a task's label set stands with the task. DataError for
    content that is not text.
    """

    input: Fields
    output: str
    task: str = ""
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Json] = field(default_factory=dict)
    id: str = ""

    def __post_init__(self) -> None:
        content = {
            "input": _clean(self.input),
            "output": _clean(self.output),
            "task": _clean(self.task),
            "choices": [_clean(c) for c in self.choices],
        }
        for name, value in content.items():
            object.__setattr__(self, name, tuple(value) if name == "choices" else value)
        if not self.id:
            object.__setattr__(self, "id", _content_hash(content))

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def text(self) -> str:
        """The input as one text, for retrieval."""
        return input_text(self.input)


@dataclass(frozen=True, slots=True)
class Query:
    """An input to choose demonstrations for. ``exclude`` holds example ids that must never be shown for it.

    ``where``: metadata that its demonstrations must have, by path (see ``meta_value``); it is no part of the id. Texts
    are spelled as in ``Example``; DataError for an input that is not text.
    """

    input: Fields
    choices: tuple[str, ...] = ()
    exclude: frozenset[str] = frozenset()
    id: str = ""
    where: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        content = {"input": _clean(self.input), "choices": [_clean(c) for c in self.choices]}
        object.__setattr__(self, "input", content["input"])
        object.__setattr__(self, "choices", tuple(content["choices"]))
        if not self.id:
            object.__setattr__(self, "id", _content_hash(content))

    def __hash__(self) -> int:
        return hash(self.id)

    @classmethod
    def of(cls, value: QueryLike, *, where: Mapping[str, Json] | None = None, exclude: Iterable[str] = ()) -> Query:
        """A query from a text, from named fields or from another query, with more conditions and exclusions.

        UsageError for anything else.
        """
        if isinstance(value, str | Mapping):
            value = Query(value)
        elif not isinstance(value, Query):
            raise UsageError(f"a query is a text, named fields or a Query, not {type(value).__name__} ({value!r:.60})")
        hidden = [exclude] if isinstance(exclude, str) else exclude
        if not where and not hidden:
            return value
        return replace(value, where={**value.where, **(where or {})}, exclude=value.exclude | frozenset(hidden))

    @property
    def text(self) -> str:
        """The input as one text, for retrieval."""
        return input_text(self.input)


QueryLike: TypeAlias = "Query | str | Mapping[str, str]"
"""What can be asked: a query, a text, or named fields."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A name with settings: enough to build the object again. ``str(spec)`` is what the command line takes.

    ``version`` is raised when the same settings give other results; ``content`` is the hash of what a file named in the
    settings says. Both tell results apart and build nothing.
    """

    name: str
    settings: Mapping[str, Json] = field(default_factory=dict)
    version: int = 1
    content: str = ""

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{k}={_setting(v)}" for k, v in sorted(self.settings.items()))])

    def identity(self) -> dict[str, Json]:
        """What an identity is taken of; ``content`` joins where there is any."""
        parts: dict[str, Json] = {"name": self.name, "settings": dict(self.settings), "version": self.version}
        return parts | ({"content": self.content} if self.content else {})


def _setting(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True)
class Pick:
    """One chosen demonstration. ``rank`` counts from 1, best first; ``score`` is in the selector's own unit."""

    example_id: str
    score: float
    rank: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selector chose, best first; the order in the prompt is made in ``iclkit.prompts``.

    ``notes`` say what the user should know, e.g. that fewer than k examples were allowed. ``examples`` are the chosen
    ones themselves, in the order of the picks.
    """

    query: Query
    picks: tuple[Pick, ...]
    spec: Spec
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """The chosen example ids, best first."""
        return tuple(p.example_id for p in self.picks)

    def __iter__(self) -> Iterator[Pick]:
        return iter(self.picks)

    @property
    def _table(self) -> list[dict[str, Any]]:
        shown = self.examples or (None,) * len(self.picks)
        return [
            {
                "rank": p.rank, "score": p.score, "id": p.example_id, "input": e.text if e else "",
                "output": e.output if e else "", "why": p.why,
            }
            for p, e in zip(self.picks, shown, strict=True)
        ]  # fmt: skip

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each pick, best first."""
        return data_frame(self._table)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        return f"<p><b>{escape(self.query.text)}</b> ({escape(str(self.spec))})</p>{html_table(self._table)}{notes}"

    def __len__(self) -> int:
        return len(self.picks)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn. ``role`` is system, user or assistant."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """As chat APIs take it."""
        return {"role": self.role, "content": self.content}


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same chat with the text of its system messages before that of the first user message."""
    system = [m.content for m in messages if m.role == "system"]
    rest = [m for m in messages if m.role != "system"]
    at = next((i for i, m in enumerate(rest) if m.role == "user"), None)
    if not system:
        return rest
    if at is None:
        return [Message("user", "\n\n".join(system)), *rest]
    return [*rest[:at], Message("user", "\n\n".join([*system, rest[at].content])), *rest[at + 1 :]]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A demonstration that was chosen but not shown, and why."""

    example_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start:end`` of a prompt's text and what they are: instruction, input, output, query, glue.

    The spans of a prompt tile its text exactly. ``example_id`` is set on a demonstration's spans.
    """

    kind: str
    start: int
    end: int
    example_id: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an LM reads. ``shown`` is in prompt order; ``tokens`` counts ``text`` with the LM's own tokenizer.

    ``messages`` is None for a plain-text prompt; for a chat prompt ``text`` is the rendering by the model's template,
    or, where it was made without a model, one for people to read.
    ``answer_prefix`` is what stands between the end of ``text`` and an answer: " " after "Label:", "" in a chat.
    """

    text: str
    shown: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    tokens: int = 0
    spans: tuple[Span, ...] = ()
    messages: tuple[Message, ...] | None = None
    answer_prefix: str = " "

    @property
    def hash(self) -> str:
        """Hash of the text."""
        return digest(self.text)

    def _repr_html_(self) -> str:
        style = 'style="white-space: pre-wrap"'
        if self.messages is None:
            return f"<pre {style}>{escape(self.text)}</pre>"
        return "".join(f"<b>{escape(m.role)}</b><pre {style}>{escape(m.content)}</pre>" for m in self.messages)

    def to_openai(self, *, system: bool = True) -> list[dict[str, str]]:
        """The ``messages`` of a request to a chat API; a plain-text prompt is one user message.

        ``system=False``: for a model that knows no system role; the system text stands in the first user message.
        """
        turns = [Message("user", self.text)] if self.messages is None else [*self.messages]
        return [turn.as_dict() for turn in (turns if system else without_system(turns))]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is ``continuation`` after ``context``?

    The continuation carries its leading space (" positive"). Requests with equal contexts share one forward pass.
    ``group`` names requests that compete although their contexts differ (candidate demonstrations for one query); it
    never changes what is computed, only which winners ``bf16-verified`` makes sure of.
    """

    context: str
    continuation: str
    group: str = ""


ROUNDING = 1e-3
"""Nats by which the log-probability of a token may come out above zero: that of a sure token, added up in float32."""


@dataclass(frozen=True, slots=True)
class Score:
    """``logprob``: sum over the continuation's tokens of log p, in nats. ``tokens``: how many tokens that is.

    ``greedy``: whether each of them was the most likely next token. There is no score that is not finite or lies above
    zero by more than rounding: ModelError, so that none is ever compared, stored or believed, whatever LM gave it.
    """

    logprob: float
    tokens: int
    greedy: bool

    def __post_init__(self) -> None:
        if not -math.inf < self.logprob <= ROUNDING * max(1, self.tokens):
            raise ModelError(
                f"the language model gave {self.logprob:g} as the log-probability of {self.tokens} tokens: its "
                "weights, its server or its arithmetic is broken, and nothing that it says can be trusted"
            )


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue ``context`` by at most ``max_tokens`` tokens, ending before the first of the ``stop`` strings.

    ``choices``, when given, constrain the answer to one of these strings. ``temperature`` 0 is greedy; a sampled
    continuation is determined by ``seed``.
    """

    context: str
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """``text`` without the stop string; ``tokens`` generated; ``finish`` is stop, length, choice or refused."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True, slots=True)
class Row:
    """One query of a run: what was shown, what the LM said, how it was judged.

    ``label_logprobs`` are summed log-probabilities in nats, one per label (empty for generation). ``greedy``: the
    labels whose tokens were each the likeliest next one; None where nobody recorded it. ``failure``: why this query has
    no answer or no judgement ("" where it has both), with the place it was read from where that is known; such a row
    counts neither as right nor as wrong, and is asked again when the run is. ``label_tokens``: tokens of each label,
    where a later step divides by them.
    Nothing in a row depends on time or machine load: a resumed run writes the same bytes.
    """

    query_id: str
    gold: str
    output: str
    metrics: Mapping[str, float]
    picks: tuple[tuple[str, float], ...] = ()
    shown: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    prompt_hash: str = ""
    prompt_tokens: int = 0
    label_logprobs: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    greedy: tuple[str, ...] | None = None
    failure: str = ""
    label_tokens: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of ``rows.jsonl``. Fields that came later are left out where they are empty."""
        data: dict[str, Any] = {  # written out, for ``asdict`` copies every part of every row
            "query_id": self.query_id, "gold": self.gold, "output": self.output, "metrics": self.metrics,
            "picks": self.picks, "shown": self.shown,
            "dropped": [{"example_id": d.example_id, "reason": d.reason} for d in self.dropped],
            "prompt_hash": self.prompt_hash, "prompt_tokens": self.prompt_tokens,
            "label_logprobs": self.label_logprobs, "notes": self.notes, "greedy": self.greedy,
        }  # fmt: skip
        later = {"failure": self.failure, "label_tokens": self.label_tokens}
        return canonical_json(data | {name: value for name, value in later.items() if value})


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model that a run used: the name a person knows it by, and the fingerprint that says which weights it has."""

    name: str
    fingerprint: str

    def identity(self) -> dict[str, Json]:
        """What an identity is taken of."""
        return {"name": self.name, "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class TaskPart:
    """The task of a run, and how many queries were asked: the first, a ``sample`` by this seed, or ``rows`` by hash."""

    name: str
    hash: str
    kind: str
    metric: str
    labels: tuple[str, ...]
    queries: int
    sample: int | None = None
    rows: str = ""

    def identity(self) -> dict[str, Json]:
        """What an identity is taken of; how the queries were drawn joins where it was said."""
        drawn = {"sample": self.sample} if self.sample is not None else {"rows": self.rows} if self.rows else {}
        return {"name": self.name, "hash": self.hash, "kind": self.kind, "metric": self.metric,
                "labels": [*self.labels], "queries": self.queries, **drawn}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PoolPart:
    """The pool of a run."""

    hash: str
    size: int

    def identity(self) -> dict[str, Json]:
        """What an identity is taken of."""
        return {"hash": self.hash, "size": self.size}


RUN_FORMAT = 2
"""Of ``run.json``. Raised only when runs of before cannot be read as they are; see ``iclkit.eval.upgrade_spec``."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that determines the rows of a run, and nothing else.

    ``predictor`` is what answered; ``parts`` is all that decides its answers, by name, and what a board compares along.
    ``conditions`` are what the user says was done to task or pool (``noise``: 0.2): they are compared along as well.
    The members below read the parts that a prompt has; each says what it is for predictors without that part.
    """

    task: TaskPart
    pool: PoolPart
    predictor: Spec
    parts: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Json] = field(default_factory=dict)
    on_leak: str = "exclude"

    def identity(self) -> dict[str, Json]:
        """What ``run.json`` holds and the id is taken of."""
        return {
            "format": RUN_FORMAT,
            "task": self.task.identity(),
            "pool": self.pool.identity(),
            "predictor": self.predictor.identity(),
            "parts": dict(self.parts),
            "conditions": dict(self.conditions),
            "on_leak": self.on_leak,
        }

    @property
    def id(self) -> str:
        """Hash of the identity; the name of the run's folder."""
        return digest(self.identity(), 8)

    @property
    def selector(self) -> Spec:
        """What chose the demonstrations; the predictor itself where there are none."""
        part = self.parts.get("selector")
        if part is None:
            return self.predictor
        return Spec(part["name"], part["settings"], part["version"], part.get("content", ""))

    @property
    def lm(self) -> ModelName | None:
        """The LM that was asked."""
        return self._model("lm")

    @property
    def embedder(self) -> ModelName | None:
        """The embedder, where the picks or the answers are by its vectors."""
        return self._model("embedder")

    @property
    def reranker(self) -> ModelName | None:
        """The reranker, where the picks are by its scores."""
        return self._model("reranker")

    @property
    def k(self) -> int:
        """How many demonstrations were wanted; 0 without a prompt."""
        return int(self.parts.get("k", 0))

    @property
    def seed(self) -> int:
        """The run's seed; 0 without a prompt."""
        return int(self.parts.get("seed", 0))

    @property
    def order(self) -> str:
        """The order policy of the demonstrations."""
        return str(self.parts.get("order", "best-last"))

    @property
    def budget(self) -> int | None:
        """Tokens for prompt and answer; None: what the LM reads."""
        budget: int | None = self.parts.get("budget")
        return budget

    @property
    def normalize(self) -> str:
        """How the scores of labels of several tokens are compared: sum or mean."""
        return str(self.parts.get("normalize", "sum"))

    @property
    def calibrate(self) -> str:
        """The calibration."""
        return str(self.parts.get("calibrate", "none"))

    @property
    def prior(self) -> Any:
        """What the prior of the calibration was taken over, or the given one; None where that is not said."""
        return self.parts.get("prior")

    @property
    def answer_tokens(self) -> int | None:
        """Most tokens of a written answer; None for answers that are chosen."""
        tokens: int | None = self.parts.get("answer_tokens")
        return tokens

    @property
    def stop(self) -> tuple[str, ...] | None:
        """What ends a written answer; None for answers that are chosen."""
        stop = self.parts.get("stop")
        return None if stop is None else tuple(stop)

    def _model(self, part: str) -> ModelName | None:
        found = self.parts.get(part)
        return None if found is None else ModelName(found["name"], found["fingerprint"])


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that determines a result (``spec``), its rows, and what it cost (``usage``).

    ``usage`` holds calls, tokens, seconds and is not part of the identity (``run.json`` calls it ``spent``). ``stored``
    is the id under which the run was read from a folder, "" for one that was just made. ``rows`` are a tuple, or a
    sequence that reads them from their file when they are asked for.
    """

    spec: RunSpec
    rows: Sequence[Row] = ()
    usage: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    stored: str = ""

    @property
    def id(self) -> str:
        """The name of the run's folder: the hash of its spec, taken by the format in which the run was made."""
        return self.stored or self.spec.id

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each query, a column for each metric."""
        return data_frame(
            [{**asdict(row), **{f"metric {name}": value for name, value in row.metrics.items()}} for row in self.rows]
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What an LM was asked so far, and what it took. ``after - before`` is the usage of the work between.

    ``requests`` asked; ``calls`` are the distinct ones that were computed; ``tokens_asked`` is what a plain loop would
    read (context and continuation of every request); ``tokens_computed`` went through the model; ``tokens_cached`` is
    the part of ``tokens_asked`` that the cache answered; ``tokens_generated`` were written; ``seconds`` is wall time
    inside the LM. ``cost`` is money, where a price was given.
    """

    requests: int = 0
    calls: int = 0
    tokens_asked: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(a - b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[Any, ...]:
        return (*self._counters().values(), self.cost)

    def as_dict(self) -> dict[str, float]:
        """The counters by name; the cost where there is one."""
        return {**self._counters(), **({"cost": self.cost} if self.cost else {})}

    def _counters(self) -> dict[str, float]:
        return {
            "requests": self.requests,
            "calls": self.calls,
            "tokens_asked": self.tokens_asked,
            "tokens_computed": self.tokens_computed,
            "tokens_cached": self.tokens_cached,
            "tokens_generated": self.tokens_generated,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What some work would ask of an LM. Estimates add up.

    ``requests`` asked with ``prompts`` different contexts; ``calls``: distinct requests to compute, those in the cache
    left out. ``tokens_asked``: what a plain loop would read. ``tokens_computed``: after sharing and the cache.
    ``tokens_cached``: the part of ``tokens_asked`` that the cache answers. ``tokens_generated``: at most so many are
    written. ``seconds`` of reading these and of writing so many, which is at most; None where they are not known.
    ``cost`` is money, at most; None where no price was given.
    """

    requests: int = 0
    prompts: int = 0
    calls: int = 0
    tokens_asked: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    seconds: float | None = 0.0
    cost: float | None = None

    def __add__(self, other: CostEstimate) -> CostEstimate:
        costs = [c for c in (self.cost, other.cost) if c is not None]
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return CostEstimate(
            self.requests + other.requests,
            self.prompts + other.prompts,
            self.calls + other.calls,
            self.tokens_asked + other.tokens_asked,
            self.tokens_computed + other.tokens_computed,
            self.tokens_cached + other.tokens_cached,
            self.tokens_generated + other.tokens_generated,
            seconds,
            sum(costs) if costs else None,
        )
