"""The log of what is served: whatever stops, stands still or dies, each row comes in once."""

import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pictures
import pytest
import served
from served import AT, EVERYTHING, NAMES, NOTHING, PLAN, logging, row
from sqlalchemy import text
from test_kill import gate
from worlds import World

import infra.database
from infra import embedded
from infra.database import Database
from infra.embedded import Addresses
from infra.settings import Settings
from infra.storage import Storage
from records import identifications, transactions, versions
from records.transactions import Transaction, new_id
from tasks import checkpoints
from tasks.identification import answer, begin, locate
from vision.network import build, save
from web.keeping import Keeping
from web.spool import BadSpool, Segment, Spool, SpoolFull, spooled
from web.transaction_log import OtherRequest, TransactionLog

PATIENCE_SECONDS = 60
NOWHERE = Database("postgresql://regraft:none@127.0.0.1:1/none")
LOGS = "SELECT id FROM transactions WHERE client = :client"


@pytest.fixture
def world(
    services: Addresses, database: Database, storage: Storage, tmp_path: Path
) -> World:
    """Have a database with one version, a bucket, and a folder for the spool."""
    served.version(database, storage)
    return World(services, database.url, storage.bucket, tmp_path)


def until(holds: Callable[[], object]) -> None:
    """Wait until something holds that other threads or processes bring about."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def picture(number: int) -> bytes:
    """A photograph as a client sends it."""
    return pictures.jpeg(pictures.photograph(number))


def of_picture(number: int, **changes: object) -> tuple[Transaction, bytes]:
    """A row with its picture."""
    body = picture(number)
    return row(number, sha256=hashlib.sha256(body).hexdigest(), **changes), body


# --- the main way ---------------------------------------------------------------------------


def test_rows_and_pictures_come_in(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """Without a call to close: rows within seconds, kept pictures before them, under their day."""
    with logging(database, storage, tmp_path, EVERYTHING) as log:
        rows, bodies = zip(*(of_picture(number) for number in range(3)), strict=True)
        log.put(rows, bodies)
        bare = row(3)
        log.put([bare], [None])
        until(lambda: log.counts.written == 4)
        until(lambda: not any(tmp_path.glob("*/*")))
        assert (log.counts.images_written, log.counts.dropped) == (3, 0)
        with database.transaction() as session:
            found = transactions.listed(session)[::-1]
    days = ["2026/11/30", "2026/12/01", "2026/12/01"]
    keys = [f"transactions/{day}/{one.sha256}.jpg" for day, one in zip(days, rows, strict=True)]
    assert found == [
        *(replace(one, image_key=key) for one, key in zip(rows, keys, strict=True)), bare
    ]
    assert [storage.read(key) for key in keys] == list(bodies)
    world.check()


def test_an_orderly_stop_loses_nothing(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """What eight threads put until the very end is there after close, and later rows are told."""
    log = TransactionLog(database, storage, tmp_path, NOTHING)

    def ask(client: int) -> None:
        for number in range(500):
            log.put([row(number, at=AT + timedelta(seconds=number, milliseconds=client))], [None])

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    log.close()
    assert (log.counts.written, log.counts.waiting, log.counts.spooled) == (4000, 0, 0)
    world.check()
    log.put([row(1)], [None])
    assert log.counts.dropped == 1


def test_the_kept_pictures_are_a_pool(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """A day, a month or all of them is identified as any other pool is."""
    with logging(database, storage, tmp_path, EVERYTHING) as log:
        rows, bodies = zip(*(of_picture(number) for number in range(4)), strict=True)
        log.put(rows, bodies)
    path = tmp_path / "checkpoint"
    digest = save(build(PLAN, NAMES), path, PLAN, NAMES)
    checkpoints.store(path, digest)
    with database.transaction() as session:
        versions.trained(session, 1, digest, {}, {}, 1.0, None)
    found = []
    for pool in ("s3://transactions/2026/11/30", "s3://transactions/2026/12", "s3://transactions"):
        number = begin(locate(pool), 1)
        answer.fn(number)
        with database.transaction() as session:
            found.append(identifications.get(session, number))
    assert [(one.state, one.listed, one.answered) for one in found] == [
        ("completed", 1, 1), ("completed", 3, 3), ("completed", 4, 0)
    ]  # fmt: skip
    assert found[-1].repeated == 4


# --- which pictures -------------------------------------------------------------------------


def test_shares_of_pictures_are_kept() -> None:
    """The random stream is blind to the answer; doubtful ones and the rest have their shares."""
    rule = Keeping(review_share=0.1, doubtful_share=0.5, doubtful_below=0.6, image_share=0.2)
    sure, shy = row(shown=True, top_confidences=(0.1, 0.1)), row(shown=False)
    without = replace(sure, shown=None)
    many = 20_000
    for one, share in ((sure, 0.2), (shy, 0.5), (without, 0.5),
                       (replace(without, top_confidences=(0.7, 0.1)), 0.2)):  # fmt: skip
        decided = [rule.decide(one, b"\x89PNG") for _ in range(many)]
        drawn = sum(each.draw is not None for each in decided)
        kept = sum(each.image_key is not None for each in decided)
        expected = 0.1 + 0.9 * share
        # six standard deviations of a binomial: one run in 500 million fails by chance
        assert abs(drawn - 0.1 * many) < 6 * (many * 0.1 * 0.9) ** 0.5
        assert abs(kept - expected * many) < 6 * (many * expected * (1 - expected)) ** 0.5
        assert {each.draw for each in decided} == {None, 0.1}
        assert all(each.image_key for each in decided if each.draw)
    assert {NOTHING.decide(shy, b"") for _ in range(100)} == {shy}
    assert Keeping.of(Settings(review_share=0.3)) == Keeping(0.3, 1.0, 0.5, 0.0)


# --- repeated requests ----------------------------------------------------------------------


def named(number: int, digest: str = "d" * 64, **changes: object) -> Transaction:
    """A row of a request that its client named."""
    name = f"order {number}"
    at = changes.pop("at", AT)
    return row(number, at=at, id=new_id(at, "shop", name), request_id=name,
               body_digest=digest, **changes)  # fmt: skip


def test_a_repeated_request_is_known(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """At once by the process that answered, later by every other; another body is refused."""
    with logging(database, storage, tmp_path / "one") as log:
        assert log.answered("shop", "order 1", "d" * 64) is None
        log.put([named(1)], [None])
        assert log.answered("shop", "order 1", "d" * 64) == (named(1),)
        assert log.answered("another shop", "order 1", "d" * 64) is None
        with pytest.raises(OtherRequest, match="'order 1' was given to another request"):
            log.answered("shop", "order 1", "e" * 64)
        # two of the same that were both on their way
        log.put([named(1, at=AT + timedelta(seconds=1))], [None])
        assert log.counts.repeated == 1
    with logging(database, storage, tmp_path / "two") as log:
        assert log.answered("shop", "order 1", "d" * 64) == (named(1),)
        with pytest.raises(OtherRequest):
            log.answered("shop", "order 1", "e" * 64)
        # answered there while nobody could know
        log.put([named(1, at=AT + timedelta(seconds=2))], [None])
    assert (log.counts.written, log.counts.repeated) == (0, 1)
    assert world.ask("SELECT at, id FROM transactions") == [(AT, named(1).id)]
    world.check()


def test_a_named_request_comes_in_whole(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """Rows of one request of which some pictures are kept are there together or not at all."""
    shy, body = of_picture(1)
    at, name = AT, "order 5"
    rows = [
        replace(one, at=at, id=new_id(at, "shop", name, place), ordinal=place, request_id=name,
                body_digest="d" * 64)
        for place, one in enumerate((replace(shy, shown=False), row(2, shown=True)))
    ]  # fmt: skip
    nowhere = Storage(closed_address(), storage.bucket, "key", "secret")
    keeping = Keeping(review_share=0, doubtful_share=1, doubtful_below=0, image_share=0)
    with logging(database, nowhere, tmp_path, keeping) as log:
        log.put(rows, [body, body])
        log.put([row(3)], [None])
        until(lambda: log.counts.written == 1)
    with logging(database, storage, tmp_path) as log:
        until(lambda: log.counts.written == 2)
        found = log.answered("shop", name, "d" * 64)
    assert found is not None
    assert [bool(one.image_key) for one in found] == [True, False]
    world.check()


def order(rows: int, name: str = "order 6") -> list[Transaction]:
    """The rows of a request that its client named, of so many pictures."""
    return [
        row(place, at=AT, id=new_id(AT, "shop", name, place), ordinal=place, request_id=name,
            body_digest="d" * 64)
        for place in range(rows)
    ]  # fmt: skip


def test_a_named_request_is_never_torn_apart(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """Where a file ends, or Postgres refuses one of its rows: another process would find a part."""
    with logging(NOWHERE, storage, tmp_path) as log:
        rows = [*(row(number) for number in range(998)), *order(4)]
        log.put(rows, [None] * len(rows))
        until(lambda: log.counts.spooled == 1002)
    files = [path.read_text() for path in tmp_path.glob("rows/*")]
    assert [file.count("order 6") for file in files if "order 6" in file] == [4]
    bad = order(4, "order 7")
    bad[1] = replace(bad[1], top_confidences=(float("nan"), 0.1))
    with logging(database, storage, tmp_path) as log:
        log.put([row(2000), *bad, row(2001)], [None] * 6)
        until(lambda: log.counts.written == 1004)
        assert log.counts.dropped == 4
    with logging(database, storage, tmp_path) as log:
        assert log.answered("shop", "order 7", "d" * 64) is None
        assert len(log.answered("shop", "order 6", "d" * 64) or ()) == 4
    world.check()


def test_what_is_known_of_requests_is_bounded(storage: Storage, tmp_path: Path) -> None:
    """Large answers are forgotten sooner: their bytes count, the newest stays."""
    log = TransactionLog(NOWHERE, storage, tmp_path, NOTHING)
    names = tuple(map(str, range(100)))
    answer = [replace(one, top_labels=names, top_confidences=(0.01,) * 100) for one in order(16)]
    for number in range(600):
        named = [replace(one, request_id=f"order {number}") for one in answer]
        log.put(named, [None] * 16)
    assert log.answered("shop", "order 599", "d" * 64) is not None
    assert log.answered("shop", "order 0", "d" * 64) is None
    assert 100 < len(log._known) < 500
    log.close(patience_seconds=1)


# --- Postgres and S3 away -------------------------------------------------------------------


def closed_address() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class Postgres:
    """A Postgres of its own, that can be stopped and started."""

    def __init__(self, services: Addresses, storage: Storage) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="regraft-tests-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._settings = Settings(
            state_dir=self.folder / "state", database_url=None, s3_endpoint=services.s3_endpoint,
            s3_access_key=services.s3_access_key, s3_secret_key=services.s3_secret_key,
        )  # fmt: skip
        self.start()
        infra.database.migrate(self.url)
        self.database = Database(self.url)
        served.version(self.database, storage)

    def start(self) -> None:
        """Start it where it was."""
        self.url = embedded.addresses(self._settings).database_url

    def stop(self) -> None:
        """Stop it; whoever is connected is cut off."""
        embedded.down(self._settings)

    def pid(self) -> int:
        """Its first process."""
        [pid] = [one.pid for one in embedded.running(self._settings) if one.name == "postgres"]
        assert pid is not None
        return pid

    def ids(self, client: str) -> list[object]:
        """The numbers of what a client was answered."""
        with self.database.transaction() as session:
            return list(session.scalars(text(LOGS), {"client": client}))

    def check(self) -> None:
        """Raise unless what is counted is what is there."""
        with self.database.transaction() as session:
            assert session.scalar(text(
                "SELECT (SELECT sum(transactions) FROM usage_days) = count(*) AND "
                "(SELECT sum(transactions) FROM predicted_days) = count(*) FROM transactions"
            ))  # fmt: skip


@pytest.fixture(scope="module")
def bucket(services: Addresses) -> Iterator[Storage]:
    """Have a bucket for the tests with a Postgres of their own."""
    found = Storage(
        services.s3_endpoint, "test-log-away", services.s3_access_key, services.s3_secret_key
    )
    found.ensure_bucket()
    yield found
    for one in found.list():
        found.delete(one.key)
    found._client.delete_bucket(Bucket=found.bucket)


@pytest.fixture(scope="module")
def postgres(services: Addresses, bucket: Storage) -> Iterator[Postgres]:
    """Have a Postgres of our own."""
    found = Postgres(services, bucket)
    try:
        yield found
    finally:
        found.database.engine.dispose()
        found.stop()
        shutil.rmtree(found.folder)


def test_postgres_stops_and_comes_back(
    postgres: Postgres, bucket: Storage, tmp_path: Path
) -> None:
    """What is answered meanwhile waits on disk, nobody who answers waits, and all comes in once."""
    client = "away and back"
    rows = [row(number, client=client) for number in range(300)]
    with logging(postgres.database, bucket, tmp_path, EVERYTHING) as log:
        log.put(rows[:100], [None] * 100)
        until(lambda: log.counts.written == 100)
        postgres.stop()
        began = time.monotonic()
        for one in rows[100:200]:
            log.put([one], [None])
        took = time.monotonic() - began
        pictured, body = of_picture(1, client=client)
        log.put([pictured], [body])
        assert log.answered(client, "order 1", "d" * 64) is None
        until(lambda: log.counts.spooled == 101)
        assert log.counts.waiting == 0
        assert took < 1
        postgres.start()
        log.put(rows[200:], [None] * 100)
        until(lambda: log.counts.written == 301)
        assert (log.counts.spooled, log.counts.dropped, log.counts.repeated) == (0, 0, 0)
    assert len(postgres.ids(client)) == len(set(postgres.ids(client))) == 301
    postgres.check()


def test_stopped_while_postgres_is_away(
    postgres: Postgres, bucket: Storage, tmp_path: Path
) -> None:
    """What a server leaves on disk when it stops, the next one on this machine writes down."""
    client = "stopped meanwhile"
    with logging(postgres.database, bucket, tmp_path) as log:
        postgres.stop()
        log.put([row(number, client=client) for number in range(50)], [None] * 50)
    assert log.counts.spooled == 50
    postgres.start()
    with logging(postgres.database, bucket, tmp_path) as log:
        until(lambda: log.counts.written == 50)
    assert len(postgres.ids(client)) == 50
    postgres.check()


def test_postgres_that_hangs_holds_nobody_up(
    postgres: Postgres, bucket: Storage, tmp_path: Path
) -> None:
    """A server that keeps its connections and answers nothing is as good as away."""
    client = "hanging"
    log = TransactionLog(postgres.database, bucket, tmp_path, NOTHING)
    log.put([row(0, client=client)], [None])
    until(lambda: log.counts.written == 1)
    hung = [postgres.pid(), *children(postgres.pid())]
    for pid in hung:
        with suppress(ProcessLookupError):  # a worker that has just ended
            os.kill(pid, signal.SIGSTOP)
    try:
        log.put([row(1, client=client)], [None])
        until(lambda: log.counts.spooled == 1)
        log.put([row(2, client=client)], [None])
        until(lambda: log.counts.spooled == 2)
        assert log.answered(client, "order 1", "d" * 64) is None
        log.close(patience_seconds=0.5)
        assert log.counts.spooled == 2
    finally:
        for pid in hung:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    with logging(postgres.database, bucket, tmp_path):
        until(lambda: len(postgres.ids(client)) == 3)
    postgres.check()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_full_spool_is_told(postgres: Postgres, bucket: Storage, tmp_path: Path) -> None:
    """Beyond its bound rows are lost, counted, and told when and why once Postgres is back."""
    client = "too much"
    with logging(postgres.database, bucket, tmp_path, most_bytes=400_000, most_waiting=500) as log:
        postgres.stop()
        for start in range(0, 3000, 50):
            rows = [row(number, client=client) for number in range(start, start + 50)]
            log.put(rows, [None] * 50)
            time.sleep(0.05)  # for the queue to be looked at now and then
        lost = log.counts.dropped
        assert lost > 300
        assert sum(path.stat().st_size for path in tmp_path.glob("rows/*")) < 220_000
        postgres.start()
        until(lambda: log.counts.written == 3000 - lost)
    assert log.counts.dropped == lost
    with postgres.database.transaction() as session:
        gaps = transactions.gaps(session)
    assert sum(gap.dropped for gap in gaps) == lost
    assert any("is full" in gap.why for gap in gaps)
    postgres.check()


def test_memory_is_bounded(bucket: Storage, tmp_path: Path) -> None:
    """With no disk to write to and no Postgres, a flood of rows and pictures takes little."""
    log = TransactionLog(NOWHERE, bucket, tmp_path, EVERYTHING, most_waiting=150)
    shutil.rmtree(tmp_path)
    tmp_path.touch()  # a file where the folder was
    tracemalloc.start()
    try:
        for number in range(600):
            log.put([row(number)], [bytes(1 << 20)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.counts.dropped > 200
    assert log.counts.images_dropped > 50
    assert peak < 100 << 20
    log.close(patience_seconds=1)
    assert log.counts.dropped == 600


def test_only_rows_with_pictures_wait_for_s3(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """While S3 is away other rows come in; with S3 the rest follows, pictures first."""
    rows, bodies = zip(*(of_picture(number) for number in range(4)), strict=True)
    nowhere = Storage(closed_address(), storage.bucket, "key", "secret")
    with logging(database, nowhere, tmp_path, EVERYTHING) as log:
        log.put([*rows, row(9)], [*bodies[:2], None, None, None])
        until(lambda: log.counts.written == 3)
        until(lambda: log.counts.spooled == 2)
        world.check()
    with logging(database, storage, tmp_path) as log:
        until(lambda: log.counts.written == 2)
        assert log.counts.images_written == 2
    world.check()


def test_a_long_outage_leaves_few_files(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """While nothing can be sent small files are joined, so that they are soon sent then."""
    spool = Spool(tmp_path / "rows", 1 << 24)
    rows = [row(number) for number in range(250)]
    for one in rows:
        spool.write(Segment(transactions.STAGED, (transactions.line(one),)))
    with logging(NOWHERE, storage, tmp_path) as log:
        until(lambda: len(list(tmp_path.glob("rows/*"))) < 100)
        assert log.counts.spooled == 250
    with logging(database, storage, tmp_path) as log:
        until(lambda: log.counts.written == 250)
    with database.transaction() as session:
        assert transactions.listed(session, most=999) == rows[::-1]
    world.check()


# --- what cannot be kept --------------------------------------------------------------------


def test_what_postgres_refuses_is_lost_alone(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """Rows that no table can hold go, each with its reason; those beside them come in."""
    good = [row(number) for number in range(40)]
    bad = [
        row(50, top_confidences=(float("nan"), 0.1)),
        row(51, version=77),
        row(52, client="half a pair \ud800"),
        row(53, client="a NUL \0"),
        row(54, request_id="without a digest"),
    ]
    with logging(database, storage, tmp_path) as log:
        rows = [*good[:20], *bad, *good[20:]]
        log.put(rows, [None] * len(rows))
        log.put([object()], [b"no row at all"])  # type: ignore[list-item]
        until(lambda: log.counts.written == 40)
        until(lambda: log.counts.dropped == 6)
    with logging(database, storage, tmp_path) as log:
        until(lambda: log.counts.spooled == 0)
    with database.transaction() as session:
        gaps = transactions.gaps(session)
        assert len(transactions.listed(session, most=99)) == 40
    assert sum(gap.dropped for gap in gaps) == 6
    told = "\n".join(gap.why for gap in gaps)
    for words in ("confidence", "version", "surrogates", "NUL", "digest", "fault of the program"):
        assert words in told
    world.check()


def test_a_fault_ends_no_thread(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """What nobody thought of loses what it came with, which is told, and the next rows come in."""
    with logging(database, storage, tmp_path) as log:
        log.put([row(1, client=bytearray(b"no text"))], [None])
        until(lambda: log.counts.dropped == 1)
        log.put([row(2)], [None])
        until(lambda: log.counts.written == 1)
    world.check()


def test_what_leaves_the_random_stream_is_told(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """Pictures without room, and one whose place another has, once however often it is tried."""
    drawn = Keeping(review_share=1, doubtful_share=0, doubtful_below=0, image_share=0)
    rows, bodies = zip(*(of_picture(number, at=AT) for number in range(4)), strict=True)
    # of each half no file fits, so that rows wait in memory and are tried again
    with logging(NOWHERE, storage, tmp_path / "none", drawn, most_bytes=4096) as log:
        log.put(rows[:3], bodies[:3])
        until(lambda: log.counts.images_dropped)
        time.sleep(1.5)
        assert (log.counts.images_dropped, log.counts.waiting) == (3, 3)
    with logging(database, storage, tmp_path / "little", drawn, most_bytes=8192) as log:
        log.put(rows[:2], bodies[:2])
        until(lambda: log.counts.written == 2)
        assert log.counts.images_dropped == 2
    for one, body in zip(rows[2:], bodies[2:], strict=True):  # of one time, as in one request
        storage.write(transactions.image_key(one.at, one.sha256, body), b"another")
    with logging(database, storage, tmp_path / "enough", drawn) as log:
        log.put(rows[2:], bodies[2:])
        until(lambda: log.counts.spooled == 0 and log.counts.written == 2)
    assert (log.counts.images_dropped, log.counts.undrawn, log.counts.dropped) == (2, 2, 0)
    with database.transaction() as session:
        gaps = transactions.gaps(session)
        assert transactions.listed(session, drawn=True) == []
    assert [(gap.dropped, gap.lost) for gap in gaps] == [(2, False), (2, False)]


def test_a_damaged_segment_is_put_aside(
    database: Database, storage: Storage, world: World, tmp_path: Path
) -> None:
    """A file that a power cut left half is kept, told as a gap, and holds nothing up."""
    spool = Spool(tmp_path / "rows", 1 << 20)
    lines = tuple(transactions.line(row(number)) for number in range(20))
    spool.write(Segment(transactions.STAGED, lines[:10]))
    spool.write(Segment(transactions.STAGED, lines[10:]))
    first = spool.waiting()[0]
    body = first.read_bytes()
    first.write_bytes(body[: len(body) // 2])
    with logging(database, storage, tmp_path) as log:
        until(lambda: log.counts.written == 10)
    with database.transaction() as session:
        [gap] = transactions.gaps(session)
    assert gap.dropped == 10
    assert abs(gap.began_at - datetime.now(UTC)) < timedelta(minutes=10)
    [kept] = tmp_path.glob("rows/*.damaged")
    assert str(kept) in gap.why
    world.check()


def test_what_cannot_be_read_holds_nothing_up(tmp_path: Path) -> None:
    """A damaged segment on a full disk is put aside all the same; others go on meanwhile."""
    spool = Spool(tmp_path, 1 << 20)
    lines = [transactions.line(row(number)) for number in range(3)]
    for line in lines:
        spool.write(Segment(transactions.STAGED, (line,)))
    first, second, third = spool.waiting()
    half = first.read_bytes()[:-20]
    first.write_bytes(half)
    second.unlink()
    second.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # nobody can write a byte
    try:
        with spool.claim(5000, 1 << 20) as claimed:
            paths = [one.path for one in claimed]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert paths == [first, third]
    assert first.with_suffix(".damaged").read_bytes() == half


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """It may end like a segment: only what is named as one is read, counted and removed."""
    spool = Spool(tmp_path / "rows", 1 << 20)
    strange = spool.folder / "copy of yesterday.segment"
    strange.write_bytes(b"{}")
    spool.write(Segment(transactions.STAGED, (transactions.line(row(1)),)))
    assert spooled(tmp_path) == 1
    [mine] = spool.waiting()
    with spool.claim(5000, 1 << 20) as claimed:
        assert [one.path for one in claimed] == [mine]
    assert strange.read_bytes() == b"{}"


def test_a_spool_counts_what_the_disk_gives(tmp_path: Path) -> None:
    """Whole blocks, however small the files; what was sent counts no more."""
    spool = Spool(tmp_path, 3 * 4096)
    segment = Segment(transactions.STAGED, (transactions.line(row(1)),))
    for _ in range(3):
        spool.write(segment)
    with pytest.raises(SpoolFull):
        spool.write(segment)
    assert (spool.rows, spool.size) == (3, 3 * 4096)
    with spool.claim(5000, 1 << 20) as claimed:
        for one in claimed:
            one.done()
    assert (spool.rows, spool.size, list(tmp_path.iterdir())) == (0, 0, [])
    spool.write(segment)


def test_a_spool_that_cannot_be_written_is_refused(storage: Storage, tmp_path: Path) -> None:
    """A server does not start without a place for its log; the message names place and mend."""
    (tmp_path / "file").touch()
    with pytest.raises(BadSpool, match="REGRAFT_SPOOL_DIR") as caught:
        Spool(tmp_path / "file" / "rows", 1 << 20)
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spool_is_sent_a_few_files_at_a_time(tmp_path: Path) -> None:
    """However many files an outage left, a claim opens few; who sends at the same time gets others.

    A claim ends with the files that were sent, and leaves the others to the next one.
    """
    spool, other = Spool(tmp_path, 1 << 20), Spool(tmp_path, 1 << 20)
    lines = [transactions.line(row(number)) for number in range(120)]
    for line in lines:
        spool.write(Segment(transactions.STAGED, (line,)))
    with spool.claim(5000, 1 << 20) as mine, other.claim(10, 1 << 20) as others:
        assert (len(mine), len(others)) == (100, 10)
        assert not {one.path for one in mine} & {one.path for one in others}
        for one in mine[:99]:
            one.done()
    with other.claim(5000, 1 << 20) as left:
        assert [one.segment.lines for one in left] == [(line,) for line in lines[99:]]


# --- killed ---------------------------------------------------------------------------------

SERVER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
import served
from infra import database, storage
from records.transactions import new_id
from web.transaction_log import TransactionLog
log = TransactionLog(database.connect(), storage.connect(), Path(sys.argv[1]), served.NOTHING)
number = 0
while True:
    at = datetime.now(UTC)
    one = served.row(number, at=at, id=new_id(at, "a client"))
    log.put([one], [None])
    print(one.id, time.time(), flush=True)
    number += 1
    time.sleep(0.005)
"""


