"""Retention: transactions go by whole months, their pictures by days; what was counted stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from psycopg2.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError

from infra import database, storage
from infra.database import Busy, Database
from infra.storage import Listed
from records import moves, pools, transactions
from records.transactions import IMAGES
from tasks import labelling
from tasks.fetching import by_threads

TOGETHER = 10_000  # names of requests that are deleted at once


@dataclass(frozen=True)
class Retained:
    """What was dropped, or would be: months with their transactions, pictures with their bytes."""

    months: tuple[date, ...]
    transactions: int
    images: int
    image_bytes: int
    dry_run: bool

    @property
    def sentence(self) -> str:
        """What it came to, in one line."""
        if not (self.months or self.images):
            return "nothing is old enough to be dropped"
        named = ", ".join(f"{month:%Y-%m}" for month in self.months) or "no month"
        return (
            f"{'would drop' if self.dry_run else 'dropped'} {named} ({self.transactions} "
            f"transactions) and {self.images} pictures ({self.image_bytes / 1e6:.1f} MB)"
        )


def retain(
    months: int, image_days: int, by: str, dry_run: bool = False, today: date | None = None
) -> Retained:
    """Keep so many months of transactions, this one included, and so many days of pictures.

    Days are those of UTC. Pictures that an act on pools still has to copy are copied first, or kept
    where they cannot be. Killed and run again, it deletes what the killed one left. Raises `Busy`
    when somebody reads the transactions for longer than a table may be waited for.
    """
    today = today or datetime.now(UTC).date()
    number = today.year * 12 + today.month - months  # months since year 0, from 0
    first = date(number // 12, number % 12 + 1, 1)
    kept_since = today - timedelta(days=image_days - 1)
    end = f"{IMAGES}{kept_since:%Y/%m/%d}/"
    store = database.connect()
    if not dry_run:
        with store.transaction() as session:
            midnight = datetime.combine(kept_since, datetime.min.time(), UTC)
            transactions.retain(session, first, midnight, by)
        labelling.follow()
    with store.transaction() as session:
        old = [month for month in transactions.months(session) if month.first < first]
        owed = set(moves.sources(session, IMAGES, end))
        if not dry_run:
            pools.lose(session, IMAGES, end, owed)
    images = [one for one in _images_before(end) if one.key not in owed]
    if not dry_run:
        list(by_threads((one.key for one in images), storage.connect().delete))
        _drop(store, first, [month.first for month in old])
    return Retained(
        months=tuple(month.first for month in old),
        transactions=sum(month.rows for month in old),
        images=len(images),
        image_bytes=sum(one.size for one in images),
        dry_run=dry_run,
    )


def _images_before(end: str) -> Iterator[Listed]:
    """Pictures of transactions of before a day; their keys begin with theirs."""
    for one in storage.connect().list(IMAGES):
        if one.key >= end:
            return
        yield one


def _drop(store: Database, first: date, months: Sequence[date]) -> None:
    """Drop months: first the names of their requests, for which nobody waits."""
    more = True
    while more:
        with store.transaction() as session:
            more = transactions.forget_requests(session, first, TOGETHER)
    try:
        for month in months:
            with store.transaction() as session:
                transactions.drop(session, month)
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise Busy("somebody reads the transactions and does not end: try again") from None
