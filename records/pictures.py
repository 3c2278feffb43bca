"""Pictures: where the bytes of an image lie now, whoever holds it."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session


def place(session: Session, sha256: str) -> tuple[str, str | None] | None:
    """Key and ETag of an object with these bytes: of library, benchmark, pools or sets; or None.

    The benchmark's objects are named by their digest, so that their ETag is not kept.
    """
    row = session.execute(
        text(
            """
            (SELECT key, etag, state = 'quarantined' AS last FROM objects
             WHERE sha256 = :sha256 AND gone_at IS NULL ORDER BY 3, id LIMIT 1)
            UNION ALL
            (SELECT key, NULL, false FROM benchmark_images WHERE sha256 = :sha256)
            UNION ALL
            (SELECT key, etag, false FROM pool_objects
             WHERE sha256 = :sha256 AND gone_at IS NULL AND problem IS NULL ORDER BY id LIMIT 1)
            UNION ALL
            (SELECT key, etag, false FROM set_images
             WHERE sha256 = :sha256 AND problem IS NULL LIMIT 1)
            ORDER BY 3 LIMIT 1
            """
        ),
        {"sha256": sha256},
    ).first()
    return None if row is None else (row.key, row.etag)
