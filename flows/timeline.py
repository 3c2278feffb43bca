"""Where a night's time went: its steps one under the other, in figures and as a picture in S3."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from infra import database
from records import runs, snapshots, versions
from records.runs import RunRow, StepRow
from records.versions import EpochRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("regraft")

REST = "everything else"
REST_IS = "Prefect, loading code"
# What a step says that it handled: the first of these facts, and in what it is counted.
HANDLED = {"images": "images", "objects": "objects", "listed": "objects", "maps": "maps"}

BLUE, PALE, GREY = "#2f6f9f", "#9cc3de", "#b8b8b8"


@dataclass(frozen=True)
class Stretch:
    """A part of a night.

    spans: (begin, seconds), counted from the night's beginning; handled: how many `unit`, or None
    where nothing is counted; inside: the step of which this is a part.
    """

    name: str
    spans: tuple[tuple[float, float], ...]
    handled: int | None = None
    unit: str = ""
    inside: str | None = None

    @property
    def seconds(self) -> float:
        """How long it took in all."""
        return sum(seconds for _, seconds in self.spans)

    @property
    def told(self) -> str:
        """What it handled and how fast: `240 images, 85/s`."""
        if self.name == REST:
            return REST_IS
        if self.handled is None:
            return ""
        rate = self.handled / self.seconds if self.handled and self.seconds else 0
        return f"{self.handled:,} {self.unit}" + (f", {rate:,.3g}/s" if 0 < rate < 100 else
                                                  f", {rate:,.0f}/s" if rate else "")  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """One night from its beginning to its end; without what is `inside`, the parts add up to it.

    earlier: the runs before it that worked on the same version, the newest first.
    """

    version_id: int
    architecture: str
    run_id: int
    began: datetime
    seconds: float
    stretches: tuple[Stretch, ...]
    earlier: tuple[int, ...]

    def share(self, stretch: Stretch) -> float:
        """The stretch's share of the night, 0 to 1."""
        return stretch.seconds / self.seconds if self.seconds else 0.0


def of_version(version_id: int) -> Profile:
    """The profile of the newest night that worked on a version; raises `UnknownVersion`."""
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        run, *earlier = runs.of_version(session, version_id)
        steps = runs.steps(session, run.id)
        epochs = versions.epochs(session, version_id)
        counts = snapshots.class_counts(session, version.snapshot_digest)
    validation = sum(one.validation for one in counts if one.lacks == 0)
    seconds, stretches = measured(run, steps, epochs, validation)
    return Profile(
        version_id=version_id,
        architecture=version.architecture,
        run_id=run.id,
        began=run.started_at,
        seconds=seconds,
        stretches=stretches,
        earlier=tuple(one.id for one in earlier),
    )


def measured(
    run: RunRow, steps: Sequence[StepRow], epochs: Sequence[EpochRow], validation_images: int
) -> tuple[float, tuple[Stretch, ...]]:
    """Seconds of the whole night, and its parts in the order in which they began."""
    # Postgres dates the run and this machine its steps: a clock that is off must not turn a
    # stretch around.
    begins = [max(0.0, (one.started_at - run.started_at).total_seconds()) for one in steps]
    ends = [begin + one.seconds for begin, one in zip(begins, steps, strict=True)]
    whole = max([*ends, (run.ended_at - run.started_at).total_seconds() if run.ended_at else 0.0])
    found: list[Stretch] = []
    for begin, step in zip(begins, steps, strict=True):
        handled, unit = next(
            ((int(step.facts[fact]), unit) for fact, unit in HANDLED.items() if fact in step.facts),
            (None, ""),
        )
        if step.name != "train" or not handled:
            found.append(Stretch(step.name, ((begin, step.seconds),), handled, unit))
            continue
        own = _epochs_within(step.seconds, epochs)
        seen = handled * len(own)
        found.append(Stretch(step.name, ((begin, step.seconds),), seen, unit))
        found += _inside_training(begin, step, handled, own, validation_images)
    gaps, reached = [], 0.0
    for begin, end in sorted(zip(begins, ends, strict=True)):
        if begin > reached:
            gaps.append((reached, begin - reached))
        reached = max(reached, end)
    gaps.append((reached, whole - reached))
    return whole, (*found, Stretch(REST, tuple(gaps)))


def _epochs_within(seconds: float, epochs: Sequence[EpochRow]) -> list[EpochRow]:
    """The last epochs, as many as fit: those before a kill belong to another night."""
    own: list[EpochRow] = []
    for epoch in reversed(epochs):
        seconds -= epoch.seconds
        if seconds < 0:
            break
        own.append(epoch)
    return own


