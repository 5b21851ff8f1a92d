"""A task: what is shown, what is asked, what counts as right; and the card that says where it came from."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from iclkit.errors import DataError, UsageError
from iclkit.prompts import Template, infer_labels
from iclkit.records import Example, Query, canonical_json, clean_text, digest, fold_text, unique_names
from iclkit.text import fold, visible

KINDS = ("classification", "multiple_choice", "generation", "reasoning")
"""classification: one label set for all rows. multiple_choice: each row has its own ``choices``.
generation: free text. reasoning: free text that ends in an answer, which the metric extracts."""

SPLITS = ("train", "dev", "test")

T = TypeVar("T")
Located = tuple[str, Example]
"""An example and the place it was read from, e.g. ``"test.jsonl, line 17"``."""

_METRIC_PHRASES = (  # in a card's metric line, first match wins
    (r"exact match of the number", "number_match"),
    (r"exact match of the set", "set_match"),
    (r"exact match of the sql", "sql_match"),
    (r"exact match", "exact_match"),
    (r"accuracy", "accuracy"),
    (r"chrf", "chrf"),  # before BLEU: where a card allows both, the one that also ranks single sentences
    (r"bleu", "bleu"),
    (r"rouge", "rouge_l"),
    (r"\bf1\b", "token_f1"),
)
_DEFAULT_METRIC = {
    "classification": "accuracy",
    "multiple_choice": "accuracy",
    "generation": "exact_match",
    "reasoning": "number_match",
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a data set says of itself. ``template`` is the text of its prompt block; ``facts`` keeps every line read."""

    description: str = ""
    kind: str = ""
    metric: str = ""
    licence: str = ""
    citation: str = ""
    source: str = ""
    homepage: str = ""
    template: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Card:
        """Read a ``card.md``: lines ``- Key: value`` and, under ``- Prompt template:``, one fenced block.

        ``- Task: <description>; <kind>.`` gives the kind, ``- Suggested metric: …`` the metric; both may be absent.
        A kind of words that is no kind of ours (translation, extraction …) is generation.
        """
        facts = {
            key.strip().lower(): value.strip()
            for key, value in re.findall(r"^- ([^:\n]+):[ \t]*(.*)$", re.sub(r"(?ms)^```.*?^```", "", text), re.M)
        }
        block = re.search(r"(?ms)^- Prompt template:\s*^```[^\n]*\n(.*?)\n?^```", text)
        description, semicolon, kind = facts.get("task", "").rpartition(";")
        return cls(
            description=description.strip() if semicolon else kind.strip().rstrip("."),
            kind=_kind_of(kind) if semicolon else "",
            metric=_metric_of(facts.get("suggested metric", "") or facts.get("metric", "")),
            licence=facts.get("licence", "").rstrip("."),
            citation=facts.get("citation", "").rstrip("."),
            source=facts.get("source", "").rstrip("."),
            homepage=facts.get("homepage", ""),
            template=block.group(1) if block else "",
            facts=facts,
        )


def _kind_of(words: str) -> str:
    words = words.lower()
    if "classification" in words:
        return "classification"
    if "multiple choice" in words or "multiple_choice" in words:
        return "multiple_choice"
    return "reasoning" if "reasoning" in words else "generation"


def _metric_of(words: str) -> str:
    plain = words.strip().rstrip(".")
    for pattern, name in _METRIC_PHRASES:
        if re.search(pattern, plain, re.I):
            return name
    return plain  # a metric's own name, or a phrase that the metric registry will refuse by name


