"""Decoder-only Transformer (Vaswani et al. 2017; Radford et al. 2019; Touvron et al. 2023), composed by configuration.

    x = E[token] + position
    x = x + Attention(Norm(x));  x = x + FeedForward(Norm(x))        in every block; see `blocks` for post-norm
    logits = V Norm(x)                                               V = E when tied (Press and Wolf 2017)

Axes: R rows, T time, S slots, G key-value heads, D head width, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from textwright.models.base import Hidden, LanguageModel, Source, refuse_source
from textwright.models.blocks import BlockConfig, Cache, ResidualBlock, View, look_around, open_caches
from textwright.models.layers import Dropout, autocasted, init_weights
from textwright.models.state import State


@dataclass(frozen=True)
class KeyValueState(State):
    """keys and values per layer (R, G, S, D), slot number == position, and lengths (R,), the slots in use.

    Slots at or after a row's length hold anything; they are masked until they are written.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor

    @property
    def has_places(self) -> bool:
        return True

    def fork(self) -> Self:
        keys, values = (tuple(leaf.clone() for leaf in leaves) for leaves in (self.keys, self.values))
        return replace(super().fork(), keys=keys, values=values)

    def truncate(self, lengths: Tensor) -> Self:
        """Nothing is copied: the slots are overwritten later."""
        self.spend()
        return replace(self, lengths=lengths)


class TransformerConfig(BlockConfig):
    family: Literal["transformer"] = "transformer"

    def build(self) -> TransformerLM:
        return TransformerLM(self)


class Block(ResidualBlock):
    """Attention, then a feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.norm1, self.attention = config.make_norm(), config.make_attention()
        self.norm2, self.feed_forward = config.make_norm(), config.make_feed_forward()

    def forward(self, x: Tensor, view: View, cache: Cache | None) -> Tensor:
        """The stream (R, T, W) before and after this block."""
        x = self.add(x, self.norm1, lambda y: look_around(self.attention, y, view, cache))
        return self.add(x, self.norm2, self.feed_forward)


class TransformerLM(LanguageModel):
    """Embedding and positions, `layers` blocks, a last norm (pre-norm only) and a head."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.window = config.window
        self.embed = nn.Embedding(config.vocab, config.width)
        self.position = config.make_position(config.window, causal=True)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = config.make_norm() if config.norm_place == "pre" else nn.Identity()
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        init_weights(self, config.layers)
        if config.tied:
            self.head.weight = self.embed.weight

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> KeyValueState:
        refuse_source(self, source)
        _, _, kv_heads, head_width = self.config.shape
        shape = (rows, kv_heads, capacity or 0, head_width)
        keys, values = (tuple(self.embed.weight.new_zeros(shape) for _ in self.blocks) for _ in range(2))
        return KeyValueState(keys, values, torch.zeros(rows, dtype=torch.long, device=self.device))

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        refuse_source(self, source)
        if state is None:
            # Tokens after a row's length stand behind every real one, and attention is causal: no mask is needed.
            self._check(tokens.shape[1])
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
            bias = self.position.bias(positions, tokens.shape[1])
            view = View(self.position.rotation(positions), bias, causal=True)
            return Hidden(self._run(tokens, positions, view, None)), None
        before = state.spend()
        assert isinstance(before, KeyValueState)
        rows, time = tokens.shape
        lengths = lengths if lengths is not None else torch.full_like(before.lengths, time)
        after = before.lengths + lengths
        self._check(int(after.max()) if rows else 0)
        positions = before.lengths[:, None] + torch.arange(time, device=tokens.device)  # (R, T)
        caches, view = open_caches(before.keys, before.values, positions, self.position)
        # Padded steps may lie past the window: their output means nothing, but their position must exist.
        x = self._run(tokens, positions.clamp(max=self.config.window - 1), view, caches)
        keys, values = tuple(cache.keys for cache in caches), tuple(cache.values for cache in caches)
        return Hidden(x), KeyValueState(keys, values, after)

    def _run(self, tokens: Tensor, positions: Tensor, view: View, caches: list[Cache] | None) -> Tensor:
        x = self.dropout(autocasted(self.position.add(self.embed(tokens), positions)))
        for layer, block in enumerate(self.blocks):
            x = block(x, view, caches[layer] if caches else None)
        y: Tensor = self.norm(x)
        return y

    def _check(self, length: int) -> None:
        if length > self.config.window:
            raise ValueError(f"{length} tokens do not fit this model's window of {self.config.window}")
