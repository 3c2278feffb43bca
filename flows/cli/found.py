"""What a filter found as a table, CSV, JSON and contact sheet: the same rows in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import typer
from sqlalchemy.orm import Session

from flows.cli.printing import print_json, print_table, say
from infra import database
from records.findings import Findings, Found
from records.spreadsheet import as_csv as written

SHEETS = (".html", ".png")


class BadSheet(ValueError):
    """A contact sheet that cannot be written; the message names the file and the mend."""


def tell(
    ask: Callable[[Session], Findings], as_csv: bool, as_json: bool, sheet: Path | None
) -> None:
    """Ask a filter and print what it found; a contact sheet is written beside that."""
    if as_csv and as_json:
        raise BadSheet("--csv and --json: choose one")
    if sheet is not None:
        _check(sheet)
    with database.connect().transaction() as session:
        found = ask(session)
    if as_json:
        print_json([asdict(row) for row in found.rows])
    elif as_csv:
        typer.echo(written(Found, found.rows), nl=False)
    elif found.rows:
        _show(found)
    if not found.rows:
        say(f"nothing found: {found.told}")
    elif sheet is not None:
        _write(sheet, found)
        say(f"wrote {sheet}")


def _show(found: Findings) -> None:
    from rich.markup import escape

    say(found.told)
    headed = any(row.heading for row in found.rows)
    before = ""
    rows = []
    for row in found.rows:
        words = "" if row.heading == before else row.heading
        before = row.heading
        told = [row.offer, row.key, ", ".join(row.remarks)]
        rows.append([escape(cell) for cell in ([words, *told] if headed else told)])
    print_table([*(["among"] if headed else []), "class", "picture", "remarks"], rows)


def _check(sheet: Path) -> None:
    if sheet.suffix.lower() not in SHEETS:
        raise BadSheet(f"--sheet {sheet}: a name that ends in {' or '.join(SHEETS)}")
    if not sheet.parent.is_dir():
        raise BadSheet(f"--sheet {sheet}: {sheet.parent} is not a folder")


def _write(path: Path, found: Findings) -> None:
    from web import sheet

    if path.suffix.lower() == ".png":
        path.write_bytes(sheet.png(found))
    else:
        path.write_text(sheet.html(found), encoding="utf-8")
