"""Transformer encoder-decoder: "Attention Is All You Need" (Vaswani et al. 2017), composed by configuration.

    m = E'[source] + position;  m = m + SelfAttention(Norm(m));  m = m + FeedForward(Norm(m))   encoder: all sees all
    x = E[token] + position;    x = x + SelfAttention(Norm(x))                              decoder: the past alone
                                x = x + CrossAttention(Norm(x), m);  x = x + FeedForward(Norm(x))
    logits = V Norm(x)                           V = E when tied; the source's E, too, when shared (section 3.4)

With `copying` the weights of the last cross-attention, their mean over the heads, are where a pointer may copy from:
See et al. 2017, eq. 8 and 9, except that the probability of copying is σ(w x + b) of the decoder's output alone.

Axes: R rows, N sources, T time, S places of the source, G key-value heads, D head width, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from textwright.models.attention import hidden_after, weights
from textwright.models.base import EncoderDecoder, Hidden, Source, copy_share
from textwright.models.blocks import BlockConfig, Cache, ResidualBlock, View, look_around, open_caches
from textwright.models.layers import Dropout, autocasted
from textwright.models.memory import Memory
from textwright.models.state import State
from textwright.models.transformer import KeyValueState


@dataclass(frozen=True)
class EncoderDecoderState(KeyValueState):
    """Keys and values of the text so far, as in a decoder-only Transformer, and the memory of the source."""

    memory: Memory


class EncoderDecoderConfig(BlockConfig):
    """`layers` is the decoder's depth. With `source_vocab` the source has ids of its own; without, it shares the
    target's, and `shared` its embedding, too."""

    family: Literal["encdec"] = "encdec"
    encoder_layers: int | None = Field(None, gt=0, description="of the encoder; None: as many as layers")
    source_vocab: int | None = Field(None, gt=0, description="ids of the source; None: the same as the target's")
    source_window: int = Field(512, gt=0, description="the most tokens a source may have")
    shared: bool = Field(True, description="one embedding for source and target, where they share a vocabulary")
    scaled: bool = Field(True, description="embeddings are multiplied by the root of the width")
    embed_norm: bool = Field(False, description="what enters a stack is normalised first, as in BART")
    head_bias: bool = Field(False, description="logits have a bias, as in Marian")
    copying: bool = Field(False, description="a pointer may copy tokens of the source (needs a shared vocabulary)")

    @model_validator(mode="after")
    def _vocabularies(self) -> Self:
        if self.source_vocab is not None and self.shared:
            raise ValueError("shared embeddings need one vocabulary: leave out source_vocab, or set shared=false")
        if self.source_vocab is not None and self.copying:
            raise ValueError("copying needs one vocabulary for source and target: leave out source_vocab")
        return self

    def build(self) -> TransformerEncoderDecoder:
        return TransformerEncoderDecoder(self)


class EncoderBlock(ResidualBlock):
    """Self-attention in both directions, then a feed-forward network."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.norm1, self.attention = config.make_norm(), config.make_attention()
        self.norm2, self.feed_forward = config.make_norm(), config.make_feed_forward()

    def forward(self, x: Tensor, view: View) -> Tensor:
        x = self.add(x, self.norm1, lambda y: look_around(self.attention, y, view, None))
        return self.add(x, self.norm2, self.feed_forward)


class DecoderBlock(ResidualBlock):
    """Self-attention over the past, attention over the source, a feed-forward network."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.norm1, self.attention = config.make_norm(), config.make_attention()
        self.norm2, self.cross = config.make_norm(), config.make_cross_attention()
        self.norm3, self.feed_forward = config.make_norm(), config.make_feed_forward()

    def past(self, x: Tensor, view: View, cache: Cache | None) -> Tensor:
        """The first third of the block: (R, T, W) -> (R, T, W)."""
        return self.add(x, self.norm1, lambda y: look_around(self.attention, y, view, cache))

    def forward(self, x: Tensor, memory: Memory, layer: int, mask: Tensor) -> Tensor:
        """The rest, after `past`: over the keys and values of this layer (N, G, S, D), rows in groups."""
        k, v = memory.read[2 * layer : 2 * layer + 2]
        x = self.add(x, self.norm2, lambda y: memory.unfold(self.cross(memory.fold(y), k, v, mask)))
        return self.add(x, self.norm3, self.feed_forward)

    def looked(self, x: Tensor, memory: Memory, layer: int, mask: Tensor) -> Tensor:
        """Where the block looks in the source, after `past`: (R, T, S), the mean over the heads."""
        query = self.cross.query(memory.fold(self.norm2(x) if self.pre else x))
        return memory.unfold(weights(query, memory.read[2 * layer], mask).mean(1))


