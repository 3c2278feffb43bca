"""The library: every labelled image known, its class, and the log of labels that changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from records.labels import SAYING


@dataclass(frozen=True)
class ClassRow:
    """How many usable images a class has, by split."""

    name: str
    usable: int
    train: int
    validation: int
    test: int
    held: int
    withdrawn: int


def class_mix(session: Session) -> dict[str, int]:
    """How many usable images each class has."""
    rows = session.execute(
        text(
            """
            SELECT c.name, count(*) FROM images i JOIN classes c ON c.id = i.class_id
            WHERE i.withdrawn_at IS NULL GROUP BY c.name
            """
        )
    )
    return {name: count for name, count in rows}  # noqa: C416  (dict(Row) is typed less well)


def usable(session: Session) -> list[tuple[str, str, str, str]]:
    """(sha256, class, key, ETag) of every usable image whose bytes lie in S3 now, by sha256."""
    rows = session.execute(
        text(
            """
            SELECT DISTINCT ON (i.sha256) i.sha256, c.name, o.key, o.etag
            FROM images i
            JOIN classes c ON c.id = i.class_id
            JOIN objects o ON o.sha256 = i.sha256 AND o.gone_at IS NULL
                 AND o.state <> 'quarantined'
            WHERE i.withdrawn_at IS NULL ORDER BY i.sha256, o.id
            """
        )
    )
    return [tuple(row) for row in rows]


def log_change(
    session: Session,
    run_id: int | None,
    sha256: str,
    kind: str,
    from_class: str | None,
    to_class: str | None,
) -> None:
    """Note that an image's label changed in S3; `kind` as in `records.tables.LabelChange`."""
    session.execute(
        text(
            """
            INSERT INTO label_changes (sha256, kind, from_class, to_class, run_id)
            VALUES (:sha, :kind, :from, :to, :run)
            """
        ),
        {"sha": sha256, "kind": kind, "from": from_class, "to": to_class, "run": run_id},
    )


def settle_gone(session: Session, run_id: int | None) -> Counter[str]:
    """Withdraw images whose last object is gone, and bring back those whose object returned."""
    changes: Counter[str] = Counter()
    gone = session.execute(
        text(
            """
            UPDATE images i SET withdrawn_at = now(), withdrawn_why = 'deleted'
            WHERE withdrawn_at IS NULL
              AND EXISTS (SELECT 1 FROM objects o WHERE o.sha256 = i.sha256
                          AND o.gone_at IS NOT NULL)
              AND NOT EXISTS (SELECT 1 FROM objects o WHERE o.sha256 = i.sha256
                              AND o.state = 'accepted' AND o.gone_at IS NULL)
            RETURNING sha256, (SELECT name FROM classes c WHERE c.id = i.class_id)
            """
        )
    ).all()
    back = session.execute(
        text(
            """
            UPDATE images i SET withdrawn_at = NULL, withdrawn_why = NULL
            WHERE withdrawn_why = 'deleted'
              AND EXISTS (SELECT 1 FROM objects o WHERE o.sha256 = i.sha256
                          AND o.state = 'accepted' AND o.gone_at IS NULL)
              -- what a version found comes back by the word of a person, as it came
              AND (NOT mined OR 'label' = (
                  SELECT act FROM pool_acts a WHERE a.sha256 = i.sha256 AND a.act = ANY(:saying)
                  ORDER BY a.id DESC LIMIT 1))
            RETURNING sha256, (SELECT name FROM classes c WHERE c.id = i.class_id)
            """
        ),
        {"saying": list(SAYING)},
    ).all()
    for sha256, name in gone:
        log_change(session, run_id, sha256, "deleted", name, None)
        changes["deleted"] += 1
    for sha256, name in back:
        log_change(session, run_id, sha256, "returned", name, name)
        changes["returned"] += 1
    return changes


