"""How the command line prints: tables, sentences, JSON. Plain and unwrapped where the output is no terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 4000
"""Columns where the output is no terminal: wide enough that no line is folded."""


def console(stderr: bool = False) -> Console:
    """A console on standard output. Honours NO_COLOR; never interprets `[...]` in what is printed as markup."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with one line a row where the width allows. Empty columns are left out."""
    out = console()
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    kept = [index for index in range(len(columns)) if not cells or any(row[index] for row in cells)]
    columns, cells = [columns[index] for index in kept], [[row[index] for index in kept] for row in cells]
    if not out.is_terminal:
        lines = [columns, *cells]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return

    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in cells:
        table.add_row(*map(Text, row))
    out.print(table, soft_wrap=False)


def print_heading(text: str) -> None:
    console().print(f"\n{text}", style="bold")


def print_line(text: str = "", style: str = "") -> None:
    console().print(text, style=style or None)


def print_json(content: Any) -> None:
    """Print JSON without any decoration."""
    print(json.dumps(content, indent=2, default=str))


def say(kind: str, text: str, style: str) -> None:
    """Print `kind: text` on standard error."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble((f"{kind}: ", style), text))


def readable_bytes(count: float) -> str:
    """Bytes with a decimal unit: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("not reached")


def readable_duration(seconds: float) -> str:
    """Seconds as a person would say them: 45 s, 12 min, 3.5 h, 4.0 days."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
