"""Decoder-only Transformer (Vaswani et al. 2017; Radford et al. 2019; Touvron et al. 2023), composed by configuration.

    x = E[token] + position
    x = x + Attention(Norm(x));  x = x + FeedForward(Norm(x))        pre-norm:  Xiong et al. 2020
    x = Norm(x + Attention(x));  x = Norm(x + FeedForward(x))        post-norm: Vaswani et al. 2017
    logits = V Norm(x)                                               V = E when tied (Press and Wolf 2017)

Axes: R rows, T time, S slots, G key-value heads, D head width, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from textwright.models.base import BaseConfig, LanguageModel, Source, refuse_source
from textwright.models.layers import (
    CausalSelfAttention,
    Dropout,
    GELUFeedForward,
    LearnedPosition,
    Position,
    RotaryPosition,
    Rotation,
    SinusoidalPosition,
    SwiGLUFeedForward,
    init_weights,
)
from textwright.models.state import State

GROWTH = 64  # slots by which a cache without a stated capacity grows


@dataclass(frozen=True)
class KeyValueState(State):
    """keys and values per layer (R, S, G, D), slot number == position, and lengths (R,), the slots in use.

    Slots at or after a row's length hold anything; they are masked until they are written.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor

    def truncate(self, lengths: Tensor) -> KeyValueState:
        """Forget what stands at or after `lengths` (R,). Nothing is copied: the slots are overwritten later."""
        self.spend()
        return replace(self, lengths=lengths)


