"""Verdicts, rejections and the deployment log: what was decided, by whom, and what serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from records import runs, versions
from records.tables import Deployment, Rejection, Verdict, VerdictCheck
from vision.gate import LOSSES, Check, Limits, SinceAnchor

SERVING = ("nightly", "control", "bakeoff")  # purposes of versions that may serve


class NotDeployable(RuntimeError):
    """The version may not serve; the message says why and what would mend it."""


@dataclass(frozen=True)
class Champion:
    """The version that serves."""

    deployment_id: int
    version_id: int
    checkpoint_digest: str
    deployed_at: datetime


@dataclass(frozen=True)
class DeploymentRow:
    """One row of the deployment log."""

    id: int
    version_id: int
    previous_id: int | None
    verdict_id: int
    kind: str
    deployed_by: str
    why: str
    deployed_at: datetime


@dataclass(frozen=True)
class VerdictRow:
    """One verdict with what it compared."""

    id: int
    version_id: int
    checkpoint_digest: str
    champion_id: int | None
    benchmark_version: int
    benchmark_digest: str
    passed: bool
    shared_drop: float | None
    limits: dict[str, Any]
    created_at: datetime


def champion(session: Session) -> Champion | None:
    """The version that serves now, or None before the first deployment."""
    row = session.execute(
        text("SELECT deployment_id, version_id, checkpoint_digest, deployed_at FROM champion")
    ).first()
    return Champion(*row) if row else None


def log(session: Session, most: int | None = 50) -> list[DeploymentRow]:
    """The deployment log, the newest first; most: None for all of it."""
    columns = [getattr(Deployment, name) for name in DeploymentRow.__dataclass_fields__]
    query = select(*columns).order_by(Deployment.id.desc()).limit(most)
    return [DeploymentRow(*row) for row in session.execute(query)]


def since_anchor(session: Session) -> SinceAnchor:
    """What the versions from the anchor to the champion have cost together.

    The anchor is the first deployment, or the newest approval by which a person accepted a loss.
    A lineage that loses a little every night passes every single margin; the sum does not. What
    was rolled back counts no longer.
    """
    rows = session.execute(
        text(
            """
            SELECT d.kind, d.verdict_id, v.champion_id IS NULL, v.shared_drop,
                   (c.numbers->>'drop')::float, (c.numbers->>'doublings')::float,
                   EXISTS (SELECT 1 FROM checks o WHERE o.verdict_id = v.id
                           AND o.verdict = 'overridden' AND o.name = ANY (:losses))
            FROM deployments d JOIN verdicts v ON v.id = d.verdict_id
            LEFT JOIN checks c ON c.verdict_id = v.id AND c.name = 'crowding'
            ORDER BY d.id
            """
        ),
        {"losses": list(LOSSES)},
    )
    now = SinceAnchor()
    after: dict[int, SinceAnchor] = {}  # by the verdict that deployed it, which a rollback repeats
    for kind, verdict_id, is_first, drop, whole_drop, doublings, accepted in rows:
        if kind == "rollback":
            now = after.get(verdict_id, SinceAnchor(None, None, None))
        elif is_first or accepted:
            now = SinceAnchor()
        else:
            # Verdicts of before there was such a check compared all columns, and allowed no growth.
            now = SinceAnchor(
                _sum(now.drop, drop),
                _sum(now.whole_drop, drop if whole_drop is None else whole_drop),
                _sum(now.doublings, doublings or 0.0),
            )
        after[verdict_id] = now
    return now


def _sum(before: float | None, more: float | None) -> float | None:
    return None if before is None or more is None else before + more


def record_verdict(
    session: Session,
    run_id: int | None,
    version_id: int,
    checkpoint_digest: str,
    champion_id: int | None,
    benchmark_version: int,
    benchmark_digest: str,
    passed: bool,
    shared_drop: float | None,
    limits: Limits,
    checks: tuple[Check, ...],
) -> int:
    """Keep a verdict with every check, as one look at this benchmark version."""
    verdict_id = session.execute(
        insert(Verdict)
        .values(
            run_id=run_id,
            version_id=version_id,
            checkpoint_digest=checkpoint_digest,
            champion_id=champion_id,
            benchmark_version=benchmark_version,
            benchmark_digest=benchmark_digest,
            passed=passed,
            shared_drop=shared_drop,
            limits=asdict(limits),
        )
        .returning(Verdict.id)
    ).scalar_one()
    if checks:
        session.execute(
            insert(VerdictCheck),
            [
                {
                    "verdict_id": verdict_id,
                    "ordinal": place,
                    "name": check.name,
                    "verdict": check.verdict,
                    "numbers": dict(check.numbers),
                    "sentence": check.sentence,
                }
                for place, check in enumerate(checks)
            ],
        )
    return verdict_id


def verdict(session: Session, version_id: int) -> VerdictRow | None:
    """The newest verdict on a version."""
    columns = [getattr(Verdict, name) for name in VerdictRow.__dataclass_fields__]
    query = select(*columns).where(Verdict.version_id == version_id)
    row = session.execute(query.order_by(Verdict.id.desc()).limit(1)).first()
    return VerdictRow(*row) if row else None


def limits_of_nights(session: Session) -> Limits:
    """The limits by which the last night judged its candidate; the defaults before there was one.

    What people do between two nights is judged by the same.
    """
    stored = session.scalar(
        text(
            """
            SELECT d.limits FROM verdicts d JOIN runs r ON r.id = d.run_id
            WHERE r.purpose = 'nightly' ORDER BY d.id DESC LIMIT 1
            """
        )
    )
    return Limits(**(stored or {}))


def discordance(session: Session) -> float | None:
    """The share of answers that turned, right to wrong or back, in the median of ten verdicts."""
    turned = session.scalar(
        text(
            """
            SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY turned) FROM (
                SELECT ((numbers->>'gained')::float + (numbers->>'lost')::float)
                       / (numbers->>'images')::float AS turned
                FROM checks WHERE name = 'no worse' AND (numbers->>'lost') IS NOT NULL
                ORDER BY verdict_id DESC LIMIT 10) newest
            """
        )
    )
    return None if turned is None else float(turned)


def checks(session: Session, verdict_id: int) -> list[Check]:
    """The checks of a verdict in order."""
    query = select(
        VerdictCheck.name, VerdictCheck.verdict, VerdictCheck.numbers, VerdictCheck.sentence
    )
    query = query.where(VerdictCheck.verdict_id == verdict_id).order_by(VerdictCheck.ordinal)
    return [Check(*row) for row in session.execute(query)]


def deploy(
    session: Session,
    version_id: int,
    verdict_id: int,
    expected: int | None,
    by: str,
    why: str,
    run_id: int | None = None,
    kind: str = "promotion",
) -> int:
    """Append the version to the log, provided the champion is still the one it was judged against.

    `expected` is the id of the deployment that was newest when the version was judged (None for
    the first); the verdict must have been given against that champion and on the newest benchmark.
    kind: `promotion` by a night, `approval` or `adoption` by a person. The database refuses a
    second follower of it, a version without a passed verdict on its own checkpoint, versions that
    are not meant to serve, and rejected ones.
    """
    if run_id is not None:
        runs.fence(session, run_id)
    _lock_log(session)
    if _newest(session) != expected:
        raise NotDeployable(
            f"version {version_id} was judged against deployment {expected}, but "
            f"{_newest(session)} is the newest now: judge it again"
        )
    _refuse_stale(session, version_id, verdict_id)
    return _append(session, version_id, verdict_id, expected, kind, by, why, run_id)


def former(session: Session, version_id: int | None) -> DeploymentRow:
    """The deployment to return to: of this version, or of the one before the champion.

    Raises `NotDeployable` when there is none, when the version serves already or was rejected.
    """
    history = log(session, most=None)
    by_verdict = {one.verdict_id: one for one in history if one.kind != "rollback"}
    if not history:
        raise NotDeployable("nothing serves yet: there is nothing to roll back")
    serving = by_verdict[history[0].verdict_id]  # its own deployment, not a return to it
    if version_id is None:
        if serving.previous_id is None:
            raise NotDeployable(
                f"version {serving.version_id} was the first to serve: there is none before it"
            )
        before = next(one for one in history if one.id == serving.previous_id)
        found = by_verdict[before.verdict_id]
    else:
        served = [one for one in by_verdict.values() if one.version_id == version_id]
        if not served:
            versions.get(session, version_id)
            raise NotDeployable(
                f"version {version_id} never served: `regraft approve` or `regraft adopt` judge it"
            )
        found = max(served, key=lambda one: one.id)
    if found.version_id == history[0].version_id:
        raise NotDeployable(f"version {found.version_id} serves already: nothing to roll back")
    refuse_rejected(session, found.version_id)
    return found


def roll_back(
    session: Session, to: DeploymentRow, expected: int, by: str, why: str
) -> int:
    """Append a return to a version that served before, by the verdict that let it serve then.

    `expected` is the newest deployment that whoever rolls back has seen.
    """
    _lock_log(session)
    newest = _newest(session)
    if newest != expected:
        raise NotDeployable(
            f"deployment {newest} came in meanwhile: look at `regraft log` and roll back again"
        )
    refuse_rejected(session, to.version_id)
    return _append(session, to.version_id, to.verdict_id, expected, "rollback", by, why, None)


def reject(session: Session, version_id: int, by: str, why: str) -> int:
    """Keep a person's word that a version must not serve; nights and rollbacks heed it.

    Raises `NotDeployable` when it serves now.
    """
    say_who(by, why)
    _lock_log(session)  # or a deployment could slip in between the look and the word
    version = versions.get(session, version_id)
    if version.purpose not in SERVING:
        raise NotDeployable(
            f"version {version_id} is a {version.purpose} version: it never serves anyway"
        )
    serving = champion(session)
    if serving and serving.version_id == version_id:
        raise NotDeployable(
            f"version {version_id} serves: `regraft rollback --why TEXT` first, then reject it"
        )
    statement = insert(Rejection).values(version_id=version_id, rejected_by=by, why=why)
    return session.execute(statement.returning(Rejection.id)).scalar_one()


def rejected(session: Session, version_id: int) -> str | None:
    """Who rejected a version, when and why, in one sentence; None when nobody's word stands."""
    row = session.execute(
        text(
            """
            SELECT r.rejected_by, r.rejected_at, r.why FROM rejections r
            WHERE r.version_id = :version AND NOT EXISTS (
                SELECT 1 FROM deployments p WHERE p.version_id = r.version_id
                AND p.kind = 'approval' AND p.deployed_at > r.rejected_at)
            ORDER BY r.id DESC LIMIT 1
            """
        ),
        {"version": version_id},
    ).first()
    if row is None:
        return None
    by, when, why = row
    return f"Version {version_id} was rejected by {by} on {when:%Y-%m-%d}: {why}."


