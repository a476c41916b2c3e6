"""Dot-product attention: one function, and the layers that project into and out of it.

Axes: R rows, T time, S slots (tokens to look at), H heads, G key-value heads, D head width, W model width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.models.layers import Dropout, Rotation, rotate

SHORT = 512  # tokens up to which a CPU attends by plain matrix products


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: Dropout, *, causal: bool = False) -> Tensor:
    """softmax(QKᵀ / √D + mask) V: Vaswani et al. 2017, eq. 1; heads share keys in groups (Ainslie et al. 2023).

    Args:
        q: (R, T, H, D).
        k, v: (R, S, G, D).
        mask: broadcast to (R, H, T, S): True where a query may look, or numbers to add, -inf where it may not.
        causal: a query sees the slots up to its own number only; S = T. What training takes.

    Returns:
        (R, T, H · D).
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    # A single query is best served by the fused kernel; so is a mask of True and False, which only decoding has.
    plain = q.device.type == "cpu" and k.shape[2] <= SHORT and (mask is None or mask.dtype != torch.bool)
    if plain and q.shape[2] > 1:
        if groups > 1:
            k, v = (part.repeat_interleave(groups, 1) for part in (k, v))
        y = short_attention(q, k, v, _added(q, mask, causal), dropout)
    else:
        rate = dropout.dropped / 256 if dropout.training else 0.0
        if causal and mask is not None:
            mask, causal = _added(q, mask, causal), False
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=causal, enable_gqa=groups > 1)
    return y.transpose(1, 2).flatten(2)


def short_attention(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, dropout: Dropout) -> Tensor:
    """Attention by plain matrix products: q (R, H, T, D), k and v (R, H, S, D) -> (R, H, T, D).

    On a CPU and up to a few hundred tokens this is two to three times faster, backward included, than the fused kernel,
    whose backward is slow there; beyond, the (T, S) scores cost more memory than they save time.
    """
    rows, heads, time, width = q.shape
    q, k, v = (part.reshape(rows * heads, part.shape[2], width) for part in (q, k, v))
    scale = 1 / math.sqrt(width)
    if added is None:
        scores = (q * scale) @ k.mT
    else:
        if added.ndim > 2:
            added = added.expand(rows, heads, time, -1).flatten(0, 1)
        scores = torch.baddbmm(added.to(q.dtype), q, k.mT, alpha=scale)
    y: Tensor = dropout(scores.softmax(-1)) @ v
    return y.view(rows, heads, time, width)


def weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Where queries (R, T, H, D) look among keys (R, S, G, D): (R, H, T, S), each summing to 1."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q @ k.mT).float() / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores + mask).softmax(-1)


def hidden_after(lengths: Tensor, slots: int) -> Tensor:
    """(R,) -> (R, 1, 1, S) numbers to add to scores: -inf at and after a row's length."""
    outside = torch.arange(slots, device=lengths.device) >= lengths[:, None]
    return torch.zeros(outside.shape, device=lengths.device).masked_fill(outside, float("-inf"))[:, None, None]


def _added(q: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    if not causal:
        return mask
    time = q.shape[2]
    future = torch.full((time, time), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    return future if mask is None else mask + future


class SelfAttention(nn.Module):
    """A text looks at itself. `qkv` holds the H query heads, then G key heads, then G value heads; `out` projects."""

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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """As the function, then the output projection: (R, T, W)."""
        y: Tensor = self.out(attend(q, k, v, mask, self.dropout, causal=causal))
        return y


class CrossAttention(nn.Module):
    """A text looks at another, whose keys and values are computed once."""

    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.head_width = width // heads
        self.q = nn.Linear(width, width, bias)
        self.kv = nn.Linear(width, 2 * kv_heads * self.head_width, bias)
        self.out = nn.Linear(width, width, bias)
        self.dropout = Dropout(dropout)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (R, S, W) -> keys and values (R, S, G, D)."""
        k, v = self.kv(memory).unflatten(-1, (-1, self.head_width)).chunk(2, -2)
        return k, v

    def query(self, x: Tensor) -> Tensor:
        """x (R, T, W) -> (R, T, H, D)."""
        q: Tensor = self.q(x).unflatten(-1, (-1, self.head_width))
        return q

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """x (R, T, W) over keys and values -> (R, T, W)."""
        y: Tensor = self.out(attend(self.query(x), k, v, mask, self.dropout))
        return y
