"""Objects are read by threads or by processes, with the same results, and nothing stays behind."""

import functools
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import intakes
import numpy as np
import pytest

from infra.storage import Changed, Gone, Storage, StorageError
from tasks import fetching
from tasks.pixels import digest_and_square
from vision.images import examine
from vision.plan import Geometry

GEOMETRY = Geometry(32, 1.0, "bilinear")
ROOT = Path(__file__).parent.parent
WORK = functools.partial(examine, geometry=GEOMETRY)
PATIENCE_SECONDS = 60


def filled(storage: Storage, count: int) -> list[tuple[str, str | None]]:
    """So many pictures, listed."""
    for number in range(count):
        storage.write(f"pictures/{number:03d}.png", intakes.picture(number))
    return [(one.key, one.etag) for one in storage.list("pictures/")]


def workers() -> set[int]:
    """Processes that decode, of anybody."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"loky.backend.popen_loky_posix" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes for any number of objects."""
    monkeypatch.setattr(fetching, "MANY", 0)
    monkeypatch.setattr(fetching, "TOGETHER", 4)


def test_processes_find_what_threads_find(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts, pixels and their order are the same, also where an object is gone or was changed."""
    places = filled(storage, 30)
    storage.delete("pictures/007.png")
    storage.write("pictures/011.png", intakes.picture(99))
    with fetching.fetching(30) as fetch:
        by_threads = list(fetch(places, WORK))
    monkeypatch.setattr(fetching, "MANY", 0)
    monkeypatch.setattr(fetching, "TOGETHER", 4)
    with fetching.fetching(30) as fetch:
        by_processes = list(fetch(places, WORK))
    assert len(by_threads) == len(by_processes) == 30
    for number, (one, other) in enumerate(zip(by_threads, by_processes, strict=True)):
        if isinstance(one, StorageError):
            assert type(one) is type(other) is {7: Gone, 11: Changed}[number]
            assert str(one) == str(other)
            continue
        assert not isinstance(other, StorageError)
        assert one[0] == other[0]
        assert one[0].sha256 == hashlib.sha256(intakes.picture(number)).hexdigest()
        assert one[1] is not None
        assert np.array_equal(one[1], other[1])


def test_a_killed_process_costs_nothing_but_time(
    storage: Storage, many: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had not finished is read again by threads, each object once."""
    places = filled(storage, 60)
    work = functools.partial(digest_and_square, geometry=GEOMETRY)
    before = workers()
    with fetching.fetching(60) as fetch:
        found = fetch(places, work)
        digests = [next(found)]
        victim = max(workers() - before)
        os.kill(victim, signal.SIGKILL)
        digests += list(found)
    expected = [hashlib.sha256(intakes.picture(number)).hexdigest() for number in range(60)]
    assert [one[0] for one in digests if not isinstance(one, StorageError)] == expected
    assert sum("was killed" in line for line in caplog.messages) <= 1


def test_a_store_that_is_away_is_one_line(storage: Storage, many: None) -> None:
    """An error that is no image's fault comes out of a process as it is."""
    places = filled(storage, 3)
    away = Storage("http://127.0.0.1:9", storage.bucket, "key", "secret")
    processes = fetching._Processes(away, 2, 1)
    try:
        with pytest.raises(StorageError, match="does not answer"):
            list(fetching._by_processes(processes, None, places, WORK))  # type: ignore[arg-type]
    finally:
        processes.close()


ENDLESS = """
import sys
from tasks import fetching
from tasks.pixels import digest_and_square
fetching.MANY, fetching.TOGETHER = 0, 2
import functools
from vision.plan import Geometry
work = functools.partial(digest_and_square, geometry=Geometry(32, 1.0, "bilinear"))
with fetching.fetching(9) as fetch:
    found = fetch([("pictures/000.png", None)] * 1000, work)
    next(found)
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_no_process_outlives_a_killed_parent(storage: Storage, tmp_path: Path) -> None:
    """SIGKILL of who asked ends those that decode for it."""
    filled(storage, 1)
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS)
    before = workers()
    parent = subprocess.Popen(
        [sys.executable, str(program)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert parent.stdout.readline() == b"begun\n"
    theirs = workers() - before
    assert len(theirs) > 1
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while theirs & workers():
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.1)
