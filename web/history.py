"""`/v1/history/…`: every question about history, answered as JSON or CSV."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Response

from records import history
from records.history import Question
from records.spreadsheet import as_csv
from web.access import allowed
from web.database import Session
from web.errors import problems

Row = TypeVar("Row")

router = APIRouter(
    prefix="/v1/history",
    tags=["history"],
    dependencies=[Depends(allowed("review", "admin"))],
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **problems(401, 403, 422, 503),
    },
)

MOST = 10_000  # rows of one answer: they are all in memory, beside the network that serves
Form = Annotated[
    Literal["json", "csv"], Query(alias="format", description="How the rows are written.")
]


def _told(session: Session, question: Question[Row], form: str) -> Any:
    if question.values["most"] > MOST:
        raise history.BadQuestion(f"{question.values['most']} rows: ask for 1 to {MOST:,} here; "
                                  "`regraft history` gives more")  # fmt: skip
    rows = history.answered(session, question)
    if form == "csv":
        return Response(as_csv(question.row, rows), media_type="text/csv; charset=utf-8")
    return rows


@router.get("/accuracy", response_model=list[history.Accuracy])
def accuracy(
    session: Session,
    asked: Annotated[Question[history.Accuracy], Depends(history.accuracy)],
    form: Form = "json",
) -> Any:
    """Accuracy over time and by version: every evaluation, the newest first.

    Windows are days of UTC, both included; subject is the set of images: validation, test,
    benchmark, batch or library; most is the number of rows. So it is with all questions here.
    """
    return _told(session, asked, form)


@router.get("/classes", response_model=list[history.ClassAccuracy])
def classes(
    session: Session,
    asked: Annotated[Question[history.ClassAccuracy], Depends(history.classes)],
    form: Form = "json",
) -> Any:
    """Recall, precision and F1 by class: of what serves, of a version, or of a class over time."""
    return _told(session, asked, form)


@router.get("/bands", response_model=list[history.Band])
def bands(
    session: Session,
    asked: Annotated[Question[history.Band], Depends(history.bands)],
    form: Form = "json",
) -> Any:
    """Accuracy by confidence, evaluation by evaluation."""
    return _told(session, asked, form)


@router.get("/origins", response_model=list[history.Origin])
def origins(
    session: Session,
    asked: Annotated[Question[history.Origin], Depends(history.origins)],
    form: Form = "json",
) -> Any:
    """Accuracy on real, staged and synthetic images of the library."""
    return _told(session, asked, form)


@router.get("/sub-classes", response_model=list[history.SubClass])
def sub_classes(
    session: Session,
    asked: Annotated[Question[history.SubClass], Depends(history.sub_classes)],
    form: Form = "json",
) -> Any:
    """Recall by sub-class: of what serves, of a version, or of a class over time."""
    return _told(session, asked, form)


@router.get("/thresholds", response_model=list[history.Threshold])
def thresholds(
    session: Session,
    asked: Annotated[Question[history.Threshold], Depends(history.thresholds)],
    form: Form = "json",
) -> Any:
    """The confidence that each version needs, what it gives, how much of the use it shows."""
    return _told(session, asked, form)


@router.get("/compare", response_model=list[history.Comparison])
def compare(
    session: Session,
    asked: Annotated[Question[history.Comparison], Depends(history.compare)],
    form: Form = "json",
) -> Any:
    """Two versions against each other on the same images, set by set."""
    return _told(session, asked, form)


@router.get("/flips", response_model=list[history.Flip])
def flips(
    session: Session,
    asked: Annotated[Question[history.Flip], Depends(history.flips)],
    form: Form = "json",
) -> Any:
    """The images on which two versions part, both ways; those that version lost come first."""
    return _told(session, asked, form)


@router.get("/in-use", response_model=list[history.InUse])
def in_use(
    session: Session,
    asked: Annotated[Question[history.InUse], Depends(history.in_use)],
    form: Form = "json",
) -> Any:
    """Accuracy in use, from random reviews, beside the figures of training."""
    return _told(session, asked, form)


@router.get("/in-use-classes", response_model=list[history.InUseClass])
def in_use_classes(
    session: Session,
    asked: Annotated[Question[history.InUseClass], Depends(history.in_use_classes)],
    form: Form = "json",
) -> Any:
    """How often an answer of each class is right in use."""
    return _told(session, asked, form)


@router.get("/in-use-bands", response_model=list[history.InUseBand])
def in_use_bands(
    session: Session,
    asked: Annotated[Question[history.InUseBand], Depends(history.in_use_bands)],
    form: Form = "json",
) -> Any:
    """How often answers are right in use, by their confidence."""
    return _told(session, asked, form)


@router.get("/calibration", response_model=list[history.Calibration])
def calibration(
    session: Session,
    asked: Annotated[Question[history.Calibration], Depends(history.calibration)],
    form: Form = "json",
) -> Any:
    """Week by week: how right and how sure what served was, and how far that drifts."""
    return _told(session, asked, form)


@router.get("/usage", response_model=list[history.Usage])
def usage(
    session: Session,
    asked: Annotated[Question[history.Usage], Depends(history.usage)],
    form: Form = "json",
) -> Any:
    """Who asked how much, by day, client and version."""
    return _told(session, asked, form)


@router.get("/predicted", response_model=list[history.Predicted])
def predicted(
    session: Session,
    asked: Annotated[Question[history.Predicted], Depends(history.predicted)],
    form: Form = "json",
) -> Any:
    """How often each class was answered, by day: one class over all time, or the last week."""
    return _told(session, asked, form)


@router.get("/live", response_model=list[history.Live])
def live(
    session: Session,
    asked: Annotated[Question[history.Live], Depends(history.live)],
    form: Form = "json",
) -> Any:
    """What was live when, who changed it and why."""
    return _told(session, asked, form)


@router.get("/growth", response_model=list[history.Growth])
def growth(
    session: Session,
    asked: Annotated[Question[history.Growth], Depends(history.growth)],
    form: Form = "json",
) -> Any:
    """How many classes and images there were to learn, snapshot by snapshot."""
    return _told(session, asked, form)


@router.get("/class-growth", response_model=list[history.ClassGrowth])
def class_growth(
    session: Session,
    asked: Annotated[Question[history.ClassGrowth], Depends(history.class_growth)],
    form: Form = "json",
) -> Any:
    """How many images a class had, or all classes in the newest snapshot, scarce ones first."""
    return _told(session, asked, form)
