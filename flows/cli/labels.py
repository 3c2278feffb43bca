"""`regraft label`, `dismiss`, `remove`, `restore`, `acts`: what people say of pools."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import By, Json, NewClass
from flows.cli.printing import plain_text, print_json, print_table, say, say_some

if TYPE_CHECKING:
    from records.labels import Done, Wish
    from tasks.labelling import Advance, Followed

verbs = typer.Typer()

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE", help="Digest (8 characters or more) or key of a pool's image."),
]
File = Annotated[
    Path | None,
    typer.Option("--from", help="A CSV or JSON file with columns sha256 or key; `-` reads it "
                                "from standard input.", allow_dash=True),
]  # fmt: skip
Reason = Annotated[str | None, typer.Option("--why", help="Why; it is kept.")]


@verbs.command()
def label(name: Annotated[str | None, typer.Argument(
              metavar="CLASS", help="What they are; without it, the file says.")] = None,
          images: Images = None, file: File = None, new_class: NewClass = None,
          *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Label images of a pool: the next intake takes them in, to train on.

    All or nothing. What was labelled so before is left alone; another label takes the place of the
    one before it. A class that is new is asked for, or allowed by --new-class. A file says what
    they are in its column label, or else in class_name, as what `find` has shown them: delete the
    rows that are wrong.

    Example: regraft label okapi 3fa9c1d2 s3://pools/gate/7.jpg --by Ann

    Example: regraft label --from found.csv --by Ann
    """
    from records.classes import UnknownClass
    from tasks import labelling

    wishes = _wishes(images, file, label=name)
    allowed = list(new_class or ())

    def do(advance: Advance) -> tuple[Done, Followed]:
        return labelling.label(wishes, by, allowed, why, advance)

    try:
        _act("labelled", "image", do, as_json)
    except UnknownClass as error:
        if not (sys.stdin.isatty() and sys.stderr.isatty()) or str(file) == "-":
            raise
        say(str(error).partition(":")[0] + ".")
        typer.confirm(f"Make {', '.join(error.names)}?", abort=True, err=True)
        allowed += error.names
        _act("labelled", "image", do, as_json)


@verbs.command()
def dismiss(images: Images = None, file: File = None,
            class_name: Annotated[str | None, typer.Option(
                "--class", help="What they were offered as and are not; by default what the file "
                                "says, or the version predicted.")] = None,
            unknown: Annotated[bool, typer.Option(
                "--unknown", help="Nobody can name them: a later version may.")] = False,
            *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Say that images are not what they were offered as.

    They are not offered as that again. A label of theirs is taken back, and what had come into
    the library by it is withdrawn with the next intake.

    Example: regraft dismiss 3fa9c1d2 --class okapi --by Ann
    """
    from tasks import labelling

    wishes = _wishes(images, file, offered=class_name)
    _act("marked unknown" if unknown else "dismissed", "image",
         lambda advance: labelling.dismiss(wishes, by, unknown, why, advance), as_json)  # fmt: skip


@verbs.command()
def remove(images: Images = None, file: File = None,
           *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Move objects of a pool to the trash; `restore` undoes it.

    By key one object, by digest all copies, by a file with both those of its keys.

    Example: regraft remove --from junk.csv --by Ann --why "blank frames"
    """
    from tasks import labelling

    wishes = _wishes(images, file)
    _act("removed", "object",
         lambda advance: labelling.remove(wishes, by, why, advance), as_json)  # fmt: skip


@verbs.command()
def restore(images: Images = None, file: File = None,
            *, by: By, why: Reason = None, as_json: Json = False) -> None:  # fmt: skip
    """Bring removed objects back to where they were.

    The file that removed them brings them back.

    Example: regraft restore --from junk.csv --by Ann
    """
    from tasks import labelling

    wishes = _wishes(images, file)
    _act("restored", "object",
         lambda advance: labelling.restore(wishes, by, why, advance), as_json)  # fmt: skip


@verbs.command()
def acts(most: Annotated[int, typer.Option(help="How many, the newest first.", min=1)] = 20,
         as_json: Json = False) -> None:  # fmt: skip
    """List what people did with images of pools: who labelled, dismissed and removed which.

    Example: regraft acts
    """
    from infra import database
    from records import labels

    with database.connect().transaction() as session:
        rows = labels.acts(session, most)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("nobody has labelled or removed anything yet: `regraft find` shows what there is")
        return
    print_table(
        ["when", "act", "image", "class", "from", "by", "why"],
        (
            (
                f"{row.done_at:%Y-%m-%d %H:%M}", row.act + (", waits" if row.owed else ""),
                row.sha256[:12], plain_text(row.class_name or row.offered or ""),
                plain_text(row.key or ""), plain_text(row.done_by), plain_text(row.why or ""),
            )
            for row in rows
        ),
    )  # fmt: skip


def _wishes(
    images: list[str] | None, file: Path | None, label: str | None = None,
    offered: str | None = None,
) -> list[Wish]:  # fmt: skip
    from tasks import labelling

    if (file is None) == (not images):
        raise typer.BadParameter("name images, or a file by --from: one of the two")
    if file is None:
        return labelling.named(images or (), label, offered)
    if str(file) != "-" and not file.is_file():
        raise typer.BadParameter(f"{file} is not a file")
    body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    return labelling.read(str(file), body, label, offered)


def _act(
    did: str, what: str, do: Callable[[Advance], tuple[Done, Followed]], as_json: bool
) -> None:
    """Do it, with a bar where it takes long, and tell what came of it."""
    from tasks.bar import late_bar

    with late_bar(did) as advance:
        done, followed = do(advance)
    if as_json:
        print_json(dataclasses.asdict(done) | {"waiting": followed.waiting})
    else:
        said = f"{did} {done.changed:,} {what}{'' if done.changed == 1 else 's'}"
        before = f"; {done.already:,} already were" if done.already else ""
        twice = f"; {done.repeated:,} named more than once" if done.repeated else ""
        typer.echo(f"{said}{before}{twice}")
        for name in done.made:
            say(f"class {name!r} is new: it trains once it has enough images")
    say_some(followed.waiting, "waits")
    if followed.waiting:
        raise typer.Exit(1)
