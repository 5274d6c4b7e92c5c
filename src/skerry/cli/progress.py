"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[str, float], None]
"""Shows the stage and the fraction, 0 to 1, that is done."""


@contextlib.contextmanager
def progress_bar(stage: str) -> Iterator[Advance | None]:
    """Give what moves the bar; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # Rich costs time that only a bar is worth.
    from rich.console import Console
    from rich.progress import Progress

    # What is printed meanwhile goes above the bar, but never from a file to the terminal.
    above = sys.stdout.isatty()
    with Progress(
        console=Console(stderr=True), transient=True, redirect_stdout=above, redirect_stderr=True
    ) as bar:
        task = bar.add_task(stage, total=1.0)
        yield lambda now, fraction: bar.update(task, description=now, completed=fraction)
