"""The overview: what serves, how well, what happened last, and what waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from fastapi import Request, Response
from markupsafe import Markup

from records import glances, history, runs
from records.glances import Day
from records.history import Accuracy
from web.database import Session
from web.pages import plots
from web.pages.frame import Reader, pages, shown
from web.pages.plots import Bar, Measured

router = pages()

DAYS = 30
VERSIONS = 40  # evaluations in the plot, of each kind
LACKING = 10


@router.get("/")
def overview(request: Request, session: Session, _: Reader) -> Response:
    """What people want to know first."""
    live = next(iter(history.answered(session, history.live(most=1))), None)
    measured = {
        subject: history.answered(session, history.accuracy(subject=subject, most=VERSIONS))
        for subject in ("benchmark", "test")
    }
    today = datetime.now(UTC).date()
    used = glances.days(session, today - timedelta(days=DAYS - 1))
    listed = runs.listed(session, most=8)
    lacking = history.answered(session, history.class_growth(most=LACKING))
    facts = {
        "live": live,
        "benchmark": _of(live.version_id, measured["benchmark"]) if live else None,
        "in_use": _in_use(session, live.version_id) if live else None,
        "asked": sum(one.transactions for one in used),
        "shown": sum(one.shown for one in used),
        "days": used,
        "usage_plot": usage_plot(used, today),
        "accuracy": [one for rows in measured.values() for one in rows],
        "accuracy_plot": accuracy_plot(measured),
        "night": next((one for one in listed if one.purpose == "nightly"), None),
        "runs": listed,
        "counted": bool(lacking), "most_lacking": LACKING,
        "lacking": [one for one in lacking if one.lacks > 0],
        "waiting": glances.waiting(session),
    }
    return shown(request, "overview.html", facts)


def _of(version_id: int, rows: Sequence[Accuracy]) -> Accuracy | None:
    mine = [one for one in rows if one.version_id == version_id]
    return max(mine, key=lambda one: one.benchmark_version or 0, default=None)


def _in_use(session: Session, version_id: int) -> history.InUse | None:
    return next(iter(history.answered(session, history.in_use(version=version_id))), None)


def accuracy_plot(measured: dict[str, list[Accuracy]]) -> Markup:
    """Accuracy by version, on each set of images; the newest version at the right."""

    def told(one: Accuracy) -> Measured:
        on = f"{one.subject} {one.benchmark_version}" if one.benchmark_version else one.subject
        words = (f"version {one.version_id}: {one.accuracy:.1%} of {one.images} images of the "
                 f"{on} set")  # fmt: skip
        return Measured(one.version_id, one.accuracy, one.accuracy_low, one.accuracy_high, words)

    newest = {
        subject: {one.version_id: one for one in sorted(rows, key=lambda one: one.evaluated_at)}
        for subject, rows in measured.items()
    }
    return plots.by_version(
        "Accuracy by version",
        {f"{subject} images": [told(one) for one in rows.values()]
         for subject, rows in newest.items()},
    )  # fmt: skip


def usage_plot(rows: Sequence[Day], today: date) -> Markup:
    """Answers by day, a bar for each day of the window."""
    by = {one.day: one for one in rows}
    bars = []
    for back in range(DAYS - 1, -1, -1):
        day = today - timedelta(days=back)
        one = by.get(day, Day(day, 0, 0))
        words = f"{day}: {one.transactions} answered, {one.shown} shown"
        bars.append(Bar(one.transactions, one.shown, f"{day:%d %b}", words))
    return plots.bars("Pictures answered by day", bars)