def taken_back(session: Session, version_id: int) -> str | None:
    """Who let another version serve in the place of this one, when and why, in one sentence.

    None for a version that never served: only such a one comes to serve without a person's word.
    """
    row = session.execute(
        text(
            """
            SELECT after.version_id, after.deployed_by, after.deployed_at, after.why
            FROM deployments d JOIN deployments after ON after.previous_id = d.id
            WHERE d.version_id = :version ORDER BY d.id DESC LIMIT 1
            """
        ),
        {"version": version_id},
    ).first()
    if row is None:
        return None
    other, by, when, why = row
    return (
        f"Version {version_id} served until {by} let version {other} serve in its place on "
        f"{when:%Y-%m-%d}: {why}. Only a person brings it back: `regraft rollback {version_id}`."
    )


def refuse_rejected(session: Session, version_id: int) -> None:
    """Raise `NotDeployable` for a version that a person has rejected."""
    if sentence := rejected(session, version_id):
        raise NotDeployable(f"{sentence} Only `regraft approve {version_id}` lets it serve again")


def refuse_purpose(purpose: str, version_id: int, allowed: tuple[str, ...], instead: str) -> None:
    """Raise `NotDeployable` for a version of a purpose that this act is not for."""
    if purpose not in SERVING:
        raise NotDeployable(f"version {version_id} is a {purpose} version: it never serves")
    if purpose not in allowed:
        raise NotDeployable(f"version {version_id} is a {purpose} version: {instead}")


