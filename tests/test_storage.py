"""S3: objects are written once, read whole or not at all, and every failure is one line."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path

import pytest

from infra import embedded
from infra.storage import (
    BadKey,
    Changed,
    Conflict,
    Gone,
    Storage,
    StorageError,
    bad_key,
    connect,
)

PLANTED = "geheim-4711-geheim"


def digest(body: bytes) -> str:
    """Give a body's digest as write_once wants it."""
    return hashlib.sha256(body).hexdigest()


def one_line(error: BaseException, *words: str) -> None:
    """Demand that an error is one line that holds these words and no secret."""
    message = str(error)
    assert "\n" not in message
    assert PLANTED not in message
    for word in words:
        assert word in message


def test_what_is_written_is_read_and_listed(storage: Storage, tmp_path: Path) -> None:
    """Bytes and files come back as they were, under names in any script."""
    body = os.urandom(6_000_000)  # more than one chunk of the server's
    (tmp_path / "file").write_bytes(body)
    storage.write("labelled/Kätzchen/数 1+2.jpg", body)
    storage.write("labelled/Kätzchen/copy", tmp_path / "file")
    storage.write("other", b"")
    first, second = storage.list("labelled/")
    assert first.key == "labelled/Kätzchen/copy"
    assert (second.key, second.size) == ("labelled/Kätzchen/数 1+2.jpg", len(body))
    assert second.modified.tzinfo is UTC
    assert storage.read(first.key) == storage.read(second.key, second.etag) == body
    assert storage.read("other") == b""


def test_listing_is_paged(storage: Storage) -> None:
    """More objects than one answer holds are all listed, in order."""
    keys = [f"many/{number:04}" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.write(key, b"x"), keys))
    assert [found.key for found in storage.list("many/")] == keys


def test_one_of_many_writers_wins(storage: Storage) -> None:
    """Of many writers of one key exactly one creates it; the equal ones are content too."""
    body = b"the same"
    storage.write("first", b"")  # a bucket's first object takes longer, and is not the question
    with ThreadPoolExecutor(16) as pool:
        created = list(
            pool.map(lambda _: storage.write_once("once", body, digest(body)), range(32))
        )
    assert created.count(True) == 1
    assert storage.read("once") == body


def test_other_bytes_never_replace(storage: Storage, tmp_path: Path) -> None:
    """A key that is written once keeps its bytes, and who brings others is told."""
    (tmp_path / "file").write_bytes(b"first")
    assert storage.write_once("once", tmp_path / "file", digest(b"first"))
    with pytest.raises(Conflict) as caught:
        storage.write_once("once", b"second", digest(b"second"))
    one_line(caught.value, "once", storage.bucket)
    assert storage.read("once") == b"first"


def test_wrong_digest_is_refused_before_writing(storage: Storage) -> None:
    """Bytes that are not what they are called never reach the bucket."""
    with pytest.raises(StorageError, match="digest"):
        storage.write_once("once", b"flipped", digest(b"original"))
    assert not storage.exists("once")


def test_overwritten_and_deleted_are_told_apart(storage: Storage) -> None:
    """Between listing and reading an object may change or go; both are noticed."""
    storage.write("image", b"old")
    (listed,) = storage.list()
    storage.write("image", b"new")
    with pytest.raises(Changed) as changed:
        storage.read("image", listed.etag)
    one_line(changed.value, "image")
    storage.delete("image")
    storage.delete("image")
    with pytest.raises(Gone) as gone:
        storage.read("image", listed.etag)
    one_line(gone.value, "image")
    assert not storage.exists("image")
    with pytest.raises(Gone):
        storage.copy("image", "elsewhere")


def test_copy_keeps_the_bytes(storage: Storage) -> None:
    """A copy inside the bucket is a whole object of its own."""
    storage.write("from ü", b"bytes")
    storage.copy("from ü", "to")
    storage.delete("from ü")
    assert storage.read("to") == b"bytes"


def test_client_works_after_a_fork(storage: Storage) -> None:
    """A forked worker uses connections of its own."""
    storage.write("image", b"bytes")
    # In a process of its own: other tests have started threads here, which do not survive a fork.
    script = """
import multiprocessing
from infra import storage
store = storage.connect()
assert store.read("image") == b"bytes"
context = multiprocessing.get_context("fork")
answers = context.SimpleQueue()
workers = [context.Process(target=lambda: answers.put(store.read("image"))) for _ in range(2)]
for worker in workers:
    worker.start()
assert store.read("image") == b"bytes"
for worker in workers:
    worker.join(30)
    assert worker.exitcode == 0
    assert answers.get() == b"bytes"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_wrong_keys_are_one_line(services: embedded.Addresses, storage: Storage) -> None:
    """Keys that are refused give a line with the mend, for every kind of request."""
    assert services.s3_access_key is not None
    for access_key in ("unknown", services.s3_access_key):
        stranger = Storage(storage.endpoint, storage.bucket, access_key, PLANTED)
        for request in (
            lambda s: list(s.list()),
            lambda s: s.read("image"),
            lambda s: s.write("image", b""),
            lambda s: s.exists("image"),
            lambda s: s.ensure_bucket(),
        ):
            with pytest.raises(StorageError) as caught:
                request(stranger)
            assert not caught.value.temporary
            one_line(caught.value, storage.endpoint, storage.bucket, "REGRAFT_S3_SECRET_KEY")


def test_missing_bucket_is_one_line(services: embedded.Addresses) -> None:
    """A mistyped bucket is an error, is not created by writing, and is no missing object."""
    elsewhere = Storage(
        services.s3_endpoint, "mistyped", services.s3_access_key, services.s3_secret_key
    )
    for request in (
        lambda: list(elsewhere.list()),
        lambda: elsewhere.read("image"),
        lambda: elsewhere.write("image", b""),
        lambda: elsewhere.write_once("image", b"", digest(b"")),
        lambda: elsewhere.exists("image"),
    ):
        with pytest.raises(StorageError) as caught:
            request()
        one_line(caught.value, "mistyped", "REGRAFT_S3_BUCKET")


def test_no_server_is_one_line() -> None:
    """A server that is not there ends in a line, not in waiting."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        endpoint = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(StorageError) as caught:
            Storage(endpoint, "bucket", "key", PLANTED).read("image")
    assert caught.value.temporary
    one_line(caught.value, endpoint, "bucket", "regraft up", "REGRAFT_S3_ENDPOINT")


