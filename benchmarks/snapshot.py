"""A snapshot of a library of 1,000,000 images against pandas.

    python -m benchmarks.snapshot

Both choose from the same Postgres table: usable images of the classes over the cutoff, the newest
of each where there is a limit, ordered by sha256, hashed, and written as Parquet (zstd). Both must
come to the same digest. pandas is measured twice: with reading the table (`read_sql`), which is
the same work, and on a frame that somebody has left in memory. Memory is the growth of the peak
of a process of its own, over a tenth of the library and over all of it.
"""

import functools
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import bench
from benchmarks.figures import Figure, Goal, Part, Row, take_turns
from benchmarks.services import services

IMAGES = 1_000_000
CLASSES = 100
CUTOFF = 40
MOST = 2_000
ROUNDS = 3
PANDAS = "pandas, reading the table"
IN_MEMORY = "pandas, frame in memory already"


def main() -> None:
    """Fill the library, let the contenders take turns, then look at memory."""
    given = bench.arguments("snapshot")
    with services(prefect=False):
        fill()
        rows = [
            compared(None, "all that is usable"),
            compared(MOST, f"the {MOST:,} newest of each"),
            memory_row(),
        ]
        reading = read_again()
    notes = (
        "regraft asks Postgres to choose and to sort; the sorted rows come as COPY's text in "
        "blocks of 4 MiB, which are hashed, parsed by pyarrow and compressed block by block. No "
        "Python object is made for a row. With a limit an index holds each class's images in the "
        "order of choosing, so that no more is read than is taken.",
        f"Reading such a snapshot of {IMAGES:,} rows again, its digest checked and the lists by "
        f"split made, takes {reading:.2f} s.",
    )
    Part("snapshot", "A snapshot of a million images", tuple(rows), notes, (), bench.facts()).save(
        "cuda" if given.gpu else "cpu"
    )


def fill() -> None:
    """A library as intakes leave it: 50 batches, 100 classes, a tenth held out."""
    import pandas  # noqa: F401  (so that no contender's first round loads its libraries)

    import tasks.snapshot  # noqa: F401
    from infra import database

    begun = time.perf_counter()
    with database.connect().transaction() as session:
        for statement in FILL:
            session.connection().exec_driver_sql(statement, {"images": IMAGES, "classes": CLASSES})
    with database.connect().engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        connection.exec_driver_sql("VACUUM ANALYZE images")  # as autovacuum does within minutes
    print(f"{IMAGES:,} images ({time.perf_counter() - begun:.0f} s)", flush=True)


FILL = (
    "INSERT INTO batches (state, ended_at) SELECT 'accepted', now() FROM generate_series(1, 50)",
    "INSERT INTO classes (name) "
    "SELECT 'sea lion ' || lpad(n::text, 3, '0') FROM generate_series(1, %(classes)s) n",
    """
    INSERT INTO images (sha256, class_id, origin, group_name, split, width, height, format, bytes,
                        labelled_by, batch_id)
    SELECT sha256, n %% %(classes)s + 1, 'real', sha256,
           (ARRAY['train', 'validation', 'test', 'train', 'train', 'train', 'train', 'train',
                  'train', 'held'])[n / %(classes)s %% 10 + 1],
           240, 240, 'JPEG', 20000, 'person:benchmark', n * 50 / %(images)s + 1
    FROM (SELECT n, encode(sha256(n::text::bytea), 'hex') AS sha256
          FROM generate_series(0::bigint, %(images)s - 1) n) numbers
    """,
)
QUERY = """
    SELECT i.sha256, c.name AS class, i.split, i.batch_id
    FROM images i JOIN classes c ON c.id = i.class_id WHERE i.withdrawn_at IS NULL
"""


