"""Versions: all of them, one with everything known of it, and what people decide about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Form, HTTPException, Path, Query, Request, Response

from infra import database
from records import (
    classes,
    deployments,
    evaluations,
    flips,
    history,
    snapshots,
    summaries,
    versions,
)
from records.evaluations import EvaluationRow
from records.tables import PURPOSES
from vision.scores import ClassScore, Confusion
from web.database import Session
from web.decisions import Deciding, Decisions
from web.pages import plots
from web.pages.frame import (
    Column,
    Decider,
    Reader,
    Why,
    done,
    in_words,
    pages,
    shown,
    sorted_by,
    when,
)
from web.pages.plots import Point, Series

router = pages()

Number = Annotated[int, Path(ge=1, lt=2**63)]
MOST_VERSIONS = 1000
OFFERED = 200  # to compare; others by their number in the address
ROWS = 50  # of a table whose end is one click away
LIVE = 20  # changes of what serves
MAPS, FLIPS = 24, 24
MATRIX = 16  # classes, those that are confused most
CLASS_COLUMNS = (
    Column("class", "name", number=False), Column("images", "images"),
    Column("recall", "recall"), Column("precision", "precision"), Column("F1", "f1"),
    Column("answered", "predicted"),
)  # fmt: skip

@router.get("/versions")
def listed(
    request: Request,
    session: Session,
    _: Reader,
    most: Annotated[int, Query(ge=1, le=MOST_VERSIONS)] = ROWS,
    purpose: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """The newest versions, of all purposes or of one, and what served when."""
    rows = summaries.of_versions(most + 1, purpose or None)  # one more tells whether there are more
    facts = {
        "versions": rows[:most], "purposes": PURPOSES, "purpose": purpose, "most": most,
        "more": len(rows) > most, "live": history.answered(session, history.live(most=LIVE)),
    }  # fmt: skip
    return shown(request, "versions.html", facts)


@router.get("/versions/{version_id}")
def one_version(
    request: Request,
    session: Session,
    client: Reader,
    version_id: Number,
    on: str | None = None,
    sort: str | None = None,
    every: bool = False,
) -> Response:
    """Everything about one version. on: which of its evaluations, `benchmark 2` or `test`."""
    version = versions.get(session, version_id)
    found = evaluations.of_version(session, version_id)
    judged = deployments.verdict(session, version_id)
    rejected = deployments.rejected(session, version_id)
    champion = deployments.champion(session)
    flipped = flips.of_verdict(session, judged) if judged else []
    maps = evaluations.gradcams(session, version_id)
    before = judged.champion_id if judged else None
    counts = snapshots.class_counts(session, version.snapshot_digest)
    today = classes.today(session)
    live = history.answered(session, history.live(version=version_id))
    facts = {
        "version": version, "serves": champion is not None and champion.version_id == version_id,
        "called_today": {name: today[name] for name in version.class_names if name in today},
        "figures": [(subject(one), one) for one in found],
        "shown": _shown(session, found, on, sort, every),
        "columns": CLASS_COLUMNS, "every": every, "rows_shown": ROWS,
        "thresholds": evaluations.thresholds(session, version_id),
        "verdict": judged, "checks": deployments.checks(session, judged.id) if judged else [],
        "rejected": rejected, "may_decide": "admin" in client.scopes,
        "flips": flipped[:FLIPS], "lost": sum(not one.gained for one in flipped),
        "gained": sum(one.gained for one in flipped),
        "maps": _gallery(maps), "all_maps": len(maps),
        "mine": _kept(maps), "theirs": _kept(evaluations.gradcams(session, before or 0)),
        "lineage": versions.lineage(session, version_id),
        "live": live,
        "plan": _plan((version.resolved or {}).get("plan", version.plan)),
        "snapshot": snapshots.get(session, version.snapshot_digest), "all_counts": len(counts),
        "counts": sorted(counts, key=lambda one: (one.usable, one.class_name))[:ROWS],
        "lacking": [one for one in counts if one.lacks > 0],
        "epochs": versions.epochs(session, version_id),
        "epochs_plot": _epochs(versions.epochs(session, version_id)),
        "waited": _stands(version_id, judged, live) if "wait" in request.query_params else "",
        "can": _possible(
            version, judged is not None and not judged.passed, rejected is not None, champion,
            request,
        ),
    }  # fmt: skip
    return shown(request, "version.html", facts)


def _stands(
    version_id: int, judged: deployments.VerdictRow | None, live: Sequence[history.Live]
) -> str:
    """What Postgres knows of the newest decision, for who waits for one that this service lost."""
    served = max(live, key=lambda one: one.live_from, default=None)
    if served is not None and (judged is None or served.live_from >= judged.created_at):
        newest = f"came to serve on {when(served.live_from)}: {served.kind} by " \
                 f"{served.deployed_by}, {served.why}"
    elif judged is not None:
        newest = f"was {'passed' if judged.passed else 'refused'} by the gate on " \
                 f"{when(judged.created_at)}; its checks stand below"
    else:
        newest = "was never judged"
    return (
        f"Nothing is being judged now. Version {version_id} {newest}. If you asked after that, "
        "it failed, or the service ended before it was done: decide again."
    )


def subject(row: EvaluationRow) -> str:
    """What was answered: `test`, `benchmark 2`, `batch 7`."""
    number = row.benchmark_version or row.batch_id
    return row.subject if number is None else f"{row.subject} {number}"


@dataclass(frozen=True)
class Shown:
    """One evaluation, in tables and plots."""

    on: str
    row: EvaluationRow
    classes: Sequence[ClassScore]
    all_classes: int
    sort: str
    reliability: Any
    bins: Sequence[Any]
    confusions: Sequence[Confusion]
    matrix: Sequence[tuple[str, Sequence[tuple[int, str]]]]
    matrix_names: Sequence[str]


def _shown(
    session: Session,
    found: Sequence[EvaluationRow],
    on: str | None,
    sort: str | None,
    every: bool,
) -> Shown | None:
    """The evaluation asked for, else that on the newest benchmark, else on test images."""
    order = {"benchmark": 0, "test": 1, "validation": 2}
    ranked = sorted(
        found, key=lambda one: (order.get(one.subject, 3), -(one.benchmark_version or 0))
    )
    row = next((one for one in found if subject(one) == on), ranked[0] if ranked else None)
    if row is None:
        return None
    scores, word = sorted_by(evaluations.class_scores(session, row.id), CLASS_COLUMNS, sort)
    bins = evaluations.reliability(session, row.id)
    confused = evaluations.confusions(session, row.id)
    names, matrix = _matrix(scores, confused)
    return Shown(
        subject(row), row, scores if every else scores[:ROWS], len(scores), word,
        plots.reliability(f"Reliability on {subject(row)}", bins), bins, confused[:12], matrix,
        names,
    )  # fmt: skip


def _matrix(
    scores: Sequence[ClassScore], confused: Sequence[Confusion]
) -> tuple[list[str], list[tuple[str, list[tuple[int, str]]]]]:
    """Counts of true against answered class, of the classes that are confused most.

    Each cell has its shade: 0 to 4 by the share of the true class's images.
    """
    by_name = {one.name: one for one in scores}
    names: list[str] = []
    for one in confused:
        names += [name for name in (one.label, one.predicted) if name not in names]
    names += [one.name for one in scores if one.images and one.name not in names]
    names = sorted(names[:MATRIX])
    counts = {(one.label, one.predicted): one.images for one in confused}
    rows = []
    for label in names:
        score = by_name.get(label)
        whole = score.images if score else 0
        cells = []
        for predicted in names:
            right = label == predicted
            number = (score.correct if score else 0) if right else counts.get((label, predicted), 0)
            share = number / whole if whole else 0.0
            shade = min(4, int(share * 4.999)) if right else min(4, int(share * 12) + 1)
            cells.append((number, f"{'right' if right else 'heat'}-{shade if number else 0}"))
        rows.append((label, cells))
    return names, rows


def _kept(maps: Sequence[evaluations.GradCamRow]) -> set[tuple[str, str]]:
    """Of which image and class a map is kept: another one would have to be made, by a network."""
    return {(one.sha256, one.target) for one in maps}


def _gallery(maps: Sequence[evaluations.GradCamRow]) -> list[evaluations.GradCamRow]:
    """The worst errors first, then a sample of what is right; flips stand apart."""
    order = {"worst error": 0, "sample": 1}
    wanted = [one for one in maps if one.reason in order and one.target == one.predicted]
    wanted.sort(key=lambda one: (order[one.reason], -one.confidence))
    worst = [one for one in wanted if one.reason == "worst error"][: MAPS // 2]
    return worst + [one for one in wanted if one.reason == "sample"][: MAPS - len(worst)]


def _plan(plan: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A plan as names and values, what is nested by dotted names."""
    rows: list[tuple[str, str]] = []
    for name, value in plan.items():
        if isinstance(value, dict) and value:
            rows += _plan(value, f"{before}{name}.")
        else:
            rows.append((before + name, "none" if value is None else str(value)))
    return rows


