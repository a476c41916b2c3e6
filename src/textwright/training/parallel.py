"""The one place that knows more than one process: `torchrun` starts them, `join` finds them, `wrap` ties gradients."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from textwright.models.state import State, map_leaves


@dataclass(frozen=True)
class World:
    """All processes of a run; this one is number `rank` of `size`, `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """This process prepares data, prints and saves."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End what `join` began.

        The group's threads end with its last user: one that still lets go of a tensor while the interpreter shuts down
        aborts the process. The wrapped module is a user; it lies in a cycle, and an error on its way out holds it, too.
        """
        if self.size > 1:
            dist.destroy_process_group()
            error = sys.exception()
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
            gc.collect()

    def agree(self, values: list[float]) -> list[float]:
        """The first process's numbers, in every process."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(shared, 0)
        numbers: list[float] = shared.tolist()
        return numbers

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def spread(self, module: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.size > 1:
            for weight in module.parameters():
                dist.broadcast(weight.data, 0)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes (Li et al. 2020, DistributedDataParallel)."""
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            # torch 2.13 calls it `forward_sync_buffers`; older ones do not know that name.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, broadcast_buffers=False)

    def join_rows(self, state: State | None) -> State | None:
        """The whole batch's state from every process's rows, which hold global rows rank, rank + size, …"""
        if self.size == 1 or state is None:
            return state

        def join(leaf: Tensor) -> Tensor:
            parts = [torch.empty_like(leaf) for _ in range(self.size)]
            dist.all_gather(parts, leaf.contiguous())
            return torch.stack(parts, 1).flatten(0, 1)

        return map_leaves(join, state)

    def own_rows(self, state: State | None) -> State | None:
        """This process's rows of a whole batch's state: the inverse of `join_rows`."""
        if self.size == 1 or state is None:
            return state
        return map_leaves(lambda leaf: leaf[self.rank :: self.size].contiguous(), state)


def lost(error: Exception) -> bool:
    """What another process was to send did not come: NCCL tells it by the error's type, gloo by a place in its code."""
    return isinstance(error, dist.DistError) or "gloo/transport/" in str(error)


def join() -> World:
    """The world that `torchrun` made, or a world of one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        # Its functions have the group of the moment of the import as a default, and would keep it for ever.
        importlib.import_module("torch.distributed.nn.functional")
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=12))  # a large text takes long to prepare
    return World(int(os.environ["RANK"]), size, local)