class TransformerEncoderDecoder(EncoderDecoder):
    """An encoder over the source, a decoder over the text, and a head."""

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.window, self.source_window = config.window, config.source_window
        self.source_vocab = config.source_vocab or config.vocab
        self.embed = nn.Embedding(config.vocab, config.width)
        self.source_embed = nn.Embedding(self.source_vocab, config.width)
        self.scale = math.sqrt(config.width) if config.scaled else 1.0
        self.source_position = config.make_position(config.source_window, causal=False)
        self.position = config.make_position(config.window, causal=True)
        self.source_embed_norm = config.make_norm() if config.embed_norm else nn.Identity()
        self.embed_norm = config.make_norm() if config.embed_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers or config.layers))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        pre = config.norm_place == "pre"
        self.source_norm = config.make_norm() if pre else nn.Identity()
        self.norm = config.make_norm() if pre else nn.Identity()
        self.head = nn.Linear(config.width, config.vocab, bias=config.head_bias)
        self.pointer = nn.Linear(config.width, 1) if config.copying else None
        self._init(config)

    def _init(self, config: EncoderDecoderConfig) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:  # keeps the size of a signal in both directions (Glorot and Bengio 2010, eq. 16)
                nn.init.xavier_uniform_(parameter)
        for table in (self.embed, self.source_embed):
            nn.init.normal_(table.weight, std=1 / math.sqrt(config.width))
        if config.tied:
            self.head.weight = self.embed.weight
        if config.shared:
            self.source_embed.weight = self.embed.weight

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> EncoderDecoderState:
        memory = self.read(self.check_source(source))
        _, _, kv_heads, head_width = self.config.shape
        shape = (rows, kv_heads, capacity or 0, head_width)
        keys, values = (tuple(self.embed.weight.new_zeros(shape) for _ in self.blocks) for _ in range(2))
        return EncoderDecoderState(keys, values, torch.zeros(rows, dtype=torch.long, device=self.device), memory)

    def read(self, source: Source) -> Memory:
        """Encode a source, once."""
        # Padding may lie past the window: it is not seen, but its position must exist.
        positions = torch.arange(source.values.shape[1], device=self.device)[None].clamp(
            max=self.config.source_window - 1
        )
        mask = hidden_after(source.lengths, source.values.shape[1])
        bias = self.source_position.bias(positions, source.values.shape[1])
        view = View(self.source_position.rotation(positions), mask if bias is None else mask + bias, causal=False)
        x = self.source_position.add(self.source_embed(source.values) * self.scale, positions)
        x = self.dropout(autocasted(self.source_embed_norm(x)))
        for block in self.encoder:
            x = block(x, view)
        x = self.source_norm(x)
        read = tuple(part for block in self._blocks() for part in block.cross.read(x))
        return Memory.of(read, source.lengths, source.values)

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        if state is None:
            return self._run(tokens, *self._fresh(tokens), None, self.read(self.check_source(source))), None
        if source is not None:
            raise ValueError("the state has read its source already: give one or the other")
        before = state.spend()
        assert isinstance(before, EncoderDecoderState)
        rows, time = tokens.shape
        lengths = lengths if lengths is not None else torch.full_like(before.lengths, time)
        after = before.lengths + lengths
        self._check(int(after.max()) if rows else 0)
        positions = before.lengths[:, None] + torch.arange(time, device=tokens.device)
        caches, view = open_caches(before.keys, before.values, positions, self.position)
        # Padded steps may lie past the window: their output means nothing, but their position must exist.
        memory = before.memory.in_groups()
        hidden = self._run(tokens, positions.clamp(max=self.config.window - 1), view, caches, memory)
        keys, values = tuple(cache.keys for cache in caches), tuple(cache.values for cache in caches)
        return hidden, EncoderDecoderState(keys, values, after, memory)

    def attention(self, tokens: Tensor, lengths: Tensor | None, source: Source) -> Tensor:
        """Of the last block but one, whose heads agree best with alignments (Garg et al. 2019, section 4.1)."""
        memory = self.read(self.check_source(source))
        positions, view = self._fresh(tokens)
        x, mask = self._enter(tokens, positions), self._mask(memory)
        watched = max(0, len(self.blocks) - 2)
        for layer, block in enumerate(self._blocks()[: watched + 1]):
            x = block.past(x, view, None)
            if layer < watched:
                x = block(x, memory, layer, mask)
        return self._blocks()[watched].looked(x, memory, watched, mask)

    def _fresh(self, tokens: Tensor) -> tuple[Tensor, View]:
        """Positions and view of texts from their beginning: attention is causal, so padding behind them is not seen."""
        self._check(tokens.shape[1])
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        bias = self.position.bias(positions, tokens.shape[1])
        return positions, View(self.position.rotation(positions), bias, causal=True)

    def _enter(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.dropout(
            autocasted(self.embed_norm(self.position.add(self.embed(tokens) * self.scale, positions)))
        )
        return x

    def _run(self, tokens: Tensor, positions: Tensor, view: View, caches: list[Cache] | None, memory: Memory) -> Hidden:
        x, mask = self._enter(tokens, positions), self._mask(memory)
        copied = None
        for layer, block in enumerate(self._blocks()):
            x = block.past(x, view, caches[layer] if caches else None)
            if self.pointer is not None and layer == len(self.blocks) - 1:
                copied = block.looked(x, memory, layer, mask)
            x = block(x, memory, layer, mask)
        x = self.norm(x)
        if self.pointer is None or copied is None:
            return Hidden(x)
        return Hidden(x, copied * copy_share(self.pointer(x)), memory.row_ids())

    def _blocks(self) -> list[DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]

    def _mask(self, memory: Memory) -> Tensor:
        return hidden_after(memory.lengths, memory.ids.shape[1])

    def _check(self, length: int) -> None:
        if length > self.config.window:
            raise ValueError(f"{length} tokens do not fit this model's window of {self.config.window}")