def compared(most: int | None, what: str) -> Row:
    """The three contenders on one choice."""
    digests = set()

    def timed(act: Callable[[Path], str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            digests.add(act(Path(folder) / "snapshot.parquet"))
            return time.perf_counter() - begun

    figures = take_turns(
        {
            "regraft": lambda: timed(lambda path: ours(path, most)),
            PANDAS: lambda: timed(lambda path: in_pandas(frame(), path, most)),
            IN_MEMORY: lambda: timed(lambda path: in_pandas(kept_frame(), path, most)),
        },
        "s", ROUNDS,
    )  # fmt: skip
    assert len(digests) == 1, f"they chose differently: {digests}"
    return Row(
        f"Choosing {what}: split, cutoff, digest, Parquet",
        figures["regraft"],
        (figures[PANDAS], figures[IN_MEMORY]),
        (Goal(PANDAS, 1.0, "no slower than pandas from the same table"),),
    )


def ours(path: Path, most: int | None, share: int = 1) -> str:
    """As a night chooses, but for the upload; of every `share`-th class."""
    from infra import database
    from records import snapshots
    from tasks.snapshot import Writer

    with database.connect().transaction() as session, Writer(path, snapshots.POLICY) as writer:
        counts = snapshots.counts(session, CUTOFF, most)
        enough = [one.class_name for one in counts if one.lacks == 0][::share]
        snapshots.export(session, enough, most, writer.add)
    return str(writer.digest.hexdigest())


def frame(share: int = 1) -> Any:
    """The library as a frame; of every `share`-th class."""
    import pandas as pd

    from infra import database

    query = QUERY + (f" AND c.id %% {share} = 0" if share > 1 else "")
    with database.connect().engine.connect() as connection:
        return pd.read_sql(query, connection)


@functools.cache
def kept_frame() -> Any:
    """The frame that lies in memory already."""
    return frame()


def in_pandas(library: Any, path: Path, most: int | None) -> str:
    """The same choice in pandas."""
    from records.snapshots import POLICY

    usable = library[library["split"] != "held"]
    enough = usable.groupby("class")["sha256"].transform("size") >= CUTOFF
    chosen = usable[enough]
    if most is not None:
        newest = chosen.sort_values(["batch_id", "sha256"], ascending=[False, True])
        chosen = newest.groupby("class").head(most)
    chosen = chosen.sort_values("sha256")[["sha256", "class", "split"]]
    lines = chosen["sha256"] + " " + chosen["class"] + " " + chosen["split"] + "\n"
    digest = hashlib.sha256(f"{POLICY}\n".encode())
    digest.update("".join(lines).encode())
    chosen.to_parquet(path, compression="zstd", index=False)
    return digest.hexdigest()


def memory_row() -> Row:
    """Growth of the peak memory from a tenth of the library to all of it."""
    grown = {}
    for name in ("regraft", "pandas"):
        tenth, whole = (peak(name, share) for share in (10, 1))
        grown[name] = Figure(
            name, "MiB", (max(whole - tenth, 0.1),),
            f"peak {tenth:.0f} MiB with {IMAGES // 10:,} images, {whole:.0f} MiB with {IMAGES:,}",
        )  # fmt: skip
        print(f"  {name}: {grown[name].note}", flush=True)
    return Row(
        "Memory that ten times the images cost more",
        grown["regraft"],
        (grown["pandas"],),
        (Goal("pandas", 0.1, "memory flat in the number of rows: a tenth of pandas' growth"),),
    )


def peak(name: str, share: int) -> float:
    """Peak memory in MiB of a process that makes one snapshot of a share of the library."""
    code = f"from benchmarks.snapshot import snapshot_once; snapshot_once({name!r}, {share})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def snapshot_once(name: str, share: int) -> None:
    """Make one and print the peak memory of this process in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.parquet"
        if name == "regraft":
            ours(path, None, share)
        else:
            in_pandas(frame(share), path, None)
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def read_again() -> float:
    """Seconds to read a snapshot as training does."""
    from infra import database
    from records import runs
    from tasks import snapshot
    from vision.plan import Plan

    with database.connect().transaction() as session:
        run_id = runs.begin(session, "nightly", {}, None)
    digest = snapshot.freeze_snapshot.fn(run_id, Plan(cutoff=CUTOFF, most=None))
    begun = time.perf_counter()
    snapshot.read(digest)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
