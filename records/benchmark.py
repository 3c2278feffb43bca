"""The benchmark: frozen images that no training may see, in versions that are never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from infra.database import copy_rows
from records.nearness import near
from records.tables import Benchmark, BenchmarkImage, Look


class NoBenchmark(LookupError):
    """Nothing has been frozen yet, so nothing can be judged."""


class BadBenchmark(ValueError):
    """The act would break the benchmark's rules."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark version."""

    version: int
    digest: str
    images: int
    classes: int
    frozen_by: str
    why: str
    frozen_at: datetime
    power: dict[str, Any]
    looks: int


@dataclass(frozen=True)
class Frozen:
    """One image on its way into the benchmark."""

    sha256: str
    class_name: str
    source_key: str
    key: str
    dhash: int | None
    dhash_mirror: int | None


@dataclass(frozen=True)
class Member:
    """One image of a benchmark version; `key` is where its frozen bytes lie."""

    sha256: str
    class_name: str
    key: str


def current(session: Session) -> BenchmarkRow:
    """The newest benchmark version.

    Raises `NoBenchmark` when nothing was ever frozen, and `BadBenchmark` when its images are no
    longer those that were frozen: triggers refuse that, a restored or edited database may not.
    """
    rows = listed(session)
    if not rows:
        raise NoBenchmark(
            "no benchmark is frozen, so no version can be judged: "
            "`regraft benchmark freeze FOLDER --by NAME --why TEXT`"
        )
    newest = rows[0]
    digest = digest_of(members(session, newest.version))
    if digest != newest.digest:
        raise BadBenchmark(
            f"benchmark version {newest.version} has the digest {digest[:12]}… and was frozen as "
            f"{newest.digest[:12]}…: its rows were changed; restore the database from a backup"
        )
    return newest


def listed(session: Session) -> list[BenchmarkRow]:
    """All benchmark versions, the newest first, each with its looks, the gate's and others."""
    rows = session.execute(
        text(
            """
            SELECT version, digest, images, classes, frozen_by, why, frozen_at, power,
                   (SELECT count(*) FROM verdicts v WHERE v.benchmark_version = version)
                   + (SELECT count(*) FROM looks l WHERE l.benchmark_version = version)
            FROM benchmarks ORDER BY version DESC
            """
        )
    )
    return [BenchmarkRow(*row) for row in rows]


@dataclass(frozen=True)
class LookRow:
    """One look at a benchmark version.

    kind: verdict | bakeoff | control | evaluation. looked_by: a person, or the run that told the
    figures; None for a verdict that a person asked for, whom `regraft log` names.
    """

    version_id: int
    kind: str
    looked_by: str | None
    looked_at: datetime


def look(session: Session, version_id: int, kind: str, by: str) -> None:
    """Count that a version's accuracy on the newest benchmark version is shown outside the gate.

    Whoever chooses by it fits the choice to these images. Shown again, it tells nothing new.
    """
    statement = upsert(Look).values(
        benchmark_version=select(func.max(Benchmark.version)).scalar_subquery(),
        version_id=version_id,
        kind=kind,
        looked_by=by,
    )
    session.execute(statement.on_conflict_do_nothing())


def looks(session: Session, version: int) -> list[LookRow]:
    """Every look at a benchmark version, the oldest first."""
    rows = session.execute(
        text(
            """
            SELECT version_id, 'verdict', 'run ' || run_id, created_at AS at FROM verdicts
            WHERE benchmark_version = :version
            UNION ALL
            SELECT version_id, kind, looked_by, looked_at FROM looks
            WHERE benchmark_version = :version
            ORDER BY at
            """
        ),
        {"version": version},
    )
    return [LookRow(*row) for row in rows]


def get(session: Session, version: int) -> BenchmarkRow:
    """One benchmark version; raises `BadBenchmark` when there is none."""
    found = [row for row in listed(session) if row.version == version]
    if not found:
        raise BadBenchmark(
            f"there is no benchmark version {version}: `regraft benchmark list` lists them"
        )
    return found[0]


@dataclass(frozen=True)
class ListedMember:
    """One image of a benchmark version, and where it came from."""

    class_name: str
    source_key: str
    sha256: str
    added_in: int


def listed_members(session: Session, version: int) -> list[ListedMember]:
    """The images of one benchmark version, by class and key."""
    columns = [getattr(BenchmarkImage, name) for name in ListedMember.__dataclass_fields__]
    query = select(*columns).where(_in(version))
    query = query.order_by(BenchmarkImage.class_name, BenchmarkImage.source_key)
    return [ListedMember(*row) for row in session.execute(query)]


def _in(version: int) -> ColumnElement[bool]:
    gone = BenchmarkImage.withdrawn_in
    return and_(BenchmarkImage.added_in <= version, or_(gone.is_(None), gone > version))


def members(session: Session, version: int) -> list[Member]:
    """The images of one benchmark version, by digest."""
    query = (
        select(BenchmarkImage.sha256, BenchmarkImage.class_name, BenchmarkImage.key)
        .where(_in(version))
        .order_by(BenchmarkImage.sha256)
    )
    return [Member(*row) for row in session.execute(query)]


def keys(session: Session, digests: list[str]) -> dict[str, str]:
    """Where the bytes of those of these images lie that any benchmark version holds."""
    query = select(BenchmarkImage.sha256, BenchmarkImage.key)
    rows = session.execute(query.where(BenchmarkImage.sha256.in_(digests)))
    return {sha256: key for sha256, key in rows}  # noqa: C416  (dict(Row) is typed less well)


