"""Random bytes for dropout, drawn by as many threads as torch has.

torch's generator for CPUs (the Mersenne Twister) is one sequence, drawn by one thread, and a training step with dropout
waits for it. Here it draws a seed for each stretch of a large tensor; the stretches are drawn from generators of their
own, side by side. Where they begin does not depend on the number of threads, so neither do the bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

STRETCH = 2**17  # draws of 64 bits, about half a millisecond
LOWEST = torch.iinfo(torch.int64).min


def random_bytes(count: int, device: torch.device) -> Tensor:
    """(count,) uint8, a function of the state of torch's generator."""
    if torch.compiler.is_compiling():  # what is compiled draws numbers in its own loops
        return torch.randint(256, (count,), dtype=torch.uint8, device=device)
    draws = torch.empty((count + 7) // 8, dtype=torch.int64, device=device)
    if device.type != "cpu" or len(draws) <= STRETCH:
        draws.random_(LOWEST, None)
    else:
        stretches = torch.split(draws, STRETCH)
        seeds = torch.empty(len(stretches), dtype=torch.int64).random_().tolist()
        list(_threads(torch.get_num_threads()).map(_draw, stretches, seeds))
    return draws.view(torch.uint8)[:count]


def _draw(stretch: Tensor, seed: int) -> None:
    stretch.random_(LOWEST, None, generator=torch.Generator().manual_seed(seed))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="dropout")
