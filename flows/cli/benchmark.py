"""`regraft benchmark`: freeze it, grow it, look at it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import By, Json, Why
from flows.cli.printing import plain_text, print_json, print_table, say, say_some

if TYPE_CHECKING:
    from tasks.benchmark import Frozenness

verbs = typer.Typer(
    name="benchmark", help="Freeze, grow and look at the benchmark.", no_args_is_help=True
)


@verbs.command()
def freeze(
    why: Why,
    by: By,
    folder: Annotated[Path | None, typer.Argument(help="A folder of class folders.")] = None,
    as_json: Json = False,
) -> None:
    """Freeze the images under benchmark/ (a folder is loaded there first) as version 1.

    Example: regraft benchmark freeze ./messy --why "first season"
    """
    _load_benchmark(folder)
    from tasks import benchmark

    _say_frozen(benchmark.freeze(by, why), as_json)


@verbs.command()
def grow(
    why: Why,
    by: By,
    folder: Annotated[Path | None, typer.Argument(help="A folder of class folders.")] = None,
    as_json: Json = False,
) -> None:
    """Append a benchmark version with what was added; the champion is scored on it first.

    Example: regraft benchmark grow ./messy-okapis --why "okapis are new"
    """
    _load_benchmark(folder)
    from tasks import benchmark

    _say_frozen(benchmark.grow(by, why), as_json)


@verbs.command()
def withdraw(
    images: Annotated[list[str], typer.Argument(help="Keys or digests of benchmark images.")],
    why: Why,
    by: By,
    as_json: Json = False,
) -> None:
    """Append a benchmark version without these images; they can never come back or train.

    Example: regraft benchmark withdraw benchmark/lynx/12.jpg --why "this is a cat"
    """
    from tasks import benchmark

    row = benchmark.withdraw(images, by, why)
    if as_json:
        print_json(dataclasses.asdict(row))
        return
    say(f"benchmark version {row.version}: {row.images} images of {row.classes} classes")
    say(str(row.power.get("sentence", "")))


@verbs.command("list")
def list_benchmarks(as_json: Json = False) -> None:
    """List the benchmark's versions: their sizes, who made them and why, and looks at each.

    Example: regraft benchmark list
    """
    from infra import database
    from records import benchmark

    with database.connect().transaction() as session:
        rows = benchmark.listed(session)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print_table(
        ["version", "images", "classes", "digest", "looks", "when", "by", "why"],
        (
            (
                str(row.version), str(row.images), str(row.classes), row.digest[:12],
                str(row.looks), f"{row.frozen_at:%Y-%m-%d %H:%M}", plain_text(row.frozen_by),
                plain_text(row.why),
            )
            for row in rows
        ),
    )  # fmt: skip


@verbs.command("show")
def show_benchmark(
    version: Annotated[int | None, typer.Argument(
        help="A benchmark version; by default the newest.", show_default=False)] = None,
    images: Annotated[bool, typer.Option(help="List its images, too.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show a benchmark version: its classes, what it notices, how often it was looked at.

    Example: regraft benchmark show 2 --images
    """
    from flows.cli import screens

    if as_json:
        print_json(screens.benchmark_facts(version))
    else:
        screens.show_benchmark(version, images)


def _load_benchmark(folder: Path | None) -> None:
    if folder is not None:
        from tasks.benchmark import BENCHMARK
        from tasks.loading import load_folder

        load_folder(folder, BENCHMARK)


def _say_frozen(done: Frozenness, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    row = done.benchmark
    say(f"benchmark version {row.version}: {row.images} images of {row.classes} classes, "
         f"{done.added} of them new")  # fmt: skip
    say(str(row.power.get("sentence", "")))
    say_some(done.refused, "refused")
