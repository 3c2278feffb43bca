"""Lineage: what it is worth that every night starts from the last, told by a control version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.orm import Session

from infra import database
from records import benchmark, classes, evaluations, runs, versions
from records.versions import Ancestor
from tasks.step import reading, timed
from vision.answers import Answers
from vision.comparison import Difference, difference
from vision.plan import Plan

STEP = "compare with the lineage"


@dataclass(frozen=True)
class Worth:
    """A champion beside a control version that learned the same images afresh.

    start: what the control started from. depth: warm starts between the lineage's first version
    and the champion. lineage_epochs, lineage_seconds: of all of them together, pretraining aside.
    benchmark, test: champion minus control; None where one of them has no answers. other_plan:
    fields in which the two plans differ, as (champion's, control's).
    """

    champion_id: int
    control_id: int
    benchmark_version: int
    start: str
    depth: int
    champion_epochs: int
    champion_seconds: float
    lineage_epochs: int
    lineage_seconds: float
    control_epochs: int
    control_seconds: float
    benchmark: Difference | None
    test: Difference | None
    other_plan: dict[str, tuple[Any, Any]]

    @property
    def verdict(self) -> str:
        """`pays`, `hurts`, or `open` while the benchmark cannot tell them apart."""
        if self.benchmark is None:
            return "open"
        return "pays" if self.benchmark.low > 0 else "hurts" if self.benchmark.high < 0 else "open"

    @property
    def sentence(self) -> str:
        """What to think of it, in one line."""
        on = self.benchmark
        if on is None:
            return "champion and control have no benchmark image of a class in common"
        told = (
            f"on {on.images} benchmark images champion {self.champion_id} has "
            f"{on.first_correct / on.images:.1%} and control {self.control_id}, {self.start}, "
            f"{on.second_correct / on.images:.1%}: the lineage is worth {points(on.difference)} "
            f"(95%: {points(on.low)} to {points(on.high)})"
        )
        return {
            "pays": f"the warm lineage pays: {told}",
            "hurts": f"the warm lineage has begun to hurt: {told}; `regraft adopt "
            f"{self.control_id}` puts the control through the gate",
            "open": f"the warm lineage neither pays nor hurts for sure: {told}",
        }[self.verdict]


def points(share: float) -> str:
    """A difference of two accuracies in percentage points, with its sign."""
    return f"{100 * share:+.1f} points"


@dataclass(frozen=True)
class Beginning:
    """How the champion's lineage began.

    first: its oldest version that is not pretraining; root: the pretrained one under it, if any.
    """

    champion_id: int
    snapshot_digest: str
    depth: int
    first: Ancestor
    root: int | None


def beginning(champion_id: int) -> Beginning:
    """Where the champion's weights come from, and the snapshot that it learned."""
    with database.connect().transaction() as session:
        line = versions.lineage(session, champion_id)
        snapshot = versions.get(session, champion_id).snapshot_digest
    own = [one for one in line if one.purpose != "pretrain"]
    older = line[len(own) :]
    return Beginning(champion_id, snapshot, len(own) - 1, own[-1], older[0].id if older else None)


@reading("compare")
def compare(run_id: int, control_id: int, champion_id: int, start: str) -> Worth:
    """Set the control beside the champion and keep what comes out."""
    with timed(run_id, STEP) as facts:
        with database.connect().transaction() as session:
            worth = _worth(session, control_id, champion_id, start)
        facts.update(json.loads(json.dumps(asdict(worth))))
    return worth


def _worth(session: Session, control_id: int, champion_id: int, start: str) -> Worth:
    frozen = benchmark.current(session)
    line = [one for one in versions.lineage(session, champion_id) if one.purpose != "pretrain"]
    control = versions.lineage(session, control_id)[0]
    plans = (line[0].plan, control.plan)
    return Worth(
        champion_id=champion_id,
        control_id=control_id,
        benchmark_version=frozen.version,
        start=start,
        depth=len(line) - 1,
        champion_epochs=line[0].epochs,
        champion_seconds=line[0].seconds,
        lineage_epochs=sum(one.epochs for one in line),
        lineage_seconds=sum(one.seconds for one in line),
        control_epochs=control.epochs,
        control_seconds=control.seconds,
        benchmark=_difference(
            session, champion_id, control_id, "benchmark", benchmark_version=frozen.version
        ),
        test=_difference(session, champion_id, control_id, "test"),
        other_plan={
            name: (plans[0].get(name), plans[1].get(name))
            for name in Plan.__dataclass_fields__
            if plans[0].get(name) != plans[1].get(name)
        },
    )


def _difference(
    session: Session, first: int, second: int, subject: str, **which: int
) -> Difference | None:
    def answers(version_id: int) -> Answers | None:
        found = evaluations.find(session, version_id, subject, **which)
        names = versions.get(session, version_id).class_names
        stored = evaluations.answers(session, found.id, names) if found else None
        return stored.renamed(classes.today(session)) if stored else None

    one, other = answers(first), answers(second)
    return difference(one, other) if one and other else None


def earlier(most: int = 20) -> list[dict[str, Any]]:
    """What the newest comparisons said, the newest first; of each pair the newest one."""
    with database.connect().transaction() as session:
        found = runs.facts_of_step(session, STEP, most)
    pairs: dict[tuple[int, int], dict[str, Any]] = {}
    for facts in found:
        pairs.setdefault((facts["champion_id"], facts["control_id"]), facts)
    return list(pairs.values())