def classes(session: Session) -> list[ClassRow]:
    """Every class with its usable images by split."""
    rows = session.execute(
        text(
            """
            SELECT c.name,
                   count(*) FILTER (WHERE usable AND split <> 'held'),
                   count(*) FILTER (WHERE usable AND split = 'train'),
                   count(*) FILTER (WHERE usable AND split = 'validation'),
                   count(*) FILTER (WHERE usable AND split = 'test'),
                   count(*) FILTER (WHERE usable AND split = 'held'),
                   count(*) FILTER (WHERE NOT usable)
            FROM classes c
            JOIN (SELECT *, withdrawn_at IS NULL AS usable FROM images) i ON i.class_id = c.id
            GROUP BY c.name ORDER BY c.name
            """
        )
    )
    return [ClassRow(*row) for row in rows]


@dataclass(frozen=True)
class Holding:
    """What a class has that a snapshot may choose (`usable`), by split and by origin.

    held: images that stay out of every split; withdrawn: those out of use.
    """

    name: str
    usable: int
    train: int
    validation: int
    test: int
    held: int
    withdrawn: int
    real: int
    staged: int
    synthetic: int


def holdings(session: Session) -> list[Holding]:
    """Every class with what it has, the scarcest first."""
    rows = session.execute(
        text(
            """
            SELECT c.name, sum(n) FILTER (WHERE usable AND split <> 'held') AS all_usable,
                   sum(n) FILTER (WHERE usable AND split = 'train'),
                   sum(n) FILTER (WHERE usable AND split = 'validation'),
                   sum(n) FILTER (WHERE usable AND split = 'test'),
                   sum(n) FILTER (WHERE usable AND split = 'held'),
                   sum(n) FILTER (WHERE NOT usable),
                   sum(n) FILTER (WHERE usable AND split <> 'held' AND origin = 'real'),
                   sum(n) FILTER (WHERE usable AND split <> 'held' AND origin = 'staged'),
                   sum(n) FILTER (WHERE usable AND split <> 'held' AND origin = 'synthetic')
            FROM classes c
            LEFT JOIN (SELECT class_id, split, origin, withdrawn_at IS NULL AS usable,
                              count(*) AS n
                       FROM images GROUP BY 1, 2, 3, 4) i ON i.class_id = c.id
            WHERE c.became_id IS NULL
            GROUP BY c.name ORDER BY all_usable NULLS FIRST, c.name
            """
        )
    )
    return [Holding(name, *(int(count or 0) for count in counts)) for name, *counts in rows]


@dataclass(frozen=True)
class ImageRow:
    """One image of a class. withdrawn: why it is out of use, or None."""

    sha256: str
    sub_class: str
    origin: str
    split: str
    labelled_by: str
    batch_id: int
    added_at: datetime
    withdrawn: str | None


def images_of(
    session: Session, class_name: str, after: str = "", most: int = 60
) -> list[ImageRow]:
    """Images of a class by digest, from the one that follows `after` on."""
    rows = session.execute(
        text(
            """
            SELECT i.sha256, i.sub_class, i.origin, i.split, i.labelled_by, i.batch_id, i.added_at,
                   CASE WHEN i.withdrawn_at IS NOT NULL
                        THEN coalesce(i.withdrawn_why, 'withdrawn') END
            FROM images i JOIN classes c ON c.id = i.class_id
            WHERE c.name = :name AND i.sha256 > :after ORDER BY i.sha256 LIMIT :most
            """
        ),
        {"name": class_name, "after": after, "most": most},
    )
    return [ImageRow(*row) for row in rows]


def label_changes(session: Session, most: int = 100) -> list[dict[str, Any]]:
    """The newest label changes first."""
    rows = session.execute(
        text(
            """
            SELECT sha256, kind, from_class, to_class, run_id, noticed_at FROM label_changes
            ORDER BY id DESC LIMIT :most
            """
        ),
        {"most": most},
    )
    return [dict(row._mapping) for row in rows]
