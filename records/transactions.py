"""What was served: one row for each picture that a client asked about, and what is counted of it.

Rows come in batches, each in one transaction with its daily counts. A row that is there already
changes nothing, so whoever does not know whether a batch came in sends it again.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from infra.database import copy_lines, copy_text
from records.evaluations import array_element
from records.tables import LogGap, LogRetention

# Pictures lie under IMAGES/year/month/day: a month or a day of them is a pool of its own.
IMAGES = "transactions/"
COLUMNS = (
    "id", "at", "request_id", "ordinal", "client", "version_id", "sha256", "width", "height",
    "predicted", "confidence", "top_labels", "top_confidences", "shown", "latency_seconds",
    "image_key", "draw",
)  # fmt: skip
STAGED = (*COLUMNS, "body_digest")
# Why a gap is none of rows: these are there, without a picture and without a draw.
UNDRAWN = "pictures could not be kept: these left the random stream"
_MONTH = re.compile(r"transactions_(\d{4})_(\d{2})")
_ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
_NAMED = uuid.UUID("6f1d0f0e-8c35-4a86-9a54-0f6a7f1b5f5e")  # any, as long as it stays


@dataclass(frozen=True)
class Transaction:
    """One prediction served, for one picture, as the table `transactions` keeps it.

    id: of `new_id`. at: when it was answered, UTC; all pictures of one request share it.
    ordinal: which picture of the request. client: the name of its key, or `local`. shown: whether
    the threshold lets it be shown; None without one. image_key: where its bytes are kept. draw: the
    chance that it had to come into the random stream of reviews, where it did. body_digest: of the
    whole request; it is there where its client named the request, and nowhere else.
    """

    id: uuid.UUID
    at: datetime
    client: str
    version: int
    sha256: str
    width: int
    height: int
    top_labels: tuple[str, ...]
    top_confidences: tuple[float, ...]
    shown: bool | None
    latency_seconds: float
    ordinal: int = 0
    request_id: str | None = None
    body_digest: str | None = None
    image_key: str | None = None
    draw: float | None = None


@dataclass(frozen=True)
class Served:
    """What was answered to a request that its client named; rows: in the order of its pictures."""

    body_digest: str
    rows: tuple[Transaction, ...]


@dataclass(frozen=True)
class Gap:
    """Transactions that were answered and could not be kept, or not for the random stream.

    dropped: how many, of either; `lost` tells them apart.
    """

    began_at: datetime
    ended_at: datetime
    dropped: int
    why: str

    @property
    def lost(self) -> bool:
        """Whether the rows are gone; those that only left the random stream are there."""
        return self.why != UNDRAWN


@dataclass(frozen=True)
class Month:
    """One partition: its first day (UTC), its rows and its bytes, indexes included."""

    first: date
    rows: int
    size: int


def new_id(
    at: datetime, client: str, request_id: str | None = None, ordinal: int = 0
) -> uuid.UUID:
    """The number of a transaction: a UUID of version 7, so that new ones lie together.

    Of a named request it follows from the name (version 5): two processes that answer it at the
    same time tell their clients the same number, of which one row comes in.
    """
    if request_id is not None:
        return uuid.uuid5(_NAMED, f"{len(client)}:{client}{request_id}#{ordinal}")
    milliseconds = int(at.timestamp() * 1000)
    drawn = secrets.randbits(74)
    return uuid.UUID(
        int=milliseconds << 80 | 7 << 76 | (drawn >> 62) << 64 | 2 << 62 | drawn & (1 << 62) - 1
    )


def image_key(at: datetime, sha256: str, image: bytes) -> str:
    """Where the bytes of a picture served at this time are kept: the same all day."""
    ending = next((end for begin, end in _ENDINGS.items() if image.startswith(begin)), "")
    return f"{IMAGES}{at.astimezone(UTC):%Y/%m/%d}/{sha256}{ending}"


# --- coming in ------------------------------------------------------------------------------


def line(row: Transaction) -> str:
    """A row as COPY's text for `append`; raises ValueError for what Postgres cannot hold."""
    if (row.request_id is None) != (row.body_digest is None):
        raise ValueError("a request with a name needs the digest of its body, and no other has one")
    labels = ",".join([array_element(label) for label in row.top_labels])
    # Nine digits are enough to give back the very same float32.
    confidences = [f"{confidence:.9g}" for confidence in row.top_confidences]
    values = (
        row.id, row.at, row.request_id, row.ordinal, row.client, row.version, row.sha256,
        row.width, row.height, row.top_labels[0],
    )  # fmt: skip
    rest = (row.shown, row.latency_seconds, row.image_key, row.draw, row.body_digest)
    cells = [
        *map(copy_text, values), confidences[0], copy_text(f"{{{labels}}}"),
        f"{{{','.join(confidences)}}}", *map(copy_text, rest),
    ]  # fmt: skip
    return "\t".join(cells) + "\n"


