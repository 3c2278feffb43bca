"""`regraft identify` and `unreadable`: pools of unlabelled images, answered."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from flows.cli.environment import start_prefect
from flows.cli.options import Json, Precision
from flows.cli.printing import (
    answer,
    plain_text,
    print_json,
    print_table,
    say,
    say_as_it_goes,
    say_some,
)

verbs = typer.Typer()


@verbs.command()
def identify(pool: Annotated[str, typer.Argument(
                 help="s3://PREFIX in the bucket, or a folder of images, which is loaded first.")],
             version: Annotated[int | None, typer.Option(
                 help="The version that answers; by default the one that serves.",
                 show_default=False)] = None,
             target: Annotated[list[str] | None, typer.Option(
                 help="A class to keep the confidence of in every image; may be repeated.")] = None,
             precision: Precision = 0.95, as_json: Json = False) -> None:  # fmt: skip
    """Answer a pool of unlabelled images by one version, and keep the answers to be asked.

    Killed and run again it goes on where it was. Run it several times at once, here or elsewhere,
    and they share the work. What the version has answered before is not answered again.

    Example: regraft identify s3://pools/gate-camera --version 7 --target okapi
    """
    start_prefect()
    say_as_it_goes(not as_json)
    from flows.identify import identify as flow

    done = flow(pool=pool, version_id=version, targets=target or [], precision=precision)
    answer(dataclasses.asdict(done), done.sentence, as_json)
    if not as_json:
        say_some((f"{one.key!r}: {one.problem}" for one in done.unreadable_objects), "no picture")


@verbs.command()
def unreadable(pool: Annotated[str, typer.Argument(help="A pool that was identified, s3://PREFIX.")],
               as_json: Json = False) -> None:  # fmt: skip
    """List all objects of a pool that hold no picture or could not be had, each with its reason.

    Example: regraft unreadable s3://pools/gate-camera
    """
    from infra import database
    from records import findings, pools

    with database.connect().transaction() as session:
        rows = pools.unreadable(session, findings.pool_named(session, pool))
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("every object of this pool could be read")
        return
    print_table(["object", "reason"],
           ((plain_text(repr(row.key)), plain_text(row.problem)) for row in rows))  # fmt: skip
