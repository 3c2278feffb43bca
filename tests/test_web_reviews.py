"""Reviews over HTTP: the same acts, refused in one sentence, and pictures of where it looked."""

import io
import json
import uuid
from collections.abc import Iterator

import answering
import intakes
import numpy as np
import pytest
import reviewed
import worlds
from fastapi.testclient import TestClient
from PIL import Image
from reviewed import transaction
from worlds import FREE, World

from infra.embedded import Addresses
from records import evaluations, keys
from records.evaluations import GradCamRow
from records.reviews import is_blind
from records.versions import checkpoint_key
from tasks import labelling
from vision import gradcam, images
from vision.answers import Answers
from vision.scores import score
from web import explanations, maps
from web.app import create_app
from web.decisions import Decisions
from web.rules import Rules

NAMES = answering.NAMES
PICTURE = intakes.picture(1, "ring")


@pytest.fixture(scope="module")
def world(services: Addresses, template: str) -> Iterator[World]:
    """Three versions; a library of rings and crosses, on two of which version 1 was evaluated."""
    made = worlds.clone(answering.story(services, template))
    try:
        with worlds.inside(made), made.database() as database:
            made.act(FREE, "DELETE FROM deployments")  # a champion would be asked about each batch
            for seed in range(3):
                for name in ("ring", "cross"):
                    body = intakes.picture(seed, name)
                    made.storage.write(f"labelled/{name}/{seed}.png", body)
            intakes.take_in(database)
            ring, cross = (
                made.ask("SELECT sha256 FROM objects WHERE key = :key", key=key)[0][0]
                for key in ("labelled/ring/1.png", "labelled/cross/1.png")
            )
            told = Answers(
                (ring, cross), ("ring", "cross"), NAMES, [[1, 2], [1, 2]],
                [[0.8, 0.1], [0.9, 0.05]], [0.1, 0.9],
            )  # fmt: skip
            with database.transaction() as session:
                digest = made.ask("SELECT checkpoint_digest FROM versions WHERE id = 1")[0][0]
                evaluations.record(session, 1, digest, "test", told, score(told), {})
            yield made
    finally:
        worlds.drop(made)


@pytest.fixture
def client(world: World) -> TestClient:
    """The application on its loopback."""
    return TestClient(create_app(), base_url="http://127.0.0.1")


def test_a_person_reviews_what_is_next(world: World, client: TestClient) -> None:
    """Blind ones hide their answer; said twice is kept once; all of it is told again."""
    rows = [transaction(number, draw=0.5, image=PICTURE) for number in range(30)]
    with world.database() as database:
        reviewed.serve(database, rows)
    world.storage.write(rows[0].image_key or "", PICTURE)
    waiting = client.get("/v1/reviews/next", params={"by": "Ann", "limit": 100}).json()
    assert len(waiting) == 30
    assert {one["blind"] for one in waiting} == {True, False}
    for one in waiting:
        assert one["blind"] == is_blind(uuid.UUID(one["transaction_id"]))
        assert (one["top_labels"] is None) == one["blind"]
        said = {"transaction": one["transaction_id"], "label": "ring", "queue": "random",
                "by": "Ann"}  # fmt: skip
        done = client.post("/v1/reviews", json=said)
        assert (done.status_code, done.json()["review"]["verdict"]) == (201, "right")
        assert done.json()["review"]["fresh"]
    assert not client.post("/v1/reviews", json=said).json()["review"]["fresh"]
    assert client.get("/v1/reviews/next", params={"by": "Ann"}).json() == []
    proof = client.get("/v1/reviews/estimate", params={"version": 1}).json()
    assert (proof["facts"]["reviewed"], proof["facts"]["accuracy"]["share"]) == (30, 1)
    assert proof["sentence"].startswith("100.0% of the answers are right")
    client.post("/v1/reviews", json=said | {"label": "cross", "by": "Zoë", "queue": None})
    (apart,) = client.get("/v1/reviews/disagreements").json()
    assert [one["by"] for one in apart["words"]] == ["Ann", "Zoë"]
    assert len(client.get("/v1/reviews", params={"by": "Zoë"}).json()) == 1
    address = f"/v1/reviews/transactions/{waiting[0]['transaction_id']}/picture"
    picture = client.get(address)
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (48, 48)


def test_a_picture_that_was_called_wrong_is_learned(world: World, client: TestClient) -> None:
    """The label goes through the door of the pools, and the next intake takes the picture in."""
    body = intakes.picture(77, "cross")
    row = transaction(900, "ring", image=body)
    with world.database() as database:
        reviewed.serve(database, [row])
        world.storage.write(row.image_key or "", body)
        said = {"transaction": str(row.id), "label": "cross", "by": "Ann", "learn": True}
        done = client.post("/v1/reviews", json=said)
        assert done.json()["learned"]["changed"] == 1
        intakes.take_in(database)
        assert intakes.label(database, f"labelled/cross/{row.sha256}.png") == ("cross", "", "train")


