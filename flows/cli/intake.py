"""`regraft load` and `regraft intake`: labelled images on their way into the library."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import By, Json, Why, folder_option
from flows.cli.printing import answer, print_json, say, say_some

verbs = typer.Typer()
group = typer.Typer(help="Decide about batches of new images.", no_args_is_help=True)
verbs.add_typer(group, name="intake")


@verbs.command()
def load(folder: Annotated[Path, typer.Argument(help="A folder of class folders.")],
         as_json: Json = False) -> None:  # fmt: skip
    """Put a folder of labelled images into S3, where the next intake finds them.

    Example: regraft load ./zoo   (zoo/okapi/1.jpg, zoo/lion/male/7.jpg, …)
    """
    from records.objects import LABELLED
    from tasks.loading import load_folder

    done = load_folder(folder, LABELLED)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    say(f"loaded {done.images} images of {done.classes} classes")
    for name in done.empty_classes:
        say(f"class folder {name!r} is empty: nothing was loaded for it")
    say_some(done.skipped, "left where it is")


@group.command("show")
def show_batch(batch: Annotated[int, typer.Argument(help="The batch's number.")],
               docs: Annotated[Path | None, folder_option(
                   "Write Great Expectations' Data Docs into this folder.")] = None,
               as_json: Json = False) -> None:  # fmt: skip
    """Show what a batch brought, what was refused and why.

    Example: regraft intake show 7 --docs ./docs
    """
    from flows.cli import screens

    if as_json:
        print_json(screens.batch_facts(batch))
    else:
        screens.show_batch(batch)
    for path in screens.write_data_docs(batch, docs) if docs else []:
        say(f"wrote {path}")


@group.command()
def revert(batch: Annotated[int, typer.Argument(help="The batch's number.")], why: Why,
           by: By, as_json: Json = False) -> None:  # fmt: skip
    """Withdraw a batch from every later snapshot.

    Example: regraft intake revert 7 --why "labels were swapped"
    """
    from infra import database
    from records import batches

    with database.connect().transaction() as session:
        withdrawn = batches.revert_batch(session, batch, by, why)
    answer({"batch": batch, "withdrawn": withdrawn},
          f"batch {batch} is reverted: {withdrawn} images withdrawn", as_json)  # fmt: skip


@group.command()
def accept(batch: Annotated[int, typer.Argument(help="The refused batch's number.")], why: Why,
           by: By, as_json: Json = False) -> None:  # fmt: skip
    """Let a refused batch in: the next night takes it past the checks on the whole batch.

    Example: regraft intake accept 7 --why "a new camera, labels were checked"
    """
    from infra import database
    from records import batches

    with database.connect().transaction() as session:
        batches.reopen_batch(session, batch, by, why)
    answer({"batch": batch}, f"batch {batch} comes in with the next night", as_json)
