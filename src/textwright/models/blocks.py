"""What the Transformers share: the configuration of a block, the residual connection, and the cache of keys and values.

    x = x + Sublayer(Norm(x))        pre-norm:  Xiong et al. 2020
    x = Norm(x + Sublayer(x))        post-norm: Vaswani et al. 2017

Axes: R rows, T time, S slots, G key-value heads, D head width, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from textwright.models.attention import CrossAttention, Heads, SelfAttention
from textwright.models.base import BaseConfig
from textwright.models.layers import (
    Dropout,
    FeedForward,
    GatedFeedForward,
    LearnedPosition,
    Position,
    RelativePosition,
    RMSNorm,
    RotaryPosition,
    Rotation,
    SinusoidalPosition,
)

# GELU by its formula, and by the tanh that Hendrycks and Gimpel 2016 approximate it with (as GPT-2 does); SiLU.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
# Of what a gate lets through; T5 and Gemma, who have GEGLU, approximate GELU, too.
GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": ACTIVATIONS["gelu_tanh"]}
GROWTH = 16  # slots by which a cache without a stated capacity grows, or a quarter of what it has


class BlockConfig(BaseConfig):
    """What every Transformer block is made of."""

    heads: int = Field(4, gt=0, description="of attention")
    kv_heads: int | None = Field(None, gt=0, description="heads of keys and values; None: as many as heads")
    head_width: int | None = Field(None, gt=0, description="of attention; None: width ÷ heads")
    window: int = Field(256, gt=0, description="the most tokens a sequence may have")
    inner: int | None = Field(None, gt=0, description="width inside the feed-forward network; None: 4 times width")
    norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="how numbers are normalised")
    norm_epsilon: float | None = Field(
        None, gt=0, description="added to a variance; None: 1e-5 for layernorm, 1e-6 for rmsnorm"
    )
    norm_place: Literal["pre", "post"] = Field("pre", description="before each part of a block, or after it")
    positions: Literal["learned", "sinusoidal", "rotary", "relative"] = Field(
        "rotary", description="of tokens: a vector, sines, turned queries and keys, a number a distance"
    )
    rotary_base: float = Field(10000.0, gt=0, description="of rotary positions: larger for longer windows")
    feed_forward: Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"] = Field(
        "gelu", description="the function between its matrices; swiglu and geglu have a gate"
    )
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="of attention's weights")
    bias: bool = Field(False, description="linear layers and layernorm have one")
    qkv_bias: bool | None = Field(None, description="of queries, keys and values; None: as bias")
    qk_norm: bool = Field(False, description="queries and keys of self-attention are normalised")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.positions == "rotary" and self.shape.head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.shape.head_width}")
        return self

    @property
    def shape(self) -> Heads:
        """The widths of attention."""
        each = self.head_width or self.width // self.heads
        return Heads(self.width, self.heads, self.kv_heads or self.heads, each)

    @property
    def epsilon(self) -> float:
        """Of every norm."""
        return self.norm_epsilon or (1e-5 if self.norm == "layernorm" else 1e-6)

    def make_norm(self) -> nn.Module:
        if self.norm == "layernorm":
            return nn.LayerNorm(self.width, self.epsilon, bias=self.bias)
        return RMSNorm(self.width, self.epsilon)

    def make_feed_forward(self) -> nn.Module:
        inner = self.inner or 4 * self.width
        if self.feed_forward in GATES:
            return GatedFeedForward(self.width, inner, self.bias, GATES[self.feed_forward])
        return FeedForward(self.width, inner, self.bias, ACTIVATIONS[self.feed_forward])

    def make_position(self, window: int, *, causal: bool) -> Position:
        if self.positions == "learned":
            return LearnedPosition(window, self.width)
        if self.positions == "sinusoidal":
            return SinusoidalPosition(self.width)
        if self.positions == "relative":
            return RelativePosition(self.heads, causal=causal)
        return RotaryPosition(self.shape.head_width, self.rotary_base)

    def make_attention(self) -> SelfAttention:
        epsilon = self.epsilon if self.qk_norm else None
        return SelfAttention(
            self.shape, self.attention_dropout, bias=self.bias, qkv_bias=self.qkv_bias, epsilon=epsilon
        )

    def make_cross_attention(self) -> CrossAttention:
        return CrossAttention(self.shape, self.attention_dropout, bias=self.bias, qkv_bias=self.qkv_bias)


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
    """One layer's keys and values (R, G, S, D), and where the new tokens go: rows of one length all to the same slots,
    which is a plain copy."""

    keys: Tensor
    values: Tensor
    positions: Tensor  # (R, T)
    first: int | None  # of the new slots; None where the rows differ
    used: int  # slots that any row needs

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values (R, G, T, D) -> all that are in use (R, G, S, D)."""
        self.keys, self.values = self._put(self.keys, k), self._put(self.values, v)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def _put(self, cache: Tensor, new: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # the backward pass needs every version of the buffer
            cache = cache.clone()
        # In place: the buffer is a log that a state only points into. This is why a state is spent by its use.
        if self.first is not None:
            cache[:, :, self.first : self.used] = new
        else:
            rows = torch.arange(len(new), device=new.device)[:, None]
            cache[rows, :, self.positions] = new.transpose(1, 2).to(cache.dtype)
        return cache


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
    time = positions.shape[1]
    low, high = positions[:, 0].aminmax() if positions.numel() else (0, -1)
    used = int(high) + time if positions.numel() else 0
    equal = int(low) + time == used
    keys, values = _grown(keys, used), _grown(values, used)
    caches = [Cache(*pair, positions, used - time if equal else None, used) for pair in zip(keys, values, strict=True)]
    mask = position.bias(positions, used)
    if not (equal and time == 1):  # else every slot is seen
        places = positions[:1] if equal else positions
        hidden = (torch.arange(used, device=positions.device) > places[..., None])[:, None]  # (R or 1, 1, T, S)
        nothing = torch.zeros(hidden.shape, device=positions.device) if mask is None else mask
        mask = nothing.masked_fill(hidden, float("-inf"))
    return caches, View(position.rotation(positions), mask, causal=False)


def _grown(caches: tuple[Tensor, ...], slots: int) -> tuple[Tensor, ...]:
    have = caches[0].shape[2]
    missing = -(-max(slots - have, have // 4) // GROWTH) * GROWTH
    return caches if slots <= have else tuple(F.pad(cache, (0, 0, 0, missing)) for cache in caches)