@dataclass(frozen=True)
class Task:
    """Examples in three splits and how to use them. ``train`` fills pools; ``test`` rows never enter one.

    ``labels`` is the closed label set of a classification task, else empty. ``metric`` is a name in ``iclkit.eval``.
    ``max_answer_tokens`` bounds a generated answer; None: as long as the answers that may be shown need, with room (see
    ``iclkit.eval``). ``notes`` say what the user should know of the data; they are no part of its identity. ``places``:
    where rows were read, e.g. ``"test.jsonl, line 17"``, by example id, as far as known; rows of equal content have one
    place each, in order.
    """

    name: str
    kind: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    template: Template
    dev: tuple[Example, ...] = ()
    labels: tuple[str, ...] = ()
    metric: str = "accuracy"
    card: Card = field(default_factory=Card)
    max_answer_tokens: int | None = None
    notes: tuple[str, ...] = ()
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def split(self, name: str) -> tuple[Example, ...]:
        """The rows of ``train``, ``dev`` or ``test``; UsageError on another name."""
        if name not in SPLITS:
            raise UsageError(f"no split {name!r}; a task has {', '.join(SPLITS)}")
        rows: tuple[Example, ...] = getattr(self, name)
        return rows

    def queries(self, split: str = "test") -> tuple[Query, ...]:
        """The rows of a split as queries, in order, ids unique.

        A row's id is the one its file gives (``meta["id"]``), else a hash of its content; the second row of the same
        id gets ``#2`` at the end, and so on.
        """
        rows = self.split(split)
        own = [row.meta.get("id") for row in rows]
        names = [
            name if isinstance(name, str) and name else Query(row.input, row.choices).id
            for name, row in zip(own, rows, strict=True)
        ]
        return tuple(
            Query(row.input, row.choices, id=name) for name, row in zip(unique_names(names), rows, strict=True)
        )

    def places_of(self, rows: Sequence[Example]) -> list[str]:
        """Where rows were read, "" where that is not known; of rows of equal content the first was read first."""
        met, places = Counter[str](), list[str]()
        for row in rows:
            known = self.places.get(row.id, ())
            places.append(known[met[row.id]] if met[row.id] < len(known) else "")
            met[row.id] += 1
        return places

    @cached_property
    def hash(self) -> str:
        """Hash of all that decides a result: rows in order, kind, labels, template, metric, answer length."""
        rows = {split: [e.id for e in self.split(split)] for split in SPLITS}
        # without a bound of its own the figure that stands here is the one that task hashes have always held
        bound = answer_tokens(self.train) if self.max_answer_tokens is None else self.max_answer_tokens
        return digest([rows, self.kind, [*self.labels], self.template.identity(), self.metric, bound])


def make_task(
    name: str,
    train: Iterable[Example],
    test: Iterable[Example],
    dev: Iterable[Example] = (),
    *,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    template: Template | None = None,
    metric: str | None = None,
    card: Card | None = None,
    max_answer_tokens: int | None = None,
) -> Task:
    """A task from examples in memory; what is not given comes from the card, else is inferred (see ``infer_kind``).

    DataError when a split that is needed is empty, when a label of dev or test is not known, when two labels or two
    choices of a row differ only by white space or by characters that do not show (a metric or a reader would take one
    for the other), or when the template names a field that the examples do not have.
    """
    splits = {
        split: [(f"{name} {split}, row {i}", e) for i, e in enumerate(rows, 1)]
        for split, rows in (("train", train), ("dev", dev), ("test", test))
    }
    return build_task(name, splits, kind, labels, template, metric, card, max_answer_tokens)


def build_task(
    name: str,
    splits: Mapping[str, Sequence[Located]],
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    template: Template | Callable[[Template], Template] | None = None,
    metric: str | None = None,
    card: Card | None = None,
    max_answer_tokens: int | None = None,
    *,
    need_test: bool = True,
) -> Task:
    """``make_task`` over rows that know where they were read, so that errors can name file and line.

    ``template`` may be a function of the template that the task would have without it.
    """
    card = card or Card()
    train, dev, test = ([e for _, e in splits.get(s, ())] for s in SPLITS)
    for split, rows in (("train", train), ("test", test)):
        if not rows and (need_test or split == "train"):
            raise DataError(f"task {name!r} has no {split} rows; a task needs train rows to show and test rows to ask")
    kind = kind or card.kind or ("classification" if labels else infer_kind(train))
    if kind not in KINDS:
        raise UsageError(f"no task kind {kind!r}; use one of {', '.join(KINDS)}")
    if max_answer_tokens is not None and max_answer_tokens < 1:
        raise UsageError(f"max_answer_tokens is {max_answer_tokens}; it must be at least 1")
    known: tuple[str, ...] = ()
    if kind == "classification":
        known = tuple(dict.fromkeys(map(clean_text, labels or sorted({e.output for e in train}))))
        _check_labels(splits, set(known))
        _check_alike(f"task {name!r}: the labels", known, "the rows, or the label list")
    elif kind == "multiple_choice":
        _check_choices(splits)
    if not isinstance(template, Template):
        default = Template.parse(card.template) if card.template else default_template(kind, train[0])
        if kind == "generation" and not any("\n" in e.output for e in train):
            default = replace(default, stop=("\n",))  # answers are lines: what comes after one is not wanted
        template = template(default) if template else default
    own_fields = () if isinstance(train[0].input, str) else (*train[0].input,)
    try:
        template = template.with_labels(known, own_fields)
    except UsageError as error:
        raise UsageError(f"task {name!r} ({kind}): {error}") from error
    _check_template(name, template, train[0])
    return Task(
        name=name,
        kind=kind,
        train=tuple(train),
        dev=tuple(dev),
        test=tuple(test),
        labels=known,
        template=template,
        metric=metric or card.metric or _DEFAULT_METRIC[kind],
        card=card,
        max_answer_tokens=max_answer_tokens,
        notes=_label_notes(known, splits) if kind == "classification" else (),
        places=_places(located for split in ("dev", "test") for located in splits.get(split, ())),
    )


