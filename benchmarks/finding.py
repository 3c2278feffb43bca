"""Saved and free filters on 1,000,000 stored answers: milliseconds of each, and the slowest's plan.

    python -m benchmarks.finding

Everything lies in an embedded Postgres as identifications leave it: a version's answers of three
pools (90%, 9% and 1% of the pictures), every tenth picture part of a burst, confidences of thirty
targets, embeddings of 1,280 numbers each, marks and acts, beside a library of 200 classes. What
is timed is the whole act that the command line and the pages share: queries, embeddings, copies,
variety, groups. Each round asks for another class.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sqlalchemy import event, text

from benchmarks import bench
from benchmarks.figures import Figure, Goal, Part, Row
from benchmarks.services import services

ANSWERS = 1_000_000
CLASSES = 200
TARGETS = 30
WIDTH = 1280
ROUNDS = 9
WISHED = 200.0  # milliseconds
BURST = 10
TOGETHER = 1000
POOLS = (("pools/all/", 0.90), ("pools/some/", 0.09), ("pools/few/", 0.01))
ACTS = 0.04  # of the pictures: a quarter each labelled, dismissed, and twice unknown
NAMES = [f"sea lion {number:03d}" for number in range(CLASSES)]


def main() -> None:
    """Fill the tables, then ask each filter in turn."""
    given = bench.arguments("find", ANSWERS)
    with services(prefect=False):
        begun = time.perf_counter()
        fill(given.size)
        filled = time.perf_counter() - begun
        print(f"{given.size:,} answers ({filled:.0f} s)", flush=True)
        rows, slowest = measured()
    notes = (
        "A filter takes what it needs from an index in its order and stops there: after as many "
        "answers as are shown, or after the 1,000 that are compared with each other. In the worst "
        "case, a pool of which nearly nothing meets the condition, more is passed over.",
        f"The longest statement of the slowest filter:\n\n```\n{slowest}\n```",
    )
    title = f"Filters on {given.size:,} stored answers"
    part = Part("find", title, rows, notes, (), bench.facts())
    if given.size == ANSWERS:
        part.save("cuda" if given.gpu else "cpu")
    else:
        print(slowest)


# --- a million answers ------------------------------------------------------------------------


def fill(count: int) -> None:
    """A library, three pools, and what one version and one before it said of them."""
    from infra import database
    from infra.database import copy_lines

    with database.connect().transaction() as session:
        told = answer(session, count)
        copy_lines(session, "embeddings", ["version_id", "sha256", "features"], embeddings(*told))
    settle()


def answer(session: Any, count: int) -> tuple[list[str], Any, Any]:
    """All but embeddings; answers the digest of each picture, its class, and what draws on."""
    connection = session.connection()
    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # keys are right
    for statement in LIBRARY:
        connection.exec_driver_sql(statement, {"classes": CLASSES, "names": NAMES})
    pools_ids, identifications = begin(session)
    told = copy(session, pools_ids, identifications, count)
    connection.exec_driver_sql(ACTED, {"of": round(1 / ACTS * 4)})
    return told


def settle() -> None:
    """What autovacuum does within minutes."""
    from infra import database

    engine = database.connect().engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


# Classes of 5 to 1,000 images, as common as they are many; every twentieth is staged but for three.
LIBRARY = (
    "INSERT INTO batches (state, ended_at) VALUES ('accepted', now())",
    "INSERT INTO classes (name) SELECT unnest(%(names)s)",
    """
    INSERT INTO images (sha256, class_id, origin, group_name, split, width, height, format, bytes,
                        labelled_by, batch_id)
    SELECT encode(sha256(('library' || c || ' ' || n)::bytea), 'hex'), c,
           CASE WHEN c %% 20 = 0 AND n > 3 THEN 'staged' ELSE 'real' END, n, 'train', 240, 240,
           'JPEG', 20000, 'person:benchmark', 1
    FROM generate_series(1, %(classes)s) c, generate_series(1, 5 * c) n
    """,
    "INSERT INTO snapshots (digest, key, policy, cutoff, images, classes) "
    "VALUES ('d', 'k', 'p', 40, 1, 1)",
    "INSERT INTO runs (purpose, state, host, pid, plan, ended_at) "
    "VALUES ('nightly', 'completed', 'here', 1, '{}', now())",
    "INSERT INTO versions (purpose, state, run_id, snapshot_digest, plan, plan_digest, "
    "architecture, class_names, class_names_digest, checkpoint_digest, machine) "
    "SELECT 'nightly', 'trained', max(id), 'd', '{}', v::text, 'a', %(names)s, 'n', 'c' || v, "
    "'{}' FROM runs, generate_series(1, 2) v GROUP BY v ORDER BY v",
)
# Of every hundred pictures one was labelled, one dismissed, and two nobody could name.
ACTED = """
    INSERT INTO pool_acts (sha256, act, class_name, to_key, version_id, predicted, confidence,
                           done_by)
    SELECT sha256, act, CASE act WHEN 'label' THEN predicted END,
           CASE act WHEN 'label' THEN 'labelled/' || sha256 END, 1, predicted, confidence, 'ann'
    FROM (SELECT *, (ARRAY['label', 'dismiss', 'unknown', 'unknown'])[place %% %(of)s + 1] AS act
          FROM (SELECT *, row_number() OVER () AS place FROM pool_answers) numbered) a
    WHERE act IS NOT NULL
