"""Pixels for a step: from the cache as far as it goes, from S3 beyond, and the step goes on."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import intakes
import nights
import numpy as np
import pytest
from sqlalchemy import text

from infra.database import Database
from infra.storage import Storage
from tasks import pixels
from tasks.pixels import MissingImages, PartlyCached, opened
from vision.images import square
from vision.pixels import Pixels

GEOMETRY = nights.TINY_PLAN.geometry
EACH = GEOMETRY.side**2 * 3 + 64  # bytes of one picture in the cache
IMAGES = 10
ROOT = Path(__file__).parent.parent
SHAPE = [GEOMETRY.image_size, GEOMETRY.crop, GEOMETRY.interpolation]  # for other processes

Sources = dict[str, tuple[str, str | None]]


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have an empty cache of its own, which has said nothing yet."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))
    pixels._said.cache_clear()
    yield
    pixels._said.cache_clear()


def limit(monkeypatch: pytest.MonkeyPatch, images: float) -> None:
    """Let the cache hold this many pictures and the heads of a few files."""
    monkeypatch.setenv("REGRAFT_CACHE_GIGABYTES", str((images * EACH + 1000) / 1e9))


def stored(storage: Storage, count: int = IMAGES) -> tuple[Sources, dict[str, bytes]]:
    """Pictures in S3: where they lie, and their bytes, by digest."""
    sources: Sources = {}
    bodies: dict[str, bytes] = {}
    for number in range(count):
        body = intakes.picture(number)
        digest = hashlib.sha256(body).hexdigest()
        storage.write(f"pictures/{number}.png", body)
        sources[digest], bodies[digest] = (f"pictures/{number}.png", None), body
    return sources, bodies


def expect(held: Pixels | PartlyCached, bodies: dict[str, bytes]) -> None:
    """Demand every picture, some twice and out of order, as serving would see it."""
    asked = [*reversed(bodies), *list(bodies)[:3]]
    wanted = np.stack([square(bodies[digest], GEOMETRY) for digest in asked])
    assert np.array_equal(held.gather(asked), wanted)
    assert held.missing(asked) == []
    assert held.gather([]).shape == (0, GEOMETRY.side, GEOMETRY.side, 3)


def total(bodies: dict[str, bytes]) -> int:
    """Sum of all levels of all pictures, by which another process tells that it has them."""
    return sum(int(square(body, GEOMETRY).sum(dtype="int64")) for body in bodies.values())


@pytest.mark.parametrize(("room", "cached"), [(100, IMAGES), (5, 5), (0, 0)])
def test_what_has_no_room_is_decoded_when_asked_for(
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room: int,
    cached: int,
) -> None:
    """Room for all, half or none: the pixels are the same, and what is lacking is said once."""
    limit(monkeypatch, room)
    sources, bodies = stored(storage)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            expect(opened(GEOMETRY, sources), bodies)
    kept = pixels.cache().open(GEOMETRY)
    assert IMAGES - len(kept.missing(list(sources))) == cached
    assert pixels.cache().used_bytes() <= pixels.cache().limit
    said = [line for line in caplog.messages if "whenever they are needed" in line]
    assert len(said) == (cached < IMAGES)
    for line in said:
        assert line.startswith(f"{IMAGES - cached} of {IMAGES} images")
        assert "raise REGRAFT_CACHE_GIGABYTES" in line
        assert "\n" not in line


def test_two_sets_that_do_not_fit_together_never_take_turns(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one step of a night put into the cache stays for its next steps, whatever they need."""
    limit(monkeypatch, 6)
    sources, bodies = stored(storage, 8)
    digests = list(sources)
    halves = [{digest: sources[digest] for digest in some} for some in (digests[:4], digests[4:])]
    files: list[list[Path]] = []
    for half in halves * 3:
        opened(GEOMETRY, half).gather(list(half))
        files.append(pixels.cache().files(GEOMETRY))
    assert len(files[0]) == 1
    assert all(files[0][0] in later for later in files)
    assert files[1:] == [files[1]] * 5
    expect(opened(GEOMETRY, sources), bodies)


