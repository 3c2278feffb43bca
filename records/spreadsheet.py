"""Rows as CSV that people open in a spreadsheet, and cells of it as they come back."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import date
from io import StringIO
from typing import Any

# Cells that begin so are formulas to spreadsheets, which run what a class or a key is named.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def as_csv(row: type[Any], rows: Iterable[Any]) -> str:
    """Rows of a dataclass below a line of its names, as `table` writes them."""
    names = [one.name for one in fields(row)]
    return table(names, ([getattr(one, name) for name in names] for one in rows))


def table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Rows below a line of names; what a spreadsheet would run begins with '."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list | tuple):
        value = "; ".join(map(str, value))
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    return f"'{value}" if isinstance(value, str) and _is_armed(value) else value


def disarmed(word: str) -> str:
    """A cell as it was before `table` wrote a ' before it."""
    return word[1:] if word.startswith("'") and _is_armed(word) else word


def _is_armed(word: str) -> bool:
    # What begins with ' already counts, too, or whoever reads it back would take its own away.
    return word.lstrip("'").startswith(FORMULAS)
