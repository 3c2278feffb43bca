"""The command line. Each verb prints for people, or with --json for scripts.

A verb stands in the module that is named after what it is about; this one puts them together.

Exit codes: 0 done, 1 an error (one line on standard error), 2 wrong usage, 3 the gate refused
the candidate, 4 a batch was refused as a whole, 5 another night is running.
"""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperGroup

# These load little: what a verb needs it imports when it is called, because `regraft versions`
# must not wait for torch, Prefect or Great Expectations.
from flows.cli import (
    benchmark,
    classes,
    decisions,
    environment,
    find,
    history,
    intake,
    labels,
    pools,
    reviews,
    runs,
    services,
    throwaway,
    transactions,
    versions,
    web,
)

OURS = ("flows.", "tasks.", "records.", "vision.", "web.", "infra.")

# What `regraft --help` lists, in this order.
SECTIONS = {
    "Services": (services,),
    "Images": (intake, classes, benchmark),
    "Runs": (runs,),
    "Pools": (pools, find, labels, throwaway),
    "Versions": (versions, decisions, history),
    "Service": (web, transactions, reviews),
}


class Sectioned(TyperGroup):
    """Verbs under their headings, in plain text: typer's own headings would load rich."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write every verb with the first words of its help."""
        widest = max(len(name) for name in self.commands)
        known: list[tuple[str, Any]] = [*self.commands.items()]
        for heading, verbs in groupby(known, lambda one: one[1].rich_help_panel):
            with formatter.section(heading):
                formatter.write_dl([
                    (name.ljust(widest), verb.get_short_help_str(formatter.width - 6 - widest))
                    for name, verb in verbs
                ])  # fmt: skip


def _assembled() -> typer.Typer:
    whole = typer.Typer(
        name="regraft",
        cls=Sectioned,
        help="Keep an image classifier growing: take in, graft, train, and let the benchmark "
             "decide.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes as long to load as all the rest
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    for heading, modules in SECTIONS.items():
        for verbs in (module.verbs for module in modules):
            for one in (*verbs.registered_commands, *verbs.registered_groups):
                one.rich_help_panel = heading
            whole.add_typer(verbs, rich_help_panel=heading)
    return whole


app = _assembled()


def main() -> None:
    """Run the command line; an error of ours is one line, any other keeps its traceback."""
    environment.quiet_libraries()
    try:
        app()
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"regraft: {error}", file=sys.stderr)  # noqa: T201  (the one place that prints errors)
        sys.exit(5 if type(error).__name__ == "Busy" else 1)


def _is_ours(error: BaseException) -> bool:
    return f"{type(error).__module__}.".startswith(OURS)
