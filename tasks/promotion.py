"""Promotion: let the gate judge the candidate, and deploy what passed."""

from __future__ import annotations

import logging

import numpy as np
from sqlalchemy.orm import Session

from infra import database
from records import benchmark, deployments, evaluations, runs, versions
from records.benchmark import BenchmarkRow
from records.deployments import NotDeployable
from records.evaluations import EvaluationRow
from tasks import checkpoints
from tasks.evaluation import answer, engine_of, told
from tasks.step import reading, timed
from vision.answers import Answers, BadAnswers
from vision.gate import Evidence, Limits, Verdict
from vision.gate import judge as decide

log = logging.getLogger("regraft")

# How far an answer repeated at deployment may lie from the recorded one. The engine and its
# precision are those of the record, so that this is about other shapes of the last batch only.
REPEAT_TOLERANCE = 1e-3
REPEATED_IMAGES = 64


@reading("judge")
def judge(run_id: int, version_id: int, limits: Limits) -> bool:
    """Judge the candidate against the champion on the newest benchmark, and keep every check."""
    with timed(run_id, "judge"), database.connect().transaction() as session:
        runs.fence(session, run_id)
        champion = deployments.champion(session)
        champion_id = champion.version_id if champion else None
        frozen = benchmark.current(session)
        candidate = evidence(session, version_id, frozen)
        if champion_id == version_id:
            raise NotDeployable(f"version {version_id} serves already: there is nothing to judge")
        verdict = decide(
            candidate,
            evidence(session, champion_id, frozen) if champion_id else None,
            limits,
            deployments.drop_since_anchor(session),
        )
        verdict_id = deployments.record_verdict(
            session,
            run_id,
            version_id,
            candidate.checkpoint_digest,
            champion_id,
            frozen.version,
            frozen.digest,
            verdict.passed,
            _shared_drop(verdict),
            limits,
            verdict.checks,
        )
        runs.note(session, run_id, verdict_id=verdict_id)
    return verdict.passed


def evidence(session: Session, version_id: int, frozen: BenchmarkRow) -> Evidence:
    """What is stored about a version, as the gate wants it; what is absent stays absent."""
    version = versions.get(session, version_id)
    on_benchmark = evaluations.find(
        session, version_id, "benchmark", benchmark_version=frozen.version
    )
    on_test = evaluations.find(session, version_id, "test")
    names = version.class_names
    return Evidence(
        version=f"version {version_id}",
        class_names=tuple(names),
        checkpoint_digest=version.checkpoint_digest or "",
        evaluated_digest=on_benchmark.checkpoint_digest if on_benchmark else "",
        benchmark_digest=frozen.digest,
        benchmark_images=frozenset(
            one.sha256 for one in benchmark.members(session, frozen.version)
        ),
        benchmark=_answers(session, on_benchmark, names),
        runtime=told(on_benchmark.runtime) if on_benchmark else "",
        test=_answers(session, on_test, names),
        training_accuracy=version.training_accuracy,
        validation_accuracy=version.validation_accuracy,
        latency_seconds=version.latency_seconds,
        latency_machine=(version.machine or {}).get("processor"),
    )


def _answers(
    session: Session, evaluation: EvaluationRow | None, class_names: list[str]
) -> Answers | None:
    """Stored answers, all of them or as good as none: the gate fails what is absent."""
    if evaluation is None:
        return None
    try:
        answers = evaluations.answers(session, evaluation.id, class_names)
    except BadAnswers as error:
        log.warning("evaluation %d cannot be used: %s", evaluation.id, error)
        return None
    # Which benchmark images are missing the gate says itself; of others it knows no list.
    whole = evaluation.subject == "benchmark" or evaluation.images == len(answers or ())
    return answers if whole else None


def _shared_drop(verdict: Verdict) -> float | None:
    margin = verdict.check("margin")
    drop = margin.numbers.get("drop") if margin else None
    return None if drop is None else float(drop)


@reading("deploy")
def deploy(run_id: int, version_id: int, by: str, why: str) -> None:
    """Append the judged version to the log after showing that its checkpoint is what was judged.

    The bytes are fetched and hashed again, the network is loaded, and it must repeat answers that
    were recorded for the benchmark.
    """
    with timed(run_id, "deploy"):
        with database.connect().transaction() as session:
            verdict = deployments.verdict(session, version_id)
            champion = deployments.champion(session)
        if champion and champion.version_id == version_id:
            return  # deployed before a kill: there is nothing left to do
        if verdict is None or not verdict.passed:
            raise NotDeployable(f"version {version_id} has no passed verdict: it may not serve")
        _repeat_answers(version_id, verdict.benchmark_version)
        with database.connect().transaction() as session:
            deployments.deploy(
                session,
                version_id,
                verdict.id,
                expected=champion.deployment_id if champion else None,
                by=by,
                why=why,
                run_id=run_id,
            )


def _repeat_answers(version_id: int, benchmark_version: int) -> None:
    loaded = checkpoints.load(version_id)
    with database.connect().transaction() as session:
        recorded = evaluations.find(
            session, version_id, "benchmark", benchmark_version=benchmark_version
        )
        names = list(loaded.class_names)
        stored = _answers(session, recorded, names)
        members = benchmark.members(session, benchmark_version)[:REPEATED_IMAGES]
    if recorded is None or stored is None:
        raise NotDeployable(f"version {version_id} has no recorded answers to repeat")
    images = [one.sha256 for one in members]
    again = answer(
        loaded,
        {one.sha256: (one.key, None) for one in members},
        images,
        [one.class_name for one in members],
        engine_of(recorded.runtime),
    )
    try:
        before = stored.only(images)
    except BadAnswers as error:
        raise NotDeployable(f"version {version_id} cannot repeat its answers: {error}") from None
    apart = np.abs(before.label_confidence - again.label_confidence).max(initial=0.0)
    # Written so that a NaN is refused too.
    if not apart <= REPEAT_TOLERANCE:
        raise NotDeployable(
            f"version {version_id} does not repeat its recorded answers (they differ by up to "
            f"{apart:.3g}): train it again"
        )
