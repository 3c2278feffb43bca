"""What the command line shows: tables that fit the terminal, and the same facts for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from sqlalchemy.orm import Session

from flows import figures, timeline
from flows.figures import percent
from flows.grid import table
from infra import database
from records import (
    batches,
    benchmark,
    classes,
    deployments,
    evaluations,
    flips,
    library,
    objects,
    runs,
    snapshots,
    versions,
)

MOST_REFUSALS = 40
MOST_FLIPS = 20
BAR = 16  # characters for a whole night


def version_facts(version_id: int) -> dict[str, Any]:
    """Everything about one version; `steps` and `profile` are those of its newest night.

    Classes are named as they were when it was trained; `called_today` has those that are not.
    """
    night, known = timeline.of_version(version_id), figures.facts(version_id)
    with database.connect().transaction() as session:
        version = versions.get(session, version_id)
        judged = deployments.verdict(session, version_id)
        return {
            "version": asdict(version),
            "called_today": _called_today(session, version.class_names),
            "epochs": [asdict(one) for one in versions.epochs(session, version_id)],
            **known,
            "verdict": asdict(judged) if judged else None,
            "checks": [
                {"name": one.name, "verdict": one.verdict, "numbers": dict(one.numbers),
                 "sentence": one.sentence}
                for one in (deployments.checks(session, judged.id) if judged else [])
            ],
            "flips": [asdict(one) for one in (flips.of_verdict(session, judged) if judged else [])],
            "rejected": deployments.rejected(session, version_id),
            "snapshot": [
                asdict(one) | {"wanting": one.wanting if one.lacks else None}
                for one in snapshots.class_counts(session, version.snapshot_digest)
            ],
            "steps": [asdict(one) for one in runs.steps(session, night.run_id)],
            "profile": asdict(night),
            "gradcams": len(evaluations.gradcams(session, version_id)),
        }  # fmt: skip


def _called_today(session: Session, class_names: list[str]) -> dict[str, str]:
    now = classes.today(session)
    return {name: now[name] for name in class_names if name in now}


def _headline(what: str, facts: Iterable[str], reason: str | None) -> Console:
    """Print what it is about in one line, why it came to this in the next, and a blank line."""
    console = Console()
    console.print(" · ".join([f"[bold]{what}[/bold]", *facts]))
    if reason:
        console.print(escape(reason))
    console.print()
    return console


def show_version(version_id: int) -> None:
    """Print one version for people."""
    facts = version_facts(version_id)
    version = facts["version"]
    console = _headline(
        f"version {version_id}",
        (
            version["purpose"],
            version["state"],
            version["architecture"],
            f"{len(version['class_names'])} classes",
            f"from version {parent}" if (parent := version["parent_id"]) else "from no parent",
        ),
        facts["rejected"] or _swept(version["swept_at"]) or version["reason"],
    )
    for name, now in facts["called_today"].items():
        console.print(f"[bold]{escape(name)}[/bold] is called {escape(now)} today")
    figures.show(facts)
    marks = {"passed": "[green]✓[/green]", "failed": "[red]✗[/red]", "undecidable": "?",
             "overridden": "[yellow]![/yellow]"}  # fmt: skip
    if facts["checks"]:
        table(
            ["", "check", "why"],
            ((marks[one["verdict"]], one["name"], escape(one["sentence"]))
             for one in facts["checks"]),
            "The gate",
        )  # fmt: skip
    _show_flips(facts["flips"], facts["verdict"])
    _show_epochs(facts["epochs"])
    _show_profile(timeline.of_version(version_id))
    short = [one for one in facts["snapshot"] if one["lacks"]]
    if short:
        named = "; ".join(escape(f"{one['class_name']} {one['wanting']}") for one in short[:20])
        console.print(f"Left out: {named}" + (" …" if len(short) > 20 else ""))
    console.print(
        f"{facts['gradcams']} Grad-CAM maps, reliability, confusions and the night as pictures: "
        f"`regraft show {version_id} --pictures FOLDER`"
    )


def _swept(since: datetime | None) -> str | None:
    return f"swept on {since:%Y-%m-%d}: checkpoint and embeddings are gone" if since else None


def _show_flips(found: list[dict[str, Any]], judged: dict[str, Any] | None) -> None:
    """Images that the champion or this version alone has right, those that were lost first."""
    if not found or not judged:
        return
    lost = sum(not one["gained"] for one in found)
    table(
        ["", "benchmark image", "is", f"version {judged['champion_id']} said", "this one says"],
        (
            (
                "[green]gained[/green]" if one["gained"] else "[red]lost[/red]",
                escape(one["source_key"]),
                escape(one["label"]),
                f"{escape(one['champion_said'])} ({percent(one['champion_confidence'])})",
                f"{escape(one['candidate_said'])} ({percent(one['candidate_confidence'])})",
            )
            for one in found[:MOST_FLIPS]
        ),
        f"Among all classes {lost} answers lost and {len(found) - lost} gained (`no worse` counts "
        "among the shared); all in --json, some as --pictures",
    )


def _show_epochs(epochs: list[dict[str, Any]]) -> None:
    """The first, the best and the last epochs; all of them are in --json."""
    if not epochs:
        return
    best = max(epochs, key=lambda one: one["validation_accuracy"] or 0)["number"]
    wanted = {1, best, *(one["number"] for one in epochs[-3:])}
    table(
        ["epoch", "phase", "loss", "validation loss", "validation accuracy", "rate", "images/s"],
        (
            (
                f"{one['number']}{' (best)' if one['number'] == best else ''}",
                one["phase"],
                f"{one['train_loss']:.3f}",
                "" if one["validation_loss"] is None else f"{one['validation_loss']:.3f}",
                percent(one["validation_accuracy"]),
                f"{one['learning_rate']:.2g}",
                f"{one['images_per_second']:.0f}",
            )
            for one in epochs
            if one["number"] in wanted
        ),
        "Training",
    )


def _show_profile(night: timeline.Profile) -> None:
    """Each step of the night, its share as a bar, and what it handled."""
    table(
        ["step", "took", "", "share", "handled"],
        (
            (
                f"  {one.name}" if one.inside else one.name,
                timeline.lasting(one.seconds),
                ("░" if one.inside else "█") * max(1, round(BAR * night.share(one))),
                f"{night.share(one):.1%}",
                one.told,
            )
            for one in night.stretches
        ),
        f"Where the {timeline.lasting(night.seconds)} of run {night.run_id} went",
    )
    if night.earlier:
        named = ", ".join(str(one) for one in night.earlier)
        Console().print(f"Not in it: run {named}, which worked on this version before\n")


def write_pictures(version_id: int, folder: Path) -> int:
    """Write profile, reliability, confusions and Grad-CAM maps into a folder; answers how many.

    Figures are drawn as they are now: the version may have been evaluated again since its night.
    """
    from flows import diagrams
    from tasks import checkpoints
    from tasks.explanation import drawn

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.png").write_bytes(timeline.picture(version_id))
    pictures = diagrams.drawn(version_id)
    for name, body in pictures.items():
        (folder / f"{name}.png").write_bytes(body)
    with database.connect().transaction() as session:
        rows = evaluations.gradcams(session, version_id)
    loaded = checkpoints.load(version_id)
    for number, row in enumerate(rows):
        words = f"{number:03d} {row.reason} {row.label} as {row.predicted} for {row.target}"
        drawn(loaded, row).save(folder / f"{_file_name(words)}.png")
    return len(rows) + len(pictures) + 1 + _write_flips(version_id, folder)


def _write_flips(version_id: int, folder: Path) -> int:
    """Write each flip that was explained: the champion's map left, this version's right."""
    from PIL import Image

    from tasks import checkpoints
    from tasks.explanation import drawn

    with database.connect().transaction() as session:
        judged = deployments.verdict(session, version_id)
        if judged is None or judged.champion_id is None:
            return 0
        found = flips.of_verdict(session, judged)
        maps = [
            {(row.sha256, row.target): row for row in evaluations.gradcams(session, one)}
            for one in (judged.champion_id, version_id)
        ]
    loaded = [checkpoints.load(one) for one in (judged.champion_id, version_id)]
    count = 0
    for flip in found:
        said = (flip.champion_said, flip.candidate_said)
        rows = [its.get((flip.sha256, word)) for its, word in zip(maps, said, strict=True)]
        pictures = [drawn(one, row) for one, row in zip(loaded, rows, strict=True) if row]
        if len(pictures) < 2:
            continue  # some dozens are explained, the surest of both kinds
        left, right = pictures
        beside = Image.new("RGB", (left.width + right.width, max(left.height, right.height)))
        beside.paste(left, (0, 0))
        beside.paste(right, (left.width, 0))
        words = (
            f"flip {'gained' if flip.gained else 'lost'} {count:03d} {flip.label}, version "
            f"{judged.champion_id} {flip.champion_said}, version {version_id} {flip.candidate_said}"
        )
        beside.save(folder / f"{_file_name(words)}.png")
        count += 1
    return count


def _file_name(words: str) -> str:
    return "".join(sign if sign.isalnum() or sign in " -_," else "_" for sign in words)[:120]


def benchmark_facts(version: int | None) -> dict[str, Any]:
    """One benchmark version, by default the newest: classes, images, what was withdrawn."""
    with database.connect().transaction() as session:
        row = benchmark.current(session) if version is None else benchmark.get(session, version)
        members = benchmark.listed_members(session, row.version)
        return {
            "benchmark": asdict(row),
            "classes": dict(sorted(Counter(one.class_name for one in members).items())),
            "images": [asdict(one) for one in members],
            "looks": [asdict(one) for one in benchmark.looks(session, row.version)],
            "withdrawn": [asdict(one) for one in benchmark.withdrawn(session, row.version)],
        }


def show_benchmark(version: int | None, images: bool) -> None:
    """Print one benchmark version for people."""
    facts = benchmark_facts(version)
    row = facts["benchmark"]
    console = _headline(
        f"benchmark version {row['version']}",
        (
            f"{row['images']} images of {row['classes']} classes",
            f"digest {row['digest'][:12]}",
            _looks(facts["looks"]),
        ),
        f"{row['frozen_by']}, {row['frozen_at']:%Y-%m-%d %H:%M}: {row['why']}",
    )
    console.print(escape(str(row["power"].get("sentence", ""))) + "\n")
    if images:
        table(
            ["class", "key", "sha256", "since version"],
            (
                (escape(one["class_name"]), escape(one["source_key"]), one["sha256"][:16],
                 str(one["added_in"]))
                for one in facts["images"]
            ),
        )  # fmt: skip
    else:
        table(
            ["class", "images"],
            ((escape(name), str(count)) for name, count in facts["classes"].items()),
        )
    if facts["withdrawn"]:
        table(
            ["in version", "class", "key", "why"],
            (
                (str(one["withdrawn_in"]), escape(one["class_name"]), escape(one["source_key"]),
                 escape(one["why"] or ""))
                for one in facts["withdrawn"]
            ),
            "Withdrawn",
        )  # fmt: skip


def _looks(looks: list[dict[str, Any]]) -> str:
    kinds = Counter(one["kind"] for one in looks)
    told = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
    return f"looked at {len(looks)} times" + (f" ({told})" if told else "")


def batch_facts(batch_id: int) -> dict[str, Any]:
    """One batch: its counts, and every object or manifest row refused with its reason."""
    with database.connect().transaction() as session:
        return {
            "batch": asdict(batches.get(session, batch_id)),
            "refused": [asdict(one) for one in batches.refusals(session, batch_id)],
        }


def show_batch(batch_id: int) -> None:
    """Print one batch for people."""
    facts = batch_facts(batch_id)
    batch = facts["batch"]
    console = _headline(
        f"batch {batch_id}",
        (
            batch["state"],
            f"{batch['accepted']} accepted, {batch['quarantined']} quarantined, "
            f"{batch['pending']} pending",
            f"{batch['images']} new images",
        ),
        batch["reason"],
    )
    if facts["refused"]:
        table(
            ["key", "expectation", "why"],
            (
                (escape(one["key"]), one["expectation"], escape(one["sentence"]))
                for one in facts["refused"][:MOST_REFUSALS]
            ),
            "Quarantine",
        )
    if len(facts["refused"]) > MOST_REFUSALS:
        console.print(f"… and {len(facts['refused']) - MOST_REFUSALS} more: --json has them all")


def write_data_docs(batch_id: int, folder: Path) -> list[Path]:
    """Write the Data Docs of a batch's stored validations; answers the pages."""
    from tasks import data_docs

    with database.connect().transaction() as session:
        stored = batches.validations(session, batch_id)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suite, results in stored:
        path = folder / f"{suite}.html"
        path.write_text(data_docs.page(suite, results), encoding="utf-8")
        paths.append(path)
    return paths


