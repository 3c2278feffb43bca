"""A pool is answered once, whoever is killed, whoever helps, and whoever writes to it meanwhile."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pictures
import pyarrow.parquet as pq
import pytest
import torch
import worlds
from intakes import put, remove
from PIL import Image
from prefect import get_client
from prefect.states import Running
from prefects import state_of
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from test_kill import gate, kill_at
from worlds import World

import flows.identify
from flows import dead
from flows.identify import crash_dead_identifications
from infra.embedded import Addresses
from infra.storage import Listed, Refused, Storage, bad_key
from records import batches, identifications, labels, library, pools, snapshots, versions
from records.labels import Wish
from records.pools import ReadObject
from tasks import checkpoints, identification, labelling
from tasks.bar import bar
from tasks.identification import BadPool, CannotIdentify, answer, begin, checked, locate
from tasks.loading import BadFolder
from tasks.snapshot import SCHEMA
from vision import images
from vision.answers import BadAnswers
from vision.identification import identify, seeing
from vision.images import examine
from vision.network import build, head, save
from vision.plan import Plan
from vision.prediction import eager
from vision.runtime import Engine, plain

PLAN = Plan(architecture="test_resnet", image_size=32, precision="float32", dropout=0.0)
NAMES = ("circle", "cross", "ring", "square", "star", "triangle")
POOL = "pools/camera/"
PATIENCE_SECONDS = 120
MADE = """
    INSERT INTO runs (purpose, state, host, pid, plan, ended_at)
    VALUES ('throwaway', 'completed', 'here', 1, '{{}}', now());
    INSERT INTO snapshots (digest, key, policy, cutoff, images, classes)
    VALUES ('{digest}', 'snapshots/none.parquet', '{policy}', 1, 0, 0);
    INSERT INTO batches (state, ended_at) VALUES ('accepted', now());
    INSERT INTO classes (name) VALUES ('circle')
"""


@pytest.fixture(scope="module")
def trained(
    services: Addresses, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A world with an empty library and two versions of random weights; a third is in training."""
    world = worlds.make(services, template)
    folder = tmp_path_factory.mktemp("checkpoints")
    empty = hashlib.sha256(f"{snapshots.POLICY}\n".encode()).hexdigest()
    listed = io.BytesIO()
    pq.write_table(SCHEMA.empty_table(), listed)
    world.storage.write("snapshots/none.parquet", listed.getvalue())
    with worlds.inside(world), world.transaction() as session:
        for statement in MADE.format(digest=empty, policy=snapshots.POLICY).split(";"):
            session.connection().exec_driver_sql(statement)
        for seed in (1, 2, 3):
            plan = replace(PLAN, seed=seed)
            number = versions.candidate(
                session, 1, "throwaway", None, empty, plan.to_dict(), plan.digest(), list(NAMES)
            )
            if seed < 3:
                path = folder / f"{seed}.safetensors"
                digest = save(build(plan, NAMES), path, plan, NAMES)
                checkpoints.store(path, digest)
                versions.trained(session, number, digest, {}, {}, 1.0, None)
        session.connection().exec_driver_sql(
            "INSERT INTO thresholds (version_id, wished, subject, confidence, answered, images, "
            "precision, precision_low, precision_high) "
            "VALUES (1, 0.95, 'validation', 0.2, 9, 9, 1, 0.9, 1)"
        )
    yield world
    worlds.drop(world)


@pytest.fixture
def world(trained: World) -> Iterator[World]:
    """A twin to write to."""
    with worlds.twin(trained) as found:
        yield found
        for one in found.storage.list():
            if bad_key(one.key):
                remove(found.storage, one.key)


def noise(number: int, side: int = 32) -> bytes:
    """A picture that no other number gives, too small to be near another one."""
    drawn = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return pictures.png(Image.fromarray(drawn))


def fill(storage: Storage, count: int, prefix: str = POOL) -> None:
    """Put so many pictures into a pool."""
    with ThreadPoolExecutor(8) as threads:
        for number in range(count):
            threads.submit(storage.write, f"{prefix}{number:05d}.png", noise(number))