def test_what_is_learned_is_copied_soon(world: World) -> None:
    """Over HTTP and on its page: before retention could delete the picture."""
    decisions = Decisions(*[labelling.follow] * 4)  # type: ignore[list-item]
    client = TestClient(create_app(decisions=decisions), base_url="http://127.0.0.1")
    client.cookies.set("regraft_person", "Ann")
    client.headers["Sec-Fetch-Site"] = "same-origin"  # as a browser says of our own forms
    for number, address in ((901, "/v1/reviews"), (902, "/reviews")):
        body = intakes.picture(number, "cross")
        row = transaction(number, "ring", image=body)
        with world.database() as database:
            reviewed.serve(database, [row])
        world.storage.write(row.image_key or "", body)
        said = {"transaction": str(row.id), "label": "cross", "queue": "confidence", "learn": True}
        done = (
            client.post(address, json=said | {"by": "Ann"}) if address.startswith("/v1")
            else client.post(address, data=said, follow_redirects=False)
        )  # fmt: skip
        assert done.status_code in (201, 303), done.text
        assert world.storage.read(f"labelled/cross/{row.sha256}.png") == body


def test_an_answer_to_a_pool_is_reviewed(world: World, client: TestClient) -> None:
    """Offered with its picture, said of the version's answer, and offered no more."""
    told = {"a": {"ring": 0.5, "cross": 0.4}, "b": {"ring": 0.9, "cross": 0.1}}
    with world.database() as database:
        digests = reviewed.identified(database, world.storage, 3, told)
    asked = {"by": "Ann", "queue": "pools", "limit": 10}
    waiting = client.get("/v1/reviews/next", params=asked).json()
    assert [one["sha256"] for one in waiting] == [digests["a"], digests["b"]]
    first = waiting[0]
    assert (first["transaction_id"], first["at"], first["top_labels"]) == (
        None, None, ["ring", "cross"],
    )  # fmt: skip
    place = f"/v1/reviews/versions/3/pools/{first['sha256'][:12]}/picture"
    assert Image.open(io.BytesIO(client.get(place).content)).size == (48, 48)
    assert client.get(place.replace("/3/", "/2/")).status_code == 404
    said = {"subject": "identification", "version": 3, "image": first["sha256"], "by": "Ann",
            "label": "cross", "queue": "pools", "learn": True}  # fmt: skip
    done = client.post("/v1/reviews", json=said).json()
    assert (done["review"]["verdict"], done["learned"]["changed"]) == ("wrong", 1)
    (kept,) = client.get("/v1/reviews", params={"subject": "identification"}).json()
    assert (kept["version_id"], kept["stream"]) == (3, "doubt")
    waiting = client.get("/v1/reviews/next", params=asked).json()
    assert [one["sha256"] for one in waiting] == [digests["b"]]


def test_what_is_wrong_is_looked_at_and_corrected(world: World, client: TestClient) -> None:
    """The worst image, where the version looked, and the acts with their undoing."""
    (worst,) = client.get("/v1/reviews/versions/1/images").json()
    assert (worst["label"], worst["predicted"], worst["maps"]) == ("ring", "cross", [])
    place = f"/v1/reviews/versions/1/images/{worst['sha256']}"
    assert client.get(f"{place}/picture").headers["content-type"] == "image/jpeg"
    made = client.get(f"{place}/map")
    assert made.headers["content-type"] == "image/jpeg"
    assert client.get(f"{place}/map", params={"class": "ring"}).status_code == 200
    # kept, it is shown as it was made
    digest = world.ask("SELECT checkpoint_digest FROM versions WHERE id = 1")[0][0]
    loaded = explanations.loaded_by(digest)
    pixels = images.square(PICTURE, loaded.plan.geometry)
    (found,) = gradcam.maps(loaded.network, pixels[None], [1], loaded.plan, "cpu")
    facts = {name: getattr(found, name) for name in
             ("image_size", "peak_x", "peak_y", "centre_x", "centre_y", "area")}  # fmt: skip
    height, width = found.values.shape
    kept = GradCamRow(
        1, worst["sha256"], "cross", "test", "worst error", "ring", "cross", 0.8, height, width,
        np.asarray(found.values, "<f2").tobytes(), found.positive, facts,
    )  # fmt: skip
    with world.transaction() as session:
        evaluations.record_gradcams(session, 1, [kept])
    plan = json.dumps(answering.PLAN.to_dict())
    world.act(FREE, "UPDATE versions SET plan = CAST(:plan AS jsonb) WHERE id = 1", plan=plan)
    assert client.get(f"{place}/map").content == made.content
    assert client.get("/v1/reviews/versions/1/images").json()[0]["maps"] == ["cross"]
    asked = {"images": [worst["sha256"]], "by": "Ann", "why": "a cross after all", "version": 1}
    for act, more in (("relabel", {"label": "cross"}), ("keep", {}), ("remove", {})):
        done = client.post("/v1/reviews/acts", json=asked | {"act": act} | more)
        assert (done.status_code, done.json()["changed"]) == (201, 1)
    assert client.get("/v1/reviews/versions/1/images").json() == []
    for act in client.get("/v1/reviews/acts").json():
        undone = client.post(f"/v1/reviews/acts/{act['id']}/undo", json={"by": "Ann", "why": "no"})
        assert (undone.status_code, undone.json()["changed"]) == (201, 1)
    assert client.get("/v1/reviews/challenges", params={"version": 1}).json() == []
    (again,) = client.get("/v1/reviews/versions/1/images", params={"again": True}).json()
    assert (again["today"], again["withdrawn"], again["act"]) == ("ring", None, "relabel")