def test_an_image_that_changed_is_named_when_it_is_asked_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pictures that are not kept, one gone or overwritten is named like any other."""
    limit(monkeypatch, 0)
    sources, bodies = stored(storage, 4)
    held = opened(GEOMETRY, sources)
    storage.write("pictures/1.png", intakes.picture(99))
    storage.delete("pictures/2.png")
    digests = list(bodies)
    held.gather([digests[0], digests[3]])
    with pytest.raises(MissingImages, match=r"2 of 4 images cannot be read.*no longer the image"):
        held.gather(digests)
    assert held.missing(["0" * 64]) == ["0" * 64]


def test_an_image_gone_before_the_step_stops_it_and_keeps_the_others(storage: Storage) -> None:
    """With room for all, what cannot be read is named at once; the rest is decoded only once."""
    sources, bodies = stored(storage, 4)
    storage.delete("pictures/2.png")
    with pytest.raises(MissingImages, match="1 of 4 images cannot be read"):
        opened(GEOMETRY, sources)
    gone = list(bodies)[2]
    assert pixels.cache().open(GEOMETRY).missing(list(bodies)) == [gone]


FULL_DISK = """
import json, logging, resource, signal, sys
from tasks.pixels import cache, opened
from vision.plan import Geometry
logging.basicConfig(format="%(message)s")
# files that cannot grow beyond 20,000 bytes fail as they do on a full disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sources = {sha: tuple(place) for sha, place in json.loads(sys.stdin.read()).items()}
pixels = opened(Geometry(*json.loads(sys.argv[1])), sources)
print(int(pixels.gather(list(sources)).sum(dtype="int64")), cache().used_bytes())
"""


def test_on_a_full_disk_the_step_goes_on(storage: Storage) -> None:
    """When the file cannot grow, nothing of it stays and all pictures are decoded instead."""
    sources, bodies = stored(storage)
    # in a process of its own: the limit would also hold for the file that takes these tests' output
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, json.dumps(SHAPE)],
        cwd=ROOT, text=True, input=json.dumps(sources), capture_output=True, check=True,
    )  # fmt: skip
    assert run.stdout == f"{total(bodies)} 0\n"
    assert run.stderr.count("no space left on the disk") == 1


@pytest.mark.parametrize("room", [3, 0])
def test_intake_takes_in_what_the_cache_cannot_hold(
    database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Images come into the library, measured and judged, whether or not their pixels fit."""
    limit(monkeypatch, room)
    for number in range(6):
        storage.write(f"labelled/ring/{number}.png", intakes.picture(number))
    taken = intakes.take_in(database)
    assert taken.checked is not None
    assert (taken.checked.accepted, taken.checked.quarantined) == (6, 0)
    with database.transaction() as session:
        digests = list(session.scalars(text("SELECT sha256 FROM images")))
    assert len(pixels.cache().open(GEOMETRY).missing(digests)) == 6 - room


def test_a_new_batch_drops_no_older_one(
    database: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night needs the older batches as much as the new: a big file never goes for a small."""
    limit(monkeypatch, 7)
    for number in range(5):
        storage.write(f"labelled/ring/{number}.png", intakes.picture(number))
    intakes.take_in(database)
    older = pixels.cache().files(GEOMETRY)
    for path in older:
        os.utime(path, (1000, 1000))
    for number in range(5, 10):
        storage.write(f"labelled/ring/{number}.png", intakes.picture(number))
    intakes.take_in(database)
    assert set(older) < set(pixels.cache().files(GEOMETRY))
    assert pixels.cache().room(GEOMETRY, pixels.cache().files(GEOMETRY)) == 0


def test_processes_fill_at_the_same_time(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that lack the same pictures both get them, within the limit."""
    limit(monkeypatch, 15)
    sources, bodies = stored(storage)
    program = """
import json, sys
from tasks.pixels import cache, opened
from vision.plan import Geometry
sources = {sha: tuple(place) for sha, place in json.loads(sys.stdin.read()).items()}
pixels = opened(Geometry(*json.loads(sys.argv[1])), sources)
print(int(pixels.gather(list(sources)).sum(dtype="int64")))
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(SHAPE)],
            cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in running:
        assert process.stdin is not None
        process.stdin.write(json.dumps(sources))
        process.stdin.close()
        process.stdin = None
    assert [process.communicate()[0] for process in running] == [f"{total(bodies)}\n"] * 2
    assert pixels.cache().used_bytes() <= pixels.cache().limit
    assert list(tmp_path.rglob("*.part")) == []


def test_a_night_runs_when_no_pixel_fits(
    database: Database,
    storage: Storage,
    prefect_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Intake, training, evaluation and Grad-CAM all go on without any cache."""
    from flows.nightly import nightly

    limit(monkeypatch, 0)
    nights.tiny_library(tmp_path / "pictures")
    assert nightly(plan=nights.TINY_PLAN).state == "deployed"
    assert pixels.cache().used_bytes() == 0