def answered(world: World, version: int = 1) -> Counter[str]:
    """How often each picture of any pool was answered by a version."""
    rows = world.ask("SELECT sha256 FROM pool_answers WHERE version_id = :v", v=version)
    return Counter(sha256 for (sha256,) in rows)


def counts(world: World, identification_id: int) -> tuple[Any, ...]:
    """State, listed, known, answered, repeated, unreadable, missing."""
    with world.transaction() as session:
        row = identifications.get(session, identification_id)
    return (
        row.state, row.listed, row.known, row.answered, row.repeated, row.unreadable, row.missing
    )  # fmt: skip


def library_image(world: World, body: bytes) -> str:
    """Put a picture into the library's rows; answers its digest."""
    facts, _ = examine(body, None)
    world.act(
        """
        INSERT INTO objects (bucket, key, etag, size, modified, label, state, batch_id, sha256)
        VALUES ('b', :sha, 'e', 9, now(), 'circle', 'accepted', 1, :sha)
        """,
        """
        INSERT INTO images (sha256, class_id, origin, group_name, split, width, height, format,
            bytes, dhash, labelled_by, batch_id)
        VALUES (:sha, 1, 'real', :sha, 'train', 9, 9, 'PNG', 9, :dhash, 'person:a test', 1)
        """,
        sha=facts.sha256, dhash=facts.dhash,
    )  # fmt: skip
    return facts.sha256


