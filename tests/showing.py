"""A world with something on every page: two nights, a pool, answers that were served, reviews."""

import itertools
import uuid
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pictures
import reviewed
import worlds
from worlds import FREE, World

from flows.identify import identify
from infra.embedded import Addresses
from records import classes, reviews, transactions

POOL = "pools/camera/"
# A name that would be markup on a page that forgot to say otherwise, as a version may know it, and
# one that the library takes.
ODD = "<b onclick=\"alert(1)\">okapi</b> & 'co'"
QUOTED = "\"okapi\" &amp; 'co'"
SHAPES = ("circle", "cross", "ring", "square")
ANSWERS = 12  # that were served and kept, of which every other one was drawn by chance
REVIEWED = 8  # more, all drawn, of which Zoë has spoken, and nobody is asked again
ASKING = "<i>look</i> & co"  # a client


def make(services: Addresses, template: str) -> World:
    """A clone of two nights, with all that comes after them."""
    world = worlds.clone(worlds.story(services, template).done)
    with worlds.inside(world):
        for number in range(10):
            body = pictures.png(pictures.shape(SHAPES[number % 4], 5000 + number, side=48))
            world.storage.write(f"{POOL}{number}.png", body)
        world.storage.write(f"{POOL}broken.png", b"no picture")
        identify(f"s3://{POOL}", targets=["ring"])
        with world.transaction() as session:
            classes.make(session, QUOTED, "Ann")
        _serve(world)
    return world


def _serve(world: World) -> None:
    """Write down what version 2 answered to people over some days."""
    rows = []
    for number in range(ANSWERS):
        shape = SHAPES[number % 4]
        body = pictures.png(pictures.shape(shape, 7000 + number, side=48))
        at = datetime.now(UTC) - timedelta(days=number, minutes=5)
        digest = sha256(body).hexdigest()
        key = transactions.image_key(at, digest, body)
        world.storage.write(key, body)
        rows.append(reviewed.transaction(
            number, shape, 0.55 + 0.03 * number, draw=0.5 if number % 2 else None, image=body,
            id=uuid.uuid5(uuid.NAMESPACE_OID, f"shown {number}"), at=at, version=2, image_key=key,
            top_labels=(shape, ODD, "cross" if shape != "cross" else "ring"),
            top_confidences=(0.55 + 0.03 * number, 0.1, 0.05), client="shop", shown=True,
        ))  # fmt: skip
    with world.database() as database:
        reviewed.serve(database, rows)
    _review(world)
    with world.transaction() as session:
        answered = reviews.of_transaction(session, rows[0].id)
        reviews.say(session, answered, "Zoë", "wrong", "cross", "<i>look</i>", "doubt")
        reviews.say(session, answered, "Ann", "right", None, None, "doubt")


def _review(world: World) -> None:
    """Write down what both versions answered over some weeks, and whether it was right."""
    rows = []
    numbers = (uuid.uuid5(uuid.NAMESPACE_OID, f"reviewed {number}") for number in itertools.count())
    once = (one for one in numbers
            if sha256(one.bytes).digest()[12:16] >= reviews.part(reviews.TWICE)
            and not reviews.is_blind(one))  # fmt: skip
    for number, name in zip(range(REVIEWED), once, strict=False):
        called = ODD if number == 0 else SHAPES[number % 4]
        rows.append(reviewed.transaction(
            100 + number, called, 0.9 + 0.01 * number, draw=0.5, id=name,
            at=datetime.now(UTC) - timedelta(days=5 * number, minutes=7), version=1 + number % 2,
            top_labels=(called, "cross" if called != "cross" else "ring"),
            top_confidences=(0.9 + 0.01 * number, 0.01), client=ASKING, shown=True,
        ))  # fmt: skip
    with world.database() as database:
        reviewed.serve(database, rows)
    with world.transaction() as session:
        for number, row in enumerate(rows):
            answered = reviews.of_transaction(session, row.id)
            verdict = "wrong" if number % 3 == 1 else "right"
            reviews.say(session, answered, "Zoë", verdict, None, None, "random")


def refuse_second(world: World) -> None:
    """Let the gate have refused version 2, for a check that a person may let pass."""
    world.act(
        FREE,
        "DELETE FROM deployments WHERE version_id = 2",
        "UPDATE verdicts SET passed = false WHERE version_id = 2",
        """
        UPDATE checks SET verdict = 'failed' WHERE name = 'no worse'
        AND verdict_id = (SELECT id FROM verdicts WHERE version_id = 2)
        """,
    )
