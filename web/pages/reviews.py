"""Reviews: one answer at a time, what they prove, and the images that a version has wrong."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import BackgroundTasks, Form, Path, Query, Request, Response

from records import classes, corrections, queues, reviews, versions
from records.reviews import Answered, BadReview
from web import kept
from web.database import Session
from web.decisions import follow_later
from web.pages.frame import Author, Reader, done, pages, person_of, query, shown

router = pages()

NAMED = {
    "random": "Random", "confidence": "Least sure", "mistaken": "Perhaps wrong",
    "scarce": "Perhaps scarce", "pools": "In pools",
}  # fmt: skip
ABOUT = {
    "random": "drawn by chance: the only ones that tell how right answers are in use",
    "confidence": "the least sure first",
    "mistaken": "the likeliest to be wrong first",
    "scarce": "perhaps one of the classes that lack images",
    "pools": "pictures of pools whose answer is in doubt, what may be scarce first",
}
PAGE = 40
SKIPPED = 200  # answers that a person may leave for later; each is asked for anew
Queue = Literal["random", "confidence", "mistaken", "scarce", "pools"]
Number = Annotated[int | None, Query(ge=1, lt=2**63)]
# A transaction, or the version and the picture of an answer to a pool.
Name = Annotated[
    str, Query(pattern="^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]{1,18}:[0-9a-f]{64})?$")
]


@router.get("/reviews")
def overview(request: Request, session: Session, _: Reader, version: Number = None) -> Response:
    """What reviews prove, where they wait, and where people disagree."""
    person = person_of(request)
    facts = {
        "proof": reviews.in_use(session, version), "version": version,
        # what waits in the others is compared by the thousand, for which nobody waits here
        "queues": [
            (name, named, ABOUT[name],
             name != "random" or bool(person and queues.waiting(session, name, person)))
            for name, named in NAMED.items()
        ],
        "disagreements": reviews.disagreements(session, 20),
        "newest": reviews.newest(session, 20),
        "known": versions.latest(session),
        "cases": corrections.hard_cases(session, versions.latest(session))[:PAGE],
    }  # fmt: skip
    return shown(request, "reviews.html", facts)


@router.get("/reviews/next")
def next_one(
    request: Request,
    session: Session,
    _: Reader,
    queue: Queue = "random",
    version: Number = None,
    class_name: Annotated[str | None, Query(alias="class", max_length=255)] = None,
    skip: Annotated[int, Query(ge=0, le=10_000)] = 0,
    last: Name = "",
    again: Name = "",
) -> Response:
    """The next answer of a queue, alone on its page; blind ones without what was said.

    last: the answer that was judged before this one; again: an answer to be judged once more.
    """
    person = person_of(request)
    # of what the random queue has after the first of it, no verdict would be taken
    most = reviews.OFFERED if queue == "random" else SKIPPED
    offered = bool(person) and skip < most
    one = None
    if again and person:
        one = queues.spoken_of(session, queue, _named(session, again))
    elif offered:
        found = queues.waiting(session, queue, person, version, class_name or None, skip + 1)
        one = next(iter(found[skip:]), None)
    given = {"queue": queue, "version": version, "class": class_name}
    facts = {
        "queue": queue, "queues": NAMED, "one": one,
        "names": sorted(set(classes.names(session).values())), "version": version,
        "class_name": class_name, "skip": skip,
        "first": f"/reviews/next{query(**given)}",
        "here": f"/reviews/next{query(**given, skip=skip)}",
        "then": f"/reviews/next{query(**given, skip=skip, last=one and _name(one))}",
        "again": f"/reviews/next{query(**given, skip=skip, again=last)}" if last else None,
        "later": f"/reviews/next{query(**given, skip=skip if again else skip + 1)}",
    }  # fmt: skip
    return shown(request, "review.html", facts)


def _name(one: queues.Waiting) -> str:
    """What an answer is called in an address."""
    return str(one.transaction_id or f"{one.version_id}:{one.sha256}")


def _named(session: Session, name: str) -> Answered:
    number, colon, image = name.partition(":")
    if colon:
        return reviews.of_identification(session, int(number), image)
    return reviews.of_transaction(session, uuid.UUID(name))


@router.post("/reviews")
def say(
    request: Request,
    session: Session,
    background: BackgroundTasks,
    by: Author,
    queue: Annotated[Queue, Form()],
    transaction: Annotated[uuid.UUID | None, Form()] = None,
    version: Annotated[int | None, Form(ge=1, lt=2**63)] = None,
    image: Annotated[str, Form(pattern="^([0-9a-f]{64})?$")] = "",
    to: Annotated[str, Form(max_length=4000)] = "/reviews",
    verdict: Annotated[Literal["right", "wrong", "bad image", "cannot tell", ""], Form()] = "",
    label: Annotated[str, Form(max_length=255)] = "",
    named: Annotated[str, Form(max_length=255)] = "",
    make: Annotated[bool, Form()] = False,
    learn: Annotated[bool, Form()] = False,
    note: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Write down what a person says of a transaction, or of a version's answer to a pool's picture.

    label: as typed; named: an answer that was pressed.
    """
    typed, pressed = label.strip(), named.strip() or verdict
    if typed and pressed not in ("", "wrong", typed):
        raise BadReview(
            f"{typed!r} was typed and {pressed!r} was pressed: empty the field, or press `Say so`"
        )
    answered = _answered(session, transaction, version, image)
    called = named.strip() or typed or None
    new = (called,) if make and called else ()
    stream = reviews.stream_of(queue)
    said = reviews.say(
        session, answered, by, verdict or None, called, note or None, stream, new
    )
    told = f"Kept: {said.verdict}" + (f", {said.label}" if said.label else "")
    if learn:
        if said.label is None:
            raise BadReview("nothing can be learned without a label: name the class")
        read = kept.read(answered) if answered.subject == "transaction" else None
        came = reviews.into_library(session, answered, read, by, said.label, note or None, new)
        told += "; the next night learns it" if came.changed else "; it was learned before"
        follow_later(request, background)
    return done(request, f"{told}.", to)


