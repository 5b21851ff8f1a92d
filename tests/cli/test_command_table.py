"""One dialect over all commands: what loads an LM takes the same options, and no command borrows from another."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import iclkit.cli
from iclkit.cli import COMMANDS, cli
from iclkit.cli._examples import EXAMPLES

LM_OPTIONS = {"--dtype", "--device", "--workers", "--threads", "--batch-tokens", "--no-cache"}
WITHOUT_CHAT = {
    "explain": "the run's own template says it",
    "task check": "it counts the tokens of the task's template",
}
SHARED = {"_examples", "_kit", "_progress", "_runs", "_tables", "_terminal"}


def commands() -> dict[str, click.Command]:
    """Every command by the words that call it."""
    table: dict[str, click.Command] = {}
    ctx = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(ctx, name)
        assert command is not None
        subs = command.commands if isinstance(command, click.Group) else {"": command}
        table |= {f"{name} {sub}".strip(): found for sub, found in subs.items()}
    return table


def options(command: click.Command) -> set[str]:
    return {name for p in command.params if isinstance(p, click.Option) for name in p.opts}


TABLE = commands()


@pytest.mark.parametrize("name", TABLE)
def test_the_help_of_every_command_ends_with_examples_that_parse(name: str) -> None:
    command = TABLE[name]
    shown = command.get_help(click.Context(command, info_name=f"iclkit {name}"))
    assert "Examples:" in shown, f"add examples of `iclkit {name}` to iclkit/cli/_examples.py"
    for line in EXAMPLES[name]:
        assert f"  {line}" in shown
        words = shlex.split(re.split(r" [|<>] ", line)[0])
        assert words[0] == "iclkit"
        command, rest = cli, words[1:]
        ctx = click.Context(cli, info_name="iclkit")
        while isinstance(command, click.Group):
            found = command.get_command(ctx, rest.pop(0))
            assert found is not None
            command = found
        if "--file" not in rest:  # a file that is not here
            command.make_context(name, rest)


def test_there_are_no_examples_of_commands_that_are_gone() -> None:
    assert EXAMPLES.keys() == TABLE.keys()


ASKING = sorted(name for name, command in TABLE.items() if "--lm" in options(command))


def test_the_commands_that_load_an_lm_are_known() -> None:
    assert ASKING == [
        "advise", "augment", "eval", "explain", "prompt", "select", "task check", "train", "tune ease", "view",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ASKING)
def test_every_command_that_loads_an_lm_says_how_in_the_same_options(name: str) -> None:
    assert options(TABLE[name]) >= LM_OPTIONS
    assert ("--chat" in options(TABLE[name])) == (name not in WITHOUT_CHAT)


@pytest.mark.parametrize("name", ASKING)
def test_an_option_of_an_lm_has_one_help_and_one_default(name: str) -> None:
    def facts(command: click.Command) -> dict[str, object]:
        return {
            p.opts[0]: (p.help, p.default, str(p.type))
            for p in command.params
            if isinstance(p, click.Option) and p.opts[0] in LM_OPTIONS
        }

    assert facts(TABLE[name]) == facts(TABLE["eval"])


def test_task_is_a_data_set_and_task_name_what_stands_with_examples_and_runs() -> None:
    assert {name for name, command in TABLE.items() if "--task" in options(command)} == {
        "augment", "explain", "tune ease",
    }  # fmt: skip
    assert {name for name, command in TABLE.items() if "--task-name" in options(command)} >= {
        "leaderboard", "pool add", "pool ls", "select",
    }  # fmt: skip


def test_options_are_spelled_as_in_america() -> None:
    names = {name for command in TABLE.values() for name in options(command)}
    assert "--normalize" in names
    assert not [name for name in names if "normalis" in name or "neighbour" in name or "centre" in name]


def test_commands_do_not_borrow_from_each_other() -> None:
    folder = Path(iclkit.cli.__file__).parent
    borrowed = set()
    for file in folder.glob("_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iclkit.cli._"):
                borrowed.add((file.stem, str(node.module).removeprefix("iclkit.cli.")))
    assert not {b for b in borrowed if b[1] not in SHARED}


def test_progress_is_drawn_in_one_place() -> None:
    folder = Path(iclkit.cli.__file__).parent
    assert [f.stem for f in folder.glob("*.py") if "rich.progress" in f.read_text(encoding="utf-8")] == ["_progress"]
