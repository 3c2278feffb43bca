"""The queue of pools behind pictures that people have reviewed: milliseconds.

    python -m benchmarks.reviewing

A version's answers to three pools lie in an embedded Postgres as `benchmarks.finding` fills it,
without embeddings. The pictures that it is least sure of, which stand first in the queue, were
reviewed. The queue is asked while the answers have just come in, which Postgres has not counted
then, and again after autovacuum has seen them.
"""

from typing import Any

from benchmarks import bench, finding
from benchmarks.figures import Figure, Goal, Part, Row
from benchmarks.services import services

ANSWERS = 300_000
REVIEWED = 22_000
ROUNDS = 20
SHOWN = 60
WISHED = 100.0  # milliseconds
# What somebody did as the queue asked for it.
SAID = """
    INSERT INTO reviews (subject, version_id, sha256, predicted, confidence, verdict, label, blind,
                         stream, reviewed_by)
    SELECT 'identification', version_id, sha256, predicted, confidence, 'right', predicted, false,
           'doubt', 'ann'
    FROM pool_answers ORDER BY confidence, sha256 DESC LIMIT %(reviewed)s
"""


def main() -> None:
    """Fill the tables, review, and ask the queue before and after."""
    given = bench.arguments("review", ANSWERS)
    with services(prefect=False):
        fill(given.size)
        asked = {"just in, none reviewed": measured()}
        review()
        asked[f"just in, {REVIEWED:,} reviewed before them"] = measured()
        finding.settle()
        asked[f"{REVIEWED:,} reviewed before them"] = measured()
    notes = (
        "Reviewed pictures are passed over within an index: what grows with them is that walk, and "
        "the hash of what was reviewed. While answers are just in, each step of it looks into the "
        "table as well, which autovacuum ends within a minute or two.",
    )
    rows = tuple(row(name, values) for name, values in asked.items())
    title = f"The queue of pools on {given.size:,} answers"
    part = Part("review", title, rows, notes, (), bench.facts())
    if given.size == ANSWERS:
        part.save("cuda" if given.gpu else "cpu")


def fill(count: int) -> None:
    """Answers that nobody has counted."""
    from infra import database

    with database.connect().transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("ALTER TABLE pool_answers SET (autovacuum_enabled = off)")
        finding.answer(session, count)


def review() -> None:
    """Let somebody speak of what the queue shows first."""
    from infra import database

    with database.connect().transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(SAID, {"reviewed": REVIEWED})


def measured() -> tuple[float, ...]:
    """Milliseconds of the whole act."""
    from records import findings, queues

    def ask(session: Any, _: int) -> Any:
        waiting = queues.waiting(session, "pools", "ann", most=SHOWN)
        return findings.Findings("", tuple(waiting))

    finding.once(ask, 0)  # what is loaded when first asked for
    values = [finding.once(ask, turn) for turn in range(ROUNDS)]
    print(f"  {sorted(value for value, _, _ in values)[ROUNDS // 2]:.0f} ms", flush=True)
    if any(shown != SHOWN for _, shown, _ in values):
        raise RuntimeError("the queue is shorter than it was filled")
    return tuple(milliseconds for milliseconds, _, _ in values)


def row(name: str, values: tuple[float, ...]) -> Row:
    """What was measured beside what is wished."""
    figure = Figure("regraft", "ms", values)
    goal = Goal("wished", 1.0, f"under {WISHED:.0f} ms")
    return Row(f"{name} ({SHOWN} shown)", figure, (Figure("wished", "ms", (WISHED,)),), (goal,))


if __name__ == "__main__":
    main()
