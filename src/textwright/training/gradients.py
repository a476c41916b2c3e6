"""Norms of gradients: of all, for clipping, and of each layer, so that vanishing and exploding ones can be seen."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn


def clip(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit` (Pascanu et al. 2013); 0 leaves them.

    Returns:
        the norm before clipping, a scalar that is not finite when any gradient is not: then nothing is scaled, so that
        one can still see which.
    """
    gradients = [entries(parameter) for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit and limit < float(norm) < math.inf:
        torch._foreach_mul_(gradients, limit / float(norm))
    return norm


def layer_norms(model: nn.Module) -> dict[str, float]:
    """The norm of each layer's gradient, in the order of the layers: "embed", "blocks.0", "blocks.1", …, "head"."""
    squares: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[layer(name)].append(entries(parameter).square().sum())
    return {name: math.sqrt(float(torch.stack(parts).sum())) for name, parts in squares.items()}


def entries(parameter: Tensor) -> Tensor:
    """What stands in a parameter's gradient; of a sparse one, in the rows that it has. It is no copy."""
    assert parameter.grad is not None
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()  # a row may have come more than once
    return parameter.grad.values()


def layer(parameter: str) -> str:
    """The layer a parameter belongs to: "blocks.3.norm.weight" -> "blocks.3", "embed.weight" -> "embed"."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]
