"""`regraft history`: every question about what versions were worth, and are worth in use."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

verbs = typer.Typer()
group = typer.Typer(help="Ask what versions were worth, and are worth in use.",
                    no_args_is_help=True)  # fmt: skip
verbs.add_typer(group, name="history")


def _day(word: str) -> date:
    """A day of UTC: 2026-11-22, or so many days ago: 30d."""
    number = word.removesuffix("d")
    if number != word and number.isdecimal() and len(number) < 6:
        return datetime.now(UTC).date() - timedelta(days=int(number))
    try:
        return date.fromisoformat(word)
    except ValueError:
        raise typer.BadParameter(f"{word!r} is no day: write 2026-11-22, or 30d") from None


Since = Annotated[
    date | None, typer.Option(help="From this day on (UTC): 2026-11-22, or 30d for 30 days ago.",
                              parser=_day, metavar="DAY")
]  # fmt: skip
Until = Annotated[
    date | None, typer.Option(help="Up to this day (UTC), the day included.", parser=_day,
                              metavar="DAY")
]  # fmt: skip
OfVersion = Annotated[int | None, typer.Option("--version", help="This version alone.")]
OfClass = Annotated[
    str | None, typer.Option("--class", help="This class alone, by any name it has or had.")
]
On = Annotated[
    str | None,
    typer.Option("--on", help="This set of images alone: validation, test, benchmark, batch or "
                              "library."),
]  # fmt: skip
Most = Annotated[int, typer.Option("--limit", help="How many rows, at most.", min=1)]
Csv = Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")]
Json = Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")]
Plot = Annotated[
    Path | None, typer.Option(help="Draw the rows into this file, too: .png, .svg or .pdf.")
]
Version = Annotated[int, typer.Argument(help="A version's number.")]
Other = Annotated[int, typer.Argument(help="The version that it is compared with.")]

ROWS = 50


@group.command()
def accuracy(since: Since = None, until: Until = None, version: OfVersion = None, on: On = None,
             limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
             plot: Plot = None) -> None:  # fmt: skip
    """Accuracy over time and by version: every evaluation with its interval.

    Example: regraft history accuracy --on benchmark --since 90d --plot accuracy.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.accuracy(since, until, version, on, limit), as_csv, as_json, plot)


@group.command()
def classes(since: Since = None, until: Until = None, version: OfVersion = None,
            class_name: OfClass = None, on: On = None, limit: Most = ROWS, as_csv: Csv = False,
            as_json: Json = False, plot: Plot = None) -> None:  # fmt: skip
    """Recall, precision and F1 by class: of what serves, of a version, or of a class over time.

    Example: regraft history classes --class okapi --on test --plot okapi.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(
        history.classes(since, until, version, class_name, on, limit), as_csv, as_json, plot
    )


@group.command()
def bands(since: Since = None, until: Until = None, version: OfVersion = None, on: On = None,
          limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
          plot: Plot = None) -> None:  # fmt: skip
    """Accuracy by confidence, evaluation by evaluation.

    Example: regraft history bands --version 12 --on test --plot reliability.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.bands(since, until, version, on, limit), as_csv, as_json, plot)


@group.command()
def origins(since: Since = None, until: Until = None, version: OfVersion = None, on: On = None,
            limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False) -> None:  # fmt: skip
    """Accuracy on real, staged and synthetic images of the library.

    Example: regraft history origins --on library
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.origins(since, until, version, on, limit), as_csv, as_json)


@group.command("sub-classes")
def sub_classes(since: Since = None, until: Until = None, version: OfVersion = None,
                class_name: OfClass = None, on: On = None, limit: Most = ROWS, as_csv: Csv = False,
                as_json: Json = False) -> None:  # fmt: skip
    """Recall by sub-class: of what serves, of a version, or of a class over time.

    Example: regraft history sub-classes --class lion --on test
    """
    from flows.cli import questions
    from records import history

    questions.tell(
        history.sub_classes(since, until, version, class_name, on, limit), as_csv, as_json
    )


@group.command()
def thresholds(since: Since = None, until: Until = None, version: OfVersion = None, on: On = None,
               limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False) -> None:  # fmt: skip
    """The confidence that each version needs, what it gives, and how much of the use it shows.

    Example: regraft history thresholds --on test
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.thresholds(since, until, version, on, limit), as_csv, as_json)