def _places(rows: Iterable[Located]) -> dict[str, tuple[str, ...]]:
    places: dict[str, tuple[str, ...]] = {}
    for where, example in rows:
        places[example.id] = (*places.get(example.id, ()), where)
    return places


def _check_labels(splits: Mapping[str, Sequence[Located]], known: set[str]) -> None:
    for split in SPLITS:
        for where, example in splits.get(split, ()):
            if example.output not in known:
                names = sorted(known)
                listing = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
                raise DataError(
                    f"{where}: unknown label {example.output!r}; known labels: {listing}; "
                    f"correct the row, or say that the task is not a classification (kind generation)"
                )


def _check_alike(what: str, texts: Sequence[str], remedy: str) -> None:
    """DataError where two different texts look alike: the LM tells them apart, the metric or the reader does not."""
    seen: dict[str, str] = {}
    for text in texts:
        first = seen.setdefault(visible(text), text)
        if first != text:
            raise DataError(
                f"{what} {first!a} and {text!a} differ only by white space or by characters that do not show; "
                f"write them alike in {remedy}"
            )


def _label_notes(labels: Sequence[str], splits: Mapping[str, Sequence[Located]]) -> tuple[str, ...]:
    notes = []
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(fold(visible(label)), []).append(label)
    for same in alike.values():
        if len(same) > 1:
            names = " and ".join(map(repr, same))
            notes.append(f"the labels {names} differ only by case or by width; if they mean the same, write them alike")
    if len(labels) == 1:
        notes.append(f"there is one label alone, {labels[0]!r}: every answer is right, whatever is shown")
    elif len({e.output for _, e in splits.get("test", ())}) == 1:
        (gold,) = {e.output for _, e in splits["test"]}
        notes.append(f"every test row has the label {gold!r}: an LM that always says so is right each time")
    return tuple(notes)


def _check_choices(splits: Mapping[str, Sequence[Located]]) -> None:
    for split in SPLITS:
        for where, example in splits.get(split, ()):
            if example.output not in example.choices:
                raise DataError(
                    f"{where}: the answer {example.output!r} is not among the row's choices {list(example.choices)}; "
                    f"correct the row"
                )
            _check_alike(f"{where}: the choices", example.choices, "the row")


def _check_template(name: str, template: Template, example: Example) -> None:
    have = {"input"} if isinstance(example.input, str) else {"input", *example.input}
    have |= {"choices"} if example.choices else set()
    missing = sorted(set(template.fields) - have - {"output", "letter"})
    if missing:
        raise DataError(
            f"task {name!r}: the template names the field {missing[0]!r}, the examples have {', '.join(sorted(have))}; "
            f"correct the template or map the columns"
        )


def infer_kind(train: Sequence[Example]) -> str:
    """What an unlabeled set of examples is, judged by its outputs.

    Every row with choices: multiple_choice. Nearly every output with a last line that ``####`` begins, as GSM8K marks
    answers: reasoning. Short outputs (at most 60 characters, one line), each seen 4 times or more on average, or every
    one twice or more, at most 500 different, and seldom a piece of the input (that would be extraction):
    classification. Else generation.
    """
    if train and all(e.choices for e in train):
        return "multiple_choice"
    if train and 10 * sum(_marks_answer(e.output) for e in train) >= 9 * len(train):
        return "reasoning"
    outputs = Counter(e.output for e in train)
    short = all(len(o) <= 60 and "\n" not in o for o in outputs)
    copied = sum(fold_text(e.output) in fold_text(e.text) for e in train)
    often = bool(infer_labels(e.output for e in train)) or (len(outputs) > 1 and min(outputs.values()) > 1)
    few = len(outputs) <= 500 and often
    return "classification" if short and few and 2 * copied <= len(train) else "generation"


