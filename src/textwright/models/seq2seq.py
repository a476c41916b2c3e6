"""Recurrent encoder-decoder with attention (Sutskever et al. 2014; Bahdanau et al. 2015; Luong et al. 2015).

    m_1 … m_S = encoder(E'[source])                       in both directions: Schuster and Paliwal 1997
    s_0 = tanh(B [last forward; last backward] + b)       the bridge; Bahdanau et al. 2015, section A.2.2, take
                                                          the backward state alone
    s_t = cell([E[token_t]; h̃_{t-1}], s_{t-1})            input feeding: Luong et al. 2015, section 3.3
    a_t, c_t = attention(s_t, m)                          see `alignment`
    h̃_t = tanh(W_c [c_t; s_t] + b)                        Luong et al. 2015, eq. 5
    logits_t = V h̃_t + d                                  V = E when tied
    p_copy = σ(w [c_t; s_t; E[token_t]] + b)              the pointer: 1 - p_gen of See et al. 2017, eq. 8

Without attention h̃_t = s_t. Without input feeding and coverage no step of the decoder waits for the attention of the
step before, so a whole text goes through the fused kernels at once, which trains several times faster.

Axes: R rows, T time, S places of the source, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from textwright.models.alignment import AlignmentConfig, GeneralAlignment
from textwright.models.attention import hidden_after
from textwright.models.base import BaseConfig, EncoderDecoder, Hidden, Source, copy_share
from textwright.models.layers import Dropout
from textwright.models.memory import Memory
from textwright.models.rnn import kernels_want_float32, run
from textwright.models.state import State, keep

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True)
class Seq2SeqState(State):
    """hidden (R, layers, W), for the LSTM a cell like it; what input feeding passes on (R, W); coverage (R, S), the sum
    of the weights so far; and the memory of the source."""

    hidden: Tensor
    cell: tuple[Tensor, ...]
    fed: tuple[Tensor, ...]
    seen: tuple[Tensor, ...]
    memory: Memory


class Seq2SeqConfig(BaseConfig):
    """`layers` is the depth of the encoder and of the decoder. With `source_vocab` the source has ids of its own."""

    family: Literal["seq2seq"] = "seq2seq"
    cell: Literal["rnn", "gru", "lstm"] = Field("gru", description="of encoder and decoder")
    bidirectional: bool = Field(True, description="the encoder reads in both directions")
    encoder_width: int | None = Field(
        None, gt=0, description="of each direction; None: the decoder's, or half of it if need be"
    )
    bridge: Literal["linear", "pass", "none"] = Field(
        "linear", description="the decoder's first state: the encoder's last, learned or as it is, or zeros"
    )
    attention: AlignmentConfig = Field(default_factory=GeneralAlignment)
    input_feeding: bool = Field(
        False, description="a step reads the output before, with what it saw (Luong et al. 2015)"
    )
    source_vocab: int | None = Field(None, gt=0, description="ids of the source; None: the same as the target's")
    shared: bool = Field(True, description="one embedding for source and target, where they share a vocabulary")
    copying: bool = Field(False, description="a pointer may copy tokens of the source (needs a shared vocabulary)")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.source_vocab is not None and (self.shared or self.copying):
            raise ValueError(
                "shared and copying need one vocabulary for source and target: leave out source_vocab, or give both "
                "sides one tokenizer (bpe, or char)"
            )
        if self.attention.kind == "none" and (self.input_feeding or self.copying):
            raise ValueError("input_feeding and copying need attention: set them to false")
        if self.attention.kind == "dot" and self.memory != self.width:
            raise ValueError(self._unequal("dot attention"))
        if self.attention.kind == "multihead" and self.width % self.attention.heads:
            raise ValueError(f"width {self.width} must be a multiple of attention.heads {self.attention.heads}")
        if self.bridge == "pass" and self.memory != self.width:
            raise ValueError(self._unequal("bridge=pass"))
        return self

    @property
    def memory(self) -> int:
        """Width of an encoded place."""
        return self.encoded * (2 if self.bidirectional else 1)

    @property
    def encoded(self) -> int:
        """Width of one direction of the encoder."""
        same = self.attention.kind == "dot" or self.bridge == "pass"  # these put both widths on one another
        return self.encoder_width or (self.width // 2 if self.bidirectional and same else self.width)

    def _unequal(self, what: str) -> str:
        even = " and take an even model.width" if self.bidirectional and self.width % 2 else ""
        return (
            f"{what} needs an encoder as wide as the decoder, and they have {self.memory} and {self.width} units: "
            f"leave out model.encoder_width{even}"
        )

    def build(self) -> Seq2Seq:
        return Seq2Seq(self)

    def make_cell(self, inputs: int, width: int, *, bidirectional: bool) -> nn.RNNBase:
        cell: nn.RNNBase = CELLS[self.cell](inputs, width, batch_first=True, bidirectional=bidirectional)
        for name, parameter in cell.named_parameters():
            if name.startswith("weight_hh"):
                for gate in torch.split(parameter.data, width):
                    nn.init.orthogonal_(gate)  # see RecurrentLM
            if self.cell == "lstm" and name.startswith("bias_ih"):
                parameter.data[width : 2 * width] = 1.0  # remember by default
        return cell


class Seq2Seq(EncoderDecoder):
    """An encoder that reads a source once, a decoder that looks at it at every step."""

    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        width, memory = config.width, config.memory
        self.source_vocab = config.source_vocab or config.vocab
        self.embed = nn.Embedding(config.vocab, width)
        self.source_embed = nn.Embedding(self.source_vocab, width)
        self.encoder = nn.ModuleList(
            config.make_cell(memory if n else width, config.encoded, bidirectional=config.bidirectional)
            for n in range(config.layers)
        )
        parts = (2 if config.cell == "lstm" else 1) * config.layers if config.bridge == "linear" else 0
        self.bridges = nn.ModuleList(nn.Linear(memory, width) for _ in range(parts))
        fed = width if config.input_feeding else 0
        self.cells = nn.ModuleList(
            config.make_cell(width + (0 if n else fed), width, bidirectional=False) for n in range(config.layers)
        )
        self.align = config.attention.build(width, memory)
        self.mix = None if self.align is None else nn.Linear(self.align.context + width, width)
        pointed = 0 if self.align is None else self.align.context + 2 * width
        self.pointer = nn.Linear(pointed, 1) if config.copying else None
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(width, config.vocab)
        self._init()

    def _init(self) -> None:
        for table in (self.embed, self.source_embed, self.head):
            nn.init.uniform_(table.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        if self.config.tied:
            self.head.weight = self.embed.weight
        if self.config.shared:
            self.source_embed.weight = self.embed.weight

    # -- the source ------------------------------------------------------------------------------------------------

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> Seq2SeqState:
        source = self.check_source(source)
        encoded, finals = self._encode(source)
        read = () if self.align is None else self.align.read(encoded)
        hidden, *cell = (self._cross(leaves, number) for number, leaves in enumerate(zip(*finals, strict=True)))
        fed = (hidden.new_zeros(rows, self.config.width),) if self.config.input_feeding else ()
        covers = self.align is not None and self.align.coverage
        seen = (torch.zeros(source.values.shape, device=self.device),) if covers else ()  # float32: it is a long sum
        return Seq2SeqState(hidden, tuple(cell), fed, seen, Memory.of(read, source.lengths, source.values))

    def _encode(self, source: Source) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Places (R, S, M), and of every layer the last state in each direction, joined: (R, M) for each leaf."""
        return self._encoded(self.dropout(self.source_embed(source.values)), source)

    def _encoded(self, embedded: Tensor, source: Source) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        if kernels_want_float32(embedded):
            with torch.autocast("cuda", enabled=False):
                return self._encoded(embedded.float(), source)
        x: Tensor | PackedSequence = embedded
        if bool((source.lengths < source.values.shape[1]).any()):
            # Packed, because the backward direction must begin at each row's last token.
            x = pack_padded_sequence(embedded, source.lengths.cpu(), batch_first=True, enforce_sorted=False)
        finals = []
        for cell in self.encoder:
            x, final = cell(x)
            x = x._replace(data=self.dropout(x.data)) if isinstance(x, PackedSequence) else self.dropout(x)
            leaves = final if isinstance(final, tuple) else (final,)
            finals.append(tuple(leaf.transpose(0, 1).flatten(1) for leaf in leaves))
        if isinstance(x, PackedSequence):
            x, _ = pad_packed_sequence(x, batch_first=True, total_length=source.values.shape[1])
        return x, finals

    def _cross(self, finals: tuple[Tensor, ...], leaf: int) -> Tensor:
        """The bridge: the last states (R, M) of all layers -> the decoder's first ones (R, layers, W)."""
        if self.config.bridge == "none":
            return finals[0].new_zeros(len(finals[0]), self.config.layers, self.config.width)
        if self.config.bridge == "linear":
            bridges = self.bridges[leaf * self.config.layers : (leaf + 1) * self.config.layers]
            finals = tuple(torch.tanh(bridge(final)) for bridge, final in zip(bridges, finals, strict=True))
        return torch.stack(finals, 1)

    # -- the text --------------------------------------------------------------------------------------------------

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        if state is None:
            return self._decode(tokens, None, self.begin(len(tokens), source))[0], None
        if source is not None:
            raise ValueError("the state has read its source already: give one or the other")
        before = state.spend()
        assert isinstance(before, Seq2SeqState)
        hidden, _, after = self._decode(tokens, lengths, replace(before, memory=before.memory.in_groups()))
        return hidden, after

    def attention(self, tokens: Tensor, lengths: Tensor | None, source: Source) -> Tensor | None:
        return self._decode(tokens, None, self.begin(len(tokens), source))[1]

    def _decode(
        self, tokens: Tensor, lengths: Tensor | None, state: Seq2SeqState
    ) -> tuple[Hidden, Tensor | None, Seq2SeqState]:
        """What the head reads, where each step looked (R, T, S), and the state after."""
        x = self.dropout(self.embed(tokens))
        if not state.fed and not state.seen:
            return self._advance(x, lengths, state)
        hiddens, looks = [], []
        for step in range(tokens.shape[1]):
            live = None if lengths is None else (lengths > step).long()
            hidden, looked, state = self._advance(x[:, step : step + 1], live, state)
            hiddens.append(hidden)
            looks.append(looked)
        return Hidden.joined(hiddens), _joined(looks), state

    def _advance(
        self, x: Tensor, lengths: Tensor | None, state: Seq2SeqState
    ) -> tuple[Hidden, Tensor | None, Seq2SeqState]:
        """Embedded tokens (R, T, W), of which the first `lengths` count; T = 1 where a step needs the one before."""
        query = x if not state.fed else torch.cat([x, state.fed[0].to(x.dtype)[:, None]], -1)
        finals = []
        for layer, cell in enumerate(self.cells):
            memory = tuple(leaf[:, layer] for leaf in (state.hidden, *state.cell))
            query, final = run(cell, query, lengths, memory)
            if layer < len(self.cells) - 1:
                query = self.dropout(query)
            finals.append(final)
        hidden, *cells = (torch.stack(leaves, 1) for leaves in zip(*finals, strict=True))
        state = replace(state, hidden=hidden, cell=tuple(cells))
        if self.align is None or self.mix is None:
            return Hidden(self.dropout(query)), None, state
        seen = state.seen[0] if state.seen else None
        context, looked = self._look(query, state.memory, seen)
        mixed = self.dropout(torch.tanh(self.mix(torch.cat([context, query], -1))))
        copied = None if self.pointer is None else looked * self._share(context, query, x)
        penalty = None
        if seen is not None:  # See et al. 2017, eq. 12: looking again where it looked before
            penalty = self.align.coverage * torch.minimum(looked[:, 0], seen).sum(-1, keepdim=True)
            state = replace(state, seen=(_kept(lengths, seen + looked[:, 0], seen),))
        if state.fed:
            state = replace(state, fed=(_kept(lengths, mixed[:, 0], state.fed[0]),))
        return Hidden(mixed, copied, None if copied is None else state.memory.row_ids(), penalty), looked, state

    def _look(self, query: Tensor, memory: Memory, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Context (R, T, M) and weights (R, T, S)."""
        assert self.align is not None
        if seen is not None:  # every row has a past of its own with its source
            memory = memory.a_row_each()
        mask = hidden_after(memory.lengths, memory.ids.shape[1])[:, 0]
        context, looked = self.align(memory.fold(query), *memory.read, mask, seen)
        return memory.unfold(context), memory.unfold(looked)

    def _share(self, context: Tensor, query: Tensor, x: Tensor) -> Tensor:
        """The probability (R, T, 1) of copying."""
        assert self.pointer is not None
        return copy_share(self.pointer(torch.cat([context, query, x], -1)))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    real = [part for part in parts if part is not None]
    return torch.cat(real, 1) if real else None


def _kept(lengths: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if lengths is None else keep(lengths, new, old.to(new.dtype))