def test_body_cut_short_is_read_again() -> None:
    """A connection that breaks inside a body costs a repetition, never a part of the bytes."""
    body = os.urandom(100_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: x\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for sent in (body[:70_000], body[:10], body):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(head + sent)

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert Storage(endpoint, "bucket", "key", PLANTED).read("image") == body
        thread.join()


def test_a_whole_object_costs_one_request() -> None:
    """Reading is one signed GET; what is not a whole answer at once goes the long way."""
    body = os.urandom(50_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(head + body)

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert Storage(endpoint, "bucket", "key", PLANTED).read("Kätz chen/1", "tag") == body
        thread.join()
    (request,) = asked
    assert request.startswith(b"GET /bucket/K%C3%A4tz%20chen/1 HTTP/1.1")
    assert b'If-Match: "tag"' in request
    assert b"AWS4-HMAC-SHA256" in request
    assert PLANTED.encode() not in request


@pytest.mark.parametrize("endpoint", ["file:///etc", "s3://bucket", "nonsense", ""])
def test_only_http_endpoints(endpoint: str) -> None:
    """What is not an http address is refused before anything is asked of it."""
    with pytest.raises(StorageError) as caught:
        Storage(endpoint, "bucket", "key", PLANTED)
    one_line(caught.value, "http")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("RequestTimeTooSkewed", 403, ("clock",)),
        ("ExpiredToken", 400, ("expired", "REGRAFT_S3_ACCESS_KEY")),
        ("AccessDenied", 403, ("refused", "REGRAFT_S3_ACCESS_KEY")),
        ("InsufficientStorage", 507, ("507",)),
    ],
)
def test_refusals_say_the_mend(code: str, status: int, words: tuple[str, ...]) -> None:
    """A skewed clock, expired keys and a full disk end in one line each, without a hang."""
    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    answer = (
        f"HTTP/1.1 {status} No\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}"
    ).encode()
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = threading.Event()

        def serve() -> None:
            while not closed.is_set():
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StorageError) as caught:
            Storage(endpoint, "bucket", "key", PLANTED).read("image")
        closed.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()
    one_line(caught.value, endpoint, "bucket", *words)


GOOD_KEYS = [
    "a",
    "labelled/cat/1.jpg",
    "Kätzchen/数/…!.png",
    "a b",
    "x+y=z~1",
    "a/.hidden",
    "/".join(["x" * 255] * 4),
]
BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "../../etc/passwd",
    "a/../b",
    "./a",
    "a\\b",
    "a\nb",
    "a\x00b",
    "a\x7fb",
    "a\u200bb",
    "a\u202eb",
    "a\u2028b",
    "\ud800",
    "/".join(["x" * 200] * 6),
    "x" * 256,
    "ü" * 128,
    "s3://other-bucket/a",
    "file:///etc/passwd",
    "http://169.254.169.254/latest",
]


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_good_keys_are_kept_as_they_are(key: str, storage: Storage) -> None:
    """A key of the alphabet is listed exactly as it was written."""
    assert bad_key(key) is None
    storage.write(key, b"x")
    assert [found.key for found in storage.list()] == [key]
    assert storage.read(key) == b"x"


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused_by_every_request(key: str) -> None:
    """A key that servers treat differently, or an address, is refused before anything is sent."""
    storage = Storage("http://127.0.0.1:1", "bucket", "key", PLANTED)
    reason = bad_key(key)
    assert reason
    assert reason.isprintable()
    for request in (
        lambda: storage.read(key),
        lambda: storage.write(key, b""),
        lambda: storage.write_once(key, b"", digest(b"")),
        lambda: storage.copy("good", key),
        lambda: storage.copy(key, "good"),
        lambda: storage.delete(key),
        lambda: storage.exists(key),
    ):
        with pytest.raises(BadKey) as caught:
            request()
        assert str(caught.value).isprintable()


def test_connect_gives_the_configured_bucket(storage: Storage) -> None:
    """Steps that ask for the storage get the one that the settings name."""
    storage.write("image", b"bytes")
    assert connect().read("image") == b"bytes"
    assert PLANTED not in repr(Storage(storage.endpoint, "bucket", "key", PLANTED))
