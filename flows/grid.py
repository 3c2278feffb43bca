"""One table on a terminal; a module of its own, so that a short answer loads nothing else."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

Grid = tuple[list[str], list[list[str]]]  # columns and rows


def table(columns: list[str], rows: Iterable[Iterable[str | None]], title: str = "") -> None:
    """Print a table as wide as the terminal."""
    grid = Table(header_style="bold", box=None, pad_edge=False)
    for name in columns:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*(cell or "" for cell in row))
    console = Console()
    if title:  # not the table's own, which would be broken to the width of narrow columns
        console.print(f"[italic]{title}[/italic]")
    console.print(grid)
    console.print()
