"""The report of a night: what people read in Prefect and at the command line."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any

from prefect import get_client
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.runtime import flow_run
from sqlalchemy.orm import Session

from flows import diagrams, failures, figures, timeline
from infra import database
from records import (
    batches,
    benchmark,
    deployments,
    evaluations,
    flips,
    objects,
    runs,
    shortlists,
    snapshots,
    versions,
)
from records.deployments import VerdictRow
from records.evaluations import EvaluationRow
from tasks.progress import courtesy

# How runs end, apart from the steps: the verb that began one prints its end by itself.
ends = logging.getLogger("regraft.ends")

MOST_CLASSES = 15  # classes named in one list; the rest is counted
# A class with this share of the cutoff is near it.
NEARLY = 0.75
NEAR_CUTOFF = "regraft.classes-near-cutoff"
_MARKDOWN = re.compile(r"([\\`*_\[\]<>!|~#&])")


def run_name() -> str:
    """What a run is called before its version is known: the flow's name and the time."""
    return f"{flow_run.flow_name} {datetime.now(UTC):%Y-%m-%d %H:%M}"


def flow_run_id() -> str | None:
    """Prefect's id of the flow run that this is, if it is one."""
    return flow_run.id if FlowRunContext.get() else None


def name_run(version_id: int) -> None:
    """Add the candidate to the flow run's name, so that the list of runs tells them apart."""
    running = FlowRunContext.get()
    if running is None or running.flow_run is None:
        return
    name = f"{running.flow_run.name} · version {version_id}"
    with courtesy("name the flow run"), get_client(sync_client=True) as client:
        client.update_flow_run(running.flow_run.id, name=name)


def verdict(version_id: int) -> tuple[str, str]:
    """`deployed` or `refused`, and the sentence that says why."""
    with database.connect().transaction() as session:
        judged = deployments.verdict(session, version_id)
        if judged is None:
            return "refused", f"version {version_id} was not judged"
        checks = deployments.checks(session, judged.id)
    if judged.passed:
        return "deployed", f"version {version_id} passed {len(checks)} checks and serves"
    failed = [check.sentence for check in checks if check.verdict == "failed"]
    return "refused", f"version {version_id} was refused: {' · '.join(failed)}"


def publish(
    purpose: str, run_id: int, state: str, reason: str, version_id: int | None
) -> None:
    """Keep the pictures of the run; put checks and report on the Prefect page of the run."""
    ends.info("%s: %s", state, reason)
    if version_id is not None:
        timeline.keep(version_id)
        diagrams.keep(version_id)
        failures.keep(version_id)
    if FlowRunContext.get() is None:
        return
    with database.connect().transaction() as session:
        text = markdown(session, run_id, state, reason, version_id)
        judged = deployments.verdict(session, version_id) if version_id else None
        checks = deployments.checks(session, judged.id) if judged else []
    # The night is decided: a Prefect that is away now must not make it look failed.
    with courtesy("publish the report"):
        create_markdown_artifact(
            text, key=f"{purpose}-report", description="What this run did and why"
        )
        if checks:
            create_table_artifact(
                [
                    {"check": one.name, "verdict": one.verdict, "why": one.sentence}
                    for one in checks
                ],
                key="gate-checks",
                description=f"The gate on version {version_id}",
            )


def announce_near_cutoff(flow: object, flow_run: FlowRun, state: object) -> None:
    """Tell Prefect of classes near the cutoff that a throw-away run would learn, for automations.

    A hook of the night: by then its lock is free, so that what the event starts can hold it.
    """
    with database.connect().transaction() as session:
        near = shortlists.near_cutoff(session, str(flow_run.id), NEARLY)
    if not any(one.new for one in near):
        return
    emit_event(
        NEAR_CUTOFF,
        resource={"prefect.resource.id": "regraft.library", "prefect.resource.name": "library"},
        payload={
            "run_id": near[0].run_id,
            "classes": [
                {"class": one.class_name, "has": one.has, "lacks": one.lacks} for one in near
            ],
        },
    )


def markdown(session: Session, run_id: int, state: str, reason: str, version_id: int | None) -> str:
    """The whole report of one run."""
    lines = [f"# Run {run_id}: {state}", "", inert(reason), ""]
    lines += _library(session)
    if version_id is not None:
        lines += _version(session, version_id)
    lines += ["## Where the time went", "", "| step | seconds |", "|---|---:|"]
    lines += [f"| {step.name} | {step.seconds:.1f} |" for step in runs.steps(session, run_id)]
    return "\n".join([*lines, ""])


def _library(session: Session) -> list[str]:
    states = objects.states(session)
    newest = batches.newest(session, most=1)
    lines = ["## Library", ""]
    lines.append(
        f"{sum(states.values())} objects listed: {states['accepted']} accepted, "
        f"{states['quarantined']} quarantined, {states['pending']} pending."
    )
    if newest:
        batch = newest[0]
        lines.append(f"Batch {batch.id} ({batch.state}) brought {batch.images} new images.")
        for name, count, example in batches.quarantine_reasons(session, batch.id):
            lines.append(f"- {count} of {inert(name)}: {inert(example)}")
    return [*lines, ""]


