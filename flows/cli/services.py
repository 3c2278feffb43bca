"""`regraft up`, `down`, `doctor`, `status`: what regraft runs on, and how it all stands."""

from __future__ import annotations

import dataclasses

import typer

from flows.cli.options import Json
from flows.cli.printing import print_json, print_table, say

verbs = typer.Typer()


@verbs.command()
def up(as_json: Json = False) -> None:
    """Start what is not configured (Postgres, S3, Prefect) and bring the tables up to date.

    Example: regraft up
    """
    from infra import embedded, settings

    found = embedded.up(settings.load(), say=None if as_json else say)
    facts = {
        "postgres": found.database_url.rpartition("@")[2],
        "s3": f"{found.s3_endpoint}/{found.s3_bucket}",
        "prefect": found.prefect_api_url,
    }
    if as_json:
        print_json(facts)
    else:
        print_table(["service", "where"], facts.items())


@verbs.command()
def down() -> None:
    """Stop the services that regraft started; their data stays.

    Example: regraft down
    """
    from infra import embedded, settings

    embedded.down(settings.load(), say=say)


@verbs.command()
def doctor(as_json: Json = False) -> None:
    """Show on one screen what is configured, what can be reached, and what is wrong.

    Example: regraft doctor
    """
    from flows.cli import diagnosis

    findings = diagnosis.examine()
    if as_json:
        print_json([dataclasses.asdict(one) for one in findings])
    else:
        marks = {"right": "[green]✓[/green]", "wrong": "[red]✗[/red]", "note": "[yellow]·[/yellow]"}
        rows = ((marks[one.state], one.what, one.found) for one in findings)
        print_table(["", "what", "found"], rows)
    if any(one.state == "wrong" for one in findings):
        raise typer.Exit(1)


@verbs.command()
def status(as_json: Json = False) -> None:
    """Show what serves, what the last runs did, and what waits for a person.

    Example: regraft status
    """
    from flows.cli import screens

    if as_json:
        print_json(screens.status_facts())
    else:
        screens.show_status()