def status_facts() -> dict[str, Any]:
    """What serves, the library, the last runs, and what waits for a person."""
    with database.connect().transaction() as session:
        serving = deployments.champion(session)
        frozen = benchmark.listed(session)
        return {
            "champion": asdict(serving) if serving else None,
            "benchmark": asdict(frozen[0]) if frozen else None,
            "objects": objects.states(session),
            "classes": [asdict(one) for one in library.classes(session)],
            "batches": [asdict(one) for one in batches.newest(session, most=5)],
            "runs": [asdict(one) for one in runs.listed(session, most=5)],
            "deployments": [asdict(one) for one in deployments.log(session, most=5)],
            "quarantine": [
                {"expectation": name, "count": count, "example": example}
                for name, count, example in batches.quarantine_reasons(session)
            ],
            "label_changes": library.label_changes(session, most=5),
        }


def show_status() -> None:
    """Print the status for people."""
    facts = status_facts()
    console = Console()
    serving, frozen, objects = facts["champion"], facts["benchmark"], facts["objects"]
    console.print(
        f"[bold]version {serving['version_id']}[/bold] serves since "
        f"{serving['deployed_at']:%Y-%m-%d %H:%M} UTC"
        if serving
        else "nothing serves yet"
    )
    console.print(
        f"benchmark version {frozen['version']}: {frozen['images']} images of "
        f"{frozen['classes']} classes, {frozen['looks']} looks"
        if frozen
        else "no benchmark is frozen: `regraft benchmark freeze FOLDER --why TEXT`"
    )
    console.print(
        f"{sum(objects.values())} objects: {objects['accepted']} accepted, "
        f"{objects['quarantined']} quarantined, {objects['pending']} pending; "
        f"{sum(one['usable'] for one in facts['classes'])} usable images of "
        f"{len(facts['classes'])} classes"
    )
    console.print()
    table(
        ["run", "purpose", "state", "version", "began", "reason"],
        (
            (
                str(one["id"]),
                one["purpose"],
                one["state"],
                str(one["version_id"] or ""),
                f"{one['started_at']:%Y-%m-%d %H:%M}",
                escape(one["reason"] or ""),
            )
            for one in facts["runs"]
        ),
        "Last runs",
    )
    table(
        ["batch", "state", "accepted", "quarantined", "pending", "reason"],
        (
            (
                str(one["id"]),
                one["state"],
                str(one["accepted"]),
                str(one["quarantined"]),
                str(one["pending"]),
                escape(one["reason"] or ""),
            )
            for one in facts["batches"]
        ),
        "Last batches",
    )
    if facts["quarantine"]:
        table(
            ["refused by", "images", "for example"],
            (
                (one["expectation"], str(one["count"]), escape(one["example"]))
                for one in facts["quarantine"]
            ),
            "Quarantine",
        )
