"""DSPy: a predictor whose demonstrations are chosen for each call, and an optimizer that puts it into a program.

from iclkit.integrations.dspy import SelectorFewShot, load_program

program = SelectorFewShot("knn", k=8).compile(dspy.ChainOfThought("question -> answer"), trainset=rows)
program.save("program.json")
program = load_program(dspy.ChainOfThought("question -> answer"), "program.json")
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from iclkit.errors import DataError, IclkitError, UsageError
from iclkit.files import read_json
from iclkit.integrations._demonstrations import (
    Columns,
    SelectorLike,
    as_chooser,
    choose_from,
    in_prompt_order,
    settings_of,
)
from iclkit.integrations._extras import require
from iclkit.records import Example
from iclkit.schema import read_as
from iclkit.selectors import Chooser, Kit

require("dspy", "dspy", "3.0")

import dspy  # noqa: E402
from dspy.teleprompt import Teleprompter  # noqa: E402

from iclkit.embed import Embedder, load_embedder  # noqa: E402

_KEY = "iclkit"
"""Where a predictor's state, and so a saved program, keeps how demonstrations are chosen."""


class _Stored(TypedDict):
    input: dict[str, str] | str
    output: str
    meta: dict[str, Any]


class _State(TypedDict):
    """``folder`` of a saved selector, or else everything that it takes to make one again."""

    k: int
    inputs: list[str]
    output: str
    where: list[str]
    folder: str
    selector: str
    order: str
    seed: int
    embedder: str
    examples: list[_Stored]


