"""How long commands take to start, against a bare Python, and the whole demo once.

    python -m benchmarks.starting

The commands run as users run them, each in a process of its own, on the state that a demo of three
nights left behind (services running). They take turns with `python -c pass` of the same
environment.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import bench
from benchmarks.figures import Figure, Goal, Part, Row, take_turns

ROUNDS = 11
BARE = "python -c pass"
TIMES = {"--help": 5.0, "versions": 12.0, "status": 12.0, "show 1": 12.0}


def main() -> None:
    """The demo first, because its versions are what the commands then show."""
    given = bench.arguments("start")
    with demonstrated() as seconds:
        demo = Figure("regraft demo", "s", (seconds,))
        figures = take_turns(
            {BARE: bare} | {words: lambda words=words: regraft(words) for words in TIMES},
            "ms", ROUNDS,
        )  # fmt: skip
    rows = [
        Row(
            f"regraft {words}",
            figures[words],
            (figures[BARE],),
            (Goal(BARE, times, f"at most {times:g} x the start of a bare Python"),),
        )
        for words, times in TIMES.items()
    ]
    rows.append(Row("The demo from start to end: three nights with training", demo))
    notes = (
        "`--help` loads the command line alone; `versions` asks Postgres through the driver alone "
        "(infra/reading.py), because SQLAlchemy alone takes ten times as long to load as Python "
        "starts. Typer loads pydantic to read a number or a path from the command line, which is "
        "half of what `versions` takes; `--help` prints plain text, because rich would take as "
        "long as all the rest. `status` and `show` ask through SQLAlchemy and load what the tables "
        "are made of: too slow for the goal.",
    )
    Part("start", "Starting", tuple(rows), notes, (), bench.facts()).save(
        "cuda" if given.gpu else "cpu"
    )


@contextmanager
def demonstrated() -> Iterator[float]:
    """Seconds of the demo; its services run, and are what the commands ask, for the block."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-starting-", dir="/tmp"))
    folder.chmod(0o755)  # Postgres runs as another user when we are root
    os.environ["REGRAFT_STATE_DIR"] = str(folder / "state")
    os.environ.pop("PREFECT_API_URL", None)
    from infra import embedded, settings

    try:
        begun = time.perf_counter()
        subprocess.run(command("demo"), check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        print(f"  demo: {seconds:.0f} s", flush=True)
        os.environ["REGRAFT_STATE_DIR"] = str(folder / "regraft-demo")  # where the demo plays
        yield seconds
    finally:
        os.environ["REGRAFT_STATE_DIR"] = str(folder / "regraft-demo")
        embedded.down(settings.load())
        shutil.rmtree(folder)


def command(words: str) -> list[str]:
    """The installed command, so that its own start is in the time."""
    return [str(Path(sys.executable).with_name("regraft")), *words.split()]


def bare() -> float:
    """Milliseconds of a Python that does nothing."""
    return milliseconds([sys.executable, "-c", "pass"])


def regraft(words: str) -> float:
    """Milliseconds of one of our commands."""
    return milliseconds(command(words))


def milliseconds(words: list[str]) -> float:
    """Wall time of one process."""
    begun = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    main()
