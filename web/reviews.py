"""Reviews over HTTP: what to look at next, what people say, what it proves, and images to correct.

Each route is one act or query of `records`; the command line and the pages have the same.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Path, Query, Request, Response
from PIL import Image
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from records import classes, corrections, queues, reviews
from records.corrections import ActRow, HardCase
from records.keys import LOCAL
from records.labels import Done
from records.queues import Looked, Waiting
from records.reviews import Answered, BadReview, Disagreement, InUse, ReviewRow, Said
from web import kept, maps
from web.access import Client, allowed
from web.database import Session
from web.decisions import follow_later
from web.errors import problems
from web.thumbnails import encoded

LARGEST = 2**63 - 1  # what Postgres counts to

router = APIRouter(
    prefix="/v1/reviews",
    tags=["reviews"],
    responses=problems(400, 401, 403, 404, 409, 422, 503),
)


def _text(word: str) -> str:
    if problem := classes.unwritable(word):
        raise ValueError(problem)
    return word


Word = Annotated[str, AfterValidator(_text), Field(max_length=255)]
Prose = Annotated[str, AfterValidator(_text), Field(max_length=2000)]
Number = Annotated[int, Field(ge=1, le=LARGEST)]
Version = Annotated[int, Path(ge=1, le=LARGEST)]
Key = Annotated[str, AfterValidator(_text), Field(max_length=1024)]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{8,64}$", description="a digest, or its begin")]
Most = Annotated[int, Query(ge=1, le=500)]
Reviewer = Annotated[Client, Depends(allowed("review", "admin"))]
Queue = Literal["random", "confidence", "mistaken", "scarce", "pools"]
Subject = Literal["validation", "test", "benchmark", "batch", "library"]


def _person(by: str | None, client: Client) -> str:
    """Who does it: whose key it is, or on the loopback whom the request names."""
    if client.name == LOCAL:
        if by is None:
            raise BadReview("say who you are: `by`")
        return by
    if by is not None and by.strip() != client.name:
        raise BadReview(f"the key {client.name!r} signs with its own name: leave `by` out")
    return client.name


# --- verdicts -------------------------------------------------------------------------------


_VERDICTS: list[JsonValue] = [
    {
        "transaction": "0193a5c2-7f00-7000-8000-000000000001",
        "label": "okapi",
        "queue": "random",
        "by": "Ann",
    },
    {
        "subject": "evaluation",
        "version": 7,
        "image": "3fa9c1d2",
        "verdict": "wrong",
        "label": "okapi",
        "by": "Ann",
    },
    {
        "subject": "identification",
        "version": 7,
        "image": "9e02b7aa",
        "verdict": "right",
        "queue": "pools",
        "by": "Ann",
    },
]


class Verdict(BaseModel):
    """What a person says of one answer: a transaction's, or a version's to an image."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _VERDICTS})

    transaction: uuid.UUID | None = None
    subject: Literal["identification", "evaluation"] | None = None
    version: Number | None = None
    image: Word | None = None
    verdict: Literal["right", "wrong", "bad image", "cannot tell"] | None = None
    label: Word | None = Field(None, description="what the picture shows; alone it says enough")
    note: Prose | None = None
    queue: Queue | None = Field(None, description="which queue had shown it; null: none")
    by: Word | None = Field(None, description="who says so, where no key does")
    learn: bool = Field(False, description="let the picture train as what the label says")
    new_classes: list[Word] = Field([], max_length=100, description="classes to make if need be")


class Written(BaseModel):
    """What was written down, and what the library made of the picture, if it was to learn it."""

    review: Said
    learned: Done | None


@router.get("/next")
def next_in_queue(
    session: Session,
    client: Reviewer,
    queue: Queue = "random",
    by: Word | None = None,
    version: Number | None = None,
    class_name: Annotated[Word | None, Query(alias="class")] = None,
    limit: Most = 1,
) -> list[Waiting]:
    """What this person should look at next, and why."""
    return queues.waiting(session, queue, _person(by, client), version, class_name, limit)


@router.post("", status_code=201)
def say(
    request: Request, session: Session, background: BackgroundTasks, client: Reviewer, said: Verdict
) -> Written:
    """Write down what a person says of an answer; said again, nothing is written."""
    by = _person(said.by, client)
    answered = _answered(session, said)
    stream = reviews.stream_of(said.queue)
    review = reviews.say(
        session, answered, by, said.verdict, said.label, said.note, stream, said.new_classes
    )
    learned = None
    if said.learn:
        if review.label is None:
            raise BadReview("nothing can be learned without a label: name the class")
        read = kept.read(answered) if answered.subject == "transaction" else None
        learned = reviews.into_library(
            session, answered, read, by, review.label, said.note, said.new_classes
        )
        follow_later(request, background)
    return Written(review=review, learned=learned)


def _answered(session: Session, said: Verdict) -> Answered:
    of_version = (said.subject, said.version, said.image)
    if said.transaction is not None and of_version == (None, None, None):
        return reviews.of_transaction(session, said.transaction)
    if said.transaction is None and said.version is not None and said.image is not None:
        if said.subject == "identification":
            return reviews.of_identification(session, said.version, said.image)
        if said.subject == "evaluation":
            return reviews.of_evaluation(session, said.version, said.image)
    raise BadReview("say which answer: transaction, or subject, version and image")


@router.get("")
def newest(
    session: Session,
    client: Reviewer,
    limit: Most = 50,
    by: Word | None = None,
    version: Number | None = None,
    subject: Literal["transaction", "identification", "evaluation"] | None = None,
    verdict: Literal["right", "wrong", "bad image", "cannot tell"] | None = None,
) -> list[ReviewRow]:
    """What people said, the newest first."""
    return reviews.newest(session, limit, by, version, subject, verdict)


