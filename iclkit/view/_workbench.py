"""Two selectors asked about one query: what each picks, what speaks for each pick, and the prompt that shows them."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any

import numpy as np

from iclkit.errors import DataError, IclkitError, UsageError
from iclkit.pool import Pool, PoolView
from iclkit.predictors import Tools, display_name, pool_context
from iclkit.prompts import ORDERS, Template
from iclkit.records import Example, Prompt, Query, Selection, Spec
from iclkit.selectors import RANDOM_FILL, SELECTORS, Chooser, Selector, make_selector, selector_help
from iclkit.settings import describe_settings
from iclkit.view._map import PoolMap

KEPT = 8
"""Fitted selectors that are kept, so that going back and forth between some is quick."""
CLIP = 400
"""Characters of a text in a list."""
CLIP_PIECE = 20_000
"""Characters of one piece of a prompt."""
MAX_K = 256
_WORDS = 6  # shared words that are named

log = logging.getLogger("iclkit.view")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the selectors that are compared: a name and its settings as they were typed."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Workbench:
    """A pool with the models that selectors may use.

    ``task``: only examples of this task are chosen from. ``chat``: prompts show demonstrations as turns. One question
    is answered at a time: models are not asked by two threads.
    """

    pool: Pool
    tools: Tools = field(default_factory=Tools)
    template: Template | None = None
    task: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        embedder = self.tools.embedder
        self._embedder = embedder.for_task(self.task) if embedder and self.task else embedder
        self.map = PoolMap(self._embedder)
        self._fitted: OrderedDict[tuple[str, str], Chooser] = OrderedDict()
        self._lock = threading.Lock()

    def view(self) -> PoolView:
        """What can be chosen from now."""
        return self.pool.view(task=self.task)

    # ---- what there is

    def about(self) -> dict[str, Any]:
        """The pool, the models, and the selectors with their settings."""
        tools = self.tools
        models = {"embedder": tools.embedder, "lm": tools.lm, "reranker": tools.reranker}
        first = next(iter(self.pool.find(limit=1).examples), None)
        return {
            "pool": str(self.pool.path),
            "readOnly": self.pool.read_only,
            "task": self.task,
            "fields": [] if first is None or isinstance(first.input, str) else sorted(first.input),
            "lm": tools.lm.name if tools.lm else None,
            "embedder": tools.embedder.name if tools.embedder else None,
            "has": {part: model is not None for part, model in models.items()},
            "orders": ORDERS.names(),
            "selectors": selectors(),
        }

    def pool_map(self) -> dict[str, Any]:
        """The map of what can be chosen from now."""
        with self._lock:
            return self.map.points(self.view())

    # ---- a question

    def ask(self, query: Query, k: int, sides: Sequence[Side], order: str, paid: Sequence[bool] = ()) -> dict[str, Any]:
        """What each side answers: picks and prompt, an error in one line, or what it would cost to ask an LM.

        A side that asks the LM is only asked where ``paid`` says so, at its place.
        """
        if not 0 <= k <= MAX_K:
            raise UsageError(f"k is {k}; give a number from 0 to {MAX_K}")
        ORDERS.get(order)
        with self._lock:
            asked = [self._answer(side, query, k, order, n < len(paid) and paid[n]) for n, side in enumerate(sides)]
            answers = []
            for n, found in enumerate(asked):
                if isinstance(found, dict):
                    answers.append(found)
                    continue
                others = [x for x in asked[:n] + asked[n + 1 :] if not isinstance(x, dict)]
                answers.append(self._told(found, others))
            return {"query": query.text, "at": self.map.place_query(query.text, self.view()), "sides": answers}

    def _answer(self, side: Side, query: Query, k: int, order: str, paid: bool) -> _Answer | dict[str, Any]:
        started = time.perf_counter()
        try:
            fitted = self._fit(make_selector(Spec(side.name, side.settings)), order)  # which asks an LM nothing
            cost = fitted.selector.cost(k)
            if (texts := cost.per_task + cost.per_query) and not paid:
                return {"cost": {"task": cost.per_task, "query": cost.per_query, "texts": texts}}
            (selection,) = fitted.select_many([query], k)
            story = fitted.selector.explain(query, k)
            return _Answer(fitted, selection, fitted.prompt_of(selection), story, time.perf_counter() - started)
        except IclkitError as error:
            return {"error": " ".join(str(error).split())}
        except Exception as error:  # a plug-in of somebody else, or a fault of ours: the other side is still told
            log.exception("selector %s failed", side.name)
            return {"error": f"{type(error).__name__}: {error}; the terminal says more"}

    def _fit(self, made: Selector, order: str) -> Chooser:
        key = (str(made.spec), order)
        if key not in self._fitted:
            view = self.view()
            context = pool_context(view, made, template=self.template, chat=self.chat, name=self.task or "")
            kit = self.tools.kit(context, order=order)
            self._fitted[key] = Chooser(made.fit(view, kit), view, kit, follow=True, pool=self.pool)
        self._fitted.move_to_end(key)
        while len(self._fitted) > KEPT:
            self._fitted.popitem(last=False)
        return self._fitted[key]

    # ---- an answer in words and numbers

    def _told(self, answer: _Answer, others: Sequence[_Answer]) -> dict[str, Any]:
        selection, prompt, view = answer.selection, answer.prompt, answer.chooser.view
        lm = self.tools.lm
        elsewhere = {p.example_id: p.rank for other in others for p in other.selection.picks}
        examples = {e.id: e for e in selection.examples}
        rows = np.array([view.row_of(i) for i in selection.ids], dtype=np.int64)
        near, shared = self._cosines(selection, view, rows), _shared_words(selection.query.text, view, rows)
        places = self.map.place(view, rows)
        tokens = {e.id: lm.count_tokens(answer.chooser.template.render_demo(e)) if lm else None
                  for e in selection.examples}  # fmt: skip
        picks = [
            {
                "id": p.example_id,
                "rank": p.rank,
                "score": p.score,
                "random": p.why == RANDOM_FILL,
                "elsewhere": elsewhere.get(p.example_id),
                "cosine": near[n] if near else None,
                "words": shared[n],
                "at": places[n],
                "tokens": tokens[p.example_id],
                **short(examples[p.example_id]),
            }
            for n, p in enumerate(selection.picks)
        ]
        return {
            "selector": display_name(selection.spec),
            "picks": picks,
            "notes": [*selection.notes],
            "story": [*answer.story],
            "seconds": answer.seconds,
            "prompt": {
                "pieces": _pieces(prompt),
                "shown": [*prompt.shown],
                "dropped": [{"id": d.example_id, "reason": d.reason} for d in prompt.dropped],
                "tokens": prompt.tokens if lm else None,
                "characters": len(prompt.text),
            },
        }

    def _cosines(self, selection: Selection, view: PoolView, rows: Any) -> list[float]:
        if self._embedder is None or not len(rows):
            return []
        query = self._embedder.encode_queries([selection.query.text])[0]
        return [float(x) for x in view.index(self._embedder).vectors(rows) @ query]


@dataclass(frozen=True, slots=True)
class _Answer:
    chooser: Chooser
    selection: Selection
    prompt: Prompt
    story: tuple[str, ...]
    seconds: float


def selectors() -> list[dict[str, Any]]:
    """Every selector that can be named, with its settings; one whose package does not load is left out."""
    found = []
    for name in SELECTORS.names():
        try:
            cls: Any = SELECTORS.get(name)
            about = selector_help(cls)
            infos = describe_settings(cls)
        except (UsageError, TypeError) as error:  # one broken package must not hide the others
            log.warning("selector %s is left out: %s", name, error)
            continue
        about["name"] = name
        about["settings"] = [
            {
                "name": i.name,
                "default": None if i.default is MISSING else _typed(i.default),
                "meaning": i.meaning,
                "allowed": i.allowed,
                "choices": [_typed(c) for c in i.choices],
            }
            for i in infos
        ]
        found.append(about)
    return found


def _typed(value: Any) -> str:
    """A setting's value as it is typed."""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "none"}[value]
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def short(example: Example) -> dict[str, Any]:
    """An example for a list: its texts as far as a reader looks at them there."""
    return {
        "input": example.text[:CLIP],
        "output": example.output[:CLIP],
        "cut": len(example.text) > CLIP or len(example.output) > CLIP,
    }


