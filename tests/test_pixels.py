"""The pixel cache: what was put in comes out, whole or not at all, whoever dies meanwhile."""

import concurrent.futures
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vision.pixels import CacheFull, NotCached, PixelCache
from vision.plan import Geometry

GEOMETRY = Geometry(image_size=32, crop=1.0, interpolation="bilinear")
OTHER = Geometry(image_size=32, crop=1.0, interpolation="bicubic")
ROOT = Path(__file__).parent.parent
# Bytes that ten pictures of this geometry take, headers aside.
TEN = 10 * (32 * 32 * 3 + 64)


def digest(number: int) -> str:
    """The digest of a made-up picture."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def square(number: int) -> npt.NDArray[np.uint8]:
    """The pixels of that picture."""
    random = np.random.default_rng(number)
    return random.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def fill(cache: PixelCache, name: str, numbers: range, **options: object) -> Path:
    """Write one file and tell where it is."""
    with cache.writer(name, GEOMETRY, len(numbers), **options) as writer:  # type: ignore[arg-type]
        for row, number in enumerate(numbers):
            writer.put(row, digest(number), square(number))
    return cache.folder / GEOMETRY.name / f"{name}.npy"


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a small program that has this module's helpers at hand."""
    head = "import sys; sys.path[:0] = ['tests']\nfrom test_pixels import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_pixels_put_by_many_threads_come_back_in_the_asked_order(tmp_path: Path) -> None:
    """Sixteen threads write two files; any order, with repetitions, is read back exactly."""
    cache = PixelCache(tmp_path, 1)
    for name, first in (("a", 0), ("b", 100)):
        with (
            cache.writer(name, GEOMETRY, 100) as writer,
            concurrent.futures.ThreadPoolExecutor(16) as pool,
        ):
            list(
                pool.map(
                    lambda n, put=writer.put, first=first: put(n - first, digest(n), square(n)),
                    range(first, first + 100),
                )
            )
    pixels = cache.open(GEOMETRY)
    asked = [150, 3, 199, 3, 0, 101, 99]
    gathered = pixels.gather([digest(n) for n in asked])
    assert gathered.dtype == np.uint8
    assert np.array_equal(gathered, np.stack([square(n) for n in asked]))
    assert pixels.gather([]).shape == (0, 32, 32, 3)


def test_rows_never_put_are_not_there(tmp_path: Path) -> None:
    """A picture that could not be decoded leaves a gap, not a black picture."""
    cache = PixelCache(tmp_path, 1)
    with cache.writer("a", GEOMETRY, 5) as writer:
        writer.put(1, digest(1), square(1))
        writer.put(4, digest(4), square(4))
    pixels = cache.open(GEOMETRY)
    assert [pixels.has(digest(n)) for n in range(5)] == [False, True, False, False, True]
    assert pixels.missing([digest(4), digest(9), digest(2)]) == [digest(9), digest(2)]
    assert not pixels.has("")
    with pytest.raises(
        NotCached, match=r"^2 of 3 pictures are not in the pixel cache.*decode them$"
    ):
        pixels.gather([digest(4), digest(9), digest(2)])


def test_open_takes_the_named_files_of_its_geometry_only(tmp_path: Path) -> None:
    """Files of other batches and other geometries stay out; absent ones are no error."""
    cache = PixelCache(tmp_path, 1)
    fill(cache, "a", range(3))
    fill(cache, "b", range(3, 6))
    pixels = cache.open(GEOMETRY, ["b", "never-written"])
    assert (pixels.has(digest(1)), pixels.has(digest(4))) == (False, True)
    assert cache.open(OTHER).missing([digest(4)]) == [digest(4)]


