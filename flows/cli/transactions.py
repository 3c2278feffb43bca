"""`regraft transactions …`: what was served, how its log stands, and how long it is kept."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from flows.cli.options import By, Json
from flows.cli.printing import answer, literally, percent, print_json, print_table, say

verbs = typer.Typer()
group = typer.Typer(help="Look at what was served; keep its log in bounds.", no_args_is_help=True)
verbs.add_typer(group, name="transactions")


@group.command("list")
def list_transactions(
    most: Annotated[int, typer.Option("--limit", help="How many, the newest first.", min=1)] = 20,
    version: Annotated[int | None, typer.Option(help="Answered by this version alone.")] = None,
    client: Annotated[str | None, typer.Option(help="Asked by this client alone.")] = None,
    predicted: Annotated[str | None, typer.Option("--class", help="Answered so.")] = None,
    below: Annotated[float | None, typer.Option(help="With less confidence than this.")] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Whose picture is still kept.")] = False,
    drawn: Annotated[bool, typer.Option("--drawn", help="Of the random stream.")] = False,
    as_json: Json = False,
) -> None:
    """List what was served, the newest first.

    Example: regraft transactions list --class okapi --below 0.6 --kept
    """
    from infra import database
    from records import transactions

    with database.connect().transaction() as session:
        rows = transactions.listed(
            session, most=most, version=version, client=client, predicted=predicted, below=below,
            kept=kept, drawn=drawn,
        )  # fmt: skip
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print_table(
        ["at", "version", "client", "answer", "confidence", "ms", "picture", "number"],
        literally(
            (
                f"{row.at:%Y-%m-%d %H:%M:%S}", str(row.version), row.client, row.top_labels[0],
                percent(row.top_confidences[0]), f"{row.latency_seconds * 1000:.0f}",
                row.image_key or "", str(row.id),
            )
            for row in rows
        ),
    )  # fmt: skip


@group.command()
def status(as_json: Json = False) -> None:
    """Show which months are kept, what waits on this machine, and what was lost when and why.

    Example: regraft transactions status
    """
    from infra import database, settings
    from records import transactions
    from web.spool import spooled

    folder = settings.load().spool_dir
    waiting = spooled(folder)
    with database.connect().transaction() as session:
        months, gaps = transactions.months(session), transactions.gaps(session)
        since = transactions.images_since(session)
    if as_json:
        print_json({
            "months": [dataclasses.asdict(month) for month in months],
            "gaps": [dataclasses.asdict(gap) | {"lost": gap.lost} for gap in gaps],
            "waiting": waiting, "spool": folder, "images_since": since,
        })  # fmt: skip
        return
    print_table(["month", "transactions", "MB"], (
        (f"{month.first:%Y-%m}", str(month.rows), f"{month.size / 1e6:.1f}") for month in months
    ))  # fmt: skip
    if gaps:
        print_table(["from", "to", "lost", "undrawn", "why"], literally(
            (f"{gap.began_at:%Y-%m-%d %H:%M:%S}", f"{gap.ended_at:%Y-%m-%d %H:%M:%S}",
             str(gap.dropped) if gap.lost else "", "" if gap.lost else str(gap.dropped), gap.why)
            for gap in gaps
        ))  # fmt: skip
    say(f"{waiting} transactions wait in {folder}")


@group.command()
def retain(
    by: By, months: Annotated[int | None, typer.Option(
        help="Months to keep, this one included; default REGRAFT_TRANSACTION_MONTHS.", min=1,
        show_default=False)] = None,
    image_days: Annotated[int | None, typer.Option(
        help="Days to keep pictures, today included; default REGRAFT_IMAGE_DAYS.", min=1,
        show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Drop months of transactions and pictures that are too old; daily counts and reviews stay.

    Example: regraft transactions retain --months 13 --image-days 90 --dry-run
    """
    from infra import settings
    from tasks import retention

    found = settings.load()
    done = retention.retain(
        months or found.transaction_months, image_days or found.image_days, by, dry_run
    )
    answer(dataclasses.asdict(done), done.sentence, as_json)


@group.command()
def replay(as_json: Json = False) -> None:
    """Write down what a server that is gone has left on this machine.

    A server that runs does so by itself. Nothing comes in twice.

    Example: regraft transactions replay
    """
    from web.transaction_log import open_log

    log = open_log()
    log.close(patience_seconds=3600)
    done = log.counts
    line = f"{done.written} transactions came in, {done.repeated} were there, {done.spooled} wait"
    answer(dataclasses.asdict(done), line, as_json)
