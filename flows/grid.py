"""One table on a terminal; a module of its own, so that a short answer loads nothing else."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table


def table(columns: list[str], rows: Iterable[Iterable[str | None]], title: str = "") -> None:
    """Print a table as wide as the terminal."""
    grid = Table(title=title or None, title_justify="left", header_style="bold", box=None,
                 pad_edge=False)  # fmt: skip
    for name in columns:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*(cell or "" for cell in row))
    console = Console()
    console.print(grid)
    console.print()