def test_a_file_written_again_is_replaced_while_readers_keep_the_old_one(tmp_path: Path) -> None:
    """An open file never changes under its reader."""
    cache = PixelCache(tmp_path, 1)
    fill(cache, "a", range(3))
    old = cache.open(GEOMETRY)
    fill(cache, "a", range(10, 13))
    assert np.array_equal(old.gather([digest(2)])[0], square(2))
    assert cache.open(GEOMETRY).missing([digest(2), digest(11)]) == [digest(2)]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    """An error inside the block, or a block that puts nothing, makes no file of any kind."""
    cache = PixelCache(tmp_path, 1)

    def fail_in_the_middle() -> None:
        with cache.writer("a", GEOMETRY, 3) as writer:
            writer.put(0, digest(0), square(0))
            raise RuntimeError("S3 went away")

    with pytest.raises(RuntimeError, match="S3 went away"):
        fail_in_the_middle()
    with cache.writer("b", GEOMETRY, 3):
        pass
    with cache.writer("c", GEOMETRY, 0):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_killed_writer_leaves_nothing_visible_and_is_swept(tmp_path: Path) -> None:
    """After SIGKILL no reader sees the file; a later writer removes it, but no living one's."""
    program = """
cache = PixelCache(Path(sys.argv[1]), 1)
with cache.writer(sys.argv[2], GEOMETRY, 100) as writer:
    for row in range(50):
        writer.put(row, digest(row), square(row))
    print("half", flush=True)
    sys.stdin.readline()
"""
    dead, alive = (start(program, tmp_path, name) for name in ("dead", "alive"))
    for process in (dead, alive):
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    cache = PixelCache(tmp_path, 1)
    assert cache.open(GEOMETRY).missing([digest(1)]) == [digest(1)]
    parts = sorted(tmp_path.rglob("*.part"))
    assert len(parts) == 2
    for part in parts:  # an hour passes
        os.utime(part, (time.time() - 3600,) * 2)
    fill(cache, "next", range(3))
    assert [part.name.split(".")[0] for part in tmp_path.rglob("*.part")] == ["alive"]
    alive.communicate("go\n")
    assert alive.returncode == 0
    assert cache.open(GEOMETRY, ["alive"]).has(digest(49))
    assert list(tmp_path.rglob("*.part")) == []


def test_processes_read_at_the_same_time(tmp_path: Path) -> None:
    """Two processes gather the same rows while a third writes another file."""
    cache = PixelCache(tmp_path, 1)
    fill(cache, "a", range(50))
    program = """
pixels = PixelCache(Path(sys.argv[1]), 1).open(GEOMETRY)
for turn in range(20):
    numbers = np.random.default_rng(turn).permutation(50)[:20].tolist()
    expected = np.stack([square(n) for n in numbers])
    assert np.array_equal(pixels.gather([digest(n) for n in numbers]), expected)
print("same")
"""
    readers = [start(program, tmp_path) for _ in range(2)]
    for turn in range(20):
        fill(cache, f"b{turn}", range(50, 60))
    assert [reader.communicate()[0] for reader in readers] == ["same\n", "same\n"]


def test_the_longest_unused_files_make_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole files go, oldest use first, never one that is kept, and each is logged."""
    cache = PixelCache(tmp_path, 3.5 * TEN / 1e9)
    paths = {name: fill(cache, name, range(n, n + 10)) for n, name in enumerate("abc")}
    for age, name in enumerate("cba"):
        os.utime(paths[name], (time.time() - 1000 - age,) * 2)
    cache.open(GEOMETRY).gather([digest(0)])  # 'b' is now the longest unused
    with caplog.at_level(logging.WARNING):
        paths["d"] = fill(cache, "d", range(30, 40), keep=[paths["b"]])
    assert sorted(path.name for path in tmp_path.rglob("*.npy")) == ["a.npy", "b.npy", "d.npy"]
    assert "dropped" in caplog.text
    assert str(paths["c"]) in caplog.text
    assert cache.used_bytes() <= cache.limit


def test_a_file_that_cannot_fit_drops_none(tmp_path: Path) -> None:
    """When the kept files leave too little room, the answer is one line and nothing is lost."""
    cache = PixelCache(tmp_path, 2.5 * TEN / 1e9)
    kept = [fill(cache, "a", range(10)), fill(cache, "b", range(10, 20))]
    assert cache.room(GEOMETRY, kept) == 4
    with pytest.raises(CacheFull, match="raise REGRAFT_CACHE_GIGABYTES"):
        fill(cache, "c", range(20, 30), keep=kept)
    with pytest.raises(CacheFull, match="raise REGRAFT_CACHE_GIGABYTES"):
        fill(cache, "c", range(20, 60))
    assert not cache.open(GEOMETRY).missing([digest(n) for n in range(20)])
    fill(cache, "b", range(20, 30), keep=kept)  # replacing needs no room beside itself


def test_what_this_process_has_used_is_never_dropped(tmp_path: Path) -> None:
    """Files used since the given time stay, so two that do not fit together never take turns."""
    paths = {name: fill(PixelCache(tmp_path, 1), name, range(n, n + 10)) for n, name in
             ((0, "a"), (10, "b"))}  # fmt: skip
    for path in paths.values():
        os.utime(path, (time.time() - 1000,) * 2)
    cache = PixelCache(tmp_path, 2.5 * TEN / 1e9, since=time.time())
    assert cache.room(GEOMETRY) == 25
    cache.open(GEOMETRY).gather([digest(3)])
    assert cache.room(GEOMETRY) == 14
    with pytest.raises(CacheFull):
        fill(cache, "c", range(20, 40))
    fill(cache, "d", range(20, 30))
    assert sorted(path.name for path in tmp_path.rglob("*.npy")) == ["a.npy", "d.npy"]
    assert cache.room(GEOMETRY) == 4


def test_a_dropped_file_stays_readable_for_who_has_it_open(tmp_path: Path) -> None:
    """Dropping takes the name away, not the pixels under a reader's hands."""
    fill(PixelCache(tmp_path, 1), "a", range(10))
    pixels = PixelCache(tmp_path, 1).open(GEOMETRY)
    fill(PixelCache(tmp_path, 1.5 * TEN / 1e9), "b", range(20, 30))
    assert [path.name for path in tmp_path.rglob("*.npy")] == ["b.npy"]
    assert np.array_equal(pixels.gather([digest(7)])[0], square(7))