def _shared_words(query: str, view: PoolView, rows: Any) -> list[list[str]]:
    """For each row the words that it shares with the query, those that weigh most (BM25) first."""
    if not len(rows):
        return []
    index = view.term_index("words", "", 1.5, 0.75)
    known = list(dict.fromkeys(index.known(query)))
    weights = index.weights(known, view.positions(rows))
    return [[known[w] for w in np.argsort(-row, kind="stable")[:_WORDS] if row[w] > 0] for row in weights]


def _pieces(prompt: Prompt) -> list[list[Any]]:
    """(kind, text, example id, characters left out) of the prompt in order."""
    pieces = []
    for span in prompt.spans:
        text = prompt.text[span.start : span.end]
        pieces.append([span.kind, text[:CLIP_PIECE], span.example_id, max(0, len(text) - CLIP_PIECE)])
    return pieces


def read_query(given: Any, exclude: Any = ()) -> Query:
    """The query of a request: a text, or named texts. DataError where it is neither."""
    if isinstance(given, Mapping):
        if not given or not all(isinstance(v, str) for v in given.values()):
            raise DataError("the query is a text, or an object whose values are texts")
    elif not isinstance(given, str):
        raise DataError("the query is a text, or an object whose values are texts")
    if not isinstance(exclude, list | tuple) or not all(isinstance(i, str) for i in exclude):
        raise DataError("`exclude` is a list of ids")
    return Query(given, exclude=frozenset(exclude))