def test_everything_is_answered_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, unreadable objects and what the library has are told apart; nothing is done twice."""
    monkeypatch.setattr(identifications, "SHARD", 8)
    monkeypatch.setattr(identification, "PAGE", 16)
    fill(world.storage, 30)
    known, photograph = noise(7), pictures.photograph(1)
    near = pictures.png(photograph)
    put(world.storage, f"{POOL}copy of 3.png", noise(3))
    put(world.storage, f"{POOL}broken.jpg", pictures.jpeg(photograph)[:500])
    put(world.storage, f"{POOL}empty.png", b"")
    put(world.storage, f"{POOL}folder/", b"")
    put(world.storage, f"{POOL}near.jpg", pictures.jpeg(photograph, 40))
    put(world.storage, f"{POOL}line\nbreak.png", noise(31))
    put(world.storage, "pools/camera2/other.png", noise(32))
    exact = library_image(world, known)
    copied = library_image(world, near)
    first = begin(POOL, 1, ["ring"])
    answer.fn(first)
    # 30 and the near one are answered; the refused key counts as known not to be readable
    assert counts(world, first) == ("completed", 35, 1, 31, 1, 2, 0)
    world.check()
    assert set(answered(world).values()) == {1}
    with world.transaction() as session:
        [pool] = pools.listed(session)
        problems = {one.key: one.problem for one in pools.unreadable(session, pool.id)}
    assert pool.prefix == POOL
    assert world.ask("SELECT count(*) FROM pool_objects") == [(35,)]
    assert world.ask("SELECT count(*) FROM pool_images") == [(31,)]
    assert "damaged JPEG" in problems.pop(f"{POOL}broken.jpg")
    assert "0 bytes" in problems.pop(f"{POOL}empty.png")
    assert "the character U+000A" in problems.pop(f"{POOL}line\nbreak.png")
    assert not problems
    marks = world.ask("SELECT mark, mark_sha256 FROM pool_images WHERE mark IS NOT NULL ORDER BY 1")
    assert marks == [("library", exact), ("near library", copied)]

    again = begin(POOL, 1, ["ring"])
    assert again != first
    answer.fn(again)
    assert counts(world, again) == ("completed", 35, 35, 0, 0, 0, 0)
    fill(world.storage, 33)
    later = begin(POOL, 1)
    answer.fn(later)
    assert counts(world, later) == ("completed", 38, 35, 3, 0, 0, 0)
    other = begin(POOL, 2)
    answer.fn(other)
    assert counts(world, other)[3:] == (34, 1, 0, 0)
    world.check()


def test_what_is_kept_is_what_the_network_says(world: World) -> None:
    """Labels, confidences, those of targets, entropy, features and verdict, to rounding."""
    fill(world.storage, 20)
    number = begin(POOL, 1, ["triangle", "ring"])
    answer.fn(number)
    loaded = checkpoints.load(1)
    rows = world.ask(
        "SELECT o.key, a.predicted, a.confidence, a.top_labels, a.top_confidences, "
        "a.target_confidences, a.entropy, a.shown, e.features, i.targets, i.threshold "
        "FROM pool_answers a JOIN pool_objects o USING (sha256) JOIN embeddings e USING (sha256) "
        "JOIN identifications i ON i.id = a.identification_id"
    )
    assert len(rows) == 20
    for key, predicted, confidence, told, best, targets, entropy, shown, features, names, at in (
        rows
    ):
        _, pixels = examine(world.storage.read(key), PLAN.geometry)
        forward = seeing(plain(PLAN, torch.device("cpu")), loaded.network, loaded.plan, "cpu")
        assert pixels is not None
        logits, seen = forward(torch.from_numpy(pixels[None]))
        shares = logits.softmax(dim=1)[0]
        assert predicted == told[0] == NAMES[int(shares.argmax())]
        assert len(told) == 5
        assert confidence == best[0] == pytest.approx(float(shares.max()), abs=1e-5)
        assert names == ["ring", "triangle"]
        wanted = [float(shares[NAMES.index(name)]) for name in names]
        assert targets == pytest.approx(wanted, abs=1e-5)
        assert entropy == pytest.approx(float(-(shares * shares.log()).sum()), abs=1e-4)
        assert at == 0.2
        assert shown == (confidence >= at)
        kept = np.frombuffer(features, "<f2").astype(np.float32)
        assert kept == pytest.approx(seen[0].numpy(), rel=1e-3, abs=1e-3)
    ranked = world.ask(
        "SELECT count(*), min(t.confidence) >= 0.01, bool_and(t.confidence = a.target_confidences["
        "array_position(i.targets, t.class_name)]) FROM target_scores t "
        "JOIN pool_answers a USING (version_id, sha256) "
        "JOIN identifications i ON i.id = a.identification_id"
    )
    kept_scores = world.ask(
        "SELECT count(*) FROM pool_answers, unnest(target_confidences) s WHERE s >= 0.01::real"
    )
    assert ranked == [(kept_scores[0][0], True, True)]


@pytest.mark.parametrize(
    ("architecture", "size"), [("test_resnet", 32), ("test_efficientnet", 32), ("test_vit", 160)]
)
def test_one_pass_gives_features_and_answers(architecture: str, size: int) -> None:
    """What the head makes of the features is what the whole network answers."""
    plan = replace(PLAN, architecture=architecture, image_size=size)
    network, cpu = build(plan, NAMES).eval(), torch.device("cpu")
    side = plan.geometry.side
    stored = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    )
    forward = seeing(Engine("eager", "float32", True), network, plan, "cpu")
    logits, features = forward(stored)
    whole = eager(network, plan, cpu, False, True)(stored)
    assert torch.allclose(logits, whole, atol=1e-4)
    assert features.shape == (3, head(network).in_features)


def test_a_broken_network_answers_nothing() -> None:
    """Outputs that are no numbers are refused, and features too large for a half are cut off."""
    network, stored = build(PLAN, NAMES), np.zeros((2, 36, 36, 3), np.uint8)
    outputs = torch.zeros(2, len(NAMES)), torch.full((2, 4), 1e9)
    told = identify(lambda _: outputs, network, ["a", "b"], stored, ["star"], "cpu")
    assert told.features.max() == np.finfo(np.float16).max
    assert told.entropy == pytest.approx(np.full(2, np.log(len(NAMES))))
    outputs[0][1, 0] = float("nan")
    with pytest.raises(BadAnswers, match="image b has confidences that are no numbers"):
        identify(lambda _: outputs, network, ["a", "b"], stored, [], "cpu")


def test_a_pool_that_is_written_to_meanwhile(world: World) -> None:
    """What is rewritten or deleted after it was listed is missing, and the next one sees it."""
    fill(world.storage, 6)
    number = begin(POOL, 1)
    with world.transaction() as session:
        row = identifications.get(session, number)
    identification._list(row, threading.Event())
    world.storage.delete(f"{POOL}00001.png")
    world.storage.write(f"{POOL}00002.png", noise(102))
    world.storage.write(f"{POOL}00009.png", noise(109))
    answer.fn(number)
    assert counts(world, number) == ("completed", 6, 0, 4, 0, 0, 2)
    with world.transaction() as session:
        assert [one.key for one in pools.unreadable(session, row.pool_id)] == [
            f"{POOL}00001.png", f"{POOL}00002.png"
        ]  # fmt: skip
    later = begin(POOL, 1)
    answer.fn(later)
    assert counts(world, later) == ("completed", 6, 4, 2, 0, 0, 0)
    with world.transaction() as session:
        assert pools.unreadable(session, row.pool_id) == []

    world.storage.delete(f"{POOL}00000.png")
    answer.fn(begin(POOL, 1))
    gone = "SELECT key FROM pool_objects WHERE gone_at IS NOT NULL"
    assert world.ask(gone) == [(f"{POOL}00000.png",)]
    world.storage.write(f"{POOL}00000.png", noise(0))
    answer.fn(begin(POOL, 1))
    assert world.ask(gone) == []
    world.check()


def test_what_a_killed_act_owes_is_not_taken_for_what_is_there(world: World) -> None:
    """Removed or restored and killed before S3 followed, identified meanwhile: the act stands."""
    fill(world.storage, 4)
    answer.fn(begin(POOL, 1))
    keys = [f"{POOL}{number:05d}.png" for number in range(4)]
    wishes = [Wish(key, key=key) for key in keys[:3]]
    there = "SELECT count(*) FROM pool_objects WHERE gone_at IS NULL"
    with world.transaction() as session:
        labels.remove(session, wishes, "Ann")
    answer.fn(begin(POOL, 1))
    assert world.ask(there) == [(1,)]
    assert labelling.restore(wishes, "Ann")[0].changed == 3
    assert [one.key for one in world.storage.list(POOL)] == keys
    labelling.remove(wishes, "Ann")
    with world.transaction() as session:
        labels.restore(session, wishes, "Ann")
    answer.fn(begin(POOL, 1))
    assert world.ask(there) == [(4,)]
    labelling.follow()
    assert labelling.remove(wishes, "Ann")[0].changed == 3
    world.check()


def test_what_one_object_is_refused_for_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film is not fetched, and what the server will not give out is named; no others suffer."""
    fill(world.storage, 3)
    secret = f"{POOL}secret.png"
    world.storage._client.put_object(
        Bucket=world.bucket, Key=secret, Body=noise(9),
        SSECustomerAlgorithm="AES256", SSECustomerKey="k" * 32,
    )  # fmt: skip
    film = f"{POOL}film.mp4"
    world.storage.write(film, b"x" * 20_000)
    monkeypatch.setattr(images, "LARGEST_BYTES", 19_999)
    number = begin(POOL, 1)
    answer.fn(number)
    assert counts(world, number) == ("completed", 5, 1, 3, 0, 0, 1)
    unread = "SELECT key, sha256 IS NULL FROM pool_objects WHERE problem IS NOT NULL ORDER BY key"
    assert world.ask(unread) == [(film, True), (secret, True)]
    [(said,)] = world.ask("SELECT problem FROM pool_objects WHERE key = :key", key=secret)
    assert "cannot read" in said
    world.storage.delete(film)
    for one in range(3):
        world.storage.delete(f"{POOL}{one:05d}.png")
    with pytest.raises(Refused, match="cannot read"):
        answer.fn(begin(POOL, 2))


