"""In use: what answers are worth to those who ask, beside what was measured in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from fastapi import Query, Request, Response
from markupsafe import Markup

from records import glances, history, versions
from records.history import BadQuestion, Calibration, InUse, InUseBand
from vision.scores import Bin
from web.database import Session
from web.pages import plots
from web.pages.frame import Column, Reader, pages, percent, shown, sorted_by
from web.pages.plots import Bar, Measured, Point, Series

router = pages()

DAYS = 90  # of the first view; a field or a link has all time
ALL = "all"
ROWS = 20  # of a table whose end is one click away
PLOTTED = 40  # versions
WEEKS = 104
CLASSES = 20_000
THRESHOLDS = 200

Word = Annotated[str, Query(max_length=20)]


@dataclass(frozen=True)
class OneClass:
    """Answers of one class in use; precision: the same on the test images of one version."""

    name: str
    reviewed: int
    undecided: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    sure: float | None
    precision: float | None


COLUMNS = (
    Column("class answered", "name", number=False), Column("reviewed", "reviewed"),
    Column("nobody could tell", "undecided"), Column("right in use", "accuracy"),
    Column("sure of it", "sure"), Column("right on test images", "precision"),
)  # fmt: skip


@router.get("/in-use")
def in_use(
    request: Request,
    session: Session,
    _: Reader,
    version: Word = "",
    since: Word | None = None,
    until: Word = "",
    sort: str | None = None,
    every: bool = False,
) -> Response:
    """What is known of answers in a window. since: by default 90 days ago; empty or `all`: ever."""
    number, begin, end = _window(version, since, until)
    asked = history.in_use(begin, end, number)
    if number is not None:
        versions.get(session, number)
    used = history.answered(session, asked)
    weeks = history.answered(session, history.calibration(begin, end, number, WEEKS))
    bands = history.answered(session, history.in_use_bands(begin, end, number))
    tested = number or (used[0].version_id if used else None)
    by_class, word = sorted_by(_classes(session, (begin, end, number), tested), COLUMNS, sort)
    # of every set where one version is asked for, else of that which is like what is asked in use
    thresholds = history.answered(session, history.thresholds(
        version=number, subject=None if number else "test", most=THRESHOLDS
    ))  # fmt: skip
    facts = {
        "version": number, "since": begin, "until": end, "today": datetime.now(UTC).date(),
        "given": {"version": number, "since": begin or ALL, "until": end, "every": every},
        "every": every, "rows_shown": ROWS,
        "newest": used[0] if used else None, "used": used,
        "asked": sum(one.transactions for one in used), "shown": sum(one.shown for one in used),
        "reviewed": sum(one.reviewed for one in used),
        "undecided": sum(one.undecided for one in used),
        "versions_plot": versions_plot(used[:PLOTTED]), "plotted": PLOTTED,
        "weeks": weeks, "weeks_plot": weeks_plot(weeks[::-1]), "asked_plot": asked_plot(weeks),
        "bands": bands, "bands_plot": bands_plot(bands),
        "classes": by_class if every else by_class[:ROWS], "all_classes": len(by_class),
        "columns": COLUMNS, "word": word, "tested": tested,
        "clients": glances.clients(session, begin, end, number),
        "thresholds": thresholds,
    }  # fmt: skip
    return shown(request, "use.html", facts)


def _window(
    version: str, since: str | None, until: str
) -> tuple[int | None, date | None, date | None]:
    """A version and both ends of a window, as people and our links write them."""
    if version.strip() and not version.strip().isdecimal():
        raise BadQuestion(f"version {version!r} is no number: `regraft versions` lists them")
    number = int(version) if version.strip() else None
    end = _day(until, "until")
    if since is None:
        last = (end or datetime.now(UTC).date()).toordinal()
        return number, date.fromordinal(max(1, last - DAYS + 1)), end
    return number, None if since == ALL else _day(since, "since"), end


def _day(word: str, name: str) -> date | None:
    try:
        return date.fromisoformat(word.strip()) if word.strip() else None
    except ValueError:
        raise BadQuestion(f"{name} {word!r} is no day: write 2026-11-22") from None


def _classes(
    session: Session, window: tuple[date | None, date | None, int | None], tested: int | None
) -> list[OneClass]:
    """Answers by class, the most reviewed first."""
    begin, end, number = window
    found = history.answered(
        session, history.in_use_classes(begin, end, number, most=CLASSES)
    )
    if not found or tested is None:
        return []
    measured = {
        one.class_name: one.precision
        for one in history.answered(
            session, history.classes(version=tested, subject="test", most=CLASSES)
        )
    }
    return [
        OneClass(
            one.class_name, one.reviewed, one.undecided, one.accuracy, one.accuracy_low,
            one.accuracy_high, one.reviewed_confidence, measured.get(one.class_name),
        )
        for one in found
    ]  # fmt: skip


# --- plots ------------------------------------------------------------------------------------


def versions_plot(used: Sequence[InUse]) -> Markup:
    """In use beside the test images and the benchmark, version by version."""
    reviewed, tested, judged = [], [], []
    for one in used:
        name = f"version {one.version_id}"
        if one.accuracy is not None:
            words = f"{name}: {one.accuracy:.1%} right in use, by {one.reviewed} reviews"
            reviewed.append(Measured(
                one.version_id, one.accuracy, one.accuracy_low, one.accuracy_high, words
            ))  # fmt: skip
        if one.test_accuracy is not None:
            words = f"{name}: {one.test_accuracy:.1%} right on test images"
            tested.append(Measured(
                one.version_id, one.test_accuracy, one.test_low, one.test_high, words
            ))  # fmt: skip
        if one.benchmark_accuracy is not None:
            words = (f"{name}: {one.benchmark_accuracy:.1%} right on benchmark "
                     f"{one.benchmark_version}")  # fmt: skip
            judged.append(Measured(
                one.version_id, one.benchmark_accuracy, one.benchmark_low, one.benchmark_high, words
            ))  # fmt: skip
    by_name = {"in use": reviewed, "test images": tested, "benchmark": judged}
    return plots.by_version("Right in use and in training, by version", by_name)


def weeks_plot(weeks: Sequence[Calibration]) -> Markup:
    """How right and how sure answers were, week by week; what lies between is the calibration."""
    if not weeks:
        return Markup("")
    first, last = weeks[0].week, weeks[-1].week
    wide = (last - first).days

    def points(field: str, words: str, spread: bool = False) -> tuple[Point, ...]:
        return tuple(
            Point(
                (one.week - first).days / wide if wide else 0.5, value,
                one.accuracy_low if spread else None, one.accuracy_high if spread else None,
                f"week of {one.week}: {percent(value)} {words}",
            )
            for one in weeks if (value := getattr(one, field)) is not None
        )  # fmt: skip

    series = [
        Series("right, by reviews", points("accuracy", "right", spread=True)),
        Series("sure of those reviewed", points("reviewed_confidence", "sure of those reviewed")),
        Series("sure of all", points("mean_confidence", "sure of all answers")),
    ]
    return plots.shares(
        "How right and how sure, week by week", [one for one in series if one.points],
        (str(first) if wide else "", str(last)),
    )  # fmt: skip


def asked_plot(weeks: Sequence[Calibration]) -> Markup:
    """Pictures answered, a bar for each week of the window, also for those without any."""
    if not weeks:
        return Markup("")
    by = {one.week: one.transactions for one in weeks}
    bars, week = [], min(by)
    while week <= max(by):
        count = by.get(week, 0)
        bars.append(Bar(count, count, f"{week}", f"week of {week}: {count} answered"))
        week += timedelta(days=7)
    return plots.bars("Pictures answered by week", bars)


def bands_plot(bands: Sequence[InUseBand]) -> Markup:
    """How right answers are by how sure they are."""
    bins = [
        Bin(
            one.low, one.high, one.reviewed, one.reviewed_confidence, one.accuracy,
            one.accuracy_low or 0.0, 1.0 if one.accuracy_high is None else one.accuracy_high,
        )
        for one in bands
        if one.accuracy is not None and one.reviewed_confidence is not None
    ]  # fmt: skip
    return plots.reliability("Reliability in use", bins) if bins else Markup("")
