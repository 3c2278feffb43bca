"""Verdicts and the deployment log: what was decided, and what serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from records import runs, versions
from records.tables import Deployment, Verdict, VerdictCheck
from vision.gate import Check, Limits


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
    created_at: datetime


def champion(session: Session) -> Champion | None:
    """The version that serves now, or None before the first deployment."""
    row = session.execute(
        text("SELECT deployment_id, version_id, checkpoint_digest, deployed_at FROM champion")
    ).first()
    return Champion(*row) if row else None


def log(session: Session, most: int = 50) -> list[DeploymentRow]:
    """The deployment log, the newest first."""
    columns = [getattr(Deployment, name) for name in DeploymentRow.__dataclass_fields__]
    query = select(*columns).order_by(Deployment.id.desc()).limit(most)
    return [DeploymentRow(*row) for row in session.execute(query)]


def drop_since_anchor(session: Session) -> float:
    """Sum of the drops that promotions have taken since the lineage's first deployment.

    A lineage that loses a little every night passes every single margin; the sum does not.
    """
    total = session.scalar(
        text(
            """
            SELECT coalesce(sum(v.shared_drop), 0)
            FROM deployments d JOIN verdicts v ON v.id = d.verdict_id
            WHERE d.kind = 'promotion' AND v.shared_drop IS NOT NULL
            """
        )
    )
    return float(total or 0.0)


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
) -> int:
    """Append the version to the log, provided the champion is still the one it was judged against.

    `expected` is the id of the deployment that was newest when the version was judged (None for
    the first); the verdict must have been given against that champion and on the newest benchmark.
    The database refuses a second follower of it, a version without a passed verdict
    on its own checkpoint, and versions that are not meant to serve.
    """
    if run_id is not None:
        runs.fence(session, run_id)
    session.execute(text("LOCK TABLE deployments IN SHARE ROW EXCLUSIVE MODE"))
    newest = session.scalar(select(Deployment.id).order_by(Deployment.id.desc()).limit(1))
    if newest != expected:
        raise NotDeployable(
            f"version {version_id} was judged against deployment {expected}, but {newest} is the "
            "newest now: judge it again"
        )
    _refuse_stale(session, version_id, verdict_id)
    version = versions.get(session, version_id)
    if version.purpose not in ("nightly", "control", "bakeoff"):
        raise NotDeployable(f"version {version_id} is a {version.purpose} version: it never serves")
    return session.execute(
        insert(Deployment)
        .values(
            version_id=version_id,
            purpose=version.purpose,
            previous_id=expected,
            verdict_id=verdict_id,
            kind="promotion",
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
