"""A bar on a terminal, with rate and time left; nothing of Prefect, for acts that are light."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# What is over sooner needs no bar.
PATIENCE_SECONDS = 2.0


class RateColumn(ProgressColumn):
    """Units per second since the bar began."""

    def render(self, task: Task) -> Text:
        """Show the rate, or a dash before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and speed >= 10 else f"{speed or 0:.1f}/s")


def bar(console: Console) -> Progress:
    """A bar that is gone once its work is done, and that no file ever sees."""
    return Progress(
        TextColumn("{task.description}", markup=False),  # a pool may be called a[/b]
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def late_bar(
    title: str, patience: float = PATIENCE_SECONDS
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar once the block has run for so many seconds.

    Call the function given with how much is done, and of how much.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        shown: Progress | None = None

        def advance(done: int, whole: int) -> None:
            nonlocal shown
            if shown is None and done < whole and time.monotonic() - began >= patience:
                shown = stack.enter_context(bar(Console(stderr=True)))
                shown.add_task(title, total=whole)
            if shown is not None:
                shown.update(shown.task_ids[0], completed=done, total=whole)

        yield advance
