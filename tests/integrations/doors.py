"""The same fifty queries through every way in: what the equality test compares, and the table of the guide.

    python -m tests.integrations.doors

prints for each selector how many of the queries get the same demonstrations in the same order as from Python, by way.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from iclkit.cli import cli
from iclkit.pool import Pool
from iclkit.selectors import Kit, load_selector, make_selector
from iclkit.testing import FakeLM

from .conftest import EXAMPLES, TEXTS

ID_OF = {e.text: e.id for e in EXAMPLES}
K = 4
SHOWN = "x-iclkit-demonstrations"


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


def through_the_service(pool: Path, kept: Path) -> list[list[str]]:
    from starlette.testclient import TestClient

    from iclkit.serve import make_app

    with TestClient(make_app(load_selector(kept))) as client:
        answers = [client.post("/select", json={"input": t}).json()["picks"] for t in TEXTS]
    return [[pick["id"] for pick in reversed(picks)] for picks in answers]


def through_the_proxy(pool: Path, kept: Path) -> list[list[str]]:
    import httpx
    from starlette.testclient import TestClient

    from iclkit.serve import ServeSettings, make_app

    async def echo(request: httpx.Request) -> httpx.Response:
        async def parts() -> AsyncIterator[bytes]:
            yield json.dumps({"asked": json.loads(request.content)}).encode()

        return httpx.Response(200, content=parts())

    settings = ServeSettings(proxy="http://127.0.0.1:9/v1")
    app = make_app(load_selector(kept), settings, transport=httpx.MockTransport(echo))
    found = []
    with TestClient(app) as client:
        for text in TEXTS:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            answer = client.post("/v1/chat/completions", json=body)
            turns = answer.json()["asked"]["messages"][:-1]
            assert [ID_OF[turn["content"]] for turn in turns[::2]] == answer.headers[SHOWN].split(",")
            found.append(answer.headers[SHOWN].split(","))
    return found


def through_a_copy_of_the_hub(pool: Path, kept: Path) -> list[list[str]]:
    from iclkit.integrations import hub

    from .hub_server import Hub

    server, before = Hub(), {name: os.environ.get(name) for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET")}
    os.environ.update({"HF_ENDPOINT": server.url, "HF_TOKEN": "none", "HF_HUB_DISABLE_XET": "1"})
    try:
        pushed = hub.push(kept, "ann/kept", license="mit")
        folder = hub.pull(pushed.name, kept.parent / "of the hub")
        return [[*reversed(s.ids)] for s in load_selector(folder).select_many(TEXTS)]
    finally:
        server.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


DOORS: dict[str, tuple[str, Callable[[Path, Path], list[list[str]]]]] = {
    "command line": ("click", through_the_command_line),
    "serve": ("starlette", through_the_service),
    "serve --proxy": ("starlette", through_the_proxy),
    "hub": ("huggingface_hub", through_a_copy_of_the_hub),
    "langchain": ("langchain_core", through_langchain),
    "dspy": ("dspy", through_dspy),
    "sklearn": ("sklearn", through_sklearn),
    "lm_eval": ("lm_eval", through_lm_eval),
    "inspect_ai": ("inspect_ai", through_inspect),
}


def keep(name: str, folder: Path) -> tuple[Path, Path]:
    """A pool file and the folder of a selector saved on it, with a real embedder where it needs one."""
    from iclkit.embed import load_embedder

    selector = make_selector(name)
    embedder = load_embedder("all-minilm-l6-v2") if selector.needs.embedder else None
    with Pool.open(folder / "tickets.db") as pool:
        pool.add(EXAMPLES)
        selector.fit(pool.view(), Kit(embedder=embedder)).save(folder / "kept", k=K)
    return folder / "tickets.db", folder / "kept"


def main() -> None:
    """Print the table."""
    names = ("bm25", "knn", "mmr", "random")
    print("| through | " + " | ".join(f"`{name}`" for name in names) + " |")
    print("|---|" + "---:|" * len(names))
    with tempfile.TemporaryDirectory() as work:
        places = []
        for name in names:
            Path(work, name).mkdir()
            places.append(keep(name, Path(work, name)))
        expected = [through_python(*place) for place in places]
        for door, (package, ask) in DOORS.items():
            if importlib.util.find_spec(package) is None:
                print(f"| {door} | {package} is not installed |")
                continue
            same = [sum(a == b for a, b in zip(ask(*p), e, strict=True)) for p, e in zip(places, expected, strict=True)]
            print(f"| {door} | " + " | ".join(f"{n} of {len(TEXTS)}" for n in same) + " |", flush=True)


if __name__ == "__main__":
    main()
