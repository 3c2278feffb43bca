"""A version by origin and sub-class: where staged images flatter, and which parts are weak."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request, Response

from records import history, versions
from web.database import Session
from web.pages.frame import Column, Reader, pages, shown, sorted_by

router = pages()

SETS = ("test", "validation", "library", "batch")
ROWS = 50
EVERY = 20_000
COLUMNS = (
    Column("class", "class_name", number=False), Column("sub-class", "sub_class", number=False),
    Column("origin", "origin", number=False), Column("images", "images"),
    Column("recall", "recall"),
)  # fmt: skip


@router.get("/versions/{version_id}/origins")
def origins(
    request: Request,
    session: Session,
    _: Reader,
    version_id: Annotated[int, Path(ge=1, lt=2**63)],
    on: Annotated[str, Query(max_length=20)] = "",
    sort: str | None = None,
    every: bool = False,
) -> Response:
    """One version on images of each origin, and on each sub-class of one set of images."""
    version = versions.get(session, version_id)
    by_origin = history.answered(session, history.origins(version=version_id))
    sets = [one for one in SETS if any(one == row.subject for row in by_origin)]
    chosen = on or next(iter(sets), "test")
    parts, word = sorted_by(
        history.answered(
            session, history.sub_classes(version=version_id, subject=chosen, most=EVERY)
        ),
        COLUMNS, sort,
    )  # fmt: skip
    facts = {
        "version": version, "origins": by_origin, "sets": sets, "on": chosen, "word": word,
        "columns": COLUMNS, "every": every, "all": len(parts),
        "parts": parts if every else parts[:ROWS],
    }  # fmt: skip
    return shown(request, "origins.html", facts)
