"""Python blocks of README and guides are run, page by page, as a reader would: one after another, in an empty folder.

What a page expects to be there (a pool file, a list made by ``iclkit tune``) is made first. Where a block of output
follows a block of code, it is compared.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shutil
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from iclkit import Kit, Pool, load_embedder, load_task, make_selector

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PAGES = {
    page.stem: blocks
    for page in [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
    if (blocks := BLOCK.findall(page.read_text(encoding="utf-8"))) and any(kind == "python" for kind, _ in blocks)
}
LEFT_OUT = {
    "bge-en-icl": "the model has seven billion parameters",
    "corpus_of_tasks": "a training of minutes: tests/trainers/test_train.py runs one",
    "ask_logprob": "asks a server that the reader has: tests/lm/test_adapt.py has such a class",
    "SelectorContract": "a test class: tests/plugin runs it",
    "langchain_core": "tests/integrations runs it where the package is installed",
    "dspy": "tests/integrations runs it where the package is installed",
    "import openai": "asks a server that the reader has: tests/serve runs it",
    "integrations.hub": "asks the hub: tests/integrations runs it",
    "integrations.tracking": "needs runs: tests/integrations runs it",
    "inspect_ai": "tests/integrations runs it where the package is installed",
}
"""Words of blocks that are not run here, and why."""
ASK_AN_LM = {"integrations", "use-your-own-lm"}


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Code that is run, each with the output that the page shows for it ("" where it shows none)."""
    kinds = [*PAGES[page], ("", "")]
    pairs = itertools.pairwise(kinds)
    return [
        (textwrap.dedent(text), textwrap.dedent(after).strip() if follows == "text" else "")
        for (kind, text), (follows, after) in pairs
        if kind == "python" and not any(word in text for word in LEFT_OUT)
    ]


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory, minilm_path: Path) -> Path:
    """The pools that pages take for granted, with vectors."""
    folder = tmp_path_factory.mktemp("pools")
    rows = load_task("support").train
    for name, examples in (("demos.db", rows), ("inputs.db", rows[:200])):
        with Pool.open(folder / name) as pool:
            pool.add(examples)
            make_selector("knn").fit(pool.view(), Kit(embedder=load_embedder(str(minilm_path))))
    return folder


@pytest.fixture
def folder(pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's working folder."""
    shutil.copytree(pools, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.models
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in ASK_AN_LM else p for p in PAGES if blocks_of(p)]
)
def test_the_python_of_a_page_runs_and_prints_what_it_says(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look for the names of their annotations
    for number, (code, shown) in enumerate(blocks_of(page), 1):
        if file := re.match(r"# (\w+\.py)\n", code):
            (folder / file[1]).write_text(code, encoding="utf-8")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page}, block {number}", "exec"), vars(module))
        if shown:
            assert printed.getvalue().strip() == shown
