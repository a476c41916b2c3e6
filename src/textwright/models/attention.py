"""Dot-product attention: one function, and the layers that project into and out of it.

Axes: R rows, T time, S slots (tokens to look at), H heads, G key-value heads, D head width, W model width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.models.layers import Dropout, RMSNorm, Rotation, rotate

SHORT = 512  # tokens up to which a CPU attends by plain matrix products


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: Dropout, *, causal: bool = False) -> Tensor:
    """softmax(QKᵀ / √D + mask) V: Vaswani et al. 2017, eq. 1; heads share keys in groups (Ainslie et al. 2023).

    Args:
        q: (R, H, T, D).
        k, v: (R, G, S, D).
        mask: broadcast to (R, H, T, S): numbers to add, -inf where a query may not look.
        causal: a query sees the slots up to its own number only; S = T. What training takes.

    Returns:
        (R, T, H · D).
    """
    # A single query has few scores however long the text is. For one query of one row all ways take the same time, and
    # the fused kernel the fewest calls.
    rows, _, time, _ = q.shape
    short = k.shape[2] <= SHORT if time > 1 else rows > 1 or q.dtype != torch.float32
    if q.device.type == "cpu" and short:
        y = short_attention(q, k, v, _added(q, mask, causal), dropout)
    else:
        rate = dropout.dropped / 256 if dropout.training else 0.0
        if causal and mask is not None:
            mask, causal = _added(q, mask, causal), False
        if mask is not None:
            mask = mask.to(q.dtype)
        grouped = q.shape[1] > k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=causal, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


def short_attention(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, dropout: Dropout) -> Tensor:
    """Attention by plain matrix products: q (R, H, T, D), k and v (R, G, S, D) -> (R, H, T, D).

    On a CPU and up to a few hundred tokens this is two to three times faster, backward included, than the fused kernel,
    whose backward is slow there, and up to ten times for the single queries of many rows; beyond, the (T, S) scores
    cost more memory than they save time. The heads that share keys are further queries on them.
    """
    rows, heads, time, width = q.shape
    groups, slots = k.shape[1:3]
    q = q.reshape(rows * groups, heads // groups * time, width)
    k, v = (part.reshape(rows * groups, slots, width) for part in (k, v))
    scale = 1 / math.sqrt(width)
    if added is None:
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale)  # the first one is not read
    else:
        if added.ndim > 2 or heads > groups:
            added = added.expand(rows, heads, time, slots).reshape(rows * groups, -1, slots)
        scores = torch.baddbmm(added.to(q.dtype), q, k.mT, alpha=scale)
    y: Tensor = dropout(scores.softmax(-1)) @ v
    return y.view(rows, heads, time, width)


def weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Where queries (R, H, T, D) look among keys (R, G, S, D): (R, H, T, S), each summing to 1."""
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


class Heads(NamedTuple):
    """The widths of attention: W of the model, H query heads and G key-value heads of width D."""

    width: int
    heads: int
    kv_heads: int
    head_width: int


class SelfAttention(nn.Module):
    """A text looks at itself. `qkv` holds the H query heads, then G key heads, then G value heads; `out` projects.

    With an `epsilon` queries and keys are normalised, each head by itself (Henry et al. 2020, with a root mean square
    in the place of the length).
    """

    def __init__(
        self,
        shape: Heads,
        dropout: float,
        *,
        bias: bool,
        qkv_bias: bool | None = None,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        width, self.heads, self.kv_heads, self.head_width = shape
        heads = self.heads + 2 * self.kv_heads
        self.qkv = nn.Linear(width, heads * self.head_width, bias if qkv_bias is None else qkv_bias)
        self.out = nn.Linear(self.heads * self.head_width, width, bias)
        self.q_norm = None if epsilon is None else RMSNorm(self.head_width, epsilon)
        self.k_norm = None if epsilon is None else RMSNorm(self.head_width, epsilon)
        self.dropout = Dropout(dropout)

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (R, T, W) -> queries (R, H, T, D), keys and values (R, G, T, D); queries and keys are rotated."""
        turned = self.heads + self.kv_heads
        qk, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split((turned, self.kv_heads), -2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((self.heads, self.kv_heads), -2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], -2)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.heads, self.kv_heads), -2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """As the function, then the output projection: (R, T, W)."""
        y: Tensor = self.out(attend(q, k, v, mask, self.dropout, causal=causal))
        return y


class CrossAttention(nn.Module):
    """A text looks at another, whose keys and values are computed once."""

    def __init__(self, shape: Heads, dropout: float, *, bias: bool, qkv_bias: bool | None = None) -> None:
        super().__init__()
        qkv_bias = bias if qkv_bias is None else qkv_bias
        width, heads, kv_heads, self.head_width = shape
        self.q = nn.Linear(width, heads * self.head_width, qkv_bias)
        self.kv = nn.Linear(width, 2 * kv_heads * self.head_width, qkv_bias)
        self.out = nn.Linear(heads * self.head_width, width, bias)
        self.dropout = Dropout(dropout)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (R, S, W) -> keys and values (R, G, S, D), each in one piece: they are looked at again and again."""
        k, v = self.kv(memory).unflatten(-1, (-1, self.head_width)).chunk(2, -2)
        return k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    def query(self, x: Tensor) -> Tensor:
        """x (R, T, W) -> (R, H, T, D)."""
        q: Tensor = self.q(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        return q

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """x (R, T, W) over keys and values -> (R, T, W)."""
        y: Tensor = self.out(attend(self.query(x), k, v, mask, self.dropout))
        return y
