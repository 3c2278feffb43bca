"""Validation: judge a batch by the declared expectations, then take it in, or stop the night."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra import database
from records import (
    batches,
    classes,
    deployments,
    evaluations,
    library,
    objects,
    runs,
    versions,
)
from records.batches import Accepted, Refused
from tasks import checkpoints, data_docs, expectations
from tasks.evaluation import answer
from tasks.expectations import Candidate, Rules, Summary, Validation
from tasks.step import reading, timed

# The champion is confident where it gives one class more than all the others together.
CONFIDENT = 0.5


@dataclass(frozen=True)
class Checked:
    """What became of a batch; `refused` says why when it failed as a whole."""

    images: int
    accepted: int
    quarantined: int
    refused: str | None = None


@reading("check batch")
def check_batch(run_id: int, batch_id: int, rules: Rules) -> Checked:
    """Quarantine what is bad, and take the rest in if the batch as a whole is sound.

    If it is not, its objects stay pending in the refused batch, the next nights go on without
    them, and a person reverts or accepts it.
    """
    with timed(run_id, "validate") as facts:
        with database.connect().transaction() as session:
            rows = batches.frame_rows(session, batch_id)
            known = classes.names(session)
            mix = library.class_mix(session)
            let_in_by = batches.decided_by(session, batch_id)
        if not rows:  # a manifest that says nothing new, or a step that had been done before
            with database.connect().transaction() as session:
                runs.fence(session, run_id)
                batches.accept_batch(session, run_id, batch_id, [])
            return Checked(0, 0, 0)
        candidates = [_candidate(row) for row in _labelled(rows, known)]
        frame = expectations.frame_of(candidates)
        images = expectations.validate(frame, rules)
        passed = zip(rows, candidates, strict=True)
        good = [row for row, one in passed if one.key not in images.reasons]
        summary = _summary(candidates, images, good, mix, rules)
        batch = expectations.validate_batch(expectations.frame_of([summary]), rules)
        stopped = not batch.passed and let_in_by is None
        with database.connect().transaction() as session:
            runs.fence(session, run_id)
            by_rows = batches.store_validation(
                session, batch_id, "images", images.passed, images.results
            )
            batches.store_validation(session, batch_id, "batch", batch.passed, batch.results)
            if stopped:
                batches.refuse_batch(session, batch_id, "; ".join(batch.sentences))
            else:
                _take_in(session, run_id, batch_id, rows, candidates, images, by_rows)
        facts.update(images=len(rows), accepted=len(good), quarantined=len(images.reasons))
    data_docs.publish(batch_id)
    if not stopped:
        return Checked(len(rows), len(good), len(images.reasons))
    why = (
        f"batch {batch_id} was refused: {'; '.join(batch.sentences)}. Its {len(rows)} objects "
        f"wait: `regraft intake revert {batch_id}` leaves them out, "
        f"`regraft intake accept {batch_id}` lets them in; the champion was not touched"
    )
    return Checked(len(rows), 0, len(images.reasons), refused=why)


@reading("settle what is gone")
def settle_gone(run_id: int) -> int:
    """Withdraw images whose objects were deleted, and log it; answers how many changed."""
    with timed(run_id, "settle") as facts, database.connect().transaction() as session:
        runs.fence(session, run_id)
        changes = library.settle_gone(session, run_id)
        facts.update(changes)
    return changes.total()


def _labelled(rows: list[dict[str, Any]], known: Mapping[str, str]) -> list[dict[str, Any]]:
    """Give each row its label and say what is wrong with it, seen over the whole batch.

    known: every name there is or was, and what it is called today.
    """
    for row in rows:
        for source in ("manifest_label", "folder_label"):  # keys and manifests keep old names
            row[source] = known.get(row[source], row[source])
        row["label"] = row["manifest_label"] if row["in_manifest"] else row["folder_label"]
        row["label"] = row["label"] or row["folder_label"]
        if row["row_problem"]:
            row["label"] = None  # what the row says of the object is not to be relied on
        row["sub_label"] = row["manifest_sub_label"] or row["folder_sub_label"]
        row["shown_key"] = (
            row["key"]
            if row["object_id"] is not None
            else f"{row['key']} (row of a manifest, {row['manifest_row_id']})"
        )
    spellings = _spellings(rows, known)
    labels: dict[str, set[str]] = {}
    for row in rows:
        if row["sha256"] and row["label"]:
            labels.setdefault(row["sha256"], set()).add(row["label"])
            if row["library_live"] and row["library_label"]:
                labels[row["sha256"]].add(row["library_label"])
            # A manifest that contradicts the folder leaves two labels for the same bytes.
            if row["in_manifest"] and row["manifest_label"] and row["folder_label"]:
                labels[row["sha256"]].add(row["folder_label"])
    for row in rows:
        meant = spellings.get(row["label"]) if row["label"] else None
        row["label_problem"] = (
            f"{row['label']!r} is {meant!r} spelt another way: rename it to {meant!r}"
            if meant and meant != row["label"]
            else None
        )
        row["label_known"] = row["label"] in known
        row["labels_of_content"] = len(labels.get(row["sha256"] or "", {row["label"]}))
    return rows


def _spellings(rows: list[dict[str, Any]], known: Mapping[str, str]) -> dict[str, str]:
    """For each label the spelling that counts: the library's, else the batch's most frequent."""
    counted = Counter(row["label"] for row in rows if row["label"])
    meant = {name.casefold(): known[name] for name in sorted(known)}
    for label, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        meant.setdefault(label.casefold(), label)
    return {label: label if label in known else meant[label.casefold()] for label in counted}


def _candidate(row: dict[str, Any]) -> Candidate:
    facts = row["facts"] or {}
    names = (
        "problem", "format", "width", "height", "orientation", "animated", "brightness",
        "sharpness",
    )  # fmt: skip
    box = row["box"]
    return Candidate(
        key=row["shown_key"],
        key_problem=facts.get("key_problem"),
        text_problem=row["row_problem"],
        has_object=row["object_id"] is not None or row["relabels"] is not None,
        readable=bool(facts.get("readable")),
        label=row["label"],
        label_problem=row["label_problem"],
        label_known=row["label_known"],
        origin=row["origin"] or "real",
        labelled_by=row["labelled_by"] or "person:upload",
        box_share=box[2] * box[3] if box else None,
        labels_of_content=row["labels_of_content"],
        in_benchmark=row["in_benchmark"],
        near_benchmark=row["near_benchmark"],
        removed=row["removed"],
        **{name: facts.get(name) for name in names},
    )


def _summary(
    candidates: list[Candidate],
    images: Validation,
    good: list[dict[str, Any]],
    mix: dict[str, int],
    rules: Rules,
) -> Summary:
    with database.connect().transaction() as session:
        champion = deployments.champion(session)
    bad_share = len(images.reasons) / len(candidates)
    drift = _drift(Counter(row["label"] for row in good), mix)
    if champion is None:
        return Summary(len(candidates), bad_share, drift)
    disagreeing, confident = _disagreement(champion.version_id, good)
    usual = _usual_disagreement(champion.version_id)
    return Summary(
        images=len(candidates),
        bad_share=bad_share,
        class_drift=drift,
        has_champion=True,
        disagreement=disagreeing / confident if confident else 0.0,
        disagreement_p=None
        if usual is None
        else expectations.disagreement_p(disagreeing, confident, usual, rules),
    )


def _drift(batch: Counter[str], library_mix: dict[str, int]) -> float:
    """Total variation distance between the class mix of the batch and that of the library."""
    if not batch or not library_mix:
        return 0.0
    here, there = batch.total(), sum(library_mix.values())
    names = set(batch) | set(library_mix)
    apart = (abs(batch[name] / here - library_mix.get(name, 0) / there) for name in names)
    return sum(apart) / 2


def _disagreement(champion_id: int, good: list[dict[str, Any]]) -> tuple[int, int]:
    """How many of the champion's confident answers on new images contradict their labels."""
    loaded = checkpoints.load(champion_id)
    sources: dict[str, tuple[str, str | None]] = {}
    with database.connect().transaction() as session:
        now = classes.today(session)
        known = {now.get(name, name) for name in loaded.class_names}
        judged = {
            row["sha256"]: row for row in good if row["label"] in known and row["sha256"]
        }
        if not judged:
            return 0, 0
        sources.update(objects.sources(session, list(judged)))
    images = sorted(sources)
    labels = [judged[sha256]["label"] for sha256 in images]
    answers = answer(loaded, sources, images, labels).renamed(now)
    confident = answers.confidence >= CONFIDENT
    return int((confident & ~answers.correct).sum()), int(confident.sum())