def digest_of(images: Iterable[Member]) -> str:
    """The name of a benchmark version by its contents: sorted digests with their classes."""
    lines = sorted(f"{one.sha256} {one.class_name}" for one in images)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def leaks(session: Session, images: list[Frozen]) -> dict[str, str]:
    """Which of these images library, pretraining sets or benchmark already have, and why.

    Exact, or near one of the library or of a set.

    Also takes the leak lock, held until commit, so that no intake brings one in meanwhile.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-leak'))"))
    session.execute(
        text(
            """
            CREATE TEMP TABLE frozen
                (sha256 text, class_name text, dhash bigint, dhash_mirror bigint)
            ON COMMIT DROP
            """
        )
    )
    rows = ((one.sha256, one.class_name, one.dhash, one.dhash_mirror) for one in images)
    copy_rows(session, "frozen", ["sha256", "class_name", "dhash", "dhash_mirror"], rows)
    session.execute(text("ANALYZE frozen"))
    why_near = "n.sha256, 'near ' || s.sha256 || ' of the library'"
    found: dict[str, str] = {}
    for sha256, why in session.execute(text(near(why_near, "frozen", "images"))):
        found[sha256] = why
    why_near = "n.sha256, 'near ' || s.key || ' of a pretraining set'"
    usable = "(SELECT * FROM set_images WHERE problem IS NULL)"
    for sha256, why in session.execute(text(near(why_near, "frozen", usable))):
        found[sha256] = why
    exact = text(
        """
        SELECT f.sha256, 'already in the library' FROM frozen f JOIN images i USING (sha256)
        UNION ALL
        SELECT sha256, 'in a pretraining set: ' || s.key FROM frozen f
        JOIN set_images s USING (sha256) WHERE s.problem IS NULL
        UNION ALL
        SELECT f.sha256, CASE
            WHEN b.withdrawn_in IS NOT NULL
                THEN 'withdrawn in version ' || b.withdrawn_in || ': what was looked at and taken '
                     'out cannot come back'
            WHEN b.class_name <> f.class_name
                THEN 'in the benchmark as ' || b.class_name || ': withdraw it if that is wrong'
            ELSE 'already in the benchmark' END
        FROM frozen f JOIN benchmark_images b USING (sha256)
        """
    )
    for sha256, why in session.execute(exact):
        found[sha256] = why
    return found


def freeze(
    session: Session, added: list[Frozen], by: str, why: str, power: dict[str, Any]
) -> BenchmarkRow:
    """Append a benchmark version that has the newest one's images and these."""
    known = listed(session)
    kept = members(session, known[0].version) if known else []
    version = _append(session, kept + [as_member(one) for one in added], by, why, power)
    session.execute(
        insert(BenchmarkImage),
        [
            {
                "sha256": one.sha256,
                "class_name": one.class_name,
                "source_key": one.source_key,
                "key": one.key,
                "dhash": one.dhash,
                "added_in": version,
            }
            for one in added
        ],
    )
    return current(session)


def as_member(one: Frozen) -> Member:
    """An image on its way in, as it will stand in the benchmark."""
    return Member(one.sha256, one.class_name, one.key)


@dataclass(frozen=True)
class Withdrawn:
    """One image that a later version no longer has."""

    sha256: str
    class_name: str
    source_key: str
    withdrawn_in: int
    why: str | None


def find(session: Session, words: Iterable[str]) -> list[Member]:
    """The images of the newest version that go by these keys or digests (8 characters or more).

    Raises `BadBenchmark` for a word that names none, or more than one.
    """
    query = select(BenchmarkImage.sha256, BenchmarkImage.source_key)
    query = query.where(BenchmarkImage.withdrawn_in.is_(None))
    rows = [(sha256, key) for sha256, key in session.execute(query)]
    found: set[str] = set()
    for word in words:
        named = [
            sha256 for sha256, key in rows
            if key == word or (len(word) >= 8 and sha256.startswith(word))
        ]  # fmt: skip
        if len(named) != 1:
            raise BadBenchmark(
                f"{word!r} names {len(named)} images of the newest benchmark version: use one "
                "image's key or digest, as `regraft benchmark show --images` lists them"
            )
        found.update(named)
    return [one for one in members(session, current(session).version) if one.sha256 in found]


def withdraw(
    session: Session, images: list[Member], by: str, why: str, power: dict[str, Any]
) -> BenchmarkRow:
    """Append a version without these images; they stay frozen, and no training ever sees them."""
    gone = {one.sha256 for one in images}
    kept = [one for one in members(session, current(session).version) if one.sha256 not in gone]
    version = _append(session, kept, by, why, power)
    statement = update(BenchmarkImage).where(BenchmarkImage.sha256.in_(gone))
    session.execute(statement.values(withdrawn_in=version, withdrawn_why=why))
    return current(session)


def withdrawn(session: Session, version: int) -> list[Withdrawn]:
    """The images that were withdrawn up to a version, the newest first."""
    query = select(
        BenchmarkImage.sha256, BenchmarkImage.class_name, BenchmarkImage.source_key,
        BenchmarkImage.withdrawn_in, BenchmarkImage.withdrawn_why,
    ).where(BenchmarkImage.withdrawn_in <= version)  # fmt: skip
    query = query.order_by(BenchmarkImage.withdrawn_in.desc(), BenchmarkImage.source_key)
    return [Withdrawn(*row) for row in session.execute(query)]


def _append(
    session: Session, whole: list[Member], by: str, why: str, power: dict[str, Any]
) -> int:
    if not whole:
        raise BadBenchmark("a benchmark needs images: none would be left")
    newest = session.scalar(select(func.max(Benchmark.version))) or 0
    session.execute(
        insert(Benchmark).values(
            version=newest + 1,
            digest=digest_of(whole),
            images=len(whole),
            classes=len({one.class_name for one in whole}),
            frozen_by=by,
            why=why,
            power=power,
        )
    )
    return newest + 1
