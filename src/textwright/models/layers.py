"""Layers that more than one model uses: dropout, positions, feed-forward networks, causal self-attention.

Axes: R rows, T time, S slots (tokens seen so far), H heads, G key-value heads, D head width, W model width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 512  # tokens up to which a CPU attends by plain matrix products
Rotation = tuple[Tensor, Tensor]  # cosine and sine, each (R or 1, T, 1, D / 2)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) with cheap masks.

    One random byte decides an element, so the rate is rounded to 1/256, and the scale is that of the rounded rate: the
    expectation is exact. Eight elements are decided by one 64-bit draw; on a CPU, drawing a Bernoulli for each element
    costs several times more than the matrix products around it.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = min(round(rate * 256), 255)  # of 256 byte values

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        if not self.training or self.dropped == 0:
            return x
        draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        draws.random_(torch.iinfo(torch.int64).min, None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape)
        scale = torch.empty_like(x, requires_grad=False)
        torch.ge(kept, self.dropped, out=scale)  # straight into x's type: multiplying by a bool tensor is slow
        return x * scale.mul_(256 / (256 - self.dropped))

    def extra_repr(self) -> str:
        return f"rate={self.dropped}/256"


class Position(nn.Module):
    """How a Transformer knows the order of its tokens. This base class adds nothing."""

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings (R, T, W) at positions (R or 1, T) -> (R, T, W)."""
        return x

    def rotation(self, positions: Tensor) -> Rotation | None:
        """What attention turns queries and keys by, or None."""
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

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    def rotation(self, positions: Tensor) -> Rotation:
        angle = angles(positions, self.head_width).unsqueeze(2)
        return angle.cos(), angle.sin()


def angles(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """positions (R, T) -> (R, T, width / 2): position ÷ base^(2i / width), in float32 also under autocast."""
    frequency = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    return positions.unsqueeze(-1).float() * frequency


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of x (R, T, H, D) by the given angles."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class GELUFeedForward(nn.Module):
    """W₂ GELU(W₁x), (…, W) -> (…, W): Hendrycks and Gimpel 2016."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias)
        self.down = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class SwiGLUFeedForward(nn.Module):
    """W₂(SiLU(W₁x) ⊙ W₃x), (…, W) -> (…, W): Shazeer 2020, "GLU Variants Improve Transformer", eq. 6."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias)
        self.down = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class CausalSelfAttention(nn.Module):
    """softmax(QKᵀ / √D) V over the past (Vaswani et al. 2017, eq. 1); heads share keys in groups (Ainslie et al. 2023).

    The output projection is `out`; `qkv` holds the H query heads, then G key heads, then G value heads.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias)
        self.out = nn.Linear(width, width, bias)
        self.dropout = Dropout(dropout)

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (R, T, W) -> queries (R, T, H, D), keys and values (R, T, G, D); queries and keys are rotated."""
        turned = self.heads + self.kv_heads
        qk, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split((turned, self.kv_heads), -2)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.heads, self.kv_heads), -2)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (R, T, H, D) over keys and values (R, S, G, D) -> (R, T, W).

        `mask` (R, 1, T, S) is True where a query may look; None: causal, S = T, the path that training takes.
        """
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        grouped = self.heads != self.kv_heads
        if mask is None and q.device.type == "cpu" and q.shape[2] <= SHORT:
            if grouped:
                k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
            y = short_causal_attention(q, k, v, self.dropout)
        else:
            rate = self.dropout.dropped / 256 if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=mask is None, enable_gqa=grouped)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def short_causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
    """Causal attention by plain matrix products: q, k, v (R, H, T, D) -> (R, H, T, D).

    On a CPU and up to a few hundred tokens this is two to three times faster, backward included, than the fused kernel,
    whose backward is slow there; beyond, the (T, T) scores cost more memory than they save time.
    """
    rows, heads, time, width = q.shape
    q, k, v = (part.reshape(rows * heads, time, width) for part in (q, k, v))
    future = torch.full((time, time), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future, q, k.mT, alpha=1 / math.sqrt(width))
    y: Tensor = dropout(scores.softmax(-1)) @ v
    return y.view(rows, heads, time, width)


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
