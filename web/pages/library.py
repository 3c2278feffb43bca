"""The library: its classes and images, what is in quarantine and why, and the ways out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Form, Query, Request, Response
from markupsafe import Markup
from pydantic import Field

from records import batches, classes, corrections, findings, history, library
from records.corrections import BadCorrection
from records.history import ClassAccuracy, ClassGrowth, SubClass
from web.database import Session
from web.pages import plots
from web.pages.frame import (
    AT_ONCE,
    Author,
    Column,
    Decider,
    Reader,
    Why,
    done,
    pages,
    query,
    selected,
    shown,
    sorted_by,
    together,
)
from web.pages.plots import Bar, Measured

router = pages()

PAGE = 60
ROWS = 200
PLOTTED = 40  # versions, and snapshots
ACTS = 10  # that people did last
COLUMNS = (
    Column("class", "name", number=False), Column("usable", "usable"), Column("train", "train"),
    Column("validation", "validation"), Column("test", "test"), Column("held out", "held"),
    Column("withdrawn", "withdrawn"), Column("real", "real"), Column("staged", "staged"),
    Column("synthetic", "synthetic"),
)  # fmt: skip
# What lets an object out of quarantine, by the expectation that keeps it in.
WAYS_OUT = {
    "batch_reverted": "Upload the right images, with the right labels, under new keys.",
    "removed": "Bring it back, if it was removed by mistake.",
    "not_removed": "Bring the image back that it repeats, if that was removed by mistake.",
    "not_in_benchmark": "Leave it: no training may see a benchmark image.",
    "not_near_benchmark": "Leave it: no training may see what repeats a benchmark image.",
    "one_label": "Delete the copy whose label is wrong; the next night takes the other in.",
    "label_spelt": "Move it under the spelling that is used.",
    "label_allowed": "Move it under a class that exists, or make this one: `regraft class make`.",
    "labelled": "Move it into a class's folder, or give its manifest row a label.",
    "labelled_by_person": "Let a person confirm the label in a manifest, under their name.",
    "object_exists": "Upload what the manifest names, or drop its row.",
    "origin": "Say `real`, `staged` or `synthetic` in the manifest.",
    "upright": "Turn it upright, or upload it without its EXIF orientation.",
}
# Reasons for which there is no picture to show.
UNSHOWN = ("readable", "format", "still", "object_exists", "key_allowed")
OTHERWISE = "Upload a mended object under the same key: the next night judges the new bytes."

Act = Annotated[int, Field(ge=1, lt=2**63)]
Images = Annotated[list[str], Form(default_factory=list, max_length=AT_ONCE)]


@router.get("/library")
def holdings(
    request: Request, session: Session, _: Reader, sort: str | None = None, every: bool = False
) -> Response:
    """Every class, its images and what it lacks."""
    rows, word = sorted_by(library.holdings(session), COLUMNS, sort)
    cutoff = findings.cutoff(session)
    facts = {
        "rows": rows if every else rows[:ROWS], "all": len(rows), "columns": COLUMNS, "word": word,
        "cutoff": cutoff, "usable": sum(one.usable for one in rows),
        "under": sum(one.usable < cutoff for one in rows),
        "made": sum(one.staged + one.synthetic for one in rows),
        "batches": batches.newest(session, most=10),
        "reasons": batches.quarantine_reasons(session),
        "acts": together(
            corrections.acts(session, most=AT_ONCE),
            "act", "from_class", "to_class", "done_by", "done_at", "why",
        )[:ACTS],
    }  # fmt: skip
    return shown(request, "library.html", facts)


@router.get("/library/class")
def one_class(
    request: Request,
    session: Session,
    _: Reader,
    name: Annotated[str, Query(max_length=255)],
    after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The images of a class, some at a time."""
    if problem := classes.unwritable(name + after):
        raise classes.BadClass(f"class {name[:60]!r} {problem}")
    known = classes.names(session)
    if name not in known:
        told = f"there is no class {name[:60]!r}: the library lists all"
        raise classes.UnknownClass(told, [name])
    today = known[name]
    rows = library.images_of(session, today, after, PAGE + 1)  # one more tells whether more follow
    facts = {
        "name": today, "asked": name, "rows": rows[:PAGE], "after": after,
        "next": rows[PAGE - 1].sha256 if len(rows) > PAGE else None,
        "names": sorted(set(known.values())),
        "history": None if after else _history(session, today),
    }  # fmt: skip
    return shown(request, "class.html", facts)


@dataclass(frozen=True)
class History:
    """One class over all versions and snapshots, the newest first.

    sub_classes: of the newest evaluation on test images, where there is more than one.
    """

    recall: Sequence[ClassAccuracy]
    recall_plot: Markup
    growth: Sequence[ClassGrowth]
    growth_plot: Markup
    sub_classes: Sequence[SubClass]


