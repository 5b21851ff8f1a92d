"""``iclkit selectors``: what there is to choose with, and all about one of them."""

from __future__ import annotations

import json

import click

from iclkit.cli._terminal import console, echo, emit_json


@click.group()
def command() -> None:
    """What there is to choose with: what each selector does, needs and costs, and its settings."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the Markdown tables of the built-in selectors.")
def ls(as_json: bool, markdown: bool) -> None:
    """List every selector, those of installed packages included."""
    from iclkit.errors import UsageError
    from iclkit.selectors import BUILTINS, SELECTORS, selector_info, selectors_table

    if markdown:
        echo(selectors_table())
        return
    plugins = [n for n in SELECTORS.names() if n not in BUILTINS]
    rows = [selector_info(SELECTORS.get(name)) for name in BUILTINS]
    for name in plugins:
        try:
            rows.append({**selector_info(SELECTORS.get(name)), "name": name})
        except UsageError as error:  # one broken package must not hide the others
            echo(f"warning: {error}", err=True)
    if as_json:
        emit_json(rows, indent=2)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("selector", "chooses", "needs", "LM calls", "settings", "source"):
        table.add_column(column, no_wrap=column == "selector")  # a name that is folded cannot be copied
    for row in rows:
        calls = [f"{row[f'lm_calls_per_{unit}']} per {unit}" for unit in ("query", "task")]
        settings, needs = row["settings"], row["needs"]
        assert isinstance(settings, dict)
        assert isinstance(needs, list)
        table.add_row(
            str(row["name"]),
            str(row["summary"]),
            ", ".join(map(str, needs)) or "-",
            ", ".join(c for c in calls if not c.startswith("0 ")) or "-",
            " ".join(f"{k}={json.dumps(v)}" for k, v in settings.items()) or "-",
            str(row["source"]),
        )
    console(piped_width=160).print(table)


@command.command()
@click.argument("selector", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(selector: str, as_json: bool) -> None:
    """Show all about one selector: idea, paper, when to use it, cost, settings, an example. NAME, or module:Class."""
    from iclkit.registry import parse_spec
    from iclkit.selectors import SELECTORS, import_selectors, selector_help

    cls = SELECTORS.get(parse_spec(import_selectors(selector)).name)
    about = selector_help(cls)
    if as_json:
        emit_json(about, indent=2)
        return
    needs, settings = about["needs"], about["settings"]
    assert isinstance(needs, list)
    assert isinstance(settings, list)
    calls = [f"{about[f'lm_calls_per_{unit}']} texts per {unit}" for unit in ("query", "task")]
    echo(f"{about['name']}: {about['summary']}\n\n{about['about']}\n")
    for label, text in (
        ("source", str(about["source"])),
        ("needs", ", ".join(map(str, needs))),
        ("asks the LM", ", ".join(c for c in calls if not c.startswith("0 "))),
        ("example", str(about["example"])),
    ):
        echo(f"{label + ':':13}{text or '-'}")
    if not settings:
        echo("\nIt has no settings.")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("setting", "default", "meaning", "what it takes"):
        table.add_column(column, no_wrap=column == "setting")
    for info in settings:
        assert isinstance(info, dict)
        default = json.dumps(info["default"], ensure_ascii=False) if "default" in info else "(must be given)"
        table.add_row(str(info["name"]), default, str(info["meaning"]), str(info["allowed"]))
    echo("")
    console(piped_width=160).print(table)
