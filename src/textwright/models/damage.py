"""Where numbers stop being finite: found only once something is wrong, so it may be slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textwright.models.base import LanguageModel, Source


@torch.no_grad()
def damaged(model: LanguageModel, tokens: Tensor, source: Source | None = None) -> str:
    """Names what makes the logits after tokens (rows, time) infinite or not a number, for an error message."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"its weight {name} is damaged"
    found: list[str] = []
    handles = [
        layer.register_forward_hook(_watch(name, found)) for name, layer in model.named_modules() if _is_leaf(layer)
    ]
    try:
        model(tokens, source=source)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"its layer {found[0]} overflows: it was trained to, or its numbers are too small (try float32)"
    return "its weights are finite, and so is every layer that reads this text anew"


def _is_leaf(layer: nn.Module) -> bool:
    return next(layer.children(), None) is None


def _watch(name: str, found: list[str]) -> Any:
    def hook(layer: nn.Module, given: Any, result: Any) -> None:
        if isinstance(result, Tensor) and not bool(result.isfinite().all()):
            found.append(name)

    return hook