def _epochs(epochs: Sequence[versions.EpochRow]) -> Any:
    last = max(1, len(epochs) - 1)
    trained, validated = (
        tuple(
            Point(place / last, value, None, None, f"epoch {one.number}: {value:.1%} {words}")
            for place, one in enumerate(epochs)
            if (value := getattr(one, field)) is not None
        )
        for field, words in (("train_accuracy", "in training"),
                             ("validation_accuracy", "on validation images"))
    )  # fmt: skip
    series = [Series("training", trained), Series("validation", validated)]
    ends = ("epoch 1", f"epoch {len(epochs)}")
    return plots.shares("Accuracy by epoch", [one for one in series if one.points], ends)


# --- decisions --------------------------------------------------------------------------------


def _decisions(request: Request) -> Decisions | None:
    found: Decisions | None = request.app.state.decisions
    return found


def _possible(
    version: versions.VersionRow, refused: bool, rejected: bool, champion: Any, request: Request
) -> dict[str, bool]:
    """What a person may decide of a version; the acts themselves refuse what they must."""
    serves = champion is not None and champion.version_id == version.id
    able = _decisions(request) is not None and version.state == "trained" and not serves
    return {
        "approve": able and (refused or rejected) and version.purpose in deployments.SERVING,
        "adopt": able and version.purpose in ("control", "bakeoff"),
        "roll_back": able and not rejected and version.purpose in deployments.SERVING,
        "reject": not (serves or rejected) and version.purpose in deployments.SERVING,
    }