def cell(written: str, column: str, columns: Sequence[str] = STAGED) -> str:
    """What stands in one column of a line, as COPY's text."""
    return written.rstrip("\n").split("\t")[columns.index(column)]


def without_image(written: str, columns: Sequence[str] = STAGED) -> str:
    """A line whose picture could not be kept: it comes into no stream of reviews either."""
    cells = written.rstrip("\n").split("\t")
    for name in ("image_key", "draw"):
        cells[columns.index(name)] = copy_text(None)
    return "\t".join(cells) + "\n"


def append(session: Session, lines: Sequence[str], columns: Sequence[str] = STAGED) -> int:
    """Write those lines whose rows are not there yet, and count them by day; answers how many.

    Of a request that its client named, what came in first stands: rows of the same request that
    were answered at another time are left out.
    """
    session.execute(
        text(
            """
            CREATE TEMP TABLE IF NOT EXISTS staged_transactions
            (LIKE transactions INCLUDING DEFAULTS, body_digest text) ON COMMIT DELETE ROWS
            """
        )
    )
    copy_lines(session, "staged_transactions", columns, lines)
    _make_months(session)
    # Everybody takes what several write in the same order, or they would wait for each other.
    session.execute(
        text(
            """
            INSERT INTO served_requests (client, request_id, at, body_digest)
            SELECT DISTINCT ON (client, request_id) client, request_id, at, body_digest
            FROM staged_transactions WHERE request_id IS NOT NULL
            ORDER BY client, request_id, at ON CONFLICT DO NOTHING
            """
        )
    )
    came: int = session.execute(text(_APPEND)).scalar_one()
    return came


_APPEND = f"""
    WITH came AS (
        INSERT INTO transactions ({", ".join(COLUMNS)})
        SELECT {", ".join(COLUMNS)} FROM staged_transactions s
        WHERE s.request_id IS NULL OR s.at = (
            SELECT r.at FROM served_requests r
            WHERE r.client = s.client AND r.request_id = s.request_id)
        ORDER BY s.at, s.id ON CONFLICT DO NOTHING
        RETURNING (at AT TIME ZONE 'UTC')::date AS day, version_id, client, predicted, confidence,
                  shown, latency_seconds),
    told AS (
        INSERT INTO predicted_days AS d
            (day, version_id, predicted, band, transactions, confidence_sum)
        SELECT day, version_id, predicted, least(floor(confidence * 10), 9) AS band, count(*),
               sum(confidence::float8)
        FROM came GROUP BY day, version_id, predicted, band
        ORDER BY day, version_id, predicted, band
        ON CONFLICT (day, version_id, predicted, band) DO UPDATE
        SET transactions = d.transactions + excluded.transactions,
            confidence_sum = d.confidence_sum + excluded.confidence_sum),
    used AS (
        INSERT INTO usage_days AS d
            (day, version_id, client, transactions, shown, confidence_sum, latency_sum, latency_max)
        SELECT day, version_id, client, count(*), count(*) FILTER (WHERE shown),
               sum(confidence::float8), sum(latency_seconds::float8), max(latency_seconds)
        FROM came GROUP BY day, version_id, client ORDER BY day, version_id, client
        ON CONFLICT (day, version_id, client) DO UPDATE
        SET transactions = d.transactions + excluded.transactions,
            shown = d.shown + excluded.shown,
            confidence_sum = d.confidence_sum + excluded.confidence_sum,
            latency_sum = d.latency_sum + excluded.latency_sum,
            latency_max = greatest(d.latency_max, excluded.latency_max))
    SELECT count(*) FROM came
"""  # noqa: S608  (constants)


def _make_months(session: Session) -> None:
    """Have a partition for every month of the staged rows."""
    missing = """
        SELECT DISTINCT date_trunc('month', at AT TIME ZONE 'UTC')::date AS month
        FROM staged_transactions s WHERE to_regclass(
            'transactions_' || to_char(at AT TIME ZONE 'UTC', 'YYYY_MM')) IS NULL
        ORDER BY month
    """
    if session.execute(text(missing)).first() is None:
        return
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('regraft-months'))"))
    for first in session.scalars(text(missing)).all():
        session.execute(text("SELECT add_transactions_month(:first)"), {"first": first})


def add_gap(session: Session, gap: Gap) -> None:
    """Write down that transactions were lost, once."""
    values = {field.name: getattr(gap, field.name) for field in fields(gap)}
    known = select(LogGap.id).where(*(getattr(LogGap, name) == values[name] for name in values))
    if session.scalar(known.limit(1)) is None:
        session.execute(insert(LogGap).values(**values))


# --- asked ----------------------------------------------------------------------------------

_READ = ", ".join(f"t.{name}" for name in COLUMNS)