def _inside_training(
    begin: float, step: StepRow, images: int, epochs: list[EpochRow], validation_images: int
) -> list[Stretch]:
    """Epochs take turns between steps and validation; here each is told in one piece."""
    gradient = sum(images / epoch.images_per_second for epoch in epochs)
    validation = sum(epoch.seconds for epoch in epochs) - gradient
    rest = step.seconds - gradient - validation
    seen = len(epochs)
    return [
        Stretch("gradient steps", ((begin, gradient),), images * seen, "images", step.name),
        Stretch("validation", ((begin + gradient, validation),), validation_images * seen,
                "images", step.name),
        Stretch("start and saving", ((begin + gradient + validation, rest),), inside=step.name),
    ]  # fmt: skip


# --- the picture ----------------------------------------------------------------------------


def key(version_id: int) -> str:
    """Where a version's profile lies in S3."""
    return f"profiles/version-{version_id}.png"


def keep(version_id: int) -> None:
    """Draw the night that has just ended and keep it; a failure is said, and fails no night."""
    from infra import storage

    try:
        storage.connect().write(key(version_id), draw(of_version(version_id)))
    except Exception as error:
        # The night is decided and its row closed; the same picture can be drawn at any time.
        log.warning("the profile of version %d was not kept: %s", version_id, error)


def picture(version_id: int) -> bytes:
    """The version's profile as PNG: the one that was kept, or drawn now."""
    from infra import storage
    from infra.storage import Gone

    try:
        return storage.connect().read(key(version_id))
    except Gone:
        return draw(of_version(version_id))


def draw(profile: Profile) -> bytes:
    """The night from left to right and its parts from top to bottom, as PNG."""
    # No pyplot: it keeps figures, and asks for a window where there is one.
    from matplotlib.figure import Figure

    rows = profile.stretches
    name, unit = next(
        (one for one in (("hours", 3600), ("minutes", 60)) if profile.seconds > 3 * one[1]),
        ("seconds", 1),
    )
    height = 1.4 + 0.3 * len(rows)  # inches
    figure = Figure(figsize=(12, height), dpi=100)
    axes = figure.add_axes((0.15, 0.6 / height, 0.5, 1 - 1.4 / height))
    for place, one in enumerate(rows):
        colour = GREY if one.name == REST else PALE if one.inside else BLUE
        # What took no time to speak of still gets a mark that can be seen.
        spans = [(begin / unit, max(seconds, profile.seconds / 400) / unit)
                 for begin, seconds in one.spans]  # fmt: skip
        axes.broken_barh(spans, (place - 0.36, 0.72), color=colour, linewidth=0)
    _beside(figure, axes, profile)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, profile.seconds / unit or 1.0)
    axes.set_xlabel(f"{name} since the night began")
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(
        f"Version {profile.version_id} ({profile.architecture}): where the "
        f"{lasting(profile.seconds)} of its night went",
        x=0.15, y=1 - 0.2 / height, ha="left", va="top", fontweight="bold",
    )  # fmt: skip
    axes.set_title(f"run {profile.run_id}, {profile.began:%Y-%m-%d %H:%M} UTC",
                   loc="left", fontsize=9, color="#555555")  # fmt: skip
    body = io.BytesIO()
    figure.savefig(body, format="png")
    return body.getvalue()


def _beside(figure: Figure, axes: Axes, profile: Profile) -> None:
    """Names on the left; seconds, share and what was handled on the right, as in a table."""
    from matplotlib.transforms import blended_transform_factory

    rows = profile.stretches
    across = blended_transform_factory(figure.transFigure, axes.transData)
    names = [f"of it {one.name}" if one.inside else one.name for one in rows]
    axes.set_yticks(range(len(rows)), names)
    for place, (one, label) in enumerate(zip(rows, axes.get_yticklabels(), strict=True)):
        colour = "#777777" if one.inside or one.name == REST else "black"
        label.set_color(colour)
        texts = ((0.735, "right", lasting(one.seconds)),
                 (0.795, "right", f"{profile.share(one):.1%}"),
                 (0.82, "left", one.told))  # fmt: skip
        for x, side, words in texts:
            axes.text(x, place, words, transform=across, ha=side, va="center", fontsize=9,
                      color=colour)  # fmt: skip


def lasting(seconds: float) -> str:
    """A duration for people: `0.25 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