def say_who(by: str, why: str) -> None:
    """Raise `NotDeployable` for a decision without a name or a reason."""
    if not by.strip() or not why.strip():
        raise NotDeployable("say who decides and why: --by NAME --why TEXT")


def _lock_log(session: Session) -> None:
    session.execute(text("LOCK TABLE deployments IN SHARE ROW EXCLUSIVE MODE"))


def _newest(session: Session) -> int | None:
    return session.scalar(select(Deployment.id).order_by(Deployment.id.desc()).limit(1))


def _append(
    session: Session,
    version_id: int,
    verdict_id: int,
    previous_id: int | None,
    kind: str,
    by: str,
    why: str,
    run_id: int | None,
) -> int:
    say_who(by, why)
    version = versions.get(session, version_id)
    refuse_purpose(version.purpose, version_id, SERVING, "")
    return session.execute(
        insert(Deployment)
        .values(
            version_id=version_id,
            purpose=version.purpose,
            previous_id=previous_id,
            verdict_id=verdict_id,
            kind=kind,
            deployed_by=by,
            why=why,
            run_id=run_id,
        )
        .returning(Deployment.id)
    ).scalar_one()


def _refuse_stale(session: Session, version_id: int, verdict_id: int) -> None:
    given, serving, on, newest = session.execute(
        text(
            """
            SELECT d.champion_id, (SELECT version_id FROM champion), d.benchmark_version,
                   (SELECT max(version) FROM benchmarks)
            FROM verdicts d WHERE d.id = :verdict
            """
        ),
        {"verdict": verdict_id},
    ).one()
    if given != serving:
        raise NotDeployable(
            f"the champion changed since version {version_id} was judged: judge it again"
        )
    if on != newest:
        raise NotDeployable(
            f"version {version_id} was judged on benchmark version {on}, and the newest is "
            f"{newest} now: judge it again"
        )