def _marks_answer(output: str) -> bool:
    return output.rpartition("\n")[2].lstrip().startswith("####")


def default_template(kind: str, example: Example) -> Template:
    """One line per input field, then the answer's line: ``Input: …`` / ``Label: …`` when there is nothing better."""
    answer = {"classification": "Label", "generation": "Output"}.get(kind, "Answer")
    fields = ["input"] if isinstance(example.input, str) else list(example.input)
    shown = [f"{f.replace('_', ' ').capitalize()}: {{{f}}}" for f in fields]
    return Template(demo="\n".join([*shown, f"{answer}: {{output}}"]))


def infer_template(examples: Sequence[Example]) -> tuple[Template, tuple[str, ...]]:
    r"""(template, labels) that a task made of these examples, and of nothing else, would have.

    >>> infer_template([Example("late", "delivery"), Example("refund", "billing")] * 4)[0].demo
    'Input: {input}\nLabel: {output}'
    """
    kind = infer_kind(examples)
    named = {frozenset(e.input) if not isinstance(e.input, str) else None for e in examples}
    sample = examples[0] if len(named) == 1 else Example("", "")  # inputs of several shapes are shown whole
    labels = tuple(sorted({e.output for e in examples})) if kind == "classification" else ()
    return default_template(kind, sample), labels


def answer_tokens(train: Iterable[Example]) -> int:
    """A guess at an answer's length in tokens without a tokenizer, from the longest output: a third of its characters,
    8 to 512. A part of every task's hash; what bounds the answers of a run is found with its LM."""
    longest = max((len(e.output) for e in train), default=0)
    return min(512, 8 + math.ceil(longest / 3))


def sample_rows(rows: Sequence[T], limit: int | None, *, seed: int) -> list[T]:
    """``limit`` rows drawn by ``seed``, in their old order; a smaller limit's rows are among a larger one's.

    Every limit on rows goes through here: the first rows of a file are no sample, since files are often sorted by
    label. All rows where ``limit`` is None or not below their number; UsageError for a limit below 1.

    >>> sample_rows("abcdefgh", 3, seed=0)
    ['a', 'e', 'h']
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    if limit is None or limit >= len(rows):
        return list(rows)
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    return [rows[i] for i in sorted(order[:limit])]


def shuffled(rows: Sequence[Located]) -> list[Located]:
    """The rows in an order drawn once and for all: sets of the hub are often sorted by label, and the first k rows of a
    split should be a random sample."""
    return [rows[i] for i in np.random.default_rng(len(rows)).permutation(len(rows))]


def split_holdout(
    train: Sequence[Located], count: int, *, seed: int, by: str = ""
) -> tuple[list[Located], list[Located]]:
    """(rest, held): about ``count`` train rows set aside by ``seed``; rows of equal normalized input stay together, or
    with ``by`` those of equal metadata of that name. What a model wrote (``meta.generated``) is never set aside.

    Whole groups are taken until ``count`` rows are held, so held may be a little larger. DataError when nothing
    would be left.
    """
    groups: dict[str, list[int]] = {}
    for i, (_, example) in enumerate(train):
        if "generated" not in example.meta:
            key = canonical_json(example.meta.get(by)) if by else fold_text(example.text) or clean_text(example.text)
            groups.setdefault(key, []).append(i)
    held: set[int] = set()
    members = list(groups.values())
    for g in np.random.default_rng([seed, len(train)]).permutation(len(members)):
        if len(held) >= count:
            break
        held.update(members[g])
    if len(held) >= len(train) or not held:
        among = f", which have {len(groups)} different values of {by!r}" if by else ""
        raise DataError(f"cannot hold out {count} of {len(train)} train rows{among}: nothing would be left to show")
    return [r for i, r in enumerate(train) if i not in held], [r for i, r in enumerate(train) if i in held]