def _answered(
    session: Session, transaction: uuid.UUID | None, version: int | None, image: str
) -> Answered:
    if transaction is not None:
        return reviews.of_transaction(session, transaction)
    if version is None or not image:
        raise BadReview("say which answer: a transaction, or a version and an image")
    return reviews.of_identification(session, version, image)


# --- what a version has wrong -----------------------------------------------------------------


@router.get("/versions/{version_id}/images")
def evaluated(
    request: Request,
    session: Session,
    _: Reader,
    version_id: Annotated[int, Path(ge=1, lt=2**63)],
    subject: Literal["validation", "test", "benchmark", "batch", "library", ""] = "",
    class_name: Annotated[str, Query(alias="class", max_length=255)] = "",
    every: bool = False,
    again: bool = False,
    skip: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> Response:
    """Every image that the version answered wrongly or in doubt, the worst first."""
    known, name = classes.names(session), class_name.strip()
    rows = queues.evaluated(  # one more tells whether more follow
        session, version_id, subject or None, known.get(name, name) or None, every, again,
        PAGE + 1, skip,
    )  # fmt: skip
    given = {"subject": subject, "class": class_name, "every": every or None,
             "again": again or None}  # fmt: skip
    facts = {
        "version": versions.get(session, version_id), "rows": rows[:PAGE],
        "subject": subject, "class_name": class_name, "every": every, "again": again,
        "first": query(**given) or "?" if skip else None,
        "subjects": ("benchmark", "test", "validation", "batch", "library"),
        "here": f"/versions/{version_id}/images{query(**given, skip=skip)}",
        "next": query(**given, skip=skip + PAGE) if len(rows) > PAGE else None,
        "strange": name not in known, "names": sorted(set(known.values())),
    }  # fmt: skip
    return shown(request, "images.html", facts)