def test_a_pool_of_odd_names_is_answered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A key that no row can hold is left out aloud, and a name that looks like markup is a name."""
    prefix = "pools/a[/b]/"
    fill(world.storage, 2, prefix)
    modified = next(iter(world.storage.list(prefix))).modified
    odd = Listed(f"{prefix}a\0b", "e", 9, modified)
    (page,) = identification._pages(iter([odd, *world.storage.list(prefix)]))
    assert [one.key for one in page] == [f"{prefix}00000.png", f"{prefix}00001.png"]
    assert "holds a NUL: rename" in caplog.text
    shown = Console(file=io.StringIO(), force_terminal=True)
    with bar(shown) as one:
        one.add_task(f"identify {prefix}", total=1)
    number = begin(prefix, 1)
    answer.fn(number)
    assert counts(world, number) == ("completed", 2, 0, 2, 0, 0, 0)


def test_what_was_asked_for_and_is_not_kept_is_said(world: World) -> None:
    """Scores of targets that nobody kept, verdicts that nothing could give."""
    fill(world.storage, 2)

    def told(version: int, *targets: str) -> str:
        number = begin(POOL, version, targets)
        answer.fn(number)
        return flows.identify._told(number, 1.0).sentence

    assert told(1) == "version 1 answered 2 of 2 objects in s3://pools/camera/"
    fill(world.storage, 3)
    unscored = "2 pictures were answered before and keep no confidence of ring, star: only"
    assert unscored in told(1, "star", "ring")
    judged = "none is judged, since no threshold was fitted for this precision: `regraft show 2`"
    assert f"3 objects in s3://pools/camera/; {judged}" in told(2, "ring")
    assert "keep no confidence" not in told(2, "ring")


def test_a_library_that_grows_marks_older_pictures(world: World) -> None:
    """What the library takes in after a pool was read is no longer new at the next one."""
    fill(world.storage, 3)
    photograph = pictures.photograph(2)
    world.storage.write(f"{POOL}photograph.jpg", pictures.jpeg(photograph))
    answer.fn(begin(POOL, 1))
    assert world.ask("SELECT mark FROM pool_images WHERE mark IS NOT NULL") == []
    exact = library_image(world, noise(1))
    near = library_image(world, pictures.jpeg(photograph, 50))
    answer.fn(begin(POOL, 1))
    marks = "SELECT mark, mark_sha256 FROM pool_images WHERE mark IS NOT NULL ORDER BY 1"
    assert world.ask(marks) == [("library", exact), ("near library", near)]
    world.act("UPDATE images SET added_at = now() - interval '9 days'")
    for gone, known in (("now()", []), ("NULL", [("library", exact), ("near library", near)])):
        world.act(f"UPDATE objects SET gone_at = {gone}")  # noqa: S608
        with world.transaction() as session:
            assert sum(library.settle_gone(session, None).values()) == 2
        answer.fn(begin(POOL, 1))
        assert world.ask(marks) == known
    with world.transaction() as session:
        batches.revert_batch(session, 1, "Ann", "a test")
    world.storage.write(f"{POOL}again.jpg", pictures.jpeg(photograph, 70))
    answer.fn(begin(POOL, 1))
    assert world.ask(marks) == []


def test_a_long_listing_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is chosen for far more than are listed so far, or for what there is at its end."""
    fill(world.storage, 5)
    number = begin(POOL, 1)
    with world.transaction() as session:
        row = identifications.get(session, number)
    identification._list(row, threading.Event())
    monkeypatch.setattr(identification, "MANY", 4)
    listing: Future[None] = Future()
    assert identification._expected(number, listing) == 50
    listing.set_result(None)
    assert identification._expected(number, listing) == 5


