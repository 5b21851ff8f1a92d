"""A board in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iclkit.cli._terminal import console, echo

if TYPE_CHECKING:
    from rich.table import Table

    from iclkit.report import Board

STYLES = {"better": "bold green", "worse": "red", "baseline": "bold", "no difference shown": "", "not compared": "dim",
          "asks no LM": "italic"}  # fmt: skip
WIDTH, WIDE = 128, 150  # columns from which a table, and that over all tasks, is shown whole
OVERALL_WIDE: list[tuple[str, tuple[int, ...]]] = [("", (0, 1, 2, 3, 4, 5, 6, 7, 8))]
# no name is ever broken: what does not fit beside it stands in a table of its own
OVERALL_NARROW: list[tuple[str, tuple[int, ...]]] = [
    ("", (0, 1, 3, 4, 5, 6)),
    (": new tasks", (0, 1, 2, 7)),
    (": by task", (0, 1, 8)),
]


def show(board: Board) -> None:
    """Every group as a table on stdout, and how to read it."""
    from rich.padding import Padding
    from rich.text import Text

    from iclkit.report import (
        COST_HEAD,
        bar,
        cells,
        curves,
        group_notes,
        heads,
        legend,
        lm_words,
        overall_cells,
        overall_heads,
        overall_lm_words,
        overall_notes,
        priced,
    )

    out = console()
    for overall in board.overall:
        names = overall_heads(board)
        for more, kept in OVERALL_WIDE if out.width >= WIDE else OVERALL_NARROW:
            table = titled_table(overall.title + more)
            for i in kept:
                table.add_column(Text(names[i]), justify="right" if i in (0, 3) else "left", no_wrap=True)
            for one in overall.lines:
                row = overall_cells(one)
                if not more or any(row[i] for i in kept[2:]):
                    table.add_row(*(Text(row[i], style=STYLES[one.verdict]) for i in kept))
            out.print(table)
        notes = Text(" ".join(overall_notes(overall)), style="dim")
        out.print(Padding(Text.assemble(notes, _own_line(overall_lm_words(overall))), (0, 0, 1, 0)))
    for group in board.groups:
        table = titled_table(group.title)
        names = heads(board, group)
        names.insert(4, "")  # the interval, drawn
        # a narrow terminal shows what decides, and leaves out the drawing, seeds, tokens and cost
        shown = [i for i, name in enumerate(names) if out.width >= WIDTH or (i not in (4, 9, 10) and name != COST_HEAD)]
        for i in shown:
            right = names[i] in ("rank", "seeds", "tokens", COST_HEAD, names[2], names[5]) or names[i].startswith(
                ("p ", "q ")
            )
            table.add_column(Text(names[i]), justify="right" if right else "left", no_wrap=i != 1, overflow="fold")
        for line in group.lines:
            row = cells(line, cost=priced(board))
            row.insert(4, bar(line.figure, 10) if line.figure.low >= 0 and line.figure.high <= 1 else "")
            table.add_row(*(Text(row[i], style=STYLES[line.verdict]) for i in shown))
        out.print(table)
        notes = Text(" ".join(group_notes(group)), style="dim")
        out.print(Padding(Text.assemble(notes, _own_line(lm_words(group.lm_adds))), (0, 0, 1, 0)))
    for curve in curves(board):
        head, *body = curve.table()
        table = titled_table(f"{curve.title}: by k")
        for column in head:
            table.add_column(Text(column))
        for cells_ in body:
            table.add_row(*map(Text, cells_))
        out.print(Padding(table, (0, 0, 1, 0)))
    for text in legend(board):
        out.print(Text(f"- {text}", style="dim"))


def _own_line(text: str) -> str:
    return f"\n{text}" if text else ""


def titled_table(title: str) -> Table:
    """An empty table without lines under a title."""
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))


def say(text: str) -> None:
    """Talk: one line on stderr."""
    echo(text, err=True)
