"""How verbs print: lines, tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import typer


def say(line: str) -> None:
    """Print a line for people, on standard error: standard output is for answers."""
    typer.echo(line, err=True)


def say_some(lines: Iterable[str], what: str) -> None:
    """Say the first ten of them, each behind what it is, and how many more there are."""
    listed = list(lines)
    for line in listed[:10]:
        say(f"{what}: {line}")
    if len(listed) > 10:
        say(f"… and {len(listed) - 10} more")


def say_as_it_goes(wanted: bool, ends: bool = False) -> None:
    """Let the steps tell what they do, on standard error; with `ends`, how each run ended, too.

    Verbs that print the end themselves go without, or a terminal would show it twice.
    """
    import logging

    epochs = logging.getLogger("vision")  # for the page alone: here there is a bar
    epochs.setLevel(logging.INFO)
    epochs.propagate = False
    log = logging.getLogger("regraft")
    log.setLevel(logging.INFO)
    log.propagate = False
    # Prefect adds a handler of its own, which sends the lines to the page of the run.
    if not any(type(one) is logging.StreamHandler for one in log.handlers):
        handler = logging.StreamHandler()
        handler.setLevel(logging.INFO if wanted else logging.WARNING)
        handler.setFormatter(logging.Formatter("  %(message)s"))
        if not ends:
            handler.addFilter(lambda record: record.name != "regraft.ends")
        log.addHandler(handler)


def answer(facts: dict[str, Any], line: str, as_json: bool) -> None:
    """Print what was done: a line for people, or its facts for scripts."""
    if as_json:
        print_json(facts)
    else:
        typer.echo(line)


def print_json(facts: Any) -> None:
    """Print facts for scripts, on standard output."""
    typer.echo(json.dumps(facts, indent=2, default=plain, ensure_ascii=False))


def plain(value: object) -> object:
    """What JSON has no word for: times as ISO 8601, all else as text."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


def print_table(columns: list[str], rows: Iterable[Iterable[str | None]]) -> None:
    """Print a table, whose cells may hold markup; what it is made of is loaded now."""
    from flows.grid import table

    table(columns, rows)


def literally(rows: Iterable[Iterable[str]]) -> Iterable[Iterable[str]]:
    """Cells with paths and errors in them, which must not pass for markup."""
    from rich.markup import escape

    return [[escape(cell) for cell in row] for row in rows]


def plain_text(words: str) -> str:
    """What people wrote, so that a table shows it and does not obey it."""
    from rich.markup import escape

    return escape(words)


def percent(share: float | None) -> str:
    """A share in percent; nothing where there is none."""
    return "" if share is None else f"{share:.1%}"


def write_picture(path: Path, body: bytes) -> None:
    """Write a picture into a folder, made where there is none, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    say(f"wrote {path}")
