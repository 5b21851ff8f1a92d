"""The documentation names only what exists: commands, options, selectors, modules, files."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import click
import pytest

from iclkit.cli import COMMANDS, cli
from iclkit.errors import UsageError
from iclkit.registry import parse_spec
from iclkit.selectors import import_selectors, make_selector, selectors_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    for kind, text in BLOCK.findall(page.read_text()):
        if kind in kinds:
            yield textwrap.dedent(text)


def commands() -> Iterator[tuple[Path, list[str]]]:
    for page in PAGES:
        for block in blocks(page, "console", "sh", "bash"):
            text = block.replace("\\\n", " ")
            for line in text.splitlines():
                call = line.strip().removeprefix("$ ").split(" | ")[0].split(" > ")[0]
                if call.startswith("iclkit "):
                    yield page, shlex.split(call, comments=True)[1:]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules and settings that pages tell the reader to write, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for block in blocks(page, "python", "toml"):
            if name := re.match(r"# (\w+\.(?:py|toml))\n", block):
                (tmp_path / name.group(1)).write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(("page", "words"), [*commands()], ids=lambda v: " ".join(v) if isinstance(v, list) else v.stem)
def test_a_command_in_the_docs_parses(page: Path, words: list[str]) -> None:
    command: click.Command = cli
    ctx = click.Context(cli, info_name="iclkit")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(ctx, name)
        assert found is not None, f"{page.name}: no command {name}"
        command = found
        ctx = click.Context(command, parent=ctx, info_name=name)
    if not {"--help", "--version"} & set(words):
        command.make_context(ctx.info_name, words, parent=ctx.parent)
    for flag, value in pairwise(words):
        if flag in ("-s", "--selector") and "…" not in value and not value.endswith(".json"):
            make_selector(parse_spec(import_selectors(value)))


@pytest.mark.models
def test_the_commands_of_your_own_data_run_as_typed(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("## Your own data\n")[1].split("\n## ")[0]
    (tmp_path / "iclkit").symlink_to(ROOT / "iclkit")  # the commands are typed in a clone
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = "set -e\n" + "\n".join(textwrap.dedent(text) for kind, text in BLOCK.findall(section) if kind == "sh")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tickets.toml: classification, 12 labels, 480 train and 120 test rows" in done.stdout
    assert "knn" in done.stdout
    assert (tmp_path / "board.html").stat().st_size > 10_000
    body = shlex.split(done.stdout[done.stdout.index("\ncurl ") :].replace("\\\n", " "))
    request = json.loads(body[body.index("-d") + 1])
    assert request["model"] == "my-model"
    assert [m["role"] for m in request["messages"]] == ["user", "assistant"] * 4 + ["user"]


def has_name(module: str, name: str) -> bool:
    """Whether a name can be imported from a module; from one whose tool is not installed, whether it defines it."""
    try:
        return hasattr(import_module(module), name)
    except UsageError:  # integrations, which say what to install
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        return name in {n.name for n in ast.parse(source).body if isinstance(n, ast.ClassDef | ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_the_docs_compiles_and_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iclkit"):
                for alias in node.names:
                    assert has_name(str(node.module), alias.name), f"{page.name}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_mentioned_in_the_docs() -> None:
    text = "\n".join(p.read_text() for p in PAGES)
    assert [c for c in COMMANDS if f"iclkit {c}" not in text] == []


def test_the_table_of_selectors_is_the_one_the_code_gives() -> None:
    page = ROOT / "docs" / "selectors.md"
    assert selectors_table().strip() in page.read_text(), "run: iclkit selectors ls --markdown, and paste it in"
