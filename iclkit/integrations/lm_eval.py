"""lm-evaluation-harness: a task whose few-shot examples a selector chooses for each document.

# sst2_knn.yaml
include: /path/to/lm_eval/tasks/glue/sst2/default.yaml
task: sst2_knn
class: !function iclkit.integrations.lm_eval.SelectorTask
num_fewshot: 8
metadata:
  version: 1.0
  iclkit: {selector: knn, embedder: all-minilm-l6-v2, input: sentence}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

from iclkit.datasets import find_leaks
from iclkit.errors import DataError, UnknownName, UsageError
from iclkit.integrations._demonstrations import Columns, choose_from, in_prompt_order, settings_of
from iclkit.integrations._extras import require
from iclkit.records import Example, Query
from iclkit.schema import read_as

require("lm-eval", "lm-eval", "0.4.9")

from lm_eval.api.samplers import ContextSampler  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402

_COLUMNS = Columns(("input",), "output", fields=False)


class _Settings(TypedDict):
    """What stands under ``metadata.iclkit``."""

    selector: NotRequired[str]
    embedder: NotRequired[str]
    input: NotRequired[str]
    order: NotRequired[str]
    seed: NotRequired[int]


class SelectorTask(ConfigurableTask):
    """A task of the harness with demonstrations by an iclkit selector.

    Its settings stand in the task's configuration under ``metadata.iclkit``: ``selector`` (a name with settings, or the
    folder of a saved one, whose settings are used), ``embedder`` for selectors that need one, ``input`` (a field or a
    Jinja template of what selectors compare; ``doc_to_text`` where it is not given), ``order`` and ``seed``. How many
    are shown is ``num_fewshot``. What can be shown are the task's few-shot documents, rendered as the harness renders
    them; a document is never shown itself, nor one whose input is nearly the same, whatever split it comes from.

    All selections of a task are made in one batch. Logged samples hold what was shown: ``doc.iclkit``.
    """

    def __init__(self, data_dir: Any = None, cache_dir: Any = None, download_mode: Any = None, config: Any = None):
        config = {name: value for name, value in dict(config or {}).items() if name not in ("class", "include")}
        given = (config.get("metadata") or {}).get("iclkit", {})
        for name in given if isinstance(given, dict) else ():
            if name not in _Settings.__annotations__:
                raise UnknownName("setting under metadata.iclkit", str(name), _Settings.__annotations__)
        self._given: _Settings = read_as(_Settings, given, f"metadata.iclkit of task {config.get('task')!r}")
        self._shown: dict[str, tuple[Example, ...]] = {}
        self._built = False
        super().__init__(data_dir, cache_dir, download_mode, config)
        self.sampler = _Sampler(self)
        self.sampler.set_rnd(self._given.get("seed", 0))

    def build_all_requests(self, **kwargs: Any) -> None:
        """Choose for all documents, then build the requests. UsageError for cached requests, which hold other picks."""
        if kwargs.get("cache_requests") or kwargs.get("rewrite_requests_cache"):
            raise UsageError(
                "--cache_requests does not tell selectors, seeds and pools apart; run tasks with a selector without it"
            )
        self._shown, self._built = {}, False
        places = {name: kwargs[name] for name in ("limit", "samples", "rank", "world_size") if name in kwargs}
        docs = [doc for _, doc in super().doc_iterator(**places)]
        self._choose(docs, self.config.num_fewshot or 0)
        super().build_all_requests(**kwargs)
        self._built = True

    def fewshot_context(self, doc: Any, num_fewshot: int, **kwargs: Any) -> Any:
        """The prompt for one document."""
        self.sampler.asked = doc
        return super().fewshot_context(doc, num_fewshot, **kwargs)

    def doc_iterator(self, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        """The documents; once demonstrations are chosen, with what was shown to each."""
        for number, doc in super().doc_iterator(**kwargs):
            shown = self._shown.get(self._query(doc).id)
            if shown is None or not self._built:
                yield number, doc
            else:
                ids, rows = [e.id for e in shown], [e.meta["row"] for e in shown]
                yield number, {**doc, "iclkit": {"selector": str(self._chooser.spec), "ids": ids, "rows": rows}}

    def demonstrations(self, doc: Any, k: int) -> list[Any]:
        """The few-shot documents for a document, in prompt order."""
        query = self._query(doc)
        if len(self._shown.get(query.id, ())) != k:
            self._choose([doc], k)
        return [self._documents[int(str(e.meta["row"]))] for e in self._shown[query.id]]

    # ---- the work

    def _choose(self, docs: Sequence[Any], k: int) -> None:
        if not k or not docs:
            return
        queries = [self._query(d) for d in docs]
        hidden: dict[str, set[str]] = {}
        for leak in find_leaks(self._chooser.view.examples, queries):
            hidden.setdefault(leak.test_id, set()).add(leak.example_id)
        asked = [replace(q, exclude=frozenset(hidden.get(q.id, ()))) for q in queries]
        for selection in self._chooser.select_many(asked, k):
            self._shown[selection.query.id] = tuple(in_prompt_order(self._chooser, selection))

    @property
    def _chooser(self) -> Any:
        if "_made" not in self.__dict__:
            self._documents = list(self.fewshot_docs())
            spec, kit = settings_of(
                self._given.get("selector", "knn"),
                self._given.get("embedder", "all-minilm-l6-v2"),
                seed=self._given.get("seed", 0),
                order=self._given.get("order", "best-last"),
            )
            examples = [self._example(doc, row) for row, doc in enumerate(self._documents)]
            self._made = choose_from(examples, spec, kit, self.config.num_fewshot or 0)
        return self._made

    def _query(self, doc: Any) -> Query:
        return Query(self._input(doc, self._given.get("input")))

    def _example(self, doc: Any, row: int) -> Example:
        config = self.fewshot_cfg
        target = self.doc_to_target(doc, config.doc_to_target)
        if isinstance(target, int) and self.config.doc_to_choice is not None:
            target = self.doc_to_choice(doc, config.doc_to_choice)[target]
        elif isinstance(target, list):
            target = target[0] if target else ""
        return Example(self._input(doc, self._given.get("input") or config.doc_to_text), str(target), meta={"row": row})

    def _input(self, doc: Any, template: Any) -> str:
        text = self.doc_to_text(doc, template)
        return text if isinstance(text, str) else "\n".join(self.doc_to_choice(doc))


class _Sampler(ContextSampler):
    """Hands the harness what the task has chosen for the document that is asked about."""

    def __init__(self, task: SelectorTask) -> None:
        super().__init__([{}])
        self.task = task
        self.asked: Mapping[str, Any] | None = None

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> list[Any]:  # noqa: ARG002
        """n few-shot documents, in prompt order. DataError where fewer can be shown."""
        doc = self.asked if self.asked is not None else eval_doc
        found = self.task.demonstrations(doc, n) if n else []
        if len(found) < n:
            raise DataError(f"{n} few-shot documents are asked for, and {len(found)} can be shown; lower num_fewshot")
        return found
