"""Rows of the CSV and JSON files that people write, and what no text of theirs may hold."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Collection, Iterator
from typing import Any

LONGEST_FIELD = 1000  # characters of a key or box; a megabyte is an accident
LONGEST_BYTES = 1024  # of a key: what S3 takes
LONGEST_NAME = 255  # bytes of a class, group or person, as in a key: longer ones fit no index
JOINERS = "\u200c\u200d"  # invisible, yet Persian and many emoji are misspelt without them

Row = tuple[int, dict[str, Any]]  # its number in the file, and its values by column


class BadRows(ValueError):
    """A file that cannot be read as a whole; the message names file, place and mend."""


def read_rows(name: str, body: bytes, required: Collection[str]) -> list[Row]:
    """The rows of a CSV file, or of JSON: one object a line, or one list of objects.

    required: columns that each row must have. Which of the two it is says the name, or else the
    first character. Raises `BadRows`.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRows(f"{name}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    if "\0" in text[:2]:  # letters of ASCII in UTF-16 are letters and NULs
        raise BadRows(f"{name}: it is UTF-16, to judge by its first letters: save it as UTF-8")
    begins = text.lstrip()[:1]
    is_json = name.endswith((".json", ".jsonl")) or (
        not name.endswith(".csv") and begins in ("{", "[")
    )
    if not is_json:
        rows = _csv_rows(name, text, required)
    elif begins == "[" and not name.endswith(".jsonl"):
        rows = _listed_rows(name, text, required)
    else:
        rows = _json_rows(name, text, required)
    found = list(rows)
    if not found:
        raise BadRows(f"{name}: it has no rows: delete it, or fill it")
    return found


def _csv_rows(name: str, text: str, required: Collection[str]) -> Iterator[Row]:
    # The csv module stops at 128 KiB a field; longer ones must reach the check that names them.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if len(columns) == 1 and {";", "\t"} & set(columns[0]):
        raise BadRows(f"{name}: no commas separate its columns: save it with commas")
    _require(name, columns, required)
    for number, row in enumerate(reader, start=2):
        yield number, {column: value for column, value in row.items() if column is not None}


def _json_rows(name: str, text: str, required: Collection[str]) -> Iterator[Row]:
    # Not splitlines: JSON allows line separators of other scripts inside its texts.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRows(f"{name}: line {number} is not JSON ({error}): mend it") from None
        if not isinstance(row, dict):
            raise BadRows(f"{name}: line {number} is not an object: write {{...}}")
        _require(name, list(row), required)
        yield number, row


def _listed_rows(name: str, text: str, required: Collection[str]) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRows(f"{name} is not JSON ({error}): mend it") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise BadRows(f"{name}: element {number} is not an object: write {{...}}")
        _require(name, list(row), required)
        yield number, row


def _require(name: str, columns: Collection[str], required: Collection[str]) -> None:
    missing = [column for column in required if column not in columns]
    if missing:
        raise BadRows(
            f"{name}: column {', '.join(missing)} is missing; it has "
            f"{presentable(', '.join(columns))[:200] or 'none'}: add it to the header"
        )


def text_problem(name: str, word: str) -> str | None:
    """What keeps a text from being stored or shown, if anything does."""
    if len(word) > LONGEST_FIELD:
        return f"{name} has {len(word):,} characters: {LONGEST_FIELD:,} are the most"
    if sign := _unseen(word):
        return f"{name} holds U+{ord(sign):04X}, which nobody sees: delete it"
    size = len(word.encode())
    if name not in {"key", "box"} and size > LONGEST_NAME:
        return f"{name} has {size:,} bytes: {LONGEST_NAME} are the most; shorten it"
    return None


def _unseen(word: str) -> str | None:
    """The first control character, half a character, line break or invisible sign of a text."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return next((s for s in word if unicodedata.category(s) in kinds and s not in JOINERS), None)


def presentable(word: str) -> str:
    """A text that Postgres can hold and a terminal does not obey, cut to a length to read."""
    if not _unseen(word[:LONGEST_FIELD]) and len(word.encode(errors="replace")) <= LONGEST_BYTES:
        return word
    escaped = word[:LONGEST_FIELD].encode("unicode_escape", "backslashreplace").decode("ascii")
    return escaped[:LONGEST_FIELD]
