"""How reading commands print: a table for people, JSON for programs. Imports rich only when there is a table."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

_UNLIMITED_COLUMNS = 10_000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Cell:
    """Text in a table, and rich's name of a colour for it."""

    text: str
    style: str = ""


def print_json(value: Any) -> None:
    """One document, indented, with a line end."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """One document on one line, so that each can be read as it comes."""
    click.echo(json.dumps(value, ensure_ascii=False))


class LineTable:
    """A table whose rows come one after the other: columns are as wide as what was seen so far, and are never cut."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._widths: list[int] = []

    def add(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Print these; the heading goes before the first."""
        heading: list[Sequence[Cell]] = [] if self._widths else [[Cell(column, "bold") for column in self._columns]]
        lines = [[Cell(printable(cell.text), cell.style) for cell in row] for row in (*heading, *rows)]
        widths = self._widths or [0] * len(self._columns)
        self._widths = [max([width, *(len(line[n].text) for line in lines)]) for n, width in enumerate(widths)]
        for line in lines:
            padded = [cell.text.ljust(width) for cell, width in zip(line[:-1], self._widths, strict=False)]
            styled = [_styled(text, cell.style) for text, cell in zip((*padded, line[-1].text), line, strict=True)]
            click.echo("   ".join(styled).rstrip())


def _styled(text: str, style: str) -> str:
    match style:
        case "":
            return text
        case "bold":
            return click.style(text, bold=True)
        case "dim":
            return click.style(text, dim=True)
        case _:
            return click.style(text, fg=style)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """As kubectl prints: a heading in capitals, no lines. On a terminal the last column wraps; a pipe gets whole lines.

    Nothing in a cell is markup or an escape sequence: names and messages come from others.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNLIMITED_COLUMNS
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        last = column is columns[-1]
        table.add_column(column, no_wrap=not last, overflow="fold" if last else "ellipsis")
    for row in rows:
        table.add_row(*(Text(printable(cell.text), style=cell.style) for cell in row))
    console.print(table)


def printable(text: str) -> str:
    """`text` on one line, without what a terminal would obey: control, format and unassigned characters become ·."""
    return "".join("·" if unicodedata.category(c)[0] == "C" else c for c in " ".join(text.splitlines()))


def size(count: int) -> str:
    """As a person says it: `512 B`, `1.5 GiB`."""
    amount, unit = float(count), 0
    while amount >= 1023.95 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.0f} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"