def test_what_cannot_be_identified_is_one_line(world: World, tmp_path: Path) -> None:
    """Nothing is begun for a pool that is not there, or a version that cannot answer."""
    with pytest.raises(BadPool, match="holds no images: check the name"):
        begin("pools/none/", 1)
    put(world.storage, "pools/empty/", b"")
    with pytest.raises(BadPool, match="holds no images"):
        begin("pools/empty/", 1)
    fill(world.storage, 1)
    with pytest.raises(CannotIdentify, match="version 3 is training: wait"):
        begin(POOL, 3)
    with pytest.raises(CannotIdentify, match="does not know the class 'whale'"):
        begin(POOL, 1, ["whale"])
    with pytest.raises(versions.UnknownVersion, match="there is no version 9"):
        begin(POOL, 9)
    for word, said in (
        ("labelled/circle", "belongs to the library"),
        ("benchmark", "belongs to the benchmark"),
        ("trash", "belongs to the trash"),
        ("../etc", "a key is not a path"),
        ("", "the key is empty"),
    ):
        with pytest.raises(BadPool, match=said):
            checked(word)
    with pytest.raises(BadPool, match="is not a folder"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(BadFolder, match="holds no images"):
        locate(str(tmp_path))
    assert world.ask("SELECT count(*) FROM identifications") == [(0,)]
    assert world.ask("SELECT count(*) FROM pools") == [(0,)]


def test_a_folder_is_loaded_first(world: World, tmp_path: Path) -> None:
    """Files at any depth go to the bucket once; another folder of the same name is refused."""
    folder = tmp_path / "dump"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "one.png").write_bytes(noise(1))
    (folder / "deep" / "deeper" / "two.png").write_bytes(noise(2))
    assert locate(str(folder)) == "pools/dump/"
    keys = {one.key for one in world.storage.list("pools/dump/")} - {"pools/dump/"}
    assert {"pools/dump/one.png", "pools/dump/deep/deeper/two.png"} <= keys
    before = {one.key: one.modified for one in world.storage.list("pools/dump/")}
    assert locate(str(folder)) == "pools/dump/"
    assert {one.key: one.modified for one in world.storage.list("pools/dump/")} == before
    answer.fn(begin("pools/dump/", 1))
    labelling.remove([Wish(key, key=key) for key in before if key.endswith(".png")], "Ann")
    (folder / "one.png").write_bytes(noise(4))  # another picture by now
    assert locate(str(folder)) == "pools/dump/"
    left = {key for key in before if key.endswith(".png") and world.storage.exists(key)}
    assert left == {"pools/dump/one.png"}
    other = tmp_path / "other" / "dump"
    other.mkdir(parents=True)
    (other / "three.png").write_bytes(noise(3))
    with pytest.raises(BadPool, match="objects that are not in"):
        locate(str(other))