def _history(session: Session, name: str) -> History:
    grown = history.answered(session, history.class_growth(name, most=PLOTTED))
    since = grown[-1].frozen_at.date() if len(grown) == PLOTTED else None
    measured = {
        subject: history.answered(
            session, history.classes(since, class_name=name, subject=subject, most=PLOTTED)
        )
        for subject in ("test", "benchmark")
    }
    parts = [
        one
        for newest in measured["test"][:1]
        for one in history.answered(
            session, history.sub_classes(None, None, newest.version_id, name, "test", PLOTTED)
        )
    ]
    return History(
        [one for rows in measured.values() for one in rows], _recall_plot(name, measured),
        grown, _growth_plot(name, grown), parts if len(parts) > 1 else [],
    )  # fmt: skip


def _recall_plot(name: str, measured: Mapping[str, Sequence[ClassAccuracy]]) -> Markup:
    def told(one: ClassAccuracy) -> Measured:
        words = (f"version {one.version_id}: {one.correct} of {one.images} images of the "
                 f"{one.subject} set")  # fmt: skip
        return Measured(one.version_id, one.recall or 0.0, one.recall_low, one.recall_high, words)

    return plots.by_version(
        f"Recall of {name} by version",
        # a version that answered several benchmarks, or had two classes that are one now: the
        # newest, and the weaker
        {f"{subject} images": [
            told(one) for one in {
                one.version_id: one for one in reversed(rows) if one.recall is not None
            }.values()] for subject, rows in measured.items()},
    )  # fmt: skip


def _growth_plot(name: str, grown: Sequence[ClassGrowth]) -> Markup:
    bars = [
        Bar(
            one.usable, one.train + one.validation + one.test, f"{one.frozen_at:%Y-%m-%d}",
            f"{one.frozen_at:%Y-%m-%d}: {one.usable} usable"
            + (f", {one.lacks} too few" if one.lacks else ""),
        )
        for one in reversed(grown)
    ]  # fmt: skip
    return plots.bars(f"Images of {name} by snapshot", bars)


@router.post("/library/act")
def act(
    request: Request,
    session: Session,
    by: Author,
    images: Images,
    act: Annotated[Literal["remove", "restore", "relabel", "keep", "drop"], Form()],
    to: Annotated[str, Form(max_length=4000)],
    why: Why = "",
    label: Annotated[str, Form(max_length=255)] = "",
    version: Annotated[int | None, Form(ge=1, lt=2**63)] = None,
) -> Response:
    """Remove, restore, relabel, keep or drop images of the library; all of them or none."""
    if label.strip() and act != "relabel":
        raise BadCorrection(
            f"the class {label.strip()!r} was typed and another button pressed: press `Relabel`, "
            "or empty the field"
        )
    selected(images)
    if act == "relabel":
        if not label.strip():
            raise BadCorrection("say what they are: the name of a class")
        came = corrections.relabel(session, images, label, by, why, (), version)
    else:
        came = getattr(corrections, act)(session, images, by, why, version)
    words = {"remove": "removed", "restore": "brought back", "relabel": f"relabelled {label}",
             "keep": "kept as hard cases", "drop": "kept no longer"}[act]  # fmt: skip
    already = f", {came.already} were so already" if came.already else ""
    what = "image" if came.changed == 1 else "images"
    return done(request, f"{came.changed} {what} {words}{already}.", to)


@router.post("/library/undo")
def undo(
    request: Request,
    session: Session,
    by: Author,
    number: Annotated[list[Act], Form(min_length=1, max_length=AT_ONCE)],
    why: Why = "",
) -> Response:
    """Do the opposite of an act, or of those on many images at once: of all of them or none."""
    for one in number:
        corrections.undo(session, one, by, why)
    told = f"Act {number[0]} is" if len(number) == 1 else f"{len(number)} acts are"
    return done(request, f"{told} undone.", "/library")


@router.get("/library/quarantine")
def quarantine(
    request: Request,
    session: Session,
    client: Reader,
    expectation: Annotated[str | None, Query(max_length=255)] = None,
    batch: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """What is in quarantine, why, and the way out."""
    if problem := classes.unwritable(expectation or ""):
        raise classes.BadClass(f"reason {expectation!r} {problem}")
    facts = {
        "batch": batches.get(session, batch) if batch else None,
        "waiting": batches.waiting(session, batch, PAGE) if batch else [],
        "may_decide": "admin" in client.scopes,
        "reasons": batches.quarantine_reasons(session, batch),
        "expectation": expectation,
        "rows": batches.in_quarantine(session, expectation or None, batch, ROWS),
        "ways_out": WAYS_OUT, "otherwise": OTHERWISE, "unshown": UNSHOWN,
    }  # fmt: skip
    return shown(request, "quarantine.html", facts)


@router.post("/library/batch")
def decide_batch(
    request: Request,
    session: Session,
    by: Decider,
    batch: Annotated[int, Form(ge=1, lt=2**63)],
    act: Annotated[Literal["accept", "revert"], Form()],
    why: Why = "",
) -> Response:
    """Let a refused batch in, or take one back."""
    if not why.strip():
        raise BadCorrection("say why: it is kept with the batch")
    if act == "accept":
        batches.reopen_batch(session, batch, by, why)
        told = f"The next night takes batch {batch} in."
    else:
        count = batches.revert_batch(session, batch, by, why)
        told = f"Batch {batch} is reverted: {count} images withdrawn."
    return done(request, told, f"/library/quarantine{query(batch=batch)}")