def test_a_map_is_made_once(
    world: World, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at again it needs no network; of those that were made the newest are remembered."""
    monkeypatch.setattr(maps, "MADE", 2)
    maps._made.clear()
    maps._network.cache_clear()
    (image,) = world.ask("SELECT sha256 FROM answers WHERE label = 'cross' ORDER BY 1 LIMIT 1")[0]
    digest = world.ask("SELECT checkpoint_digest FROM versions WHERE id = 1")[0][0]
    place, key = f"/v1/reviews/versions/1/images/{image}/map", checkpoint_key(digest)

    def seen(name: str) -> bytes:
        answer = client.get(place, params={"class": name})
        assert answer.status_code == 200, answer.text
        return answer.content

    first, second = seen("circle"), seen("square")
    body = world.storage.read(key)
    world.storage.delete(key)
    maps._network.cache_clear()
    try:
        assert (seen("circle"), seen("square")) == (first, second)
        assert seen("circle") == first
        gone = client.get(place, params={"class": "ring"})
        assert gone.status_code != 200  # the network is needed, and is not there
    finally:
        world.storage.write(key, body)
    seen("ring")
    assert [name for _, _, name in maps._made] == ["circle", "ring"]


def test_what_cannot_be_is_refused_in_one_sentence(world: World, client: TestClient) -> None:
    """No such thing, no such class, no text, nobody: never a fault of the service."""
    nobody = str(uuid.uuid4())
    for method, address, body, status, says in (
        ("post", "/v1/reviews", {"transaction": nobody, "verdict": "right", "by": "Ann"}, 404,
         "there is no transaction"),
        ("post", "/v1/reviews", {"transaction": nobody, "verdict": "right"}, 422, "say who you"),
        ("post", "/v1/reviews", {"verdict": "right", "by": "Ann"}, 422, "say which answer"),
        ("post", "/v1/reviews", {"by": "A\0", "verdict": "right"}, 422, "NUL"),
        ("post", "/v1/reviews", {"verdict": "good", "by": "Ann"}, 422, "verdict"),
        ("post", "/v1/reviews/acts", {"act": "relabel", "images": ["ab" * 32], "label": "ring",
         "by": "Ann", "why": "x"}, 422, "no image of the library"),
        ("post", "/v1/reviews/acts", {"act": "remove", "images": ["ab" * 32], "label": "ring",
         "by": "Ann", "why": "x"}, 422, "a label belongs to `relabel`"),
        ("post", "/v1/reviews/acts", {"act": "keep", "images": ["ab" * 32], "by": "Ann",
         "why": "x", "version": 99}, 404, "no version 99"),
        ("get", "/v1/reviews/versions/99/images", None, 404, "no version 99"),
        ("get", "/v1/reviews/next?queue=random&class=ring&by=Ann", None, 422, "takes no class"),
        ("get", "/v1/reviews/next?queue=scarce&class=%00&by=Ann", None, 422, "NUL"),
        ("get", "/v1/reviews/versions/1/images/" + "ab" * 32 + "/map", None, 404, "no image"),
        ("get", f"/v1/reviews/transactions/{nobody}/picture", None, 404, "there is no trans"),
        ("get", "/v1/reviews/estimate?since=2026-11-01T00:00:00", None, 422, "timezone"),
    ):  # fmt: skip
        done = client.request(method, address, json=body)
        assert (done.status_code, says in done.json()["detail"]) == (status, True), done.text
    app = create_app(Rules(loopback=False))
    with world.transaction() as session:
        secrets = [keys.make(session, scope, [scope], "Ann")
                   for scope in ("predict", "review", "admin")]  # fmt: skip
        app.state.access.renew(keys.listed(session, revoked=False))
    elsewhere = TestClient(app, base_url="http://example.org")
    for secret, status in zip((None, *secrets), (401, 403, 200, 200), strict=True):
        bearer = {"Authorization": f"Bearer {secret}"} if secret else {}
        assert elsewhere.get("/v1/reviews/acts", headers=bearer).status_code == status
    # a key signs with its own name, and with no other
    for by, status in (({"by": "Ann"}, 422), ({"by": "admin"}, 200), ({}, 200)):
        done = elsewhere.get("/v1/reviews/next", params=by, headers=bearer)
        assert done.status_code == status
    said = {"transaction": nobody, "verdict": "right", "by": "Ann"}
    done = elsewhere.post("/v1/reviews", json=said, headers=bearer)
    assert (done.status_code, "leave `by` out" in done.text) == (422, True)