# --- killed, and together -------------------------------------------------------------------


def answer_all(version: int) -> None:
    """What each process does: begin or join, then answer until all is done."""
    answer.fn(begin(POOL, version))


def work(world: World) -> ForkServerProcess:
    """Start that in a process of its own."""
    return worlds.start(world, answer_all, 1)


def lapse(world: World, pid: int | None = None) -> None:
    """As if the lease of all that is claimed, or that one process has claimed, had run out."""
    world.act(
        "UPDATE shards SET lease_until = now() WHERE state = 'claimed' AND claimed_by LIKE :whose",
        whose="%" if pid is None else f"%:{pid}:%",
    )


def test_killed_anywhere_it_goes_on(world: World) -> None:
    """After a kill in the listing, in the answers and at the end, each picture has one answer."""
    fill(world.storage, 600)
    for table, event, condition in (
        ("shards", "INSERT", "true"),
        ("embeddings", "INSERT", "true"),
        ("shards", "UPDATE", "NEW.state = 'done' AND NEW.ordinal = 1"),
        ("identifications", "UPDATE", "NEW.state = 'completed'"),
    ):
        kill_at(world, table, event, condition, begin=work)
        lapse(world)
        world.check()
    process = work(world)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0
    assert world.ask("SELECT state, listed, known FROM identifications") == [("completed", 600, 0)]
    assert len(answered(world)) == 600
    assert set(answered(world).values()) == {1}
    world.check()


def test_three_processes_share_and_one_is_killed(world: World) -> None:
    """Each has claimed a shard when one is killed; the others answer its images, too."""
    fill(world.storage, 3000)
    put(world.storage, f"{POOL}copy.png", noise(5))
    with gate(world, "shards", "UPDATE", "NEW.state = 'done'"):
        processes = [work(world) for _ in range(3)]
        deadline = time.monotonic() + PATIENCE_SECONDS
        holders: set[str] = set()
        while len(holders) < 3:
            assert time.monotonic() < deadline, f"only {holders} have claimed shards"
            assert all(one.is_alive() for one in processes)
            time.sleep(0.1)
            rows = world.ask("SELECT DISTINCT claimed_by FROM shards WHERE state = 'claimed'")
            holders = {name for (name,) in rows}
        processes[1].kill()
        processes[1].join()
    lapse(world, processes[1].pid)
    for one in (processes[0], processes[2]):
        one.join(PATIENCE_SECONDS)
        assert one.exitcode == 0
    [(state, listed, known)] = world.ask("SELECT state, listed, known FROM identifications")
    assert (state, listed, known) == ("completed", 3001, 0)
    assert len(answered(world)) == 3000
    assert set(answered(world).values()) == {1}
    done = dict(world.ask("SELECT claimed_by, sum(answered) FROM shards GROUP BY 1"))
    pids = {int(name.split(":")[1]) for name in done}
    assert pids == {processes[0].pid, processes[2].pid}
    world.check()