"""
# Only of identifications that answered something are the targets asked.
ANSWERING = """
    INSERT INTO shards (identification_id, ordinal, state, objects, claimed_by, answered, done_at)
    SELECT id, 0, 'done', 1, 'x', 1, now() FROM identifications
"""


def begin(session: Any) -> tuple[list[int], list[int]]:
    """The pools, and the newest version's identification of each, as an identification begins."""
    from records import identifications, pools

    numbers = [pools.enter(session, prefix) for prefix, _ in POOLS]
    begun = [
        identifications.begin(session, pool, 2, NAMES[:TARGETS], 0.95, 0.7) for pool in numbers
    ]
    session.execute(text(ANSWERING))
    return numbers, begun


def copy(
    session: Any, pool_ids: list[int], identification_ids: list[int], count: int
) -> tuple[list[str], Any, Any]:
    """Rows by COPY, table by table."""
    from infra.database import copy_lines

    random = np.random.default_rng(0)
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(count)]
    predicted = np.minimum((CLASSES * random.power(2, count)).astype(int), CLASSES - 1)
    confidence = np.round(random.beta(4, 1.5, count) * 0.98 + 0.01, 6)
    pool = random.choice(len(POOLS), count, p=[share for _, share in POOLS])
    hashes = random.integers(-(2**63), 2**63 - 1, count)
    bursts = np.arange(count) // BURST * BURST
    in_burst = bursts % 100 == 0  # a tenth of all
    hashes = np.where(in_burst, hashes[bursts], hashes)
    predicted = np.where(in_burst, predicted[bursts], predicted)
    mirrors = random.integers(-(2**63), 2**63 - 1, count)
    marked = random.random(count) < 0.02
    copy_lines(
        session, "pool_images",
        ["sha256", "width", "height", "dhash", "dhash_mirror", "mark", "mark_sha256"],
        (
            f"{digest}\t640\t480\t{one}\t{other}\t"
            + (f"near library\t{digest}\n" if known else "\\N\t\\N\n")
            for digest, one, other, known in zip(
                digests, hashes.tolist(), mirrors.tolist(), marked.tolist(), strict=True
            )
        ),
    )  # fmt: skip
    copy_lines(
        session, "pool_objects", ["pool_id", "key", "etag", "size", "sha256"],
        (
            f"{pool_ids[place]}\t{POOLS[place][0]}{number}.jpg\t{digest[:32]}\t20000\t{digest}\n"
            for number, (digest, place) in enumerate(zip(digests, pool.tolist(), strict=True))
        ),
    )  # fmt: skip
    told = list(zip(digests, pool.tolist(), predicted.tolist(), confidence.tolist(), strict=True))
    targets = ",".join(["0.001"] * TARGETS)
    copy_lines(
        session, "pool_answers",
        ["version_id", "sha256", "identification_id", "predicted", "confidence", "top_labels",
         "top_confidences", "target_confidences", "entropy", "shown"],
        (
            f'2\t{digest}\t{identification_ids[place]}\t{NAMES[name]}\t{share}\t{{"{NAMES[name]}",'
            f'"{NAMES[name - 1]}"}}\t{{{share},{(1 - share) / 2:.6f}}}\t{{{targets}}}\t1.5'
            f"\t{'t' if share >= 0.7 else 'f'}\n"
            for digest, place, name, share in told
        ),
    )  # fmt: skip
    copy_lines(
        session, "target_scores", ["version_id", "sha256", "class_name", "confidence"],
        (
            f"2\t{digest}\t{NAMES[name]}\t{share}\n" if name < TARGETS
            else f"2\t{digest}\t{NAMES[name % TARGETS]}\t{(1 - share) / 2:.6f}\n"
            for digest, _, name, share in told if name < TARGETS or share < 0.4
        ),
    )  # fmt: skip
    return digests, predicted, random


