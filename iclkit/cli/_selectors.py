"""``iclkit selectors``: the table of what there is to choose with."""

from __future__ import annotations

import json

import click

from iclkit.cli._terminal import console, echo, emit_json


@click.group()
def command() -> None:
    """List the selectors with what each needs and costs."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the Markdown table of the built-in selectors.")
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
