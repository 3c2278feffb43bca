"""Promotion: let the gate judge a version, deploy what passed, and do what people decide.

Whatever comes to serve is loaded from its stored checkpoint first, its bytes hashed, and has to
repeat answers that were recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from infra import database
from infra.database import run_lock
from records import benchmark, classes, deployments, evaluations, runs, versions
from records.benchmark import BenchmarkRow, Member
from records.deployments import NotDeployable
from records.evaluations import EvaluationRow
from records.versions import VersionRow
from tasks import checkpoints, serving
from tasks.evaluation import (
    Answering,
    answers_of,
    choose_engine,
    engine_of,
    evaluate_together,
    runtime,
    start,
    told,
)
from tasks.explanation import explain_now
from tasks.step import reading, timed
from vision.answers import Answers, BadAnswers
from vision.gate import REPEAT_TOLERANCE, Evidence, Limits, Repeated, Verdict
from vision.gate import judge as decide
from vision.network import Loaded
from vision.prediction import Forward
from vision.runtime import NoEngine, named
from vision.serving import Served

log = logging.getLogger("regraft")

# A night repeats so many before it deploys; a rollback repeats them all.
REPEATED_IMAGES = 64
# Of the classes answered, so many may turn where a rollback repeats in another runtime. Another
# precision turns few answers; a network that is loaded or fed wrongly turns most.
MOST_TURNED = 0.05
SERVING_ENGINE = named("onnxruntime float32")


@dataclass(frozen=True)
class Decision:
    """What became of a version that a person decided about.

    kind: approval | adoption | rollback. deployment_id: None when the gate refused it.
    overridden: the checks that the person let pass. reason: one line.
    """

    version_id: int
    kind: str
    deployment_id: int | None
    overridden: tuple[str, ...]
    reason: str


@reading("judge")
def judge(run_id: int, version_id: int, limits: Limits) -> bool:
    """Judge the candidate against the champion on the newest benchmark, and keep every check."""
    with timed(run_id, "judge"):
        repeated = repeat(version_id)
        with database.connect().transaction() as session:
            runs.fence(session, run_id)
            verdict, verdict_id = _judged(session, run_id, version_id, limits, repeated)
            runs.note(session, run_id, verdict_id=verdict_id)
    return verdict.passed


def _judged(
    session: Session,
    run_id: int | None,
    version_id: int,
    limits: Limits,
    repeated: Repeated | None,
    seen: frozenset[str] = frozenset(),
) -> tuple[Verdict, int]:
    """Give the verdict and keep it; failures that a person has seen may be overridden."""
    champion = deployments.champion(session)
    champion_id = champion.version_id if champion else None
    if champion_id == version_id:
        raise NotDeployable(f"version {version_id} serves already: there is nothing to judge")
    frozen = benchmark.current(session)
    candidate = evidence(session, version_id, frozen, repeated)
    if run_id is not None and candidate.rejected is None:
        # a night would undo what a person decided; the person may decide anew
        candidate = replace(candidate, rejected=deployments.taken_back(session, version_id))
    verdict = decide(
        candidate,
        evidence(session, champion_id, frozen) if champion_id else None,
        limits,
        deployments.since_anchor(session),
    ).approved(seen)
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
    return verdict, verdict_id


def evidence(
    session: Session, version_id: int, frozen: BenchmarkRow, repeated: Repeated | None = None
) -> Evidence:
    """What is stored about a version, as the gate wants it; what is absent stays absent.

    Classes go by what they are called today, so that one that was renamed is compared on.
    """
    version = versions.get(session, version_id)
    on_benchmark = evaluations.find(
        session, version_id, "benchmark", benchmark_version=frozen.version
    )
    on_test = evaluations.find(session, version_id, "test")
    names, now = version.class_names, classes.today(session)
    return Evidence(
        version=f"version {version_id}",
        class_names=tuple(dict.fromkeys(now.get(name, name) for name in names)),
        checkpoint_digest=version.checkpoint_digest or "",
        evaluated_digest=on_benchmark.checkpoint_digest if on_benchmark else "",
        benchmark_digest=frozen.digest,
        benchmark_images=frozenset(
            one.sha256 for one in benchmark.members(session, frozen.version)
        ),
        benchmark=_answers(session, on_benchmark, names, now),
        runtime=told(on_benchmark.runtime) if on_benchmark else "",
        test=_answers(session, on_test, names, now),
        training_accuracy=version.training_accuracy,
        validation_accuracy=version.validation_accuracy,
        latency_seconds=version.latency_seconds,
        latency_machine=version.latency_machine,
        repeated=repeated,
        looks=frozen.looks,
        rejected=deployments.rejected(session, version_id),
    )


def _answers(
    session: Session,
    evaluation: EvaluationRow | None,
    class_names: list[str],
    now: Mapping[str, str] | None = None,
) -> Answers | None:
    """Stored answers, all of them or as good as none: the gate fails what is absent.

    now: what classes are called instead, where they are called otherwise.
    """
    if evaluation is None:
        return None
    try:
        answers = evaluations.answers(session, evaluation.id, class_names)
        answers = answers.renamed(now) if answers and now else answers
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
    were recorded for the benchmark; so must the file that will serve it, which is written here.
    """
    with timed(run_id, "deploy"):
        with database.connect().transaction() as session:
            verdict = deployments.verdict(session, version_id)
            champion = deployments.champion(session)
        if champion and champion.version_id == version_id:
            return  # deployed before a kill: there is nothing left to do
        if verdict is None or not verdict.passed:
            raise NotDeployable(f"version {version_id} has no passed verdict: it may not serve")
        _must_repeat(version_id, repeat(version_id, verdict.benchmark_version))
        _must_serve(version_id, verdict.benchmark_version)
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