def _usual_disagreement(champion_id: int) -> float | None:
    """The share of the champion's confident answers that are wrong on its test images."""
    with database.connect().transaction() as session:
        names = versions.get(session, champion_id).class_names
        test = evaluations.find(session, champion_id, "test")
        answers = evaluations.answers(session, test.id, names) if test else None
    if answers is None:
        return None
    confident = answers.confidence >= CONFIDENT
    return float((confident & ~answers.correct).sum() / max(int(confident.sum()), 1))


def _take_in(
    session: Any,
    run_id: int,
    batch_id: int,
    rows: list[dict[str, Any]],
    candidates: list[Candidate],
    images: Validation,
    validation_id: int,
) -> None:
    refused, accepted, conflicts = [], [], []
    for row, one in zip(rows, candidates, strict=True):
        reasons = images.reasons.get(one.key, ())
        refused += [
            Refused(
                row["object_id"],
                None if row["object_id"] is not None else row["manifest_row_id"],
                row["key"],
                reason.expectation,
                reason.sentence,
            )
            for reason in reasons
        ]
        in_library = row["library_live"] or row["relabels"]
        if any(reason.expectation == "one_label" for reason in reasons) and in_library:
            conflicts.append(row["sha256"])
        if not reasons:
            accepted.append(
                Accepted(
                    object_id=row["object_id"] or row["relabels"],
                    sha256=row["sha256"],
                    label=row["label"],
                    sub_label=row["sub_label"],
                    origin=one.origin or "real",
                    group_name=row["group_name"],
                    labelled_by=one.labelled_by or "",
                    facts=row["facts"],
                    relabels=row["relabels"] is not None,
                )
            )
    batches.quarantine(session, refused, validation_id)
    batches.withdraw_conflicts(session, run_id, conflicts)
    batches.accept_batch(session, run_id, batch_id, accepted)