def test_two_at_once_begin_one(world: World) -> None:
    """Whoever asks for the same pool and version joins; the database knows one."""
    fill(world.storage, 2)
    barrier = threading.Barrier(4)

    def ask() -> int:
        barrier.wait()
        return begin(POOL, 1)

    with ThreadPoolExecutor(4) as threads:
        found = [one.result() for one in [threads.submit(ask) for _ in range(4)]]
    assert len(set(found)) == 1


def test_a_deadlock_is_tried_again(world: World) -> None:
    """Who writes of the same objects in another order keeps no shard from being written down."""
    fill(world.storage, 2)
    answer.fn(begin(POOL, 1))
    number = begin(POOL, 2)
    with world.transaction() as session:
        row = identifications.get(session, number)
    identification._list(row, threading.Event())
    with world.transaction() as session:
        claim = identifications.claim(session, number, "one", 60)
    assert claim is not None
    gone = [ReadObject(key, etag, size, None, "gone") for key, etag, size in claim.objects]
    shard = identification.Shard(claim, gone, [], np.zeros(0, np.uint8))
    touched = text("UPDATE pool_objects SET size = size WHERE key = :key")
    first, second = (one.key for one in gone)
    with ThreadPoolExecutor(1) as threads, world.transaction() as session:
        session.execute(text("SET LOCAL deadlock_timeout = '1min'"))  # the other one notices
        session.execute(touched, {"key": second})
        settled = threads.submit(
            identification._settle, row, "one", "x", shard, identification.nothing(NAMES, ())
        )
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name"
        while not world.ask(waits, name=world.bucket):
            assert not settled.done()
        session.execute(touched, {"key": first})
        session.commit()
        settled.result()
    assert world.ask("SELECT count(*) FROM pool_objects WHERE gone_at IS NOT NULL") == [(2,)]
    assert world.ask("SELECT state, missing FROM shards WHERE state = 'done' AND missing > 0") == [
        ("done", 2)
    ]


def test_a_claim_that_lapsed_writes_nothing(world: World) -> None:
    """A process that was paused while another took its shard over finishes nothing."""
    fill(world.storage, 5)
    number = begin(POOL, 1)
    with world.transaction() as session:
        row = identifications.get(session, number)
    identification._list(row, threading.Event())
    with world.transaction() as session:
        claim = identifications.claim(session, number, "slow", 30)
        assert claim is not None
        assert identifications.claim(session, number, "quick", 30) is None
    lapse(world)
    with world.transaction() as session:
        taken = identifications.claim(session, number, "quick", 30)
        assert taken == claim
    nothing = identification.nothing(NAMES, ())
    with pytest.raises(identifications.LostClaim), world.transaction() as session:
        identifications.settle(session, number, claim, "slow", "x", [], nothing)
    with world.transaction() as session:
        identifications.release(session, "quick")
    answer.fn(number)
    assert counts(world, number)[:4] == ("completed", 5, 0, 5)