class TransformerConfig(BaseConfig):
    family: Literal["transformer"] = "transformer"
    heads: int = Field(4, gt=0)
    kv_heads: int | None = Field(None, gt=0, description="heads of keys and values; None: as many as heads")
    window: int = Field(256, gt=0, description="the most tokens a sequence may have")
    inner: int | None = Field(None, gt=0, description="width inside the feed-forward network; None: 4 times width")
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_place: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "sinusoidal", "rotary"] = "rotary"
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
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

    def build(self) -> TransformerLM:
        return TransformerLM(self)

    def make_norm(self) -> nn.Module:
        if self.norm == "layernorm":
            return nn.LayerNorm(self.width, bias=self.bias)
        return nn.RMSNorm(self.width, eps=1e-6)

    def make_feed_forward(self) -> nn.Module:
        inner = self.inner or 4 * self.width
        kind = GELUFeedForward if self.feed_forward == "gelu" else SwiGLUFeedForward
        return kind(self.width, inner, self.bias)

    def make_position(self) -> Position:
        if self.positions == "learned":
            return LearnedPosition(self.window, self.width)
        if self.positions == "sinusoidal":
            return SinusoidalPosition(self.width)
        return RotaryPosition(self.width // self.heads)

    def make_attention(self) -> CausalSelfAttention:
        kv_heads = self.kv_heads or self.heads
        return CausalSelfAttention(self.width, self.heads, kv_heads, self.attention_dropout, self.bias)


class Block(nn.Module):
    """Attention, then a feed-forward network, each normalised and added to the residual stream (R, T, W)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm_place == "pre"
        self.norm1, self.attention = config.make_norm(), config.make_attention()
        self.norm2, self.feed_forward = config.make_norm(), config.make_feed_forward()
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation | None, cache: Cache | None) -> Tensor:
        """The stream before and after this block."""
        if self.pre:
            x = x + self.dropout(self.attend(self.norm1(x), rotation, cache))
            x = x + self.dropout(self.feed_forward(self.norm2(x)))
        else:
            x = self.norm1(x + self.dropout(self.attend(x, rotation, cache)))
            x = self.norm2(x + self.dropout(self.feed_forward(x)))
        return x

    def attend(self, x: Tensor, rotation: Rotation | None, cache: Cache | None) -> Tensor:
        q, k, v = self.attention.project(x, rotation)
        if cache is not None:
            k, v = cache.write(k, v)
        y: Tensor = self.attention.attend(q, k, v, None if cache is None else cache.mask)
        return y


@dataclass
class Cache:
    """One layer's keys and values (R, S, G, D), and where the new tokens go."""

    keys: Tensor
    values: Tensor
    at: tuple[Tensor, Tensor]  # row (R, 1) and slot (R, T) of each new token
    mask: Tensor  # (R, 1, T, S), True where a new token may look

    def write(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = k.to(self.keys.dtype), v.to(self.values.dtype)
        if torch.is_grad_enabled():  # the backward pass needs every version of the buffer
            self.keys, self.values = self.keys.index_put(self.at, k), self.values.index_put(self.at, v)
        else:
            # In place: the buffer is a log that a state only points into. This is why a state is spent by its use.
            self.keys[self.at], self.values[self.at] = k, v
        return self.keys, self.values


class TransformerLM(LanguageModel):
    """Embedding and positions, `layers` blocks, a last norm (pre-norm only) and a head."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.window = config.window
        self.embed = nn.Embedding(config.vocab, config.width)
        self.position = config.make_position()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = config.make_norm() if config.norm_place == "pre" else nn.Identity()
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        init_weights(self, config.layers)
        if config.tied:
            self.head.weight = self.embed.weight

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> KeyValueState:
        refuse_source(self, source)
        kv_heads = self.config.kv_heads or self.config.heads
        shape = (rows, capacity or 0, kv_heads, self.config.width // self.config.heads)
        keys, values = (tuple(self.head.weight.new_zeros(shape) for _ in self.blocks) for _ in range(2))
        return KeyValueState(keys, values, torch.zeros(rows, dtype=torch.long, device=self.device))

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Tensor, State | None]:
        refuse_source(self, source)
        if state is None:
            # Tokens after a row's length stand behind every real one, and attention is causal: no mask is needed.
            self._check(tokens.shape[1])
            return self._run(tokens, torch.arange(tokens.shape[1], device=tokens.device)[None], None), None
        before = state.spend()
        assert isinstance(before, KeyValueState)
        rows, time = tokens.shape
        lengths = lengths if lengths is not None else torch.full_like(before.lengths, time)
        after = before.lengths + lengths
        self._check(int(after.max()) if rows else 0)
        positions = before.lengths[:, None] + torch.arange(time, device=tokens.device)  # (R, T)
        caches = self._caches(before, positions)
        # Padded steps may lie past the window: their output means nothing, but their position must exist.
        x = self._run(tokens, positions.clamp(max=self.config.window - 1), caches)
        keys, values = tuple(cache.keys for cache in caches), tuple(cache.values for cache in caches)
        return x, KeyValueState(keys, values, after)

    def _caches(self, state: KeyValueState, positions: Tensor) -> list[Cache]:
        slots = int(positions.max()) + 1 if positions.numel() else 0
        keys, values = _grow(state.keys, slots), _grow(state.values, slots)
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        slot = torch.arange(keys[0].shape[1], device=positions.device)
        mask = (slot <= positions[..., None])[:, None]
        return [Cache(*pair, (rows, positions), mask) for pair in zip(keys, values, strict=True)]

    def _run(self, tokens: Tensor, positions: Tensor, caches: list[Cache] | None) -> Tensor:
        x = self.dropout(self.position.add(self.embed(tokens), positions))
        rotation = self.position.rotation(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, caches[layer] if caches else None)
        y: Tensor = self.norm(x)
        return y

    def _check(self, length: int) -> None:
        if length > self.config.window:
            raise ValueError(f"{length} tokens do not fit this model's window of {self.config.window}")


def _grow(caches: tuple[Tensor, ...], slots: int) -> tuple[Tensor, ...]:
    have = caches[0].shape[1]
    missing = -(-(slots - have) // GROWTH) * GROWTH
    return caches if slots <= have else tuple(F.pad(cache, (0, 0, 0, 0, 0, missing)) for cache in caches)