class SelectorPredict(dspy.Predict):
    """``dspy.Predict`` with demonstrations that a selector chooses for each call.

    ``self.demos`` stays as it is, so that threads do not disturb each other. Demonstrations that are passed to a call
    (``demos=…``) are shown in their place. ``iclkit`` is the part of the saved state that makes the selector again.
    """

    def __init__(self, signature: Any, chooser: Chooser, columns: Columns, state: _State, **config: Any) -> None:
        super().__init__(signature, **config)
        self._chooser: Chooser | None = chooser
        self._embedder: str | Embedder | None = None
        self.columns = columns
        self.iclkit: dict[str, Any] = dict(state)

    @property
    def chooser(self) -> Chooser:
        """What chooses; made again from the saved state where it has to be."""
        if self._chooser is None:
            self._chooser = _chooser_of(_read_state(self.iclkit), self._embedder)
        return self._chooser

    def demonstrations(self, **inputs: Any) -> list[dspy.Example]:
        """The demonstrations for one call, in prompt order."""
        selection = self.chooser.select(self.columns.query(inputs), self.iclkit["k"])
        shown = in_prompt_order(self.chooser, selection)
        return [dspy.Example(**self.columns.values(e)).with_inputs(*self.columns.inputs) for e in shown]

    def forward(self, **kwargs: Any) -> Any:
        """Choose, then predict."""
        if "demos" not in kwargs:
            kwargs["demos"] = self.demonstrations(**kwargs)
        return super().forward(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        """Choose, in a thread, then predict."""
        if "demos" not in kwargs:
            kwargs["demos"] = await asyncio.to_thread(self.demonstrations, **kwargs)
        return await super().aforward(**kwargs)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The state of ``dspy.Predict``, and how demonstrations are chosen."""
        return {**super().dump_state(json_mode=json_mode), _KEY: self.iclkit}

    def load_state(self, state: dict[str, Any], **kwargs: Any) -> SelectorPredict:
        """Take over a saved state; the selector is made again with the next call. DataError for a damaged one."""
        if _KEY in state:
            self.columns = _columns_of(_read_state(state[_KEY]))
            self._chooser = None
        super().load_state(state, **kwargs)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SelectorPredict:
        """A copy that shares the selector, which nothing changes, and its models."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__dict__.items():
            made.__dict__[name] = value if name in ("_chooser", "_embedder") else copy.deepcopy(value, memo)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Without the selector, which is made again from what ``iclkit`` says."""
        return {**super().__getstate__(), "_chooser": None, "_embedder": None}


class SelectorFewShot(Teleprompter):
    """An optimizer that gives every predictor of a program demonstrations by the selector, chosen for each call.

    ``selector``: a selector's name with settings, for the examples that ``compile`` is given as ``trainset``; or a
    ``Chooser``, a fitted selector or the folder of a saved one, which bring their own. ``embedder``: a name or an
    embedder, for selectors that need one. ``where_keys``: inputs that are metadata which demonstrations must share.

    A compiled program is saved with its examples (or the path of the saved selector) and asks no LM to choose.
    Under ``ChainOfThought``, examples with a ``reasoning`` show it; the others say that none is supplied.
    """

    def __init__(
        self,
        selector: SelectorLike = "knn",
        k: int = 8,
        *,
        embedder: str | Embedder | None = "all-minilm-l6-v2",
        where_keys: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.selector, self.k, self.embedder = selector, k, embedder
        self.where_keys, self.seed = tuple(where_keys), seed

    def compile(
        self,
        student: Any,
        *,
        trainset: Sequence[Any] | None = None,
        teacher: Any = None,  # noqa: ARG002  no LM is asked
        valset: Any = None,  # noqa: ARG002
    ) -> Any:
        """A copy of the program whose predictors are ``SelectorPredict``. UsageError where none has the columns."""
        program = student.reset_copy()
        kept = not isinstance(self.selector, str) or Path(self.selector).is_dir()
        if kept and trainset:
            raise UsageError("a fitted or saved selector brings its own examples; leave trainset out")
        if not kept and not trainset:
            raise UsageError(f"give the examples that {self.selector!r} chooses from: compile(program, trainset=…)")
        chooser = as_chooser(self.selector, self.k) if kept else None
        made: dict[str, SelectorPredict] = {}
        named = [("", program)] if isinstance(program, dspy.Predict) else program.named_predictors()
        for name, predictor in named:
            columns = self._columns(predictor.signature, trainset, chooser)
            if columns is not None:
                made[name] = self._replace(predictor, columns, trainset, chooser)
        if not made:
            raise UsageError("no predictor of this program has the inputs and an output of the examples; rename them")
        if "" in made:
            program = made[""]
        else:
            program.map_named_predictors(lambda p: next((made[n] for n, old in named if old is p and n in made), p))
        program._compiled = True
        return program

    def _columns(self, signature: Any, trainset: Sequence[Any] | None, chooser: Chooser | None) -> Columns | None:
        """Which fields of a signature are those of the examples; None for a predictor of something else."""
        inputs, outputs = [*signature.input_fields], [*signature.output_fields]
        if chooser is not None:
            asked = [n for n in inputs if n not in self.where_keys]
            first = chooser.view.examples[0].input
            if not isinstance(first, str):
                if not set(first) <= set(asked):
                    return None
                asked = [n for n in asked if n in first]
            elif len(asked) != 1:
                return None
            return Columns.of(chooser, asked, outputs[-1], self.where_keys)
        assert trainset is not None
        first_row = trainset[0]
        asked = [n for n in inputs if n in first_row and n not in self.where_keys]
        answers = [n for n in outputs if n in first_row]
        if not asked or not answers:
            return None
        return Columns(tuple(asked), answers[-1], len(asked) > 1, self.where_keys)

    def _replace(
        self, old: Any, columns: Columns, trainset: Sequence[Any] | None, chooser: Chooser | None
    ) -> SelectorPredict:
        state: _State = {
            "k": self.k,
            "inputs": [*columns.inputs],
            "output": columns.output,
            "where": [*columns.where],
            "folder": "",
            "selector": "",
            "order": "",
            "seed": self.seed,
            "embedder": "",
            "examples": [],
        }
        if chooser is not None:
            if isinstance(self.selector, str | Path):
                state["folder"] = str(Path(self.selector).resolve())
            else:
                state |= _facts(chooser)
        else:
            assert trainset is not None
            spec, kit = settings_of(str(self.selector), self.embedder, seed=self.seed)
            chooser = choose_from([columns.example(row.toDict()) for row in trainset], spec, kit, self.k)
            state |= _facts(chooser)
        made = SelectorPredict(old.signature, chooser, columns, state, **old.config)
        made.lm, made.fields = old.lm, old.fields
        return made


def load_program(program: Any, path: str | Path, *, embedder: str | Embedder | None = None) -> Any:
    """A program of the same shape with what ``program.save(path)`` has kept, selectors among it.

    DSPy's own ``program.load`` does the same for a program that was compiled, and shows no demonstrations in one that
    was not. ``embedder``: where it is on this machine, if it is not found by its name.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise UsageError(f"{path} is no .json file; save the program as JSON (a pickle could run code)")
    states = read_json(path)
    if not isinstance(states, dict):
        raise DataError(f"{path} is no program that DSPy has saved")
    program = program.reset_copy()
    alone = isinstance(program, dspy.Predict)
    for name, old in [("", program)] if alone else program.named_predictors():
        state = states if alone else states.get(name)
        if not isinstance(state, Mapping) or _KEY not in state:
            continue
        about = _read_state(state[_KEY])
        made = SelectorPredict(old.signature, _chooser_of(about, embedder), _columns_of(about), about, **old.config)
        made._embedder = embedder
        if alone:
            program = made
        else:
            program.map_named_predictors(lambda p, old=old, made=made: made if p is old else p)
    choosers = [(p, p.chooser) for p in program.predictors() if isinstance(p, SelectorPredict)]
    program.load(path)
    for predictor, chooser in choosers:
        predictor._chooser = chooser
    program._compiled = True
    return program


def _facts(chooser: Chooser) -> Any:
    """What makes a chooser again from its examples. UsageError for one that needs an LM or a reranker."""
    needs, kit = chooser.selector.needs, chooser.kit
    if needs.lm or needs.reranker:
        raise UsageError(
            f"selector {chooser.spec.name!r} needs an LM or a reranker; save it (selector.save) and give its folder"
        )
    examples = [
        {"input": e.input if isinstance(e.input, str) else dict(e.input), "output": e.output, "meta": dict(e.meta)}
        for e in chooser.view.examples
    ]
    return {
        "selector": str(chooser.spec),
        "order": kit.order,
        "seed": kit.seed,
        "embedder": kit.embedder.name if needs.embedder and kit.embedder else "",
        "examples": examples,
    }


def _chooser_of(state: _State, embedder: str | Embedder | None) -> Chooser:
    """The chooser of a saved state."""
    if state["folder"]:
        return as_chooser(state["folder"])
    named = state["embedder"] if embedder is None else embedder
    try:
        model = load_embedder(named) if isinstance(named, str) and named else named or None
    except IclkitError as error:
        raise DataError(
            f"the embedder of the saved program: {error}; or give it: load_program(…, embedder=…)"
        ) from error
    kit = Kit(embedder=model, seed=state["seed"], order=state["order"])
    examples = [Example(e["input"], e["output"], meta=e["meta"]) for e in state["examples"]]
    return choose_from(examples, state["selector"], kit, state["k"])


def _columns_of(state: _State) -> Columns:
    examples = state["examples"]
    fields = len(state["inputs"]) > 1 or bool(examples and not isinstance(examples[0]["input"], str))
    return Columns(tuple(state["inputs"]), state["output"], fields, tuple(state["where"]))


def _read_state(state: Any) -> _State:
    read: _State = read_as(_State, state, f"the saved program's {_KEY!r}")
    return read