def of_request(session: Session, client: str, request_id: str) -> Served | None:
    """What was answered to a request that its client named; None where nothing was."""
    rows = session.execute(
        text(
            f"""
            SELECT r.body_digest, {_READ} FROM served_requests r LEFT JOIN transactions t
              ON t.at = r.at AND t.client = r.client AND t.request_id = r.request_id
            WHERE r.client = :client AND r.request_id = :request ORDER BY t.ordinal
            """  # noqa: S608  (constants)
        ),
        {"client": client, "request": request_id},
    ).all()
    if not rows:
        return None
    digest = rows[0][0]
    return Served(digest, tuple(_transaction(row[1:], digest) for row in rows if row[1]))


def listed(
    session: Session,
    most: int = 50,
    version: int | None = None,
    client: str | None = None,
    predicted: str | None = None,
    below: float | None = None,
    kept: bool = False,
    drawn: bool = False,
) -> list[Transaction]:
    """The newest transactions, the newest first.

    below: only confidences under it. kept: only those whose picture is still kept; drawn: only
    those of the random stream.
    """
    conditions = {
        "t.version_id = :version": version is not None,
        "t.client = :client": client is not None,
        "t.predicted = :predicted": predicted is not None,
        "t.confidence < :below": below is not None,
        "t.image_key IS NOT NULL AND t.at >= :kept_since": kept,
        "t.draw IS NOT NULL": drawn,
    }
    where = " AND ".join([condition for condition, wanted in conditions.items() if wanted])
    rows = session.execute(
        text(
            f"SELECT {_READ} FROM transactions t {where and 'WHERE ' + where} "  # noqa: S608
            "ORDER BY t.at DESC, t.id DESC LIMIT :most"
        ),
        {
            "version": version, "client": client, "predicted": predicted, "below": below,
            "kept_since": images_since(session) if kept else None, "most": most,
        },
    )  # fmt: skip
    return [_transaction(row) for row in rows]


def _transaction(row: Sequence[object], body_digest: str | None = None) -> Transaction:
    found = dict(zip(COLUMNS, row, strict=True))
    found["version"] = found.pop("version_id")
    for name in ("predicted", "confidence"):
        del found[name]
    for name in ("top_labels", "top_confidences"):
        found[name] = tuple(found[name])  # type: ignore[arg-type]  # an array is a list
    return Transaction(**found, body_digest=body_digest)  # type: ignore[arg-type]


def gaps(session: Session, most: int = 20) -> list[Gap]:
    """The newest gaps of the log first."""
    columns = [getattr(LogGap, field.name) for field in fields(Gap)]
    query = select(*columns).order_by(LogGap.ended_at.desc(), LogGap.id.desc()).limit(most)
    return [Gap(*row) for row in session.execute(query)]


# --- retention ------------------------------------------------------------------------------


def months(session: Session) -> list[Month]:
    """The months of which transactions are kept, the oldest first."""
    rows = session.execute(
        text(
            """
            SELECT c.relname, coalesce(u.transactions, 0), pg_total_relation_size(c.oid)
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            LEFT JOIN (
                SELECT to_char(day, '"transactions_"YYYY_MM') AS name,
                       sum(transactions) AS transactions
                FROM usage_days GROUP BY name) u ON u.name = c.relname
            WHERE i.inhparent = 'transactions'::regclass ORDER BY c.relname
            """
        )
    )
    found = [(_MONTH.fullmatch(name), count, size) for name, count, size in rows]
    return [
        Month(date(int(name[1]), int(name[2]), 1), int(count), int(size))
        for name, count, size in found if name
    ]  # fmt: skip


def images_since(session: Session) -> datetime:
    """From when on pictures of transactions are kept: earlier ones were deleted."""
    newest = session.scalar(select(func.max(LogRetention.images_before)))
    return newest or datetime.min.replace(tzinfo=UTC)


def retain(session: Session, first: date, images_before: datetime, by: str) -> None:
    """Write down what is kept from now on, and by whom: months from this one, pictures since then.

    first: the first day of a month. What is older counts as deleted once this is committed; whoever
    calls this deletes it then, by `forget_requests` and `drop`.
    """
    session.execute(
        insert(LogRetention).values(
            transactions_before=first, images_before=images_before, done_by=by
        )
    )


def forget_requests(session: Session, first: date, most: int) -> bool:
    """Delete so many names of requests of before a month; whether there were any."""
    gone = session.execute(
        text(
            """
            DELETE FROM served_requests WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM served_requests
                WHERE at < CAST(:first AS timestamp) AT TIME ZONE 'UTC' LIMIT :most))
            RETURNING 1
            """
        ),
        {"first": first, "most": most},
    )
    return gone.first() is not None


def drop(session: Session, month: date) -> None:
    """Drop a month's transactions; the daily counts of them stay, and so do reviews.

    Nobody reads or writes any until the commit, so nothing else is done before it. Waits at most
    3 s for those who read: who waits for them makes everybody wait who comes after.
    """
    session.execute(text("SET LOCAL lock_timeout = '3s'"))
    session.execute(text(f"DROP TABLE IF EXISTS transactions_{month:%Y_%m}"))