def test_a_killed_one_is_shown_as_crashed(
    world: World, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one finds its lock free; one that lives, or may be only beginning, is left alone."""
    fill(world.storage, 300)
    killed: list[UUID] = []
    for _ in range(2):  # the second one goes on with what the first has begun
        with gate(world, "shards", "UPDATE", "NEW.state = 'done'"):
            process = worlds.begin(
                world, "flows.identify", "identify", pool=f"s3://{POOL}", version_id=1
            )
            living = flow_run_of(world, process)
            assert living not in crash_dead_identifications()
            assert [state_of(one) for one in killed] == ["CRASHED"] * len(killed)
            process.kill()
            process.join()
        killed.append(living)
        lapse(world)
    assert state_of(living) == "RUNNING"
    with get_client(sync_client=True) as client:
        beginning = client.create_flow_run(flows.identify.identify, state=Running()).id
    done = flows.identify.identify(pool=f"s3://{POOL}", version_id=1)
    assert (done.state, done.listed) == ("completed", 300)
    assert [state_of(one) for one in killed] == ["CRASHED", "CRASHED"]
    assert state_of(beginning) == "RUNNING"
    monkeypatch.setattr(dead, "GRACE", timedelta())
    assert beginning in crash_dead_identifications()
    assert state_of(beginning) == "CRASHED"


def flow_run_of(world: World, process: ForkServerProcess) -> UUID:
    """The flow run that a process is, once it has claimed a shard."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    signed = "SELECT claimed_by FROM shards WHERE claimed_by LIKE :whose"
    while not (found := world.ask(signed, whose=f"%:{process.pid}:%")):
        process.join(0.05)
        assert process.is_alive(), f"it ended with {process.exitcode} before it claimed a shard"
        assert time.monotonic() < deadline, "it never claimed a shard"
    return UUID(found[0][0].rsplit(":", 1)[1])


def test_the_verb(world: World, prefect_server: str, tmp_path: Path) -> None:
    """A folder is loaded and answered by the version named; errors are one line, exit code 1."""
    folder = tmp_path / "dump"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(noise(number))
    (folder / "broken.png").write_bytes(b"no picture")

    def regraft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
            env=os.environ | world.environment(),
        )  # fmt: skip

    done = regraft("identify", str(folder), "--version", "1", "--target", "star", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["state"], told["listed"], told["answered"], told["unreadable"]) == (
        "completed", 6, 5, 1
    )  # fmt: skip
    assert told["unreadable_objects"][0]["key"] == "pools/dump/broken.png"
    listed = regraft("unreadable", "s3://pools/dump", "--json")
    assert json.loads(listed.stdout) == told["unreadable_objects"], listed.stderr
    failed = regraft("identify", "s3://pools/none", "--version", "1")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("regraft: s3://pools/none/ holds no images")
    assert len(failed.stderr.splitlines()) == 1, failed.stderr


# --- labels ---------------------------------------------------------------------------------

ACT = "INSERT INTO pool_acts (sha256, act, class_name, to_key, done_by) VALUES (:sha, {}, :by)"
ENTER = """
    INSERT INTO images (sha256, class_id, origin, mined, group_name, split, width, height, format,
        bytes, labelled_by, batch_id)
    VALUES (:sha, 1, 'real', {}, 'g', 'train', 9, 9, 'PNG', 9, :by, 1)
"""
LABEL = ACT.format("'label', 'circle', 'labelled/circle/x.png'")
DISMISS = ACT.format("'dismiss', NULL, NULL")


def test_no_prediction_becomes_a_label_by_itself(world: World) -> None:
    """Postgres asks for a person's word that still stands, and keeps what a model found apart."""
    fill(world.storage, 1)
    answer.fn(begin(POOL, 1))
    [(sha256,)] = world.ask("SELECT sha256 FROM pool_images")
    person = {"sha": sha256, "by": "person:a test"}
    for statements, values, said in (
        ([ENTER.format("true")], person, "no person labelled it"),
        ([LABEL, DISMISS, ENTER.format("true")], person, "no person labelled it"),
        ([LABEL, ENTER.format("false")], person, "must be marked as mined"),
        ([LABEL], {"sha": sha256, "by": "model:7"}, "done_by_person"),
        ([LABEL], {"sha": sha256, "by": " "}, "done_by_person"),
        ([ENTER.format("false")], {"sha": sha256, "by": "Version : 7"}, "labelled_by_person"),
        ([LABEL, "DELETE FROM pool_acts"], person, "written once"),
    ):
        with pytest.raises(DBAPIError, match=said):
            world.act(*statements, **values)
    world.act(DISMISS, LABEL, ENTER.format("true"), **person)
    assert world.ask("SELECT mined FROM images") == [(True,)]
