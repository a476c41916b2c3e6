"""Muon for the matrices inside a model, AdamW for everything else, as one optimiser.

    M <- μ M + (1 - μ) G                                  the momentum of a matrix's gradient G
    W <- W - η s O((1 - μ) G + μ M) - η λ W               O: the nearest matrix whose rows or columns are orthonormal
    s = 0.2 √max(rows, columns)                           gives updates the size of AdamW's, so that η serves both

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), with s of Liu et al. 2025, "Muon is Scalable for LLM
Training", section 2.2. Tables of words, the head, biases and gains are for AdamW: a row of a table stands for one word
and is used alone.

Matrices of one shape, or of its transpose, are orthogonalised together: a model has dozens of small ones, and a product
of a small matrix costs less than its call. torch.optim.Muon, which takes them one by one, is what the tests compare
with. It works in bfloat16 always; here a step under autocast does, and any other in float32: a processor without
instructions for bfloat16 takes dozens of times as long for these products in it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from textwright.models.layers import autocasted

TOGETHER = 2**22  # elements orthogonalised at once, or one matrix, so that large models need little more memory


class Muon(torch.optim.Optimizer):
    """The formulas above, for matrices alone."""

    def __init__(self, matrices: Sequence[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learning = [weight for weight in group["params"] if weight.grad is not None]
            for alike in _alike(learning):
                self._step(alike, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means = [self._mean(weight) for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, means, momentum)
        steps = orthogonal(torch.stack([_wide(autocasted(direction)) for direction in directions]))
        size = lr * 0.2 * math.sqrt(steps.shape[-1])
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        for weight, step in zip(weights, steps, strict=True):
            weight.add_(step if weight.shape == step.shape else step.mT.contiguous(), alpha=-size)

    def _mean(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum_buffer"]
        return mean


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns), rows <= columns, with all their singular values near 1, in their own type.

    Five steps of the quintic Newton-Schulz iteration of Jordan et al. 2024, whose coefficients make small values grow
    fastest; it ends near 1, not at 1, which Jordan et al. found to do no harm.
    """
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, in one piece: whatever reads a matrix across its rows takes several times as long as
    this copy."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT.contiguous()


def _alike(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The weights in parts of one shape, or of its transpose."""
    shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for weight in weights:
        shapes[tuple(sorted(weight.shape))].append(weight)
    for shape, alike in shapes.items():
        count = max(1, TOGETHER // math.prod(shape))
        for start in range(0, len(alike), count):
            yield alike[start : start + count]


class Together(torch.optim.Optimizer):
    """Two optimisers over different parameters: one list of groups, one state to save."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.first, self.second = first, second
        self._share()

    def _share(self) -> None:
        count = len(self.first.param_groups)
        self.first.param_groups, self.second.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.first.state = self.second.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        self.first.step()
        self.second.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
