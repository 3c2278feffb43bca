"""`regraft class`: what there is of each, and their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import By, Json, NewClass, Why
from flows.cli.printing import answer, plain_text, print_json, print_table, say

if TYPE_CHECKING:
    from records.classes import NameRow

verbs = typer.Typer(
    name="class", help="Look at classes; rename, merge and split them.", no_args_is_help=True
)


@verbs.command("list")
def list_classes(cutoff: Annotated[int, typer.Option(
                     help="Fewest usable images that a class needs to be trained.")] = 40,
                 as_json: Json = False) -> None:  # fmt: skip
    """List the classes, and what each lacks to be trained.

    Names that became another class's are listed, too.

    Example: regraft class list --cutoff 40
    """
    from infra import database
    from records import classes, snapshots

    with database.connect().transaction() as session:
        rows = classes.listed(session)
        lacks = {one.class_name: one.lacks for one in snapshots.counts(session, cutoff, None)}
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("there are no classes yet: `regraft load FOLDER`, then `regraft nightly`")
        return
    print_table(
        ["class", "images", "mined", "lacks", "what became of it"],
        (
            (
                plain_text(row.name),
                *(("", "", "") if row.became else
                  (f"{row.usable:,}", f"{row.mined:,}", f"{lacks.get(row.name, cutoff) or ''}")),
                plain_text(_became_so(row)),
            )
            for row in rows
        ),
    )  # fmt: skip


def _became_so(row: NameRow) -> str:
    """How a name came to be, or to be another's, in words."""
    acts = {"intake": "taken in", "make": "made", "rename": "renamed", "merge": "merged"}
    by, why = (f" by {row.by}" if row.by else ""), (f": {row.why}" if row.why else "")
    now = f"now {row.became!r}, " if row.became else ""
    return f"{now}{acts[row.act]} on {row.at:%Y-%m-%d}{by}{why}"


@verbs.command("log")
def log_of_classes(most: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
                   as_json: Json = False) -> None:  # fmt: skip
    """List who made, renamed, merged and split classes, and why.

    Example: regraft class log
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        rows = classes.acts(session, most)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print_table(
        ["when", "act", "class", "became", "images", "by", "why"],
        (
            (
                f"{row.done_at:%Y-%m-%d %H:%M}", row.act, plain_text(row.name),
                plain_text(row.to_name or ""), str(row.images), plain_text(row.done_by),
                plain_text(row.why or ""),
            )
            for row in rows
        ),
    )  # fmt: skip


@verbs.command("rename")
def rename_class(name: Annotated[str, typer.Argument(help="What it is called now.")],
                 to: Annotated[str, typer.Argument(help="What it is called from now on.")],
                 why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Call a class otherwise; its old name still means it.

    So do folders and manifests with the old name; versions keep the names of their day.

    Example: regraft class rename antelope impala --why "all of them are" --by Ann
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        images = classes.rename(session, name, to, by, why)
    answer({"name": name, "to_name": to, "images": images},
          f"{name!r} is called {to!r}: {images} images", as_json)  # fmt: skip


@verbs.command("merge")
def merge_classes(name: Annotated[str, typer.Argument(help="The class that goes.")],
                  into: Annotated[str, typer.Argument(help="The class that takes its images.")],
                  why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Put all images of a class into another.

    Their splits stay, and the old name then means the other class.

    Example: regraft class merge puma cougar --why "one animal" --by Ann
    """
    from infra import database
    from records import classes

    with database.connect().transaction() as session:
        images = classes.merge(session, name, into, by, why)
    answer({"name": name, "to_name": into, "images": images},
          f"{name!r} is part of {into!r}: {images} images", as_json)  # fmt: skip


@verbs.command("split")
def split_class(name: Annotated[str, typer.Argument(help="The class to take images from.")],
                file: Annotated[Path, typer.Option(
                    "--from", help="A CSV or JSON file with columns sha256 or key, and label.",
                    exists=True, dir_okay=False)],
                why: Why, by: By, new_class: NewClass = None,
                as_json: Json = False) -> None:  # fmt: skip
    """Put some images of a class into others, as a file says.

    What the file does not name stays. All or nothing.

    Example: regraft class split antelope --from parts.csv --new-class gazelle --why "two kinds"
    """
    from tasks import labelling

    wishes = labelling.read(str(file), file.read_bytes())
    counts = labelling.split(name, wishes, by, why, new_class or ())
    told = ", ".join(f"{count} are {part!r}" for part, count in counts.items())
    answer({"name": name, "parts": counts}, f"of {name!r}: {told}", as_json)
