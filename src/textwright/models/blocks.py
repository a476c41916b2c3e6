"""What the Transformers share: the configuration of a block, the residual connection, and the cache of keys and values.

    x = x + Sublayer(Norm(x))        pre-norm:  Xiong et al. 2020
    x = Norm(x + Sublayer(x))        post-norm: Vaswani et al. 2017

Axes: R rows, T time, S slots, G key-value heads, D head width, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from textwright.models.attention import CrossAttention, SelfAttention
from textwright.models.base import BaseConfig
from textwright.models.layers import (
    Dropout,
    FeedForward,
    LearnedPosition,
    Position,
    RelativePosition,
    RotaryPosition,
    Rotation,
    SinusoidalPosition,
    SwiGLUFeedForward,
)

GROWTH = 16  # slots by which a cache without a stated capacity grows, or a quarter of what it has


class BlockConfig(BaseConfig):
    """What every Transformer block is made of."""

    heads: int = Field(4, gt=0)
    kv_heads: int | None = Field(None, gt=0, description="heads of keys and values; None: as many as heads")
    window: int = Field(256, gt=0, description="the most tokens a sequence may have")
    inner: int | None = Field(None, gt=0, description="width inside the feed-forward network; None: 4 times width")
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_place: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "sinusoidal", "rotary", "relative"] = "rotary"
    feed_forward: Literal["relu", "gelu", "swiglu"] = "gelu"
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    bias: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.width // self.heads}")
        return self

    def make_norm(self) -> nn.Module:
        if self.norm == "layernorm":
            return nn.LayerNorm(self.width, bias=self.bias)
        return nn.RMSNorm(self.width, eps=1e-6)

    def make_feed_forward(self) -> nn.Module:
        inner = self.inner or 4 * self.width
        if self.feed_forward == "swiglu":
            return SwiGLUFeedForward(self.width, inner, self.bias)
        return FeedForward(self.width, inner, self.bias, F.relu if self.feed_forward == "relu" else F.gelu)

    def make_position(self, window: int, *, causal: bool) -> Position:
        if self.positions == "learned":
            return LearnedPosition(window, self.width)
        if self.positions == "sinusoidal":
            return SinusoidalPosition(self.width)
        if self.positions == "relative":
            return RelativePosition(self.heads, causal=causal)
        return RotaryPosition(self.width // self.heads)

    def make_attention(self) -> SelfAttention:
        kv_heads = self.kv_heads or self.heads
        return SelfAttention(self.width, self.heads, kv_heads, self.attention_dropout, self.bias)

    def make_cross_attention(self) -> CrossAttention:
        kv_heads = self.kv_heads or self.heads
        return CrossAttention(self.width, self.heads, kv_heads, self.attention_dropout, self.bias)


class ResidualBlock(nn.Module):
    """Base of blocks: how a sublayer is normalised and added to the residual stream (R, T, W)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.pre = config.norm_place == "pre"
        self.dropout = Dropout(config.dropout)

    def add(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """The stream before and after a sublayer."""
        y: Tensor = x + self.dropout(sublayer(norm(x))) if self.pre else norm(x + self.dropout(sublayer(x)))
        return y


@dataclass
class View:
    """What self-attention needs to know of the tokens it is given, the same in every layer of a stack.

    Attributes:
        rotation: see `Position`.
        mask: see `attention.attend`.
        causal: nothing was seen before, and every token sees those before it.
    """

    rotation: Rotation | None
    mask: Tensor | None
    causal: bool


@dataclass
class Cache:
    """One layer's keys and values (R, S, G, D), and where the new tokens go."""

    keys: Tensor
    values: Tensor
    at: tuple[Tensor, Tensor]  # row (R, 1) and slot (R, T) of each new token

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = k.to(self.keys.dtype), v.to(self.values.dtype)
        if torch.is_grad_enabled():  # the backward pass needs every version of the buffer
            self.keys, self.values = self.keys.index_put(self.at, k), self.values.index_put(self.at, v)
        else:
            # In place: the buffer is a log that a state only points into. This is why a state is spent by its use.
            self.keys[self.at], self.values[self.at] = k, v
        return self.keys, self.values


def look_around(attention: SelfAttention, x: Tensor, view: View, cache: Cache | None) -> Tensor:
    """Self-attention (R, T, W) -> (R, T, W), over the cache where there is one."""
    q, k, v = attention.project(x, view.rotation)
    if cache is not None:
        k, v = cache.write(k, v)
    return attention.attend(q, k, v, view.mask, causal=view.causal)


def open_caches(
    keys: tuple[Tensor, ...], values: tuple[Tensor, ...], positions: Tensor, position: Position
) -> tuple[list[Cache], View]:
    """Caches that can take tokens at positions (R, T), and what attention needs to know of those."""
    slots = int(positions.max()) + 1 if positions.numel() else 0
    keys, values = _grown(keys, slots), _grown(values, slots)
    rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
    count = keys[0].shape[1]
    seen = (torch.arange(count, device=positions.device) <= positions[..., None])[:, None]  # (R, 1, T, S)
    bias = position.bias(positions, count)
    mask = seen if bias is None else bias.masked_fill(~seen, float("-inf"))
    caches = [Cache(*pair, (rows, positions)) for pair in zip(keys, values, strict=True)]
    return caches, View(position.rotation(positions), mask, causal=False)


def _grown(caches: tuple[Tensor, ...], slots: int) -> tuple[Tensor, ...]:
    have = caches[0].shape[1]
    missing = -(-max(slots - have, have // 4) // GROWTH) * GROWTH
    return caches if slots <= have else tuple(F.pad(cache, (0, 0, 0, 0, 0, missing)) for cache in caches)
