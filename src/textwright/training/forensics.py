"""When a number is not finite: which layer, which parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textwright.training.gradients import entries


def blame(model: nn.Module, run: Callable[[], object]) -> str:
    """Name the first place where a non-finite number appears.

    Weights are looked at first, then the outputs of every layer in the order they are computed by `run`, then the
    gradients that are there, from the output back to the input.
    """
    for name, parameter in model.named_parameters():
        if not finite(parameter):
            return f"weight {name}"
    found: list[str] = []
    hooks = [module.register_forward_hook(_watch(name or "model", found)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"output of layer {found[0]}"
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not finite(entries(parameter)):
            return f"gradient of {name}"
    return "the loss"


def finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.is_floating_point() and not finite(first):
            found.append(name)

    return hook
