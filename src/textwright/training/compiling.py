"""Blocks of a Transformer as compiled code: fewer and larger GPU kernels for all that is no matrix product."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from textwright.errors import ConfigError
from textwright.models.blocks import ResidualBlock


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Make the first call of the model's blocks compile them; equal blocks share their code. Weights keep their names.

    Raises:
        ConfigError: nothing can be compiled on this machine.
    """
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))  # before an hour of training depends on it
    except Exception as error:  # whatever a compiler, or the lack of one, raises
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"torch.compile does not work here ({told[0]}): --set training.compile=false") from None
    torch._dynamo.config.optimize_ddp = False  # it cuts blocks for several processes to exchange gradients early
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.compile()


def uncompiled() -> AbstractContextManager[object]:
    """Inside, blocks run as they are written: looks and samples have too many lengths to compile for each, and hooks
    see every layer."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
