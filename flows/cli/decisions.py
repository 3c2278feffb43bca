"""`regraft approve`, `reject`, `rollback`, `adopt`, `log`: what serves, decided by people."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import By, Json, Limit, Retire, Unproven, Why, limits_of
from flows.cli.printing import answer, plain_text, print_json, print_table, say

if TYPE_CHECKING:
    from tasks.promotion import Decision

verbs = typer.Typer()


@verbs.command()
def approve(version: Annotated[int, typer.Argument(help="The refused version's number.")],
            why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Let a refused version serve: judged again, despite the failures that `show` shows.

    What nobody may override (figures that cannot be compared, a class that died) and what failed
    only now refuses it: exit code 3.

    Example: regraft approve 7 --why "the new classes were looked at by hand"
    """
    from tasks import promotion

    _decided(promotion.approve(version, by, why), as_json)


@verbs.command()
def reject(version: Annotated[int, typer.Argument(help="The version's number.")],
           why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Keep a version from serving, by nights and rollbacks alike; only `approve` overrules it.

    Example: regraft reject 7 --why "it takes every lynx for a cat"
    """
    from infra import database
    from records import deployments

    with database.connect().transaction() as session:
        deployments.reject(session, version, by, why)
    answer({"version_id": version, "by": by, "why": why}, f"version {version} is rejected", as_json)


@verbs.command()
def rollback(version: Annotated[int | None, typer.Argument(
                 help="A version that served before; without it, the one before the champion.",
                 show_default=False)] = None,
             *, why: Why, by: By, as_json: Json = False) -> None:  # fmt: skip
    """Return to a version that served before, once it has repeated its recorded answers.

    Example: regraft rollback --why "version 7 is wrong about wolves"
    """
    from tasks import promotion

    _decided(promotion.roll_back(version, by, why), as_json)


@verbs.command()
def adopt(version: Annotated[int, typer.Argument(
              help="The number of a control or bake-off version.")],
          why: Why, by: By, limit: Limit = None, unproven: Unproven = False,
          retire: Retire = None, as_json: Json = False) -> None:  # fmt: skip
    """Put a control or bake-off version through the same gate; if it passes, it serves.

    The limits are the last night's, but for those that are given here. The next night starts from
    it. Exit code 3: the gate refused it.

    Example: regraft adopt 9 --why "the bake-off's winner"
    """
    from tasks import promotion

    changes = limits_of(limit, unproven, retire)
    _decided(promotion.adopt(version, changes, by, why), as_json)


@verbs.command()
def log(most: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
        as_json: Json = False) -> None:  # fmt: skip
    """List what was decided: what serves since when, by whom and why, and what was rejected.

    Example: regraft log
    """
    from records import summaries

    rows = summaries.of_decisions(most)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("nothing was decided yet: `regraft nightly`")
        return
    print_table(
        ["when", "version", "decision", "served until", "by", "why"],
        (
            (
                f"{row.decided_at:%Y-%m-%d %H:%M}",
                f"[bold]{row.version_id}[/bold]" if row.serves else str(row.version_id),
                row.kind + (f" despite {', '.join(row.overridden)}" if row.overridden else ""),
                "[green]serves[/green]" if row.serves
                else f"{row.until:%Y-%m-%d %H:%M}" if row.until else "",
                plain_text(row.decided_by),
                plain_text(row.why),
            )
            for row in rows
        ),
    )  # fmt: skip


def _decided(decision: Decision, as_json: bool) -> None:
    answer(dataclasses.asdict(decision), decision.reason, as_json)
    if decision.deployment_id is None:
        raise typer.Exit(3)
