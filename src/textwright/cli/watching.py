"""A sign of life while something long is measured or written."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET = 10.0  # seconds between lines where the output is no terminal
SOON = 1.0  # seconds after which a line appears on a terminal


class Watch:
    """How far something is, on standard error: on a terminal a line that moves and is gone in the end, elsewhere a line
    every ten seconds; so what is done soon leaves no trace. Called with how many more are done.

    Args:
        what: is being done, and to what: "measuring, tokens".
        whole: how many there are, if that is known.
    """

    def __init__(self, what: str, whole: int | None = None) -> None:
        self.what, self.whole, self.done = what, whole, 0
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task(what, total=whole)
        self.told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar.live.is_started:  # stopping prints a line
            self.bar.stop()

    def __call__(self, done: int) -> None:
        self.done += done
        self.bar.advance(self.task, done)
        quiet = time.monotonic() - self.told
        if self.console.is_interactive:  # else nothing moves
            if quiet >= SOON:
                self.bar.start()
        elif quiet >= QUIET:
            self.told = time.monotonic()
            self.console.print(f"{self.what}: {self.done:,}" + (f" of {self.whole:,}" if self.whole else ""))
