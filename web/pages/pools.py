"""Pools: what versions answered there, found by filters, and what people make of it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import BackgroundTasks, Form, Query, Request, Response

from records import classes, findings, identifications, labels, pools
from records.findings import BadFilter, Findings
from records.labels import BadLabels, Wish
from web.database import Session
from web.decisions import follow_later
from web.pages.frame import AT_ONCE, Author, Reader, Why, done, selected, shown, together
from web.pages.frame import pages as new_router

router = new_router()

ACTS = 10  # that people did last
CHOOSE = Findings("look-alike: choose a class")

FILTERS = {
    "scarce": "Scarce classes", "staged": "Staged classes", "look-alike": "Look-alikes",
    "unknown": "Unknown", "junk": "Least sure", "free": "Everything",
}  # fmt: skip
ABOUT = {
    "scarce": "New pictures of classes that have few images, the best first, copies once.",
    "staged": "New pictures of classes that rest on staged or synthetic images.",
    "look-alike": "New pictures taken for a class without being sure of it, likes together.",
    "unknown": "What nobody could name, answered by a version that came later.",
    "junk": "New pictures that the version is least sure of, to remove many at once.",
    "free": "Whatever was answered, by class and confidence, the surest first.",
}
Share = Annotated[str, Query(max_length=20)]


@router.get("/pools")
def found(
    request: Request,
    session: Session,
    _: Reader,
    filter: Literal["scarce", "staged", "look-alike", "unknown", "junk", "free"] = "scarce",  # noqa: A002
    class_name: Annotated[str, Query(alias="class", max_length=255)] = "",
    version: Annotated[str, Query(max_length=20)] = "",
    pool: Annotated[str, Query(max_length=1024)] = "",
    below: Share = "",
    above: Share = "",
    group: Annotated[str, Query(max_length=20)] = "",
    new: bool = False,
    most: Annotated[int, Query(ge=1, le=600)] = 60,
) -> Response:
    """A grid of what a filter finds."""
    for word in (class_name, pool):
        if problem := classes.unwritable(word):
            raise BadFilter(f"{word[:60]!r} {problem}")
    asked = _Asked(
        class_name.strip() or None, _whole(version, "version"), pool.strip() or None,
        _share(below), _share(above), _whole(group, "group"), new, most,
    )  # fmt: skip
    told = asked.find(session, filter)
    facts = {
        "filters": FILTERS, "filter": filter, "about": ABOUT[filter], "found": told,
        "counted": told not in (findings.NONE, CHOOSE), "sections": _sections(told),
        "class_name": class_name, "version": version, "pool": pool,
        "below": below, "above": above, "group": group, "new": new, "most": most,
        "pools": pools.listed(session), "identifications": identifications.listed(session, 10),
        "names": sorted(set(classes.names(session).values())),
        "here": f"{request.url.path}?{request.url.query}",
        "acts": together(
            labels.acts(session, AT_ONCE), "act", "class_name", "done_by", "done_at"
        )[:ACTS],
    }  # fmt: skip
    return shown(request, "pools.html", facts)


class _Asked:
    """What a person asked of a filter; each filter takes what it knows."""

    def __init__(
        self,
        class_name: str | None,
        version: int | None,
        pool: str | None,
        below: float | None,
        above: float | None,
        group: int | None,
        new: bool,
        most: int,
    ) -> None:
        self.class_name, self.version, self.pool = class_name, version, pool
        self.below, self.above, self.group = below, above, group
        self.new, self.most = new, most

    def find(self, session: Session, name: str) -> Findings:
        """The rows; a filter that needs a class says so where none is given."""
        common = {"version_id": self.version, "pool": self.pool, "most": self.most}
        if name == "scarce":
            return findings.scarce(session, self.class_name, **common)  # type: ignore[arg-type]
        if name == "staged":
            return findings.staged(session, self.class_name, **common)  # type: ignore[arg-type]
        if name == "look-alike":
            if self.class_name is None:
                return CHOOSE
            return findings.look_alike(
                session, self.class_name, self.version, self.pool, self.below, self.group,
                self.most,
            )  # fmt: skip
        if name == "unknown":
            return findings.unknown(session, **common)  # type: ignore[arg-type]
        if name == "junk":
            return findings.junk(session, self.below, **common)  # type: ignore[arg-type]
        return findings.matching(
            session, self.class_name, self.below, self.above, self.version, self.pool, self.new,
            self.most,
        )  # fmt: skip


def _share(word: str) -> float | None:
    """A confidence as people write it: 0.8, 80% or 80."""
    word = word.strip().removesuffix("%").strip()
    if not word:
        return None
    try:
        value = float(word)
    except ValueError:
        raise BadFilter(f"{word!r} is no confidence: write 0.8 or 80%") from None
    return value / 100 if value > 1 else value


def _whole(word: str, name: str) -> int | None:
    if not word.strip():
        return None
    if not word.strip().isdecimal() or len(word) > 18:
        raise BadFilter(f"{name} {word!r} is no number")
    return int(word)


def _sections(told: Findings) -> list[tuple[str, list[findings.Found]]]:
    """Rows of one heading together, in their order."""
    sections: list[tuple[str, list[findings.Found]]] = []
    for row in told.rows:
        if not sections or sections[-1][0] != row.heading:
            sections.append((row.heading, []))
        sections[-1][1].append(row)
    return sections


@router.post("/pools/act")
def act(
    request: Request,
    session: Session,
    background: BackgroundTasks,
    by: Author,
    images: Annotated[list[str], Form(default_factory=list, max_length=AT_ONCE)],
    act: Annotated[Literal["confirm", "label", "dismiss", "unknown", "remove", "restore"], Form()],
    version: Annotated[int | None, Form(ge=1, lt=2**63)] = None,
    to: Annotated[str, Form(max_length=4000)] = "/pools",
    label: Annotated[str, Form(max_length=255)] = "",
    make: Annotated[bool, Form()] = False,
    why: Why = "",
) -> Response:
    """Label, dismiss or remove pictures of pools.

    images: each `digest offered`, what it was shown for after a space.
    """
    if label.strip() and act != "label":
        raise BadLabels(
            f"the class {label.strip()!r} was typed and another button pressed: press `Label`, or "
            "empty the field"
        )
    wishes = [_wish(one, act, label, version) for one in selected(images)]
    reason = why.strip() or None
    if act in ("confirm", "label"):
        new = (label,) if make and act == "label" else ()
        came = labels.label(session, wishes, by, new, reason)
        words = "labelled"
    elif act == "remove":
        came = labels.remove(session, wishes, by, reason)
        words = "moved to the trash"
    elif act == "restore":
        came = labels.restore(session, wishes, by, reason)
        words = "brought back"
    else:
        came = labels.dismiss(session, wishes, by, act == "unknown", reason)
        words = "said to be nothing that anybody knows" if act == "unknown" else "dismissed"
    follow_later(request, background)
    already = f", {came.already} were so already" if came.already else ""
    what = "picture" if came.changed == 1 else "pictures"
    return done(request, f"{came.changed} {what} {words}{already}.", to)


def _wish(word: str, act: str, label: str, version: int | None) -> Wish:
    sha256, _, offered = word.partition(" ")
    if act == "label" and not label.strip():
        raise BadLabels("say what they are: the name of a class")
    called = offered if act == "confirm" else label.strip() or None
    return Wish(
        f"{sha256[:12]}…", image=sha256, label=called if act in ("confirm", "label") else None,
        version=version, offered=offered or None,
    )  # fmt: skip
