"""Rows as CSV that people open in a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import fields
from datetime import date
from io import StringIO
from typing import Any

# Cells that begin so are formulas to spreadsheets, which run what a class or a key is named.
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def as_csv(row: type[Any], rows: Iterable[Any]) -> str:
    """Rows of a dataclass below a line of its names; what a spreadsheet would run begins with '."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [one.name for one in fields(row)]
    writer.writerow(names)
    writer.writerows([_cell(getattr(one, name)) for name in names] for one in rows)
    return buffer.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list | tuple):
        value = "; ".join(map(str, value))
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    # what begins so already gets one more, or whoever reads it back would take its own away
    risky = isinstance(value, str) and value.lstrip("'").startswith(FORMULAS)
    return f"'{value}" if risky else value