# --- what people decide ---------------------------------------------------------------------


def approve(version_id: int, by: str, why: str) -> Decision:
    """Let a judged version serve despite the failures that its newest verdict shows.

    It and the champion of now answer the benchmark of now, in one process, and it is judged again.
    What nobody may override, and what failed only now, refuses it: then look, and approve again.
    Raises `NotDeployable` for a version that was never judged or can never serve, and `Busy`.
    """
    deployments.say_who(by, why)
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        deployments.refuse_purpose(version.purpose, version_id, deployments.SERVING, "")
        last = deployments.verdict(session, version_id)
        if last is None:
            raise NotDeployable(
                f"version {version_id} was never judged, so there is nothing to approve"
                + ("" if version.purpose == "nightly" else f": `regraft adopt {version_id}`")
            )
        checks = deployments.checks(session, last.id)
    seen = frozenset(one.name for one in checks if one.verdict in ("failed", "overridden"))
    with run_lock(database.connect()):
        return _decide("approval", version_id, Limits(**last.limits), by, why, seen)


def adopt(version_id: int, changes: Mapping[str, Any], by: str, why: str) -> Decision:
    """Put a control or bake-off version through the same gate; if it passes it serves.

    It and the champion answer the newest benchmark anew, in one process. The next night starts
    from it: a new lineage. changes: limits that shall be others than the last night's. Raises
    `NotDeployable` for a version of another purpose, `BadLimits` and `Busy`.
    """
    deployments.say_who(by, why)
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        deployments.refuse_purpose(
            version.purpose, version_id, ("control", "bakeoff"),
            f"nights judge it; `regraft approve {version_id}` lets it serve despite a refusal",
        )  # fmt: skip
        limits = deployments.limits_of_nights(session).changed(changes)
    with run_lock(database.connect()):
        decision = _decide("adoption", version_id, limits, by, why, frozenset())
    if decision.deployment_id is None:
        return decision
    return replace(decision, reason=f"{decision.reason}; {_nights_to_come(version)}")


