"""DSPy programs whose demonstrations a selector chooses; LMs are DSPy's own dummies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import DataError, UsageError
from iclkit.testing import HashEmbedder

dspy = pytest.importorskip("dspy", reason="dspy is not installed: pip install 'iclkit[dspy]'")

from dspy.utils import DummyLM  # noqa: E402

from iclkit.integrations.dspy import SelectorFewShot, SelectorPredict, load_program  # noqa: E402

ROWS = [
    dspy.Example(question=f"what is {a} plus {b} in row{a}{b}", answer=str(a + b)).with_inputs("question")
    for a in range(5)
    for b in range(5)
]


@pytest.fixture
def lm() -> Any:
    dummy = DummyLM([{"reasoning": "add", "answer": "5"}] * 100)
    with dspy.context(lm=dummy):
        yield dummy


def compiled(program: Any, **given: Any) -> Any:
    return SelectorFewShot("knn", k=3, embedder=HashEmbedder(), **given).compile(program, trainset=ROWS)


def questions(program: Any, question: str) -> list[str]:
    return [d.question for d in program.demonstrations(question=question)]


def test_demonstrations_are_chosen_for_each_call_and_the_lm_is_asked_once(lm: Any) -> None:
    program = compiled(dspy.Predict("question -> answer"))
    assert program(question="what is 2 plus 3 in row23").answer == "5"
    assert len(lm.history) == 1
    shown = [m["content"] for m in lm.history[0]["messages"] if m["role"] == "user"]
    assert len(shown) == 4
    assert "what is 2 plus 3 in row23" in shown[-2]
    assert program.demos == []


def test_it_works_under_chain_of_thought_and_in_threads(lm: Any) -> None:
    program = compiled(dspy.ChainOfThought("question -> answer"))
    assert isinstance(program.predict, SelectorPredict)
    evaluate = dspy.Evaluate(devset=ROWS, metric=lambda e, p, trace=None: e.answer == p.answer, num_threads=3)
    assert evaluate(program).score == pytest.approx(100 * 4 / 25)
    assert len(lm.history) == len(ROWS)
    for entry in lm.history:
        asked = [m["content"] for m in entry["messages"] if m["role"] == "user"]
        nearest, query = (next(line for line in text.splitlines() if "what is" in line) for text in asked[-2:])
        assert nearest == query  # each thread saw its own demonstrations: the nearest is the row itself


def test_a_compiled_program_is_saved_and_loaded_with_its_selector(tmp_path: Path, lm: Any) -> None:
    program = compiled(dspy.ChainOfThought("question -> answer"))
    program.save(tmp_path / "program.json")
    again = load_program(dspy.ChainOfThought("question -> answer"), tmp_path / "program.json", embedder=HashEmbedder())
    asked = "what is 4 plus 2"
    assert questions(again.predict, asked) == questions(program.predict, asked)
    assert again(question=asked).answer == "5"
    own = compiled(dspy.ChainOfThought("question -> answer"))
    own.predict.iclkit["k"] = 1
    own.predict._embedder = HashEmbedder()
    own.load(tmp_path / "program.json")
    assert questions(own.predict, asked) == questions(program.predict, asked)


def test_a_program_alone_and_one_of_several_predictors_are_saved_too(tmp_path: Path) -> None:
    class Steps(dspy.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.parts = [dspy.Predict("question -> answer"), dspy.Predict("text -> summary")]

    few = SelectorFewShot("bm25", k=2)
    one = few.compile(dspy.Predict("question -> answer"), trainset=ROWS)
    one.save(tmp_path / "one.json")
    loaded = load_program(dspy.Predict("question -> answer"), tmp_path / "one.json")
    assert questions(loaded, "3 plus 1") == questions(one, "3 plus 1")
    steps = few.compile(Steps(), trainset=ROWS)
    steps.save(tmp_path / "steps.json")
    again = load_program(Steps(), tmp_path / "steps.json")
    assert isinstance(again.parts[0], SelectorPredict)
    assert not isinstance(again.parts[1], SelectorPredict)
    assert questions(again.parts[0], "3 plus 1") == questions(steps.parts[0], "3 plus 1")


def test_a_saved_selector_is_kept_by_its_folder(world, tmp_path: Path) -> None:
    program = SelectorFewShot(world.kept, k=3).compile(dspy.Predict("text -> team"))
    program.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["iclkit"]["examples"] == []
    again = load_program(dspy.Predict("text -> team"), tmp_path / "p.json")
    shown = again.demonstrations(text="refund card twice")
    kept = world.chooser.select("refund card twice", 3)
    assert [d.text for d in shown] == [e.input for e in world.chooser.view.examples_of(reversed(kept.ids))]


def test_copies_share_the_selector_and_async_calls_choose_too(lm: Any) -> None:
    program = compiled(dspy.ChainOfThought("question -> answer"))
    assert program.deepcopy().predict.chooser is program.predict.chooser
    asyncio.run(program.acall(question="what is 1 plus 1"))
    assert len(lm.history[0]["messages"]) == 1 + 2 * 3 + 1


def test_demonstrations_with_reasoning_show_it(lm: Any) -> None:
    rows = [r.copy(reasoning=f"I count to {r.answer}.") for r in ROWS]
    few = SelectorFewShot("knn", k=1, embedder=HashEmbedder())
    few.compile(dspy.ChainOfThought("question -> answer"), trainset=rows)(question="what is 2 plus 3 in row23")
    assert "I count to 5." in lm.history[0]["messages"][2]["content"]


def test_what_cannot_be_compiled_or_loaded_is_said_in_one_line(tmp_path: Path, world) -> None:
    with pytest.raises(UsageError, match=r"give the examples that 'knn' chooses from"):
        SelectorFewShot("knn").compile(dspy.Predict("question -> answer"))
    with pytest.raises(UsageError, match="no predictor of this program has the inputs and an output"):
        SelectorFewShot("bm25").compile(dspy.Predict("text -> summary"), trainset=ROWS)
    with pytest.raises(UsageError, match="brings its own examples; leave trainset out"):
        SelectorFewShot(world.kept).compile(dspy.Predict("text -> team"), trainset=ROWS)
    compiled(dspy.Predict("question -> answer")).save(tmp_path / "p.json")
    with pytest.raises(DataError, match=r"the embedder of the saved program: .*embedder="):
        load_program(dspy.Predict("question -> answer"), tmp_path / "p.json")
    damaged = json.loads((tmp_path / "p.json").read_text())
    damaged["iclkit"]["k"] = "many"
    (tmp_path / "p.json").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match="the saved program's 'iclkit'"):
        load_program(dspy.Predict("question -> answer"), tmp_path / "p.json")
    with pytest.raises(UsageError, match=r"is no \.json file"):
        load_program(dspy.Predict("question -> answer"), tmp_path / "p.pkl")
