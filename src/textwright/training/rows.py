"""Adam for tables of which a batch uses few rows: the others cost nothing.

A word that is neither read nor drawn in a batch has no gradient. Adam as it was published moves its row all the same,
by what is left of its moments, and so it reads and writes the whole table in every step. Here a row rests, moments and
decay included, until it has a gradient again (the idea of torch.optim.SparseAdam). A resting row misses what its last
gradient would still have done to it: with β_1 = 0.9 a single gradient moves a weight by about ten times the rate before
it is forgotten. `RATE` makes up for a part of it; how it was chosen stands in docs/benchmarks.md, "Learning speed".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

RATE = 4.0  # rows move at so many times the rate


class RowAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019), by rows for some matrices.

    Args:
        parameters: groups, as for any optimiser.
        tables: those among them of which only the rows move whose gradient is not zero, be it sparse or dense.
    """

    def __init__(self, parameters: Iterable[dict[str, Any]], tables: Iterable[Tensor], **options: Any) -> None:
        super().__init__(parameters, **options)
        self.tables = list(tables)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and any(weight is table for table in self.tables):
                    self._step(weight, group)
                    weight.grad = None  # it has had its step
        return super().step(closure)

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        rows, gradient = used(weight.grad)
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        first, second = group["betas"]
        rate, step = RATE * group["lr"], float(state["step"])
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        scale = square.div_(1 - second**step).sqrt_().add_(group["eps"])
        moved = weight[rows].mul_(1 - rate * group["weight_decay"])
        weight.index_copy_(0, rows, moved.addcdiv_(mean, scale, value=-rate / (1 - first**step)))


def used(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n,) of a gradient that are not zero, and what stands there (n, width)."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
    else:
        rows, values = torch.arange(len(gradient), device=gradient.device), gradient
    some = values.any(1)
    return rows[some], values[some]
