"""The shortlist of a throw-away run: what classes near the cutoff lack, what was found for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rich.console import Console
from rich.markup import escape

from flows import grid
from infra import database
from records import shortlists, spreadsheet
from records.shortlists import Candidate, Need, Tally
from vision.outlook import BANDS, Band, Outlook, outlook

NONE_YET = "none judged yet"


@dataclass(frozen=True)
class Wanted:
    """One class near the cutoff.

    had: usable images when the run began; has: now; coming: confirmed by people, and waiting for
    the next intake; lacks: what is then still missing. candidates: found in all, judged ones too;
    waiting: those that nobody has judged; judged: those that people have; right: of those.
    confirmed: all images of this class that people found among the version's answers. outlook: what
    to expect of those that wait. reaches: in words, whether the class will reach the cutoff.
    """

    class_name: str
    had: int
    has: int
    coming: int
    lacks: int
    candidates: int
    waiting: int
    judged: int
    right: int
    confirmed: int
    outlook: Outlook
    reaches: str

    @property
    def is_flattered(self) -> bool:
        """Whether wrong ones may have been passed over: it lacks some, and all judged are right."""
        return self.lacks > 0 and self.waiting > 0 and 0 < self.judged == self.right


@dataclass(frozen=True)
class Shortlist:
    """What one throw-away version found; pools: prefixes, with how far their identification is."""

    run_id: int
    version_id: int
    cutoff: int
    wanted: int
    swept: bool
    pools: dict[str, str]
    classes: tuple[Wanted, ...]

    @property
    def sentence(self) -> str:
        """What it is about, in one line."""
        told = f"version {self.version_id} of run {self.run_id}, from {self.cutoff} images on"
        pools = ", ".join(
            f"s3://{prefix}" + ("" if state == "completed" else f" ({state})")
            for prefix, state in self.pools.items()
        )
        swept = "; it was swept" if self.swept else ""
        count = len(self.classes)
        classes = "1 class" if count == 1 else f"{count} classes"
        return f"{told}, looked in {pools or 'no pool yet'} for {classes}{swept}"


def of_run(run_id: int | None = None) -> Shortlist:
    """The shortlist of a throw-away run, or the newest, as it stands; raises `NoShortlist`."""
    with database.connect().transaction() as session:
        run = shortlists.run(session, run_id)
        needs = shortlists.needs(session, run)
        tallies = shortlists.tallies(session, run, [one.class_name for one in needs], BANDS)
    return Shortlist(
        run_id=run.run_id,
        version_id=run.version_id,
        cutoff=run.cutoff,
        wanted=run.wanted,
        swept=run.swept_at is not None,
        pools=run.pools,
        classes=tuple(
            _wanted(one, [t for t in tallies if t.class_name == one.class_name], run.wanted)
            for one in needs
        ),
    )


def _wanted(need: Need, tallies: Sequence[Tally], cutoff: int) -> Wanted:
    lacks = max(0, cutoff - need.has - need.coming)
    waiting, judged, right = (
        sum(getattr(one, name) for one in tallies) for name in ("waiting", "judged", "right")
    )
    bands = [Band(BANDS[one.band - 1], one.waiting, one.judged, one.right) for one in tallies]
    expected = outlook(bands, lacks)
    return Wanted(
        class_name=need.class_name,
        had=need.had,
        has=need.has,
        coming=need.coming,
        lacks=lacks,
        candidates=waiting + judged,
        waiting=waiting,
        judged=judged,
        right=right,
        confirmed=need.confirmed,
        outlook=expected,
        reaches=_reaches(need, cutoff, waiting, expected),
    )


def _reaches(need: Need, cutoff: int, waiting: int, expected: Outlook) -> str:
    if need.has >= cutoff:
        return "yes"
    if expected.verdict == "yes":
        return "yes, next intake"
    if expected.verdict == "no":
        return f"no, {waiting} wait" if waiting else "no, none waits"
    if expected.chance is None:
        return "open"
    more = "+" if expected.unjudged else ""
    return f"{expected.verdict} ({expected.chance:.0%}{more})"


def candidates(class_name: str, run_id: int | None = None) -> list[Candidate]:
    """The candidates of one class, the surest first; raises `NoShortlist` for a class not in it."""
    with database.connect().transaction() as session:
        run = shortlists.run(session, run_id)
        known = [one.class_name for one in shortlists.needs(session, run)]
        if class_name not in known:
            raise shortlists.NoShortlist(
                f"run {run.run_id} looked for no class {class_name!r}: it has {', '.join(known)}"
            )
        return shortlists.candidates(session, run, class_name, BANDS[0])


# --- as text --------------------------------------------------------------------------------


def table(found: Shortlist) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for people, within 80 characters."""
    columns = ["class", "has", "lacks", "found", "confirmed", "of the rest right",
               f"reaches {found.wanted}"]  # fmt: skip
    return columns, [
        [
            one.class_name,
            f"{one.has}+{one.coming}" if one.coming else str(one.has),
            str(one.lacks),
            str(one.candidates),
            f"{one.right} of {one.judged}" if one.judged else str(one.confirmed),
            _expected(one),
            one.reaches,
        ]
        for one in found.classes
    ]


def _expected(one: Wanted) -> str:
    """The expected precision of what waits, with its interval."""
    known = one.outlook
    if not one.judged:
        return NONE_YET if one.waiting else ""
    if known.precision is None:
        return "too few judged" if known.unjudged else "none waits"
    told = f"{known.precision:.0%} ({known.precision_low:.0%}-{known.precision_high:.0%})"
    return f"{told}, +{known.unjudged}" if known.unjudged else told


def show(found: Shortlist) -> None:
    """Print a shortlist for people."""
    Console().print(escape(found.sentence), highlight=False)
    columns, rows = table(found)
    grid.table(columns, [[escape(cell) for cell in row] for row in rows])
    if flattered := [one.class_name for one in found.classes if one.is_flattered]:
        Console().print(
            f"Nobody has dismissed any of {escape(', '.join(flattered))}: wrong ones that were "
            "only passed over make the rest look better than it is. Dismiss those, too: "
            "`regraft dismiss`.", highlight=False,
        )  # fmt: skip


def write_classes(found: Shortlist) -> None:
    """The shortlist as CSV on standard output, one row for each class."""
    own = [field.name for field in fields(Wanted) if field.name != "outlook"]
    expected = [field.name for field in fields(Outlook)]
    rows = (
        [getattr(one, name) for name in own] + [getattr(one.outlook, name) for name in expected]
        for one in found.classes
    )
    sys.stdout.write(spreadsheet.table([*own, *expected], rows))


def write_candidates(rows: Sequence[Candidate]) -> None:
    """Those that wait, as CSV on standard output: delete what is wrong, label the rest from it."""
    names = [field.name for field in fields(Candidate) if field.name != "state"]
    waiting = ([getattr(one, name) for name in names] for one in rows if one.state == "waiting")
    sys.stdout.write(spreadsheet.table(names, waiting))
