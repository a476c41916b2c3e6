"""Layers that more than one model uses: dropout, positions, feed-forward networks.

Axes: R rows, T time, S slots (tokens to look at), H heads, D head width, W model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.models.draws import random_bytes

Rotation = tuple[Tensor, Tensor]  # cosine and sine, each (R or 1, T, 1, D / 2)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) with cheap masks.

    One random byte decides an element, so the rate is rounded to 1/256, and the scale is that of the rounded rate: the
    expectation is exact (in bfloat16, where a scale has 8 bits, to a few thousandths). Eight elements are decided by
    one 64-bit draw; on a CPU, drawing a Bernoulli for each element costs several times more than the matrix products
    around it. A GPU has one kernel for all of it.

    Args:
        rate: share of elements that become 0.
        locked: one mask (rows, width) for all steps between (Gal and Ghahramani 2016, "variational" dropout).
    """

    def __init__(self, rate: float, *, locked: bool = False) -> None:
        super().__init__()
        self.dropped = min(round(rate * 256), 255)  # of 256 byte values
        self.locked = locked

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        if not self.training or self.dropped == 0:
            return x
        shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1]) if self.locked else x.shape
        if x.device.type == "cuda" and not self.locked:
            return F.dropout(x, self.dropped / 256)
        scale = torch.empty(shape, dtype=x.dtype, device=x.device)
        kept = random_bytes(scale.numel(), x.device).view(shape)
        torch.ge(kept, self.dropped, out=scale)  # straight into x's type: multiplying by a bool tensor is slow
        return x * scale.mul_(256 / (256 - self.dropped))

    def extra_repr(self) -> str:
        return f"rate={self.dropped}/256" + ", locked" * self.locked


def autocasted(x: Tensor) -> Tensor:
    """x in the type that a surrounding autocast computes products in. What enters a stack of blocks is put into it:
    reading and writing the residual stream in float32 costs a CPU more than the precision is worth."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class RMSNorm(nn.RMSNorm):
    """x ÷ √(mean of x² + ε) · g (Zhang and Sennrich 2019, eq. 4); the gains g are read in the type of x, as torch's
    fused kernel asks for."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Position(nn.Module):
    """How a Transformer knows the order of its tokens. This base class adds nothing."""

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings (R, T, W) at positions (R or 1, T) -> (R, T, W)."""
        return x

    def rotation(self, positions: Tensor) -> Rotation | None:
        """What attention turns queries and keys by, or None."""
        return None

    def bias(self, positions: Tensor, slots: int) -> Tensor | None:
        """What is added to the scores of queries at positions (R or 1, T) for the slots 0 … S - 1, where slot number ==
        position: (R or 1, H, T, S), or None."""
        return None


class LearnedPosition(Position):
    """A vector for each position, learned (Radford et al. 2018)."""

    def __init__(self, window: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(window, width)

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        table: Tensor = self.table(positions)
        return x + table


class SinusoidalPosition(Position):
    """Fixed sines and cosines: "Attention Is All You Need" (Vaswani et al. 2017), section 3.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        angle = angles(positions, self.width + self.width % 2)  # (R or 1, T, ceil(W / 2))
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)  # sine at even, cosine at odd places
        return x + waves[..., : self.width].to(x.dtype)


class RotaryPosition(Position):
    """Queries and keys turned by their position (Su et al. 2021, RoFormer, eq. 34), halves paired as in Llama."""

    def __init__(self, head_width: int, base: float = 10000.0) -> None:
        super().__init__()
        self.head_width, self.base = head_width, base

    def rotation(self, positions: Tensor) -> Rotation:
        angle = angles(positions, self.head_width, self.base).unsqueeze(2)
        return angle.cos(), angle.sin()


class RelativePosition(Position):
    """A learned number for each head and distance, added to the scores: T5 (Raffel et al. 2020, section 2.1).

    Distances are put into buckets: half of them exact, the others growing with the logarithm up to `furthest`. One
    table serves all layers of a stack.
    """

    def __init__(self, heads: int, *, causal: bool, buckets: int = 32, furthest: int = 128) -> None:
        super().__init__()
        self.causal, self.buckets, self.furthest = causal, buckets, furthest
        self.table = nn.Embedding(buckets, heads)

    def bias(self, positions: Tensor, slots: int) -> Tensor:
        ahead = torch.arange(slots, device=positions.device) - positions.unsqueeze(-1)
        scores: Tensor = self.table(self.bucket(ahead))
        return scores.movedim(-1, 1)

    def bucket(self, ahead: Tensor) -> Tensor:
        """Key position - query position, any shape -> its bucket."""
        count = self.buckets if self.causal else self.buckets // 2
        start = 0 if self.causal else (ahead > 0) * count  # after the query: the second half of the buckets
        distance = (-ahead).clamp(min=0) if self.causal else ahead.abs()
        exact = count // 2
        scale = (count - exact) / math.log(self.furthest / exact)
        far = exact + ((distance.clamp(min=1) / exact).log() * scale).long()
        return start + torch.where(distance < exact, distance, far.clamp(max=count - 1))


def angles(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """positions (R, T) -> (R, T, width / 2): position ÷ base^(2i / width), in float32 also under autocast."""
    frequency = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    return positions.unsqueeze(-1).float() * frequency


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of x (R, T, H, D) by the given angles."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class FeedForward(nn.Module):
    """W₂ f(W₁x), (…, W) -> (…, W): f is ReLU (Vaswani et al. 2017, eq. 2), GELU or SiLU
    (Hendrycks and Gimpel 2016)."""

    def __init__(self, width: int, inner: int, bias: bool, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias)
        self.down = nn.Linear(inner, width, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class GatedFeedForward(nn.Module):
    """W₂(f(W₁x) ⊙ W₃x), (…, W) -> (…, W): Shazeer 2020, "GLU Variants Improve Transformer", eq. 6; f is SiLU (SwiGLU)
    or GELU (GEGLU)."""

    def __init__(self, width: int, inner: int, bias: bool, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = nn.Linear(width, 2 * inner, bias)
        self.down = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        y: Tensor = self.down(self.activation(gate) * up)
        return y


def init_weights(module: nn.Module, layers: int) -> None:
    """GPT-2's initialisation: normal(0, 0.02); projections into the residual stream ÷ √(2 · layers)."""
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            continue
        residual = name.endswith(("out.weight", "down.weight"))
        nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
