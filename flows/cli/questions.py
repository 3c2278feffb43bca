"""What a question about history is answered with: a table, CSV, JSON, a picture; the same rows."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import date, datetime
from functools import singledispatch
from pathlib import Path
from typing import Any

import typer

from records import history
from records.history import Question

PLOTS = (".png", ".svg", ".pdf")


class BadOutput(ValueError):
    """A way to print or a file to draw into that cannot be; the message says the mend."""


def tell(
    question: Question[Any], as_csv: bool, as_json: bool, plot: Path | None = None
) -> None:
    """Ask, print the rows, and draw them where asked for."""
    if plot is not None:
        _check(plot, PLOTS, "--plot")
    rows = _printed(question, as_csv, as_json)
    if plot is not None and rows:
        from flows.cli import charts

        charts.draw(rows, plot)
        typer.echo(f"wrote {plot}", err=True)


def tell_flips(
    question: Question[history.Flip], as_csv: bool, as_json: bool, sheet: Path | None
) -> None:
    """Ask, print the rows, and lay their pictures out on a contact sheet where asked for."""
    if sheet is not None:
        _check(sheet, (".html", ".png"), "--sheet")
    rows = _printed(question, as_csv, as_json)
    if sheet is not None and rows:
        from web import sheet as sheets

        found = _Flips(rows)
        if sheet.suffix.lower() == ".png":
            sheet.write_bytes(sheets.png(found))
        else:
            sheet.write_text(sheets.html(found), encoding="utf-8")
        typer.echo(f"wrote {sheet}", err=True)


@dataclass(frozen=True)
class _Tile:
    """One flip as a contact sheet shows it."""

    key: str
    etag: None
    name: str
    heading: str
    offer: str
    remarks: tuple[str, ...]


class _Flips:
    """Flips as a contact sheet shows them: those whose bytes are still there."""

    def __init__(self, rows: list[history.Flip]) -> None:
        one = rows[0]
        self.told = f"Images on which version {one.version_id} and version {one.other_id} part"
        self.rows = [
            _Tile(
                row.key, None, row.source_key or row.key,
                f"{'gained' if row.gained else 'lost'} by version {row.version_id} on "
                + _on(row.subject, None, row.batch_id),
                row.class_name,
                (f"version {row.version_id}: {row.predicted} {row.confidence:.0%}",
                 f"version {row.other_id}: {row.other_predicted} {row.other_confidence:.0%}"),
            )
            for row in rows if row.key is not None
        ]  # fmt: skip


def _check(path: Path, endings: tuple[str, ...], option: str) -> None:
    if path.suffix.lower() not in endings:
        raise BadOutput(f"{option} {path}: a name that ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise BadOutput(f"{option} {path}: {path.parent} is not a folder")


def _printed(question: Question[Any], as_csv: bool, as_json: bool) -> list[Any]:
    if as_csv and as_json:
        raise BadOutput("--csv and --json: choose one")
    rows = history.at_once(question)
    if as_json:
        facts = [dataclasses.asdict(row) for row in rows]
        typer.echo(json.dumps(facts, indent=2, default=_plain, ensure_ascii=False))
    elif as_csv:
        from records.spreadsheet import as_csv as written

        typer.echo(written(question.row, rows), nl=False)
    elif rows:
        _show(rows)
    if not rows:
        typer.echo("nothing in the history answers to this", err=True)
    elif len(rows) == question.values["most"]:
        typer.echo(f"the first {len(rows)} rows: --limit shows more", err=True)
    return rows


def _plain(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


def _show(rows: list[Any]) -> None:
    from rich.markup import escape

    from flows.grid import table

    cells = [told(row) for row in rows]
    # A column in which nothing ever stands takes room from the others.
    names = [name for name in cells[0] if any(one[name] for one in cells)]
    table(names, ([escape(one[name]) for name in names] for one in cells))


# --- one row in words, for tables of 80 columns ---------------------------------------------------


@singledispatch
def told(row: Any) -> dict[str, str]:
    """The cells of a row by their heading."""
    raise TypeError(f"no table is known for {type(row).__name__}")


@told.register
def _(row: history.Accuracy) -> dict[str, str]:
    return {
        "when": _moment(row.evaluated_at),
        "version": f"{row.version_id}" + (" served" if row.first_live else ""),
        "on": _on(row.subject, row.benchmark_version, row.batch_id),
        "images": f"{row.images:,}",
        "accuracy": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
        "mean F1": _percent(row.mean_f1),
        "calibration": _small(row.calibration_error),
    }


@told.register
def _(row: history.ClassAccuracy) -> dict[str, str]:
    return {
        "version": str(row.version_id),
        "on": _on(row.subject, row.benchmark_version, row.batch_id),
        "class": _name(row.class_name, row.called),
        "images": f"{row.images:,}",
        "recall": _share(row.recall, row.recall_low, row.recall_high),
        "precision": _percent(row.precision),
        "F1": _percent(row.f1),
    }


@told.register
def _(row: history.Band) -> dict[str, str]:
    return {
        "version": str(row.version_id),
        "on": _on(row.subject, row.benchmark_version, row.batch_id),
        "confidence": f"{row.low:.2f} to {row.high:.2f}",
        "mean": f"{row.confidence:.3f}",
        "images": f"{row.images:,}",
        "accuracy": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
    }


@told.register
def _(row: history.Origin) -> dict[str, str]:
    return {
        "when": _moment(row.evaluated_at),
        "version": str(row.version_id),
        "on": _on(row.subject, None, row.batch_id),
        "origin": row.origin,
        "images": f"{row.images:,}",
        "accuracy": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
    }


@told.register
def _(row: history.SubClass) -> dict[str, str]:
    return {
        "version": str(row.version_id),
        "on": _on(row.subject, None, row.batch_id),
        "class": _name(row.class_name, row.called),
        "sub-class": row.sub_class,
        "origin": row.origin,
        "images": f"{row.images:,}",
        "recall": _share(row.recall, row.recall_low, row.recall_high),
    }


@told.register
def _(row: history.Threshold) -> dict[str, str]:
    return {
        "version": str(row.version_id),
        "on": _on(row.subject, row.benchmark_version, None),
        "wished": _percent(row.wished),
        "confidence": "none reaches it" if row.confidence is None else f"{row.confidence:.3f}",
        "precision": _share(row.precision, row.precision_low, row.precision_high),
        "coverage": _percent(row.coverage),
        "shown in use": _percent(row.shown_in_use),
    }


@told.register
def _(row: history.Comparison) -> dict[str, str]:
    return {
        "on": _on(row.subject, None, row.batch_id),
        "images": f"{row.images:,}",
        f"version {row.version_id}": _percent(row.correct / row.images),
        f"version {row.other_id}": _percent(row.other_correct / row.images),
        "gained": f"{row.gained:,}",
        "lost": f"{row.lost:,}",
        "points": f"{100 * row.change:+.1f} ({100 * row.change_low:+.1f} to "
                  f"{100 * row.change_high:+.1f})",
    }  # fmt: skip


@told.register
def _(row: history.Flip) -> dict[str, str]:
    return {
        "": "gained" if row.gained else "lost",
        "on": _on(row.subject, None, row.batch_id),
        "picture": row.source_key or row.sha256[:12],
        "is": row.class_name,
        f"version {row.version_id}": f"{row.predicted} {row.confidence:.0%}",
        f"version {row.other_id}": f"{row.other_predicted} {row.other_confidence:.0%}",
    }


@told.register
def _(row: history.InUse) -> dict[str, str]:
    return {
        "version": str(row.version_id),
        "since": f"{row.first_live:%Y-%m-%d}" if row.first_live else "",
        "asked": f"{row.transactions:,}",
        "reviewed": f"{row.reviewed:,}",
        "in use": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
        "test": _percent(row.test_accuracy),
        "benchmark": _percent(row.benchmark_accuracy),
    }


@told.register
def _(row: history.InUseClass) -> dict[str, str]:
    return {
        "answered": row.class_name,
        "reviewed": f"{row.reviewed:,}",
        "undecided": f"{row.undecided:,}",
        "right": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
        "confidence": _percent(row.reviewed_confidence),
    }


@told.register
def _(row: history.InUseBand) -> dict[str, str]:
    return {
        "confidence": f"{row.low:.1f} to {row.high:.1f}",
        "reviewed": f"{row.reviewed:,}",
        "undecided": f"{row.undecided:,}",
        "right": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
        "mean": _percent(row.reviewed_confidence),
    }


@told.register
def _(row: history.Calibration) -> dict[str, str]:
    return {
        "week of": f"{row.week}",
        "asked": f"{row.transactions:,}",
        "sure": _percent(row.mean_confidence),
        "reviewed": f"{row.reviewed:,}",
        "right": _share(row.accuracy, row.accuracy_low, row.accuracy_high),
        "too sure": _points(row.gap),
        "on test": _points(row.test_gap),
    }


@told.register
def _(row: history.Usage) -> dict[str, str]:
    mean = row.mean_latency_seconds
    return {
        "day": f"{row.day}",
        "client": row.client,
        "version": str(row.version_id),
        "asked": f"{row.transactions:,}",
        "shown": _percent(row.shown / row.transactions if row.transactions else None),
        "latency": "" if mean is None else f"{1000 * mean:.1f} ms",
        "longest": f"{1000 * row.max_latency_seconds:.0f} ms",
        "sure": _percent(row.mean_confidence),
    }


@told.register
def _(row: history.Predicted) -> dict[str, str]:
    return {
        "day": f"{row.day}",
        "version": str(row.version_id),
        "class": _name(row.class_name, row.called),
        "answered": f"{row.transactions:,}",
        "sure": _percent(row.mean_confidence),
    }


@told.register
def _(row: history.Live) -> dict[str, str]:
    return {
        "from": _moment(row.live_from),
        "until": _moment(row.live_until) if row.live_until else "now",
        "version": str(row.version_id),
        "by": f"{row.kind} by {row.deployed_by}",
        "why": row.why + (f" (despite {', '.join(row.overridden)})" if row.overridden else ""),
        "benchmark": _percent(row.benchmark_accuracy),
    }


@told.register
def _(row: history.Growth) -> dict[str, str]:
    return {
        "when": _moment(row.frozen_at),
        "version": str(row.version_id),
        "for": row.purpose,
        "classes": f"{row.classes:,}",
        "images": f"{row.images:,}",
        "cutoff": str(row.cutoff),
        "under it": f"{row.under_cutoff:,}",
    }


@told.register
def _(row: history.ClassGrowth) -> dict[str, str]:
    return {
        "when": _moment(row.frozen_at),
        "version": str(row.version_id),
        "class": _name(row.class_name, row.called),
        "usable": f"{row.usable:,}",
        "lacks": f"{row.lacks:,}" if row.lacks else "",
        "train": f"{row.train:,}",
        "validation": f"{row.validation:,}",
        "test": f"{row.test:,}",
    }


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _on(subject: str, benchmark_version: int | None, batch_id: int | None) -> str:
    number = benchmark_version or batch_id
    return subject if number is None else f"{subject} {number}"


def _name(now: str, called: str) -> str:
    return now if now == called else f"{now} (then {called})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _share(share: float | None, low: float | None, high: float | None) -> str:
    if share is None or low is None or high is None:
        return _percent(share)
    return f"{share:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def _points(difference: float | None) -> str:
    return "" if difference is None else f"{100 * difference:+.1f}"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
