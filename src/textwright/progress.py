"""How what takes long says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[int], None]  # with how many more are done: tokens, sources


def untold(done: int) -> None:
    """The progress that nobody watches."""