def _nights_to_come(version: VersionRow) -> str:
    """What an adoption means for nights that are asked for what the last one was."""
    with database.connect().transaction() as session:
        asked = runs.newest_plan(session, "nightly")
    named = asked.get("architecture") if asked else None
    if named in (None, version.architecture):
        return f"the next night starts from it and its {version.architecture}"
    return (
        f"the last night was asked for architecture={named}: have the next ones leave it out "
        f"(null), or they cannot start from its {version.architecture}"
    )


def roll_back(version_id: int | None, by: str, why: str) -> Decision:
    """Return to a version that served before; by default to the one before the champion.

    Its checkpoint is fetched, hashed and loaded, and must repeat every recorded answer of its
    newest benchmark first; in another runtime than recorded them, the class of nearly every answer.
    Does not wait for a night that runs: that one then deploys nothing.
    """
    deployments.say_who(by, why)
    with database.connect().transaction() as session:
        to = deployments.former(session, version_id)
        expected = deployments.log(session, most=1)[0].id
        on = evaluations.newest_benchmark(session, to.version_id)
    repeated = repeat(to.version_id, on, images=None)
    how = _must_answer_alike(to.version_id, repeated)
    _must_serve(to.version_id, on)
    with database.connect().transaction() as session:
        deployment_id = deployments.roll_back(session, to, expected, by, why)
    return Decision(
        to.version_id, "rollback", deployment_id, (),
        f"version {to.version_id} serves again; of benchmark version {on} {how}",
    )  # fmt: skip


def _decide(
    kind: str, version_id: int, limits: Limits, by: str, why: str, seen: frozenset[str]
) -> Decision:
    """Answer anew, explain, judge, and deploy what passed; a refusal is kept as well."""
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
        if champion and champion.version_id == version_id:
            raise NotDeployable(f"version {version_id} serves already: there is nothing to judge")
        frozen = benchmark.current(session)
    both = [version_id, *([champion.version_id] if champion else [])]
    evaluate_together(both, frozen.version)
    explain_now(version_id, champion.version_id if champion else None)
    repeated = repeat(version_id)
    _must_serve(version_id, frozen.version)
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
        verdict, verdict_id = _judged(session, None, version_id, limits, repeated, seen)
        overridden = tuple(one.name for one in verdict.overridden)
        if not verdict.passed:
            return Decision(
                version_id, kind, None, overridden, _refusal(version_id, kind, verdict, seen)
            )
        deployment_id = deployments.deploy(
            session,
            version_id,
            verdict_id,
            expected=champion.deployment_id if champion else None,
            by=by,
            why=why,
            kind=kind,
        )
    despite = f" despite {', '.join(overridden)}" if overridden else ""
    return Decision(
        version_id, kind, deployment_id, overridden, f"version {version_id} serves{despite}"
    )


def _refusal(version_id: int, kind: str, verdict: Verdict, seen: frozenset[str]) -> str:
    lines = []
    for check in verdict.failed:
        note = ""
        if not check.may_be_overridden:
            note = " (nobody may override this)"
        elif kind == "approval" and check.name not in seen:
            note = f" (new since you looked: `regraft show {version_id}`, then approve again)"
        elif kind == "adoption":
            note = f" (`regraft approve {version_id}` would override it)"
        lines.append(check.sentence + note)
    return f"version {version_id} was refused: {' · '.join(lines)}"


# --- repeating recorded answers -------------------------------------------------------------