@group.command()
def compare(version: Version, other: Other, on: On = None, as_csv: Csv = False,
            as_json: Json = False) -> None:  # fmt: skip
    """Two versions against each other on the same images.

    Example: regraft history compare 12 9
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.compare(version, other, on), as_csv, as_json)


@group.command()
def flips(version: Version, other: Other, on: On = None, limit: Most = ROWS, as_csv: Csv = False,
          as_json: Json = False,
          sheet: Annotated[Path | None, typer.Option(
              help="Write the pictures as a contact sheet here: .html or .png.")] = None,
          ) -> None:  # fmt: skip
    """The images on which two versions part, both ways, with the pictures on a sheet.

    Example: regraft history flips 12 9 --on benchmark --sheet flips.html
    """
    from flows.cli import questions
    from records import history

    questions.tell_flips(history.flips(version, other, on, limit), as_csv, as_json, sheet)


@group.command("in-use")
def in_use(since: Since = None, until: Until = None, version: OfVersion = None,
           limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
           plot: Plot = None) -> None:  # fmt: skip
    """Accuracy in use, from random reviews, beside the figures of training.

    Example: regraft history in-use --since 90d
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.in_use(since, until, version, limit), as_csv, as_json, plot)


@group.command("in-use-classes")
def in_use_classes(since: Since = None, until: Until = None, version: OfVersion = None,
                   class_name: OfClass = None, limit: Most = ROWS, as_csv: Csv = False,
                   as_json: Json = False) -> None:  # fmt: skip
    """How often an answer of each class is right in use.

    Example: regraft history in-use-classes --since 90d --csv > classes.csv
    """
    from flows.cli import questions
    from records import history

    questions.tell(
        history.in_use_classes(since, until, version, class_name, limit), as_csv, as_json
    )


@group.command("in-use-bands")
def in_use_bands(since: Since = None, until: Until = None, version: OfVersion = None,
                 limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
                 plot: Plot = None) -> None:  # fmt: skip
    """How often answers are right in use, by their confidence.

    Example: regraft history in-use-bands --version 12 --plot in-use.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.in_use_bands(since, until, version, limit), as_csv, as_json, plot)


@group.command()
def calibration(since: Since = None, until: Until = None, version: OfVersion = None,
                limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
                plot: Plot = None) -> None:  # fmt: skip
    """Week by week: how right and how sure what served was, and how far that drifts.

    Example: regraft history calibration --since 365d --plot drift.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.calibration(since, until, version, limit), as_csv, as_json, plot)


@group.command()
def usage(since: Since = None, until: Until = None, version: OfVersion = None,
          client: Annotated[str | None, typer.Option(help="This client alone.")] = None,
          limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
          plot: Plot = None) -> None:  # fmt: skip
    """Who asked how much, by day, client and version.

    Example: regraft history usage --since 30d --limit 1000 --plot usage.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.usage(since, until, version, client, limit), as_csv, as_json, plot)


@group.command()
def predicted(since: Since = None, until: Until = None, version: OfVersion = None,
              class_name: OfClass = None, limit: Most = ROWS, as_csv: Csv = False,
              as_json: Json = False, plot: Plot = None) -> None:  # fmt: skip
    """How often each class was answered, by day: one class over all time, or the last week.

    Example: regraft history predicted --class okapi --limit 365 --plot okapi.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(
        history.predicted(since, until, version, class_name, limit), as_csv, as_json, plot
    )


@group.command()
def live(since: Since = None, until: Until = None, version: OfVersion = None,
         limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False) -> None:  # fmt: skip
    """What was live when, who changed it and why.

    Example: regraft history live --since 2026-11-01 --until 2026-11-30
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.live(since, until, version, limit), as_csv, as_json)


@group.command()
def growth(since: Since = None, until: Until = None, limit: Most = ROWS, as_csv: Csv = False,
           as_json: Json = False, plot: Plot = None) -> None:  # fmt: skip
    """How many classes and images there were to learn, snapshot by snapshot.

    Example: regraft history growth --limit 500 --plot growth.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(history.growth(since, until, limit), as_csv, as_json, plot)


@group.command("class-growth")
def class_growth(class_name: OfClass = None, since: Since = None, until: Until = None,
                 limit: Most = ROWS, as_csv: Csv = False, as_json: Json = False,
                 plot: Plot = None) -> None:  # fmt: skip
    """How many images a class had, or all classes in the newest snapshot, scarce ones first.

    Example: regraft history class-growth --class okapi --plot okapi.png
    """
    from flows.cli import questions
    from records import history

    questions.tell(
        history.class_growth(class_name, since, until, limit), as_csv, as_json, plot
    )