@router.get("/disagreements")
def disagreements(session: Session, client: Reviewer, limit: Most = 50) -> list[Disagreement]:
    """Answers of which people say different things; both stand."""
    return reviews.disagreements(session, limit)


class Proof(BaseModel):
    """Accuracy in use, and the sentence that says it."""

    sentence: str
    facts: InUse


@router.get("/estimate")
def estimate(
    session: Session,
    client: Reviewer,
    version: Number | None = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
) -> Proof:
    """Accuracy in use, by the random stream alone, and what seeing the answer does to it."""
    facts = reviews.in_use(session, version, since, until)
    return Proof(sentence=facts.sentence, facts=facts)


@router.get("/transactions/{transaction}/picture", response_class=Response)
def picture_of_transaction(
    session: Session, client: Reviewer, transaction: uuid.UUID
) -> Response:
    """A transaction's picture, as JPEG."""
    return _jpeg(kept.picture(reviews.of_transaction(session, transaction)))


def _jpeg(image: Image.Image) -> Response:
    # Of a digest or a transaction there is one picture for ever, and it is nobody else's business.
    headers = {"Cache-Control": "private, max-age=86400"}
    return Response(encoded(image), media_type="image/jpeg", headers=headers)


# --- evaluated images, and what people do with images of the library --------------------------


@router.get("/versions/{version}/images")
def evaluated(
    session: Session,
    client: Reviewer,
    version: Version,
    subject: Subject | None = None,
    class_name: Annotated[Word | None, Query(alias="class")] = None,
    everything: bool = False,
    again: bool = False,
    limit: Most = 60,
    skip: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> list[Looked]:
    """What a version was evaluated on, the worst first: what is wrong or doubtful, or all."""
    return queues.evaluated(
        session, version, subject, class_name, everything, again, limit, skip
    )


@router.get("/versions/{version}/images/{image}/map", response_class=Response)
def map_of(
    session: Session,
    client: Reviewer,
    version: Version,
    image: Digest,
    class_name: Annotated[Word | None, Query(alias="class")] = None,
) -> Response:
    """Where the version looked for a class (by default what it answered): Grad-CAM, as JPEG."""
    return _jpeg(maps.overlay(session, version, image, class_name))


@router.get("/versions/{version}/images/{image}/picture", response_class=Response)
def picture_of_image(
    session: Session, client: Reviewer, version: Version, image: Digest
) -> Response:
    """An image that a version was evaluated on, as JPEG."""
    answered = reviews.of_evaluation(session, version, image)
    return _jpeg(kept.shown(kept.body_of(session, answered.sha256)))


@router.get("/versions/{version}/pools/{image}/picture", response_class=Response)
def picture_of_pool(
    session: Session, client: Reviewer, version: Version, image: Digest
) -> Response:
    """A picture of a pool that a version has answered, as JPEG."""
    answered = reviews.of_identification(session, version, image)
    return _jpeg(kept.shown(kept.body_of(session, answered.sha256)))


_CORRECTIONS: list[JsonValue] = [
    {
        "act": "relabel",
        "images": ["3fa9c1d2"],
        "label": "okapi",
        "by": "Ann",
        "why": "stripes",
        "version": 7,
    }
]


class Correction(BaseModel):
    """What a person does with images of the library."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _CORRECTIONS})

    act: Literal["remove", "restore", "relabel", "keep", "drop"]
    images: Annotated[list[Key], Field(min_length=1, max_length=1000)]
    why: Prose
    by: Word | None = Field(None, description="who does it, where no key does")
    label: Word | None = Field(None, description="what they are, to relabel them")
    new_classes: list[Word] = Field([], max_length=100)
    version: Number | None = Field(None, description="whose answer had shown them")


@router.post("/acts", status_code=201)
def correct(session: Session, client: Reviewer, asked: Correction) -> Done:
    """Remove, restore, relabel, keep or drop images of the library; all of them or none."""
    by = _person(asked.by, client)
    if (asked.label is not None) != (asked.act == "relabel"):
        raise BadReview("a label belongs to `relabel`, and `relabel` needs one")
    if asked.act == "relabel":
        return corrections.relabel(
            session, asked.images, asked.label or "", by, asked.why, asked.new_classes,
            asked.version,
        )  # fmt: skip
    act = {
        "remove": corrections.remove, "restore": corrections.restore, "keep": corrections.keep,
        "drop": corrections.drop,
    }[asked.act]  # fmt: skip
    return act(session, asked.images, by, asked.why, asked.version)


@router.get("/acts")
def acts(session: Session, client: Reviewer, limit: Most = 50) -> list[ActRow]:
    """What people did with images of the library, the newest first."""
    return corrections.acts(session, limit)


class Undoing(BaseModel):
    """Who undoes an act, and why."""

    model_config = ConfigDict(extra="forbid")

    why: Prose
    by: Word | None = None


@router.post("/acts/{act}/undo", status_code=201)
def undo(
    session: Session, client: Reviewer, act: Annotated[int, Path(ge=1, le=LARGEST)], asked: Undoing
) -> Done:
    """Do the opposite of an act."""
    return corrections.undo(session, act, _person(asked.by, client), asked.why)


@router.get("/challenges")
def challenges(
    session: Session, client: Reviewer, version: Number | None = None
) -> list[HardCase]:
    """Images that people keep as hard cases, and what a version answers, errors first."""
    return corrections.hard_cases(session, version)