def embeddings(digests: list[str], predicted: Any, random: Any) -> Iterator[str]:
    """Features around the middle of each class, which bring some of its own to every picture."""
    middles = random.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    noise = random.normal(size=(4096, WIDTH)).astype(np.float32)
    for start in range(0, len(digests), TOGETHER):
        some = predicted[start : start + TOGETHER]
        rows = middles[some] + noise[random.integers(0, len(noise), len(some))]
        words = np.maximum(rows, 0).astype("<f2").tobytes().hex()
        size = 4 * WIDTH
        for place, digest in enumerate(digests[start : start + TOGETHER]):
            yield f"2\t{digest}\t\\\\x{words[place * size:(place + 1) * size]}\n"


# --- asking -----------------------------------------------------------------------------------


def filters() -> dict[str, Callable[[Any, int], Any]]:
    """What is asked, each with the number of the round."""
    from records import findings

    def common(turn: int) -> str:
        return NAMES[CLASSES - 1 - turn]

    return {
        "scarce": lambda session, turn: findings.scarce(session),
        "scarce, one class": lambda session, turn: findings.scarce(session, NAMES[turn]),
        "scarce, a pool of 1%": lambda session, turn: findings.scarce(session, pool=POOLS[2][0]),
        "staged": lambda session, turn: findings.staged(session),
        "look-alike": lambda session, turn: findings.look_alike(session, common(turn)),
        "look-alike, a rare class": lambda session, turn: findings.look_alike(
            session, NAMES[turn]
        ),
        "unknown": lambda session, turn: findings.unknown(session),
        "junk": lambda session, turn: findings.junk(session),
        "junk, a pool of 9%": lambda session, turn: findings.junk(session, pool=POOLS[1][0]),
        "junk, a pool of 1%": lambda session, turn: findings.junk(session, pool=POOLS[2][0]),
        "free: a class, between two confidences, new": lambda session, turn: findings.matching(
            session, common(turn), below=0.6, above=0.4, new=True
        ),
        "free: a class in a pool of 1%": lambda session, turn: findings.matching(
            session, common(turn), pool=POOLS[2][0]
        ),
        "free: all, surest first": lambda session, turn: findings.matching(session),
    }


def measured() -> tuple[tuple[Row, ...], str]:
    """A row for each filter, and the plan of the longest statement of the slowest one."""
    rows, plans = [], []
    for name, ask in filters().items():
        once(ask, 0)  # what is loaded when first asked for
        values = [once(ask, turn) for turn in range(ROUNDS)]
        figure = Figure("regraft", "ms", tuple(milliseconds for milliseconds, _, _ in values))
        found = values[-1][1]
        wish = Figure("wished", "ms", (WISHED,))
        goal = Goal("wished", 1.0, f"under {WISHED:.0f} ms")
        rows.append(Row(f"{name} ({found} shown)", figure, (wish,), (goal,)))
        plans.append((figure.median, values[-1][2]))
        print(f"  {name}: {figure.median:.0f} ms, {found} shown", flush=True)
    return tuple(rows), explained(*max(plans, key=lambda one: one[0])[1])


def once(ask: Callable[[Any, int], Any], turn: int) -> tuple[float, int, tuple[str, Any]]:
    """Milliseconds of one act, how many it showed, and its longest statement with its values."""
    from infra import database

    statements: list[tuple[float, str, Any]] = []

    def before(connection: Any, *_: Any) -> None:
        connection.info["begun"] = time.perf_counter()

    def after(connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        statements.append((time.perf_counter() - connection.info["begun"], statement, values))

    engine = database.connect().engine
    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    try:
        with database.connect().transaction() as session:
            session.connection()  # connected before the clock starts
            begun = time.perf_counter()
            found = ask(session, turn)
            seconds = time.perf_counter() - begun
    finally:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)
    longest = max(statements, key=lambda one: one[0])
    return 1000 * seconds, len(found.rows), longest[1:]


def explained(statement: str, values: Any) -> str:
    """What Postgres did for a statement; lists of values are cut."""
    from infra import database

    with database.connect().transaction() as session:
        rows = session.connection().exec_driver_sql(
            f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}", values
        )
        return "\n".join(row[0][:160] for row in rows)


if __name__ == "__main__":
    main()
