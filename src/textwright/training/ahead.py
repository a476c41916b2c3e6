"""The next batch, put together while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from textwright.text.batching import Batch, Cursor

Supply = Iterator[tuple[Batch, Cursor]]


def ahead(supply: Supply, finish: Callable[[Batch], Batch]) -> Supply:
    """The batches of an endless supply, in their order and each after `finish`; a thread is one batch ahead.

    On a CPU the thread would take what it gives: it has the cores that the model computes with, and a batch takes less
    than a hundredth of a step there. A GPU leaves them idle.
    """

    def make() -> tuple[Batch, Cursor]:
        batch, cursor = next(supply)
        return finish(batch), cursor

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(make)
        while True:
            made = coming.result()
            coming = thread.submit(make)
            yield made
