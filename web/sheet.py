"""A contact sheet: what a filter found as thumbnails with label and confidence, in one file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Protocol

import jinja2
import matplotlib
from PIL import Image, ImageDraw, ImageFont

from web.thumbnails import SIDE, encoded, thumbnails

# More would be a picture of which viewers show nothing.
MOST_IN_A_PICTURE = 600
COLUMNS = 6
GAP, LINE, TEXT = 12, 18, 13  # pixels: between tiles, of a line, of its letters
LINES = 4
INK, QUIET, GROUND, PAPER = "#1f2328", "#59636e", "#f3f4f6", "#ffffff"

_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


class TooMany(ValueError):
    """More pictures than a sheet of this kind holds; the message says the mend."""


class Pictured(Protocol):
    """A row that has a picture: where that lies, its name, among what, for what, and the rest."""

    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def etag(self) -> str | None: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def heading(self) -> str: ...  # noqa: D102
    @property
    def offer(self) -> str: ...  # noqa: D102
    @property
    def remarks(self) -> tuple[str, ...]: ...  # noqa: D102


class Pictures(Protocol):
    """Rows to look at in their order, and in one line what they are."""

    @property
    def told(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> Sequence[Pictured]: ...  # noqa: D102


@dataclass(frozen=True)
class _Tile:
    """One picture of the page; data: its JPEG in base64, None with the problem instead."""

    row: Pictured
    data: str | None
    width: int
    height: int
    problem: str


def html(found: Pictures) -> str:
    """The sheet as a page that needs no other file, in light and dark."""
    sections = [
        (heading, [_tile(row, picture) for row, picture in pairs])
        for heading, pairs in _sections(found.rows)
    ]
    return _PAGES.get_template("sheet.html").render(
        told=found.told,
        count=len(found.rows),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        side=SIDE,
        sections=sections,
    )


def png(found: Pictures) -> bytes:
    """The sheet as a picture, at most `MOST_IN_A_PICTURE` thumbnails; raises `TooMany`."""
    if len(found.rows) > MOST_IN_A_PICTURE:
        raise TooMany(
            f"{len(found.rows)} pictures do not fit a PNG of at most {MOST_IN_A_PICTURE}: ask for "
            "fewer by --limit, or for a sheet that ends in .html"
        )
    sheet = _Drawing()
    sheet.line(found.told, INK)
    for heading, pairs in _sections(found.rows):
        if heading:
            sheet.line(heading, INK)
        sheet.tiles(list(pairs))
    return sheet.png()


def _sections(
    rows: Sequence[Pictured],
) -> Iterator[tuple[str, Iterable[tuple[Pictured, Image.Image | str]]]]:
    """Rows of one heading together, each with its thumbnail, in their order."""
    pictures = thumbnails((row.key, row.etag) for row in rows)
    return groupby(zip(rows, pictures, strict=True), key=lambda pair: pair[0].heading)


def _tile(row: Pictured, picture: Image.Image | str) -> _Tile:
    if isinstance(picture, str):
        return _Tile(row, None, 0, 0, picture)
    data = base64.b64encode(encoded(picture)).decode()
    return _Tile(row, data, *picture.size, "")


class _Drawing:
    """A sheet that grows downwards."""

    def __init__(self) -> None:
        self.width = GAP + COLUMNS * (SIDE + GAP)
        self.parts: list[Image.Image] = []
        # Its letters are many scripts' letters, where Pillow's own have Latin alone.
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self.font = ImageFont.truetype(str(font), TEXT)

    def line(self, words: str, ink: str) -> None:
        strip = Image.new("RGB", (self.width, LINE + GAP), PAPER)
        self._write(ImageDraw.Draw(strip), (GAP, GAP // 2), words, ink, self.width - 2 * GAP)
        self.parts.append(strip)

    def tiles(self, pairs: Sequence[tuple[Pictured, Image.Image | str]]) -> None:
        for start in range(0, len(pairs), COLUMNS):
            strip = Image.new("RGB", (self.width, SIDE + LINES * LINE + 2 * GAP), PAPER)
            draw = ImageDraw.Draw(strip)
            for column, (row, picture) in enumerate(pairs[start : start + COLUMNS]):
                self._tile(strip, draw, GAP + column * (SIDE + GAP), row, picture)
            self.parts.append(strip)

    def _tile(
        self,
        strip: Image.Image,
        draw: ImageDraw.ImageDraw,
        left: int,
        row: Pictured,
        picture: Image.Image | str,
    ) -> None:
        draw.rectangle((left, 0, left + SIDE - 1, SIDE + LINES * LINE + GAP // 2), fill=GROUND)
        if isinstance(picture, str):
            self._write(draw, (left + 4, SIDE // 2), picture, QUIET, SIDE - 8)
        else:
            place = (left + (SIDE - picture.width) // 2, (SIDE - picture.height) // 2)
            strip.paste(picture, place)
        lines = [row.offer, *row.remarks[:1], " · ".join(row.remarks[1:]), row.name]
        for number, words in enumerate(filter(None, lines)):
            place = (left + 4, SIDE + 4 + number * LINE)
            # the end of a key is what tells it from its neighbours
            from_end = words == row.name
            self._write(draw, place, words, QUIET if number else INK, SIDE - 8, from_end)

    def _write(
        self,
        draw: ImageDraw.ImageDraw,
        place: tuple[int, int],
        words: str,
        ink: str,
        room: int,
        from_end: bool = False,
    ) -> None:
        words = shown = " ".join(words.split())
        while self.font.getlength(shown) > room:
            words = words[1:] if from_end else words[:-1]
            shown = f"…{words}" if from_end else f"{words}…"
        draw.text(place, shown, ink, self.font)

    def png(self) -> bytes:
        sheet = Image.new("RGB", (self.width, sum(part.height for part in self.parts)), PAPER)
        top = 0
        for part in self.parts:
            sheet.paste(part, (0, top))
            top += part.height
        buffer = BytesIO()
        sheet.save(buffer, "PNG")
        return buffer.getvalue()