class Server:
    """A process that logs 200 rows a second, and can be killed."""

    def __init__(self, world: World) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(world.folder)],
            env={**os.environ, **world.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.put: list[tuple[str, float]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.endswith("\n"):  # a kill may cut the last one
                number, at = line.split()
                self.put.append((number, float(at)))

    def kill(self) -> float:
        """Kill it, no matter what it does; when."""
        at = time.time()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        assert self.process.returncode == -signal.SIGKILL
        return at


def logged(world: World) -> list[str]:
    """The numbers of all transactions."""
    return [str(number) for (number,) in world.ask("SELECT id FROM transactions")]


def test_killed_it_loses_at_most_the_last_second(
    database: Database, storage: Storage, world: World
) -> None:
    """What was answered a second before a SIGKILL is there, whether Postgres had it or not."""
    server = Server(world)
    until(lambda: len(server.put) > 100 and len(logged(world)) > 50)
    # From here on no row gets beyond its transaction.
    with gate(world, "usage_days", "INSERT", "true"):
        stuck = len(server.put)
        until(lambda: len(server.put) > stuck + 600)
        killed = server.kill()
        before = set(logged(world))
        must = {number for number, at in server.put if at < killed - 1}
        assert len(must - before) > 100
    with logging(database, storage, world.folder) as log:
        until(lambda: log.counts.spooled == 0)
    after = logged(world)
    assert len(after) == len(set(after))
    assert must <= set(after) <= {number for number, _ in server.put}
    world.check()


def test_killed_in_the_middle_of_a_replay(
    database: Database, storage: Storage, world: World
) -> None:
    """A server that dies while it writes down what another one left loses and doubles nothing."""
    spool = Spool(world.folder / "rows", 1 << 24)
    left = [row(number) for number in range(300)]
    for start in range(0, 300, 30):
        lines = tuple(map(transactions.line, left[start : start + 30]))
        spool.write(Segment(transactions.STAGED, lines))
    copies = {path: path.read_bytes() for path in spool.waiting()}
    with gate(world, "usage_days", "INSERT", "true") as cursor:
        server = Server(world)

        def at_the_gate() -> bool:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                           "AND NOT granted AND objid = 4711")  # fmt: skip
            [(waiting,)] = cursor.fetchall()
            return bool(waiting)

        until(at_the_gate)
        server.kill()
        assert logged(world) == []
        assert set(copies) <= set(spool.waiting())
    with logging(database, storage, world.folder) as log:
        until(lambda: log.counts.spooled == 0)
    assert {str(one.id) for one in left} <= set(logged(world))
    world.check()
    # what a kill leaves that came after the commit and before the files went
    counted = world.ask("SELECT * FROM usage_days"), world.ask("SELECT * FROM predicted_days")
    for path, body in copies.items():
        path.write_bytes(body)
    with logging(database, storage, world.folder) as log:
        until(lambda: log.counts.spooled == 0)
    assert (log.counts.written, log.counts.repeated) == (0, 300)
    assert counted == (
        world.ask("SELECT * FROM usage_days"), world.ask("SELECT * FROM predicted_days")
    )
    world.check()


def test_servers_share_a_folder(database: Database, storage: Storage, world: World) -> None:
    """Of three servers on one machine one is killed, and the others write down what it left."""
    servers = [Server(world) for _ in range(3)]
    until(lambda: all(len(server.put) > 300 for server in servers))
    killed = servers[0].kill()
    must = {number for number, at in servers[0].put if at < killed - 1}
    until(lambda: must <= set(logged(world)))
    for server in servers[1:]:
        server.kill()
    with logging(database, storage, world.folder) as log:
        until(lambda: log.counts.spooled == 0)
    after = logged(world)
    assert len(after) == len(set(after))
    world.check()
