"""The throw-away run: a version that knows what a night leaves out, to find images of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext

from flows import report, shortlist
from flows.identify import identify
from flows.nightly import Wished, serving
from flows.run import Outcome, alone, one_run, pretrained
from infra import database
from records import pools as known_pools
from records import snapshots
from tasks.evaluation import evaluate, is_scored_on_benchmark
from tasks.identification import ADDRESS, BadPool, filled, locate
from tasks.progress import courtesy
from tasks.snapshot import freeze_snapshot
from tasks.training import train_version, write_candidate
from vision.plan import BadPlan, Plan
from vision.scores import PRECISION

log = logging.getLogger("regraft")


@flow(name="throwaway", flow_run_name=report.run_name, retries=0, result_serializer="json")
def throwaway(
    cutoff: int,
    pools: list[str] | None = None,
    plan: Plan = Plan(),  # noqa: B008  (frozen, and shown as defaults in Prefect)
    precision: Wished = PRECISION,
    root: int | None = None,
) -> Outcome:
    """Train a version from a lower cutoff on, have it answer pools, and list what they may hold.

    cutoff: below that of the plan, which is the one that classes are to reach. pools: `s3://PREFIX`
    each, or a local folder; those identified before if none is named. The version starts from the
    champion as a night's would and is scored like it; it is never judged, serves nobody and is
    nobody's parent. The outcome's state is shortlisted, or skipped where no class is near the
    cutoff. Killed and run again it goes on where it was; a pool that has grown is answered as far
    as it is new. Raises what stopped it, `BadPlan` and `BadPool` before anything is trained.
    """
    lower = lowered(plan, cutoff)
    with alone():
        prefixes = chosen(pools)
        with one_run("throwaway", plan, judged=True) as run:
            snapshot = freeze_snapshot(run.run_id, lower)
            near = near_cutoff(snapshot, plan.cutoff)
            if not near:
                reason = f"no class has {cutoff} to {plan.cutoff - 1} usable images"
                return run.end("skipped", reason)
            champion = serving()
            parent = champion or pretrained(root, plan)
            version = write_candidate(run.run_id, "throwaway", snapshot, lower, parent)
            report.name_run(version)
            if not is_scored_on_benchmark(version):
                train_version(run.run_id, version)
                evaluate(run.run_id, version, champion, precision)
            run.end("trained", f"version {version} knows {_named(near)}, too", version)
    # The lock is free again: a pool may take longer than the time until the next night.
    for prefix in prefixes:
        identify(f"{ADDRESS}{prefix}", version, near, precision)
    _publish(run.run_id)
    reason = f"version {version} looked for {_named(near)}: `regraft shortlist {run.run_id}`"
    return Outcome(run.run_id, "shortlisted", reason, version)


def lowered(plan: Plan, cutoff: int) -> Plan:
    """The plan with a lower cutoff; raises `BadPlan` where it would not be lower."""
    if not 1 <= cutoff < plan.cutoff:
        raise BadPlan(
            f"cutoff={cutoff}: a throw-away run takes classes below the nights' cutoff of "
            f"{plan.cutoff}; use 1 to {plan.cutoff - 1}, or set the plan's cutoff to that of the "
            "nights"
        )
    return replace(plan, cutoff=cutoff)


def chosen(pools: Sequence[str] | None) -> list[str]:
    """The prefixes of these pools, or of all that were identified before; raises `BadPool`.

    One that is named must hold images; of those of before, the ones that are empty by now are left
    out.
    """
    if pools:
        named = [locate(word) for word in pools]
        for prefix in named:
            filled(prefix)
        return named
    with database.connect().transaction() as session:
        known = [one.prefix for one in known_pools.listed(session)]
    found = [prefix for prefix in known if _still_holds(prefix)]
    if not found:
        raise BadPool("no pool that was identified before holds images: name one, "
                      "--pool s3://PREFIX or --pool FOLDER")  # fmt: skip
    return found


def _still_holds(prefix: str) -> bool:
    try:
        filled(prefix)
    except BadPool as empty:
        log.warning("left out: %s", empty)
        return False
    return True


def near_cutoff(snapshot: str, cutoff: int) -> list[str]:
    """The classes that a snapshot trains with fewer usable images than a cutoff."""
    with database.connect().transaction() as session:
        counts = snapshots.class_counts(session, snapshot)
    return [one.class_name for one in counts if one.lacks == 0 and one.usable < cutoff]


def _named(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[: report.MOST_CLASSES])
    return shown + (f" and {more} more" if (more := len(classes) - report.MOST_CLASSES) > 0 else "")


def _publish(run_id: int) -> None:
    if FlowRunContext.get() is None:
        return
    found = shortlist.of_run(run_id)
    columns, rows = shortlist.table(found)
    with courtesy("publish the shortlist"):
        create_table_artifact(
            [dict(zip(columns, row, strict=True)) for row in rows],
            key="shortlist",
            description=f"{report.inert(found.sentence)}. Candidates of one: "
            f"`regraft shortlist {run_id} --class CLASS`",
        )
