"""Options that several verbs take, and what their words come to."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vision.plan import Plan

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON for scripts.")]
By = Annotated[
    str,
    typer.Option(help="Who does this; it is kept.", default_factory=getpass.getuser,
                 show_default="your user name"),
]  # fmt: skip
Why = Annotated[str, typer.Option(help="Why; it is kept.")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A JSON file with fields of the plan.", exists=True)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One field of the plan, as FIELD=VALUE (VALUE is JSON or text)."),
]
Precision = Annotated[
    float, typer.Option(help="What its threshold shall reach: a share of answers that are right.",
                        min=0.001, max=1)
]  # fmt: skip
Pools = Annotated[
    list[str] | None,
    typer.Option("--pool", help="s3://PREFIX or a folder of images; may be repeated. Without it, "
                                "all that were identified before."),
]  # fmt: skip
NewClass = Annotated[
    list[str] | None, typer.Option(help="A class to make if there is none; may be repeated.")
]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", help="One limit of the gate, as NAME=VALUE; may be repeated."),
]
Unproven = Annotated[
    bool, typer.Option(help="Let new classes serve that the benchmark does not hold yet.")
]
Retire = Annotated[
    list[str] | None, typer.Option(help="A class that may vanish and be lost; may be repeated.")
]
From = Annotated[int | None, typer.Option("--from", help="A pretrained version to start from.")]


def folder_option(written: str) -> Any:
    """The option for a folder that a verb writes pictures or pages into; made when it is not."""
    return typer.Option(help=written, metavar="FOLDER", file_okay=False)


def plan_of(plan_file: Path | None, fields: list[str] | None) -> Plan:
    """The plan of a file with single fields set over it."""
    from vision.plan import Plan

    return Plan.from_dict(fields_of(plan_file, fields)).heeded()


def fields_of(plan_file: Path | None, fields: list[str] | None) -> dict[str, Any]:
    """Fields of a plan: those of a file, with single ones set over them."""
    from vision.plan import BadPlan

    values: dict[str, Any] = {}
    if plan_file is not None:
        try:
            values = json.loads(plan_file.read_text())
        except ValueError as error:
            raise BadPlan(f"{plan_file} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BadPlan(f"{plan_file} holds no plan: write an object of fields and values")
    for field in fields or []:
        name, sign, word = field.partition("=")
        if not sign:
            raise BadPlan(f"--set {field}: write FIELD=VALUE")
        try:
            value = json.loads(word)
        except ValueError:
            value = word
        group, _, inner = name.partition(".")
        if inner:
            values.setdefault(group, {})[inner] = value
        else:
            values[name] = value
    return values


def limits_of(limit: list[str] | None, unproven: bool, retire: list[str] | None) -> dict[str, Any]:
    """The limits of the gate that were given, by name."""
    from vision.gate import BadLimits

    values: dict[str, Any] = {}
    for one in limit or []:
        name, _, word = one.partition("=")
        try:
            values[name] = json.loads(word)
        except ValueError:
            raise BadLimits(f"--limit {one}: write NAME=VALUE, such as margin=0.02") from None
    if unproven:
        values["unproven_allowed"] = True
    if retire:
        values["retired_classes"] = tuple(retire)
    return values