@router.post("/versions/{version_id}/decide")
def decide(
    request: Request,
    by: Decider,
    version_id: Number,
    act: Annotated[Literal["approve", "adopt", "roll_back", "reject"], Form()],
    why: Why = "",
) -> Response:
    """Approve, adopt, reject, or return to a version; what needs the gate goes on meanwhile."""
    to = f"/versions/{version_id}"
    if act == "reject":
        with database.connect().transaction() as session:
            deployments.reject(session, version_id, by, why)
        return done(request, f"Version {version_id} is rejected.", to)
    deciding: Deciding | None = request.app.state.deciding
    if deciding is None:
        raise HTTPException(409, "this service decides nothing: start it by `regraft web`")
    deployments.say_who(by, why)
    with database.connect().transaction() as session:
        versions.get(session, version_id)
    deciding.begin(act, version_id, by, why, lambda error: in_words(request, error)[1])
    return done(request, "", f"{to}?wait=1")


# --- two versions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One class of two versions on the same set; change: recall of the first minus the other's."""

    name: str
    images: int
    recall: float
    other_recall: float
    change: float


CHANGES = (
    Column("class", "name", number=False), Column("images", "images"), Column("recall", "recall"),
    Column("other", "other_recall"), Column("change", "change"),
)  # fmt: skip


@router.get("/compare")
def compare(
    request: Request,
    session: Session,
    _: Reader,
    version: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    other: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    on: Literal["validation", "test", "benchmark", "batch", "library"] | None = None,
    sort: str | None = None,
) -> Response:
    """Two versions against each other on the same images."""
    known = [one for one in summaries.of_versions(OFFERED) if one.state == "trained"]
    if version is None and known:
        champion = deployments.champion(session)
        version = champion.version_id if champion else known[0].id
    if other is None:
        other = next((one.id for one in known if one.id != version), None)
    facts: dict[str, Any] = {
        "known": known, "version": version, "other": other, "on": on, "rows": [], "flips": [],
        "changes": [], "columns": CHANGES, "word": "", "rows_shown": ROWS,
        "mine": set(), "theirs": set(),
    }  # fmt: skip
    if version is not None and other is not None:
        rows = history.answered(session, history.compare(version, other))
        subjects = [one.subject for one in rows]
        chosen = on or next(
            (one for one in ("benchmark", "test", "validation") if one in subjects), None
        )
        changes, word = sorted_by(_changes(session, version, other, chosen), CHANGES, sort)
        facts |= {
            "rows": rows, "on": chosen, "changes": changes, "word": word,
            "mine": _kept(evaluations.gradcams(session, version)),
            "theirs": _kept(evaluations.gradcams(session, other)),
            "flips": history.answered(session, history.flips(version, other, chosen, FLIPS))
            if chosen else [],
        }  # fmt: skip
    return shown(request, "compare.html", facts)


def _changes(
    session: Session, version: int, other: int, subject: str | None
) -> list[Change]:
    """Recall of each class that both know, the greatest loss first."""
    if subject is None:
        return []
    mine, theirs = (
        {
            row.class_name: row
            for row in reversed(history.answered(
                session, history.classes(version=one, subject=subject, most=20_000)
            ))
            if row.called in known
        }
        for one in (version, other) for known in [set(versions.get(session, one).class_names)]
    )  # fmt: skip
    found = []
    for name in mine.keys() & theirs.keys():
        recall, before = mine[name].recall, theirs[name].recall
        if recall is not None and before is not None:
            found.append(Change(name, mine[name].images, recall, before, recall - before))
    return sorted(found, key=lambda one: (one.change, one.name))
