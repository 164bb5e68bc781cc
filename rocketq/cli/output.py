"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

_F = TypeVar("_F", bound=Callable[..., Any])

#: number columns are aligned to the right
_NUMBERS = (int, float)


def json_option(function: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(function)


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns under their names; numbers to the right, None as a dash."""
    lines = [list(row) for row in rows]
    right = [
        bool(lines) and all(line[index] is None or type(line[index]) in _NUMBERS for line in lines)
        for index in range(len(columns))
    ]
    texts = [[_cell(cell) for cell in line] for line in [list(columns), *lines]]
    widths = [max(len(text[index]) for text in texts) for index in range(len(columns))]
    for text in texts:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(text, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def objects(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows for programs, with the columns' names as keys."""
    keys = [column.lower().replace(" ", "_") for column in columns]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def show(as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table, or a JSON list of objects with the columns' names as keys."""
    if as_json:
        print_json(objects(columns, rows))
    else:
        print_table(columns, rows)


def time_text(timestamp_ms: int) -> str | None:
    """Local time of a broker's timestamp; None for the zeros and negatives that stand for "none"."""
    if timestamp_ms <= 0:
        return None
    return datetime.fromtimestamp(timestamp_ms / 1000).isoformat(sep=" ", timespec="milliseconds")


def done(as_json: bool, text: str, **fields: Any) -> None:
    """Report what a command did."""
    if as_json:
        print_json(fields)
    else:
        click.echo(text)