def repeat(
    version_id: int,
    benchmark_version: int | None = None,
    images: int | None = REPEATED_IMAGES,
    served: Served | None = None,
) -> Repeated | None:
    """Answer benchmark images again with the checkpoint that is stored, and compare.

    benchmark_version: the newest by default. images: how many at most, None for all. served: what
    answers in the checkpoint's place. None when nothing comparable was recorded. Raises
    `BadCheckpoint` for bytes that were changed.
    """
    loaded = checkpoints.load(version_id)
    with database.connect().transaction() as session:
        on = benchmark_version or benchmark.current(session).version
        recorded = evaluations.find(session, version_id, "benchmark", benchmark_version=on)
        stored = _answers(session, recorded, list(loaded.class_names))
        members: list[Member] = benchmark.members(session, on)[:images]
    if recorded is None or stored is None:
        return None
    names = [one.sha256 for one in members]
    try:
        before = stored.only(names)
    except BadAnswers as error:
        log.warning("version %d cannot repeat its answers: %s", version_id, error)
        return None
    if served is None:
        answering = _as_recorded(loaded, recorded.runtime, len(names))
    else:
        answering = _as_served(loaded, served)
    again = answers_of(
        answering,
        {one.sha256: (one.key, None) for one in members},
        names,
        [one.class_name for one in members],
    )
    # A class that was merged since has another label, of which nothing was recorded.
    alike = [one == other for one, other in zip(before.labels, again.labels, strict=True)]
    pairs = ((before.label_confidence[alike], again.label_confidence[alike]),
             (before.confidence, again.confidence))  # fmt: skip
    apart = max(float(np.abs(one - other).max(initial=0.0)) for one, other in pairs)
    turned = int((before.top[:, 0] != again.top[:, 0]).sum())
    elsewhere = told(recorded.runtime) != told(runtime(answering.engine))
    return Repeated(len(names), apart, turned, elsewhere)


def _as_recorded(loaded: Loaded, recorded: dict[str, Any], images: int) -> Answering:
    """A version in the engine of a recorded runtime, or in one of here where that is not known."""
    try:
        if engine := engine_of(recorded):
            return start(loaded, engine)
    except NoEngine as error:
        log.warning("another engine repeats the answers than gave them: %s", error)
    return start(loaded, choose_engine(loaded, images))


def _as_served(loaded: Loaded, served: Served) -> Answering:
    def compute(pixels: Tensor) -> Tensor:
        return torch.from_numpy(served.logits(pixels.numpy()))

    return Answering(loaded, SERVING_ENGINE, Forward(compute))


def _must_serve(version_id: int, benchmark_version: int | None) -> None:
    """Have the file that serves a version in its place, and see that it answers as was recorded.

    Raises `NotDeployable`, `BadExport`.
    """
    served = serving.prepare(version_id)
    _must_answer_alike(version_id, repeat(version_id, benchmark_version, served=served))


def _must_repeat(version_id: int, repeated: Repeated | None) -> Repeated:
    if repeated is None:
        raise NotDeployable(f"version {version_id} has no recorded answers to repeat, or not all")
    # Written so that a NaN is refused too.
    if not repeated.apart <= REPEAT_TOLERANCE:
        raise NotDeployable(
            f"version {version_id} does not repeat its recorded answers (they differ by up to "
            f"{repeated.apart:.3g}): train it again"
        )
    return repeated


def _must_answer_alike(version_id: int, repeated: Repeated | None) -> str:
    """How a version repeats its recorded answers, in words that follow `of benchmark version N`.

    Where they came from another runtime, the digits of a sound network differ, and an emergency
    cannot wait for a machine that is gone: there the classes answered must be the same.
    """
    if repeated is None or not repeated.elsewhere or repeated.apart <= REPEAT_TOLERANCE:
        again = _must_repeat(version_id, repeated)
        return f"it repeated its {again.images} answers to within {again.apart:.1g}"
    if repeated.turned > MOST_TURNED * repeated.images:
        raise NotDeployable(
            f"version {version_id} answers {repeated.turned} of {repeated.images} images with "
            f"another class than was recorded in another runtime, and {MOST_TURNED:.0%} are "
            "allowed: roll back where it was recorded, or to another version"
        )
    return (
        f"it answered {repeated.images - repeated.turned} of {repeated.images} images with the "
        "recorded class; the digits were recorded in another runtime (machine, engine or "
        f"libraries) and are up to {repeated.apart:.1g} apart"
    )
