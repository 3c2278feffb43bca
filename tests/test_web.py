"""What a client gets from the service: answers, or one sentence that says what is wrong."""

import base64
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import answering
import httpx
import pictures
import pytest
import worlds
from answering import BODY, KEY, NAMES, Service
from PIL import Image
from worlds import FREE, World

from infra import storage
from infra.embedded import Addresses
from infra.storage import Storage
from records import keys
from web import server
from web.rules import Rules
from web.transaction_log import TransactionLog, open_log

MOST = 2_000_000
RULES = Rules(
    most_bytes=MOST, form_bytes=500_000, held_bytes=4 * MOST, most_pictures=4, body_seconds=2.0
)  # fmt: skip
JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def world(services: Addresses, template: str) -> Iterator[World]:
    """Three versions, of which the first serves."""
    with worlds.twin(answering.story(services, template)) as made:
        yield made


@pytest.fixture(scope="module")
def log(world: World) -> TransactionLog:
    """The log of the service; the service closes it."""
    return open_log()


@pytest.fixture(scope="module")
def service(world: World, log: TransactionLog) -> Iterator[Service]:
    """A service on the loopback."""
    with answering.serving(RULES, log) as found:
        yield found


def test_a_picture_is_answered_in_every_way_it_is_sent(service: Service) -> None:
    """As the body, in a form, by its key: the same answer, with all that is promised of it."""
    alone = service.ask(top_k=2).json()
    assert alone["version"] == 1
    [first] = alone["predictions"]
    assert first["label"] == NAMES[0]
    assert first["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert (first["width"], first["height"], first["name"]) == (320, 240, None)
    assert [one["confidence"] for one in first["top"]] == sorted(
        (one["confidence"] for one in first["top"]), reverse=True
    )
    assert len(first["top"]) == 2
    assert first["show"] is (first["confidence"] >= 0.9)
    assert first["explanation"] is None
    files = [("image", ("<b>a.jpg</b>", BODY)), ("image", ("b.jpg", pictures.png(
        pictures.photograph(2))))]  # fmt: skip
    both = service.client.post("/v1/predictions", files=files).json()["predictions"]
    assert [one["name"] for one in both] == ["<b>a.jpg</b>", "b.jpg"]
    stored = service.client.post("/v1/predictions", json={"keys": [KEY]}).json()["predictions"]
    assert stored[0]["name"] == KEY
    for one in (both[0], stored[0]):
        assert one["top"][:2] == first["top"]
        assert one["id"] != first["id"]


def test_an_answer_shows_where_the_version_looked(service: Service) -> None:
    """The overlay is a picture that a page can show, of the class that was answered."""
    [answer] = service.ask(explain=True).json()["predictions"]
    head, _, data = answer["explanation"]["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == (224, 224)
    assert answer["explanation"]["positive"] in (True, False)


@pytest.mark.parametrize("what", [what for what, _, _ in pictures.UNREADABLE])
def test_what_is_no_picture_gets_one_sentence(service: Service, what: str) -> None:
    """Bombs, cut and foreign files are named, and the service goes on."""
    [(make, says)] = [(make, says) for one, make, says in pictures.UNREADABLE if one == what]
    body = make()
    answer = service.ask(body)
    if len(body) > MOST:
        assert answer.status_code == 413
        says = "more than 2 MB"
    else:
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("image 1: ")
    assert says in answer.json()["detail"]
    assert answer.json()["detail"].isprintable()
    assert service.ask().status_code == 200


def form(*parts: tuple[str, str, bytes]) -> tuple[dict[str, str], bytes]:
    """A form's header and body: (field, what follows its name, content)."""
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + content + b"\r\n"
        for name, more, content in parts
    )  # fmt: skip
    return {"Content-Type": "multipart/form-data; boundary=x"}, body + b"--x--\r\n"


FILE = '; filename="a.jpg"'
# what it is, the query, headers, body, the status and what the sentence says
BAD: list[tuple[str, str, dict[str, str], bytes, int, str]] = [
    ("nothing", "", {}, b"", 415, "no content type: send one picture as the body"),
    ("an empty picture", "", JPEG, b"", 422, "image 1: the object is empty"),
    ("a web page", "", {"Content-Type": "text/html"}, b"<p>", 415, "content type 'text/html'"),
    ("form fields", "", {"Content-Type": "application/x-www-form-urlencoded"},
     b"&".join(b"a%d=1" % one for one in range(100_000)), 415, "urlencoded"),
    ("100,000 fields in a form", "", *form(*[("a", "", b"1")] * 1000), 422, "Too many fields"),
    ("another field", "", *form(("picture", FILE, BODY)), 422, "'picture': call each file's field"),
    ("no file", "", *form(), 422, "the form holds no file"),
    ("too many files", "", *form(*[("image", FILE, BODY)] * 5), 422, "send 1 to 4 files"),
    ("a form without boundary", "", {"Content-Type": "multipart/form-data"}, b"x", 422,
     "Missing boundary"),
    ("half a form", "", {"Content-Type": "multipart/form-data; boundary=x"}, b"no form at all",
     422, "this form cannot be read"),
    ("a charset of no text", "",
     {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"},
     form(("image", FILE, BODY))[1], 422, "this form cannot be read"),
    ("the second is bad", "", *form(("image", FILE, BODY), ("image", FILE, b"GIF89a")), 422,
     "image 2 ('a.jpg'): not JPEG, PNG, WEBP or BMP but GIF"),
    ("half of JSON", "", JSON, b'{"keys": [', 422, "the body is no JSON"),
    ("deep JSON", "", JSON, b"[" * 100_000, 422, "the body is no JSON"),
    ("a list", "", JSON, b"[]", 422, "the body=[]: "),
    ("no keys", "", JSON, b'{"keys": []}', 422, "keys=[]: "),
    ("a number for keys", "", JSON, b'{"keys": 1}', 422, "keys=1: "),
    ("an unknown field", "", JSON, b'{"keys": ["pools/a"], "more": 1}', 422, "more=1: extra"),
    ("too many keys", "", JSON, json.dumps({"keys": [KEY] * 5}).encode(), 422, "5 pictures at onc"),
    ("top_k=-1", "?top_k=-1", JPEG, BODY, 422, "top_k='-1': input should be greater than"),
    ("top_k=1e9", "?top_k=1000000000", JPEG, BODY, 422, "top_k='1000000000': input should be l"),
    ("top_k=NaN", "?top_k=NaN", JPEG, BODY, 422, "top_k='NaN': "),
    ("explain=perhaps", "?explain=perhaps", JPEG, BODY, 422, "explain='perhaps': "),
    ("SQL for a name", "", JPEG | {"Idempotency-Key": "'; DROP TABLE transactions; --"}, BODY, 422,
     "Idempotency-Key="),
    ("an endless name", "", JPEG | {"Idempotency-Key": "a" * 201}, BODY, 422, "Idempotency-Key: "),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[0])
def test_a_bad_request_gets_one_sentence(
    service: Service, case: tuple[str, str, dict[str, str], bytes, int, str]
) -> None:
    """Each is refused by its status and by what to do instead; nothing is a fault of ours."""
    _, query, headers, body, status, says = case
    answer = service.client.post(f"/v1/predictions{query}", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_a_name_that_is_no_text_is_told_as_far_as_it_is(service: Service) -> None:
    """Half a letter, which a charset of the client's choice lets in, can be in no answer."""
    head = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    _, body = form(("image", '; filename="\\ud800.jpg"', BODY))
    answer = service.client.post("/v1/predictions", content=body, headers=head)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["name"] == "\\ud800.jpg"


STOLEN = {
    "labelled/ring/1.jpg": (403, "not under a prefix that clients may name: allowed are pools/"),
    "pools": (403, "not under a prefix"),
    "transactions/2026/11/22/a.jpg": (403, "not under a prefix"),
    "pools/../labelled/ring/1.jpg": (422, "a key is not a path"),
    "../../etc/passwd": (422, "a key is not a path"),
    "/etc/passwd": (422, "begins or ends with /"),
    "pools//1.jpg": (422, "empty segment"),
    "pools\\1.jpg": (422, "backslash"),
    "s3://other/pools/1.jpg": (422, "this is an address"),
    "http://169.254.169.254/latest/meta-data": (422, "this is an address"),
    "file:///etc/passwd": (422, "this is an address"),
    "pools/a\0b": (422, "holds the character"),
    "pools/a\nb": (422, "holds the character"),
    "pools/" + "a" * 2000: (422, "2006 bytes"),
    "": (422, "the key is empty"),
    "pools/nowhere.jpg": (404, "there is no object 'pools/nowhere.jpg'"),
    "pools/' OR 1=1 --": (404, "there is no object"),
}


@pytest.mark.parametrize("key", STOLEN, ids=lambda key: key[:30])
def test_only_objects_under_allowed_prefixes_are_read(service: Service, key: str) -> None:
    """Paths, addresses, other prefixes and nonsense are refused before S3 is asked."""
    status, says = STOLEN[key]
    answer = service.client.post("/v1/predictions", json={"keys": [key]})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    assert "127.0.0.1" not in answer.text


def test_an_object_that_is_too_large_is_never_read(service: Service, world: World) -> None:
    """By its size alone, one by itself and several together."""
    world.storage.write("pools/huge.jpg", b"\xff\xd8\xff" + bytes(51_000_000))
    world.storage.write("pools/large.jpg", pictures.jpeg(pictures.photograph()) + bytes(1_500_000))
    ask = service.client.post
    alone = ask("/v1/predictions", json={"keys": ["pools/huge.jpg"]})
    assert (alone.status_code, "51 MB: at most 50 MB" in alone.text) == (422, True)
    twice = ask("/v1/predictions", json={"keys": ["pools/large.jpg"] * 2})
    assert (twice.status_code, "name fewer" in twice.text) == (413, True)
    world.storage.delete("pools/huge.jpg")


def test_a_body_is_stopped_while_it_streams(service: Service) -> None:
    """100 MB are neither read nor kept, whatever the length that was declared."""
    block, sent = bytes(100_000), 0
    with service.connection() as connection:
        chunked = "Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(answering.request("/v1/predictions", chunked))
        try:
            for _ in range(1000):
                connection.sendall(b"186a0\r\n" + block + b"\r\n")
                sent += len(block)
        except ConnectionError:
            pass  # the server has closed it
    assert sent < 50 * MOST
    for length, said in ((100_000_000, b"413"), (10**30, b"40"), (-1, b"400")):
        with service.connection() as connection:
            head = f"Content-Type: image/jpeg\r\nContent-Length: {length}\r\n"
            connection.sendall(answering.request("/v1/predictions", head, BODY))
            assert answering.told(connection).startswith(b"HTTP/1.1 " + said)
    assert service.ask().status_code == 200


def test_only_pictures_are_long(service: Service) -> None:
    """Other bodies are read in one go, some before it is known whose they are."""
    long = b'{"by": "' + b"a" * 510_000 + b'"}'
    for path in ("/v1/reviews", "/v1/reviews/acts", "/library/act", "/v1/predictions"):
        answer = service.client.post(path, content=long, headers=JSON)
        assert (answer.status_code, "more than 0.5 MB" in answer.json()["detail"]) == (413, True)


def test_a_length_that_is_a_lie_harms_nobody(service: Service) -> None:
    """Too short: what is too much is no request; too long: the rest never comes."""
    with service.connection() as connection:
        head = "Content-Type: image/jpeg\r\nContent-Length: 500\r\n"
        connection.sendall(answering.request("/v1/predictions", head, BODY))
        said = answering.told(connection)
    assert said.startswith(b"HTTP/1.1 400")
    begun = time.monotonic()
    with service.connection() as connection:
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(BODY) + 9}\r\n"
        connection.sendall(answering.request("/v1/predictions", head, BODY))
        said = answering.told(connection)
    assert b"408" in said.splitlines()[0]
    assert b"the body did not arrive within 2 s" in said
    assert time.monotonic() - begun < 10


def test_a_slow_client_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body in drops ends by 408; a head that does not end, by the end of the connection."""
    with service.connection() as connection:
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(BODY)}\r\n"
        connection.sendall(answering.request("/v1/predictions", head))
        said, drops = b"", iter(BODY)
        while not said:
            connection.sendall(bytes([next(drops)]))
            connection.settimeout(0.1)
            try:
                said = connection.recv(65536)
            except TimeoutError:
                continue
    assert said.startswith(b"HTTP/1.1 408")
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    for begun in (b"", b"GET /healthz HTTP/1.1\r\nHost: 127"):
        with service.connection() as connection:
            connection.sendall(begun)
            assert answering.told(connection) == b""
    with service.connection() as connection:  # a second request on a good connection
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea")
        assert answering.told(connection).count(b"HTTP/1.1 200") == 1


def test_a_connection_on_which_nothing_moves_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a body that nobody reads, in drops; an answer of which nothing is taken."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    with answering.serving() as service:
        with service.connection() as connection:
            head = "Content-Type: text/html\r\nContent-Length: 1000\r\n"
            connection.sendall(answering.request("/v1/predictions", head))
            assert b"415" in connection.recv(65536)
            with pytest.raises(ConnectionError):
                _drip(connection, 8.0)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", service.port))
            asked = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100
            connection.sendall(asked)
            time.sleep(5)
            connection.settimeout(5)
            assert len(answering.told(connection)) < 2_000_000
        # on a connection that was answered early the next request has its own time
        with service.connection() as connection:
            connection.sendall(answering.request("/v1/predictions", head))
            assert b"415" in connection.recv(65536)
            connection.sendall(b"a" * 1000 + b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            time.sleep(1.5)
            connection.sendall(b"\r\n")
            assert b"200 OK" in connection.recv(65536)


def _drip(connection: socket.socket, seconds: float) -> None:
    """Send a byte five times a second."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        connection.sendall(b"a")
        time.sleep(0.2)


def test_a_head_without_end_is_cut(service: Service) -> None:
    """Headers of more than 64 kB are not read."""
    with service.connection() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        try:
            for _ in range(100):
                connection.sendall(b"X-More: " + b"a" * 10_000 + b"\r\n")
                time.sleep(0.005)
        except ConnectionError:
            pass
        assert b"200" not in answering.told(connection)


def test_a_client_that_hangs_up_leaves_nothing_behind(service: Service) -> None:
    """In the middle of its body or before its answer: nothing is held and the next is served."""
    for part in (len(BODY) // 2, len(BODY)):
        for _ in range(5):
            with service.connection() as connection:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(BODY)}\r\n"
                connection.sendall(answering.request("/v1/predictions", head, BODY[:part]))
    assert service.ask().status_code == 200
    answering.until(lambda: service.figure("regraft_waiting_pictures") == 0)


def test_a_repeated_request_has_one_answer_and_one_row(
    service: Service, world: World, log: TransactionLog
) -> None:
    """By name: again, at the same time, and after the log forgot; another body is refused."""
    named = JPEG | {"Idempotency-Key": "ann:17"}

    def ask(body: bytes = BODY, **more: str) -> httpx.Response:
        return service.client.post("/v1/predictions", content=body, headers=named | more)

    answers: list[dict[str, object]] = []
    together = [threading.Thread(target=lambda: answers.append(ask().json())) for _ in range(6)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert all(one == answers[0] for one in answers)
    answering.until(
        lambda: world.ask("SELECT count(*) FROM transactions WHERE request_id = 'ann:17'") == [(1,)]
    )
    log._known.clear()  # as another process, which has only Postgres
    assert ask().json() == answers[0]
    other = ask(pictures.jpeg(pictures.photograph(5)))
    assert other.status_code == 409
    assert "give each request one of its own" in other.json()["detail"]
    time.sleep(1)
    assert world.ask("SELECT count(*) FROM transactions WHERE request_id = 'ann:17'") == [(1,)]


def test_a_part_of_an_answer_is_no_answer(
    service: Service, world: World, log: TransactionLog
) -> None:
    """Of a request that an older program tore apart all is told, and what was lost comes in."""
    files = [("image", ("a.jpg", BODY)), ("image", ("b.jpg", BODY))]

    def ask() -> httpx.Response:
        return service.client.post(
            "/v1/predictions", files=files, headers={"Idempotency-Key": "ann:torn"}
        )

    rows = "SELECT at, id, ordinal FROM transactions WHERE request_id = 'ann:torn' ORDER BY ordinal"
    first = ask().json()
    answering.until(lambda: len(world.ask(rows)) == 2)
    before = world.ask(rows)
    world.act(FREE, "DELETE FROM transactions WHERE request_id = 'ann:torn' AND ordinal = 1")
    log._known.clear()  # as another process, which has only Postgres
    assert ask().json() == first
    answering.until(lambda: world.ask(rows) == before)


def test_every_answer_is_in_the_log(service: Service, world: World) -> None:
    """With its version, its classes as they were told, its client, and what it took."""
    body = pictures.jpeg(pictures.photograph(77))
    [answer] = service.ask(body, top_k=1).json()["predictions"]
    row = "SELECT version_id, client, predicted, confidence, sha256, width, shown FROM transactions"
    answering.until(lambda: bool(world.ask(f"{row} WHERE id = :id", id=answer["id"])))
    [found] = world.ask(f"{row} WHERE id = :id", id=answer["id"])
    assert found[:3] == (1, "local", answer["label"])
    assert found[3] == pytest.approx(answer["confidence"], abs=1e-6)
    assert found[4:] == (hashlib.sha256(body).hexdigest(), 320, answer["show"])
    for name in ("dropped", "images_dropped"):
        assert service.figure(f"regraft_log_{name}") == 0


def test_pictures_that_come_together_are_answered_together(service: Service) -> None:
    """Forms of four from eight clients at once take fewer batches than pictures."""
    files = [("image", ("a.jpg", BODY))] * 4
    before = service.figure("regraft_batch_pictures_count")
    done: list[int] = []

    def ask() -> None:
        done.append(service.client.post("/v1/predictions", files=files).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [200] * 8
    assert service.figure("regraft_batch_pictures_count") - before < 32


def test_the_service_says_how_it_is(service: Service) -> None:
    """Alive, ready and in figures; what does not exist is named; the pages list what does."""
    assert service.client.get("/healthz").json() == {"status": "alive"}
    assert service.client.get("/readyz").json() == {"version": 1, "problem": None}
    assert service.figure("regraft_version") == 1
    assert service.figure("regraft_requests_total") > 0
    nothing = service.client.get("/nowhere/<b>")
    assert (nothing.status_code, nothing.headers["content-type"]) == (404, "application/json")
    assert "there is nothing at /nowhere/<b>" in nothing.json()["detail"]
    assert service.client.request("PROPFIND", "/healthz").status_code == 405
    assert "PROPFIND" not in service.client.get("/metrics").text  # clients invent no figures
    wrong = service.client.get("/v1/predictions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "GET is not for /v1/predictions: use POST" in wrong.json()["detail"]
    assert "server" not in wrong.headers


# --- who may ask ----------------------------------------------------------------------------


def test_the_loopback_wants_no_key_of_whoever_is_there(service: Service) -> None:
    """Whoever is brought there by a proxy, another page or a bent name is somebody else."""
    for header, value in (
        ("X-Forwarded-For", "10.1.2.3"), ("Forwarded", "for=10.1.2.3"), ("Via", "1.1 proxy"),
        ("Sec-Fetch-Site", "cross-site"), ("Host", "evil.example.org"), ("Host", "127.0.0.1.nip"),
    ):  # fmt: skip
        answer = service.client.post(
            "/v1/predictions", content=BODY, headers=JPEG | {header: value}
        )
        assert answer.status_code == 401, (header, value)
        assert "key" in answer.json()["detail"]
    answer = service.client.post(
        "/v1/predictions", content=BODY, headers=JPEG | {"Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 200


def test_elsewhere_a_key_is_needed_of_the_right_scope(world: World) -> None:
    """None, a wrong, a revoked one and one for something else are told apart; a new one counts."""
    with world.transaction() as session:
        good = keys.make(session, "camera", ["predict"], "a test")
        other = keys.make(session, "Ann", ["review"], "a test")
        stolen = keys.make(session, "stolen", ["predict", "admin"], "a test")
    rows = world.ask("SELECT digest FROM api_keys")
    assert good not in str(rows)
    with answering.serving(Rules(loopback=False)) as service:

        def ask(key: str | None) -> httpx.Response:
            shown = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
            headers = httpx.Headers({b"Content-Type": b"image/jpeg"})
            headers.update(shown)  # type: ignore[arg-type]
            return service.client.post("/v1/predictions", content=BODY, headers=headers)

        for key, status, says in (
            (None, 401, "a key is missing: send it as `Authorization: Bearer regraft_"),
            ("regraft_guessed", 401, "this key is unknown or revoked"),
            ("\u00e9'; DROP TABLE api_keys; --", 401, "unknown"),
            ("a" * 10_000, 401, "unknown"),
            (other, 403, "key 'Ann' may review, this needs predict"),
            (good, 200, ""),
            (stolen, 200, ""),
        ):
            answer = ask(key)
            assert answer.status_code == status, answer.text
            assert says in answer.json().get("detail", "")
        assert ask(None).headers["www-authenticate"] == "Bearer"
        assert service.client.get("/healthz").status_code == 200
        assert service.client.get("/metrics").status_code == 401
        allowed = {"Authorization": f"Bearer {other}"}
        assert service.client.get("/metrics", headers=allowed).status_code == 200
        with world.transaction() as session:
            keys.revoke(session, "stolen", "a test")
            late = keys.make(session, "late", ["predict"], "a test")
        answering.until(lambda: ask(stolen).status_code == 401, answering.PATIENCE)
        answering.until(lambda: ask(late).status_code == 200, answering.PATIENCE)


def test_too_many_at_once_are_sent_away_at_once(world: World) -> None:
    """Who comes when all places are taken is told when to come again; the others are answered."""
    files = [("image", ("a.jpg", BODY))] * 8
    done: list[httpx.Response] = []
    with answering.serving(Rules(most_waiting=8)) as service:

        def ask() -> None:
            with httpx.Client(base_url=service.client.base_url, timeout=30) as client:
                done.extend(client.post("/v1/predictions", files=files) for _ in range(3))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert service.ask().status_code == 200
    statuses = {one.status_code for one in done}
    assert statuses == {200, 503}
    refused = next(one for one in done if one.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert "try again soon" in refused.json()["detail"]


def test_large_pictures_are_decoded_one_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many cores there are, and however many such pictures come at once."""
    monkeypatch.setenv("REGRAFT_THREADS", "6")
    body = pictures.png_of_size(5000, 5000, whole=True)  # 100 MB once it is red, green and blue
    with answering.serving() as service:
        assert service.ask(body).status_code == 200
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before = _memory("VmRSS")
        files = [("image", (f"{number}.png", body)) for number in range(12)]
        answer = service.client.post("/v1/predictions", files=files)
        assert answer.status_code == 200
        assert _memory("VmHWM") - before < 300


def _memory(which: str) -> float:
    """MB of this process: VmRSS now, VmHWM the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(which))


def test_what_takes_too_long_is_given_up(world: World) -> None:
    """After the time that an answer may take the client is told, and the place is free."""
    with answering.serving(Rules(answer_seconds=1e-4)) as service:
        late = service.ask()
        assert late.status_code == 503
        assert "no answer within" in late.json()["detail"]
        answering.until(lambda: service.figure("regraft_waiting_pictures") == 0)


def test_key_names_and_scopes_are_checked(world: World) -> None:
    """A name is given once, is no markup, and is not the loopback's; a scope is a known one."""
    with world.transaction() as session:
        keys.make(session, "once", ["predict"], "a test")
        for name, scopes, says in (
            ("once", ["predict"], "was made before"),
            ("<script>", ["predict"], "cannot name a key"),
            ("local", ["predict"], "not 'local'"),
            ("", ["predict"], "cannot name a key"),
            ("twice", [], "a key needs a scope"),
            ("twice", ["root"], "there is no scope 'root'"),
        ):
            with pytest.raises(keys.BadKeyName, match=says):
                keys.make(session, name, scopes, "a test")
        with pytest.raises(keys.UnknownKey, match="regraft key list"):
            keys.revoke(session, "never", "a test")


def test_a_stop_waits_for_no_read_of_s3_before_it_writes_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that hang hold threads that all share; what was answered is written all the same."""
    log, written = open_log(), threading.Event()
    deaf = socket.create_server(("127.0.0.1", 0), backlog=64)
    nowhere = Storage(f"http://127.0.0.1:{deaf.getsockname()[1]}", "none", "key", "secret")

    def hang_up_late() -> None:
        try:
            answering.until(lambda: log._closing, 20)
            written.set()
        finally:
            deaf.close()

    with answering.serving(Rules(answer_seconds=0.5), log) as service:
        monkeypatch.setattr(storage, "connect", lambda: nowhere)
        for _ in range(3):  # a machine of many cores has 32 such threads
            late = service.client.post("/v1/predictions", json={"keys": [KEY] * 16})
            assert (late.status_code, "S3 did not give" in late.text) == (503, True)
        later = threading.Thread(target=hang_up_late)
        later.start()
    later.join()
    assert written.is_set()


def test_an_orderly_stop_answers_and_writes_what_was_begun(world: World) -> None:
    """Requests under way when the service is stopped are answered, and stand in the log."""
    [(before,)] = world.ask("SELECT count(*) FROM transactions")
    files = [("image", ("a.jpg", BODY))] * 16
    done: list[int] = []
    with answering.serving(log=open_log()) as service:

        address = f"{service.client.base_url}/v1/predictions"

        def ask() -> None:
            done.append(httpx.post(address, files=files, timeout=30).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        predictor = service.app.state.predictor
        answering.until(lambda: predictor._inside == 48 or bool(done))
    for thread in threads:
        thread.join()
    assert done == [200] * 3
    assert world.ask("SELECT count(*) FROM transactions") == [(before + 48,)]
