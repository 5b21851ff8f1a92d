"""Fifty queries give the same demonstrations through Python, the command line and every tool that is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from iclkit.cli import cli
from iclkit.pool import Pool
from iclkit.selectors import Kit, load_selector, make_selector
from iclkit.testing import FakeLM

from .conftest import EXAMPLES, TEXTS

ID_OF = {e.text: e.id for e in EXAMPLES}
K = 4


def through_python(pool: Path, kept: Path) -> list[list[str]]:
    return [[*reversed(s.ids)] for s in load_selector(kept).select_many(TEXTS)]


def through_the_command_line(pool: Path, kept: Path) -> list[list[str]]:
    (kept.parent / "queries.jsonl").write_text("".join(json.dumps({"input": t}) + "\n" for t in TEXTS))
    name = load_selector(kept).spec.name
    done = CliRunner().invoke(
        cli, ["select", str(pool), "--queries", str(kept.parent / "queries.jsonl"), "-s", name, "-k", str(K), "--json"]
    )
    rows = json.loads(done.stdout)
    return [[row["id"] for row in reversed(rows[at : at + K])] for at in range(0, len(rows), K)]


def through_langchain(pool: Path, kept: Path) -> list[list[str]]:
    from iclkit.integrations.langchain import ExampleSelector

    selector = ExampleSelector(kept, input_keys=["text"])
    return [[ID_OF[e["text"]] for e in selector.select_examples({"text": t})] for t in TEXTS]


def through_dspy(pool: Path, kept: Path) -> list[list[str]]:
    import dspy

    from iclkit.integrations.dspy import SelectorFewShot

    program = SelectorFewShot(kept, k=K).compile(dspy.Predict("text -> team"))
    return [[ID_OF[d.text] for d in program.demonstrations(text=t)] for t in TEXTS]


def through_sklearn(pool: Path, kept: Path) -> list[list[str]]:
    from iclkit.integrations.sklearn import ICLClassifier

    model = ICLClassifier(kept, k=K, lm=FakeLM()).fit([e.text for e in EXAMPLES], [e.output for e in EXAMPLES])
    texts = {e.id: e.text for e in model.examples_}
    return [[ID_OF[texts[i]] for i in reversed(s.ids)] for s in model.select(TEXTS)]


def through_lm_eval(pool: Path, kept: Path) -> list[list[str]]:
    from iclkit.integrations.lm_eval import SelectorTask

    folder = kept.parent
    rows = {
        "train": [{"text": e.text, "team": e.output} for e in EXAMPLES],
        "test": [{"text": t, "team": "?"} for t in TEXTS],
    }
    for split, made in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    files = {split: str(folder / f"{split}.jsonl") for split in rows}
    task = SelectorTask(config={
        "task": "tickets", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "training_split": "train",
        "test_split": "test", "doc_to_text": "Ticket: {{text}}\nTeam:", "doc_to_target": "team", "num_fewshot": K,
        "metadata": {"iclkit": {"selector": str(kept), "input": "text"}},
    })  # fmt: skip
    task.build_all_requests(limit=None, rank=0, world_size=1)
    shown = [doc["iclkit"]["rows"] for _, doc in task.doc_iterator(limit=None)]
    return [[EXAMPLES[r].id for r in rows_of] for rows_of in shown]


def through_inspect(pool: Path, kept: Path) -> list[list[str]]:
    from inspect_ai.model import ChatMessageUser, ModelName
    from inspect_ai.solver import TaskState

    from iclkit.integrations.inspect_ai import STORE_KEY, show_demonstrations

    solver: Any = show_demonstrations(str(kept))

    async def solve(text: str) -> list[str]:
        state = TaskState(ModelName("mockllm/model"), 1, 1, text, [ChatMessageUser(content=text)])
        return [s["id"] for s in (await solver(state, None)).store.get(STORE_KEY)]

    return [asyncio.run(solve(t)) for t in TEXTS]


DOORS: dict[str, tuple[str, Callable[[Path, Path], list[list[str]]]]] = {
    "command line": ("click", through_the_command_line),
    "langchain": ("langchain_core", through_langchain),
    "dspy": ("dspy", through_dspy),
    "sklearn": ("sklearn", through_sklearn),
    "lm_eval": ("lm_eval", through_lm_eval),
    "inspect_ai": ("inspect_ai", through_inspect),
}


@pytest.fixture(scope="module", params=["bm25", "mmr"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pool file and the folder of a selector saved on it, with a real embedder where it needs one."""
    from iclkit.embed import load_embedder

    name, folder = request.param, tmp_path_factory.mktemp("kept")
    selector = make_selector(name)
    if selector.needs.embedder:
        request.getfixturevalue("minilm_path")
    embedder = load_embedder("all-minilm-l6-v2") if selector.needs.embedder else None
    with Pool.open(folder / "tickets.db") as pool:
        pool.add(EXAMPLES)
        selector.fit(pool.view(), Kit(embedder=embedder)).save(folder / "kept", k=K)
    return folder / "tickets.db", folder / "kept"


@pytest.mark.parametrize("door", DOORS)
def test_the_same_queries_give_the_same_demonstrations(kept: tuple[Path, Path], door: str) -> None:
    package, ask = DOORS[door]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    expected = through_python(*kept)
    assert len(expected) == len(TEXTS)
    assert len({tuple(ids) for ids in expected}) > 20
    assert ask(*kept) == expected