def _version(session: Session, version_id: int) -> list[str]:
    version = versions.get(session, version_id)
    parent = f"version {version.parent_id}" if version.parent_id else "none"
    lines = [
        f"## Version {version_id}",
        "",
        f"{version.architecture}, {len(version.class_names)} classes, parent {parent}, "
        f"snapshot `{version.snapshot_digest[:12]}`, plan `{version.plan_digest[:12]}`.",
        "",
        "| on | images | accuracy | 95% interval | mean F1 | calibration error | by chance |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    lines += [_evaluation(row) for row in evaluations.of_version(session, version_id)]
    known = figures.facts(version_id)
    lines += ["", *(f"- {inert(one)}" for one in figures.sentences(known))]
    lines += _transfer(known) + _confusions(known)
    judged = deployments.verdict(session, version_id)
    if judged:
        frozen = benchmark.current(session)
        against = f"version {judged.champion_id}" if judged.champion_id else "no champion"
        lines += [
            "",
            f"Judged against {against} on benchmark version {judged.benchmark_version} "
            f"({frozen.looks} looks so far).",
            "",
            "| check | verdict | why |",
            "|---|---|---|",
        ]
        lines += [
            f"| {check.name} | {check.verdict} | {inert(check.sentence)} |"
            for check in deployments.checks(session, judged.id)
        ]
        lines += _flips(session, judged)
    counts = snapshots.class_counts(session, version.snapshot_digest)
    short = sorted((one for one in counts if one.lacks), key=lambda one: one.lacks)
    if short:
        named = "; ".join(
            f"{inert(one.class_name)} {one.wanting}" for one in short[:MOST_CLASSES]
        )
        rest = f" and {len(short) - MOST_CLASSES} more" if len(short) > MOST_CLASSES else ""
        lines += ["", f"Left out: {named}{rest}."]
    return [*lines, ""]


def _flips(session: Session, judged: VerdictRow) -> list[str]:
    """The surest answers that were lost; `regraft show VERSION --pictures` has their maps."""
    found = flips.of_verdict(session, judged)
    lost = [one for one in found if not one.gained]
    if not lost:
        return []
    head = [
        "",
        f"{len(lost)} answers were lost and {len(found) - len(lost)} gained; the surest lost ones:",
        "",
        f"| image | is | version {judged.champion_id} said | version {judged.version_id} says |",
        "|---|---|---|---|",
    ]
    return head + [
        f"| {inert(one.source_key)} | {inert(one.label)} | {inert(one.champion_said)} | "
        f"{inert(one.candidate_said)} ({one.candidate_confidence:.0%}) |"
        for one in lost[:MOST_CLASSES]
    ]


def _evaluation(row: EvaluationRow) -> str:
    subject = figures.subject(row)
    if row.batch_id is not None:
        subject = f"new images ({subject})"
    mean_f1, error, by_chance = (
        "" if value is None else form.format(value)
        for form, value in (
            ("{:.1%}", row.mean_f1),
            ("{:.3f}", row.calibration_error),
            ("{:.3f}", row.calibration_by_chance),
        )
    )
    return (
        f"| {subject} | {row.images} | {row.accuracy:.1%} | "
        f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%} | {mean_f1} | {error} | {by_chance} |"
    )


def _transfer(known: dict[str, Any]) -> list[str]:
    """What was forgotten and gained against the parent, in one line for each set of images."""
    if known["parent"] is None:
        return []
    lines = [""]
    for on, one in known["transfer"].items():
        against = f"Against version {known['parent']} on {on}"
        if one is None:
            lines.append(f"- {against}: not known, no image that both answered.")
            continue
        lines.append(
            f"- {against}, {one['images']} images of classes that both know: {one['lost']} lost, "
            f"{one['gained']} gained, {100 * one['change']:+.1f} points "
            f"({100 * one['change_low']:+.1f} to {100 * one['change_high']:+.1f}); "
            f"backward transfer {100 * one['backward_transfer']:+.1f}, forgetting "
            f"{100 * one['forgetting']:.1f} points per class."
        )
    return lines


def _confusions(known: dict[str, Any]) -> list[str]:
    wrong = known["confusions"].get(known["decisive"]) or []
    if not wrong:
        return []
    named = ", ".join(
        f"{inert(one['label'])} as {inert(one['predicted'])} ({one['images']})"
        for one in wrong[: figures.MOST_CONFUSED]
    )
    return ["", f"Confused most often on {known['decisive']}: {named}."]


def inert(text: str) -> str:
    """Text from keys and labels, so that a table or page shows it and does not obey it."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.splitlines()))
