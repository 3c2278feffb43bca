"""`regraft find`: pictures of pools, by what was answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Json

verbs = typer.Typer(name="find", invoke_without_command=True)

OfVersion = Annotated[
    int | None,
    typer.Option(
        "--version", help="Whose answers; by default the newest's that is not throw-away."
    ),
]
OfPool = Annotated[str | None, typer.Option("--pool", help="This pool alone, as s3://PREFIX.")]
Most = Annotated[int, typer.Option("--limit", help="How many pictures, at most.", min=1)]
Csv = Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", help="Write a contact sheet of thumbnails here: .html or .png."),
]


@verbs.callback()
def find(
    context: typer.Context,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Predicted as this class.")
    ] = None,
    below: Annotated[float | None, typer.Option(help="At less than this confidence.")] = None,
    above: Annotated[float | None, typer.Option(help="At this confidence or more.")] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    new: Annotated[
        bool,
        typer.Option("--new", help="Neither known to library or benchmark, nor spoken of."),
    ] = False,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find pictures in pools by what a version answered: by one of the filters below, or your own.

    Example: regraft find --class okapi --above 0.9 --new --sheet okapis.html
    """
    if context.invoked_subcommand is not None:
        sources = [context.get_parameter_source(name) for name in context.params]
        if any(source and source.name != "DEFAULT" for source in sources):
            raise typer.BadParameter(f"write options behind `{context.invoked_subcommand}`")
        return
    from flows.cli import found
    from records import findings

    found.tell(
        lambda session: findings.matching(
            session, class_name, below, above, version, pool, new, limit
        ),
        as_csv, as_json, sheet,
    )  # fmt: skip


@verbs.command()
def scarce(
    class_name: Annotated[
        str | None, typer.Option("--class", help="This class alone, however many it has.")
    ] = None,
    fewer: Annotated[
        int | None,
        typer.Option(
            help="Classes of fewer usable images are scarce; by default twice the nights' cutoff.",
            min=1,
        ),
    ] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find new pictures of classes that have few images: best first, and no two much alike.

    Example: regraft find scarce --fewer 40 --sheet scarce.html
    """
    from flows.cli import found
    from records import findings

    found.tell(
        lambda session: findings.scarce(session, class_name, version, pool, fewer, limit),
        as_csv, as_json, sheet,
    )  # fmt: skip


@verbs.command()
def staged(
    class_name: Annotated[str | None, typer.Option("--class", help="This class alone.")] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find new pictures of classes that rest on staged or synthetic images, to replace those.

    Example: regraft find staged --limit 200 --csv
    """
    from flows.cli import found
    from records import findings

    found.tell(
        lambda session: findings.staged(session, class_name, version, pool, limit),
        as_csv, as_json, sheet,
    )  # fmt: skip


@verbs.command("look-alike")
def look_alike(
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="What they are taken for.")],
    below: Annotated[
        float | None,
        typer.Option(help="At less than this confidence; by default the version's threshold."),
    ] = None,
    group: Annotated[int | None, typer.Option(help="All of this group.", min=1)] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find what a version takes for CLASS without being sure, likes together: is one group new?

    Example: regraft find look-alike antelope --sheet gazelles.html
    """
    from flows.cli import found
    from records import findings

    found.tell(
        lambda session: findings.look_alike(
            session, class_name, version, pool, below, group, limit
        ),
        as_csv, as_json, sheet,
    )  # fmt: skip


@verbs.command()
def unknown(
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find what people could not name and a later version has answered, the surest first.

    Example: regraft find unknown --sheet unknown.html
    """
    from flows.cli import found
    from records import findings

    found.tell(
        lambda session: findings.unknown(session, version, pool, limit), as_csv, as_json, sheet
    )


@verbs.command()
def junk(
    below: Annotated[float | None, typer.Option(help="At less than this confidence.")] = None,
    version: OfVersion = None,
    pool: OfPool = None,
    limit: Most = 60,
    as_csv: Csv = False,
    as_json: Json = False,
    sheet: Sheet = None,
) -> None:
    """Find what a version is least sure of, to remove much at once.

    Example: regraft find junk --below 0.2 --limit 5000 --csv > junk.csv
    """
    from flows.cli import found
    from records import findings

    found.tell(
        lambda session: findings.junk(session, below, version, pool, limit), as_csv, as_json, sheet
    )
