"""Pages on a million transactions, 500 versions and 1,500 classes: the first view and those after.

    python -m benchmarks.pages

The tables are filled as `benchmarks.history` fills them. Each page is asked for by HTTP over the
loopback from a server that has just started, a first time and then in rounds; the whole answer is
read.
"""

import socket
import statistics
import subprocess
import sys
import time

import httpx

from benchmarks import bench, history
from benchmarks.figures import Figure, Goal, Part, Row
from benchmarks.services import services

TRANSACTIONS = 1_000_000
ROUNDS = 20
WISHED = 200.0  # milliseconds
SERVER = """
import uvicorn
from infra import database
from web.app import create_app
from web.server import options
database.connect()  # as the verb does before it serves
uvicorn.run(create_app(), host="127.0.0.1", port={port}, **options())
"""


def main() -> None:
    """Fill the tables, then ask for each page."""
    given = bench.arguments("pages", TRANSACTIONS)
    scale = history.Scale(
        given.size, max(4, min(500, given.size // 2000)), min(1500, given.size // 600)
    )
    with services(prefect=False):
        history.tune()
        history.past(scale)
        history.serve(scale, 0, given.size)
        rows = tuple(_row(path, values) for path, values in _asked(scale).items())
        sizes = history.stored()
    notes = (
        f"{scale.versions} versions, {scale.classes:,} classes, {sizes}. The first view is the "
        f"first that a server which has just started is asked for; p50 and p95 are of {ROUNDS} "
        "rounds after it. Pictures come after the page, each by an address that never changes.",
    )
    part = Part("pages", f"Pages on {given.size:,} transactions", rows, notes, (), bench.facts())
    if given.size == TRANSACTIONS:
        part.save("cuda" if given.gpu else "cpu")
    for row in rows:
        print(row.what, f"{row.ours.median:.0f} ms", *(f"{one.name} {one.median:.0f} ms"
                                                       for one in row.others))  # fmt: skip


def _asked(scale: history.Scale) -> dict[str, list[float]]:
    """Milliseconds of each page, its first view first."""
    last = scale.versions
    paths = ("/", "/versions", f"/versions/{last}", f"/compare?version={last}&other={last - 1}",
             f"/versions/{last}/origins", f"/in-use?until={scale.last}",
             "/in-use?since=all", "/in-use?since=all&every=1",
             "/library", "/library/class?name=sea+lion+7", "/library/quarantine", "/pools",
             "/reviews", "/reviews/next?queue=random", "/reviews/next?queue=confidence",
             "/runs")  # fmt: skip
    found: dict[str, list[float]] = {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER.format(port=port)])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.cookies.set("regraft_person", "Ann")
            _until_there(client)
            for path in paths:
                found[path] = [_once(client, path) for _ in range(ROUNDS + 1)]
                print(path, [round(value) for value in found[path]], flush=True)
    finally:
        server.terminate()
        server.wait()
    return found


def _until_there(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            client.get("/healthz").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise TimeoutError("the server did not start")


def _once(client: httpx.Client, path: str) -> float:
    begun = time.perf_counter()
    answer = client.get(path)
    value = 1000 * (time.perf_counter() - begun)
    assert answer.status_code == 200, answer.text
    return value


def _row(path: str, values: list[float]) -> Row:
    first, *rest = values
    p95 = sorted(rest)[-(-95 * len(rest) // 100) - 1]
    ours = Figure("first view", "ms", (first,))
    others = (Figure("p50 after it", "ms", (statistics.median(rest),)),
              Figure("p95 after it", "ms", (p95,)), Figure("wished", "ms", (WISHED,)))  # fmt: skip
    return Row(path, ours, others, (Goal("wished", 1.0, f"first view under {WISHED:.0f} ms"),))


if __name__ == "__main__":
    main()