def test_files_being_written_count_against_the_limit(tmp_path: Path) -> None:
    """Two processes that fill files at the same time do not both count on the same room."""
    program = """
with PixelCache(Path(sys.argv[1]), 1).writer("other", GEOMETRY, 10) as writer:
    print("begun", flush=True)
    sys.stdin.readline()
    for row in range(10):
        writer.put(row, digest(row), square(row))
"""
    other = start(program, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "begun\n"
    cache = PixelCache(tmp_path, 2.5 * TEN / 1e9)
    assert cache.room(GEOMETRY) == 14
    with pytest.raises(CacheFull):
        fill(cache, "a", range(20, 40))
    fill(cache, "a", range(20, 30))
    other.communicate("go\n")
    assert cache.open(GEOMETRY).missing([digest(n) for n in (*range(10), *range(20, 30))]) == []
    assert cache.used_bytes() <= cache.limit


def test_the_files_of_some_pictures_are_told(tmp_path: Path) -> None:
    """Which files hold any of the pictures asked for can be told, so that they can be kept."""
    cache = PixelCache(tmp_path, 1)
    first, _, third = (
        fill(cache, name, range(n, n + 3)) for n, name in ((0, "a"), (3, "b"), (6, "c"))
    )
    pixels = cache.open(GEOMETRY)
    assert pixels.files_of([digest(n) for n in (8, 1, 0, 77)]) == [first, third]


def test_a_full_disk_is_one_line_and_leaves_no_part(tmp_path: Path) -> None:
    """When the file cannot grow, CacheFull says so, older files are whole and no part remains."""
    cache = PixelCache(tmp_path, 1)
    fill(cache, "a", range(10))
    program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)
try:
    fill(PixelCache(Path(sys.argv[1]), 1), "b", range(1000))
except CacheFull as error:
    print(error)
"""
    said, _ = start(program, tmp_path).communicate()
    assert said.count("\n") == 1
    assert said.startswith("no space left on the disk of the pixel cache")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.npy"]
    assert cache.open(GEOMETRY).has(digest(9))


def test_a_really_full_disk_raises_instead_of_killing(tmp_path: Path) -> None:
    """On a file system of one megabyte the writer ends with CacheFull, not with a bus error."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        with pytest.raises(CacheFull, match="no space left"):
            fill(PixelCache(tmp_path, 1), "b", range(1000))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_damaged_files_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file cut short or of another kind costs its own pictures only."""
    cache = PixelCache(tmp_path, 1)
    fill(cache, "good", range(3))
    cut = fill(cache, "cut", range(3, 6))
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 1)
    fill(cache, "foreign", range(6, 9)).write_bytes(b"not ours")
    with caplog.at_level(logging.WARNING):
        pixels = cache.open(GEOMETRY)
    assert pixels.missing([digest(n) for n in range(9)]) == [digest(n) for n in range(3, 9)]
    assert caplog.text.count("is left out") == 2


@pytest.mark.parametrize(
    ("row", "name", "shape"),
    [(0, "x" * 64, (32, 32, 3)), (0, digest(0), (32, 31, 3)), (3, digest(0), (32, 32, 3))],
)
def test_wrong_pictures_are_refused(
    tmp_path: Path, row: int, name: str, shape: tuple[int, ...]
) -> None:
    """A wrong digest, shape or row raises before anything is written."""
    cache = PixelCache(tmp_path, 1)
    with pytest.raises((ValueError, IndexError)), cache.writer("a", GEOMETRY, 3) as writer:
        writer.put(row, name, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "a\n"])
def test_batch_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """A name is a name and never a path."""
    with (
        pytest.raises(ValueError, match="is no file name"),
        PixelCache(tmp_path, 1).writer(name, GEOMETRY, 1),
    ):
        pass
