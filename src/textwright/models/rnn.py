"""Recurrent language models: Elman RNN, GRU, LSTM.

    x_t = E[token_t]
    RNN   h_t = tanh(W x_t + U h_{t-1} + b)                                    Elman 1990; or ReLU, Le et al. 2015
    GRU   r_t = σ(W_r x_t + U_r h_{t-1} + b_r)                                 Cho et al. 2014, eq. 5-8
          z_t = σ(W_z x_t + U_z h_{t-1} + b_z)
          n_t = tanh(W_n x_t + b_n + r_t ⊙ (U_n h_{t-1} + c_n))
          h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}
    LSTM  i_t, f_t, o_t = σ(W x_t + U h_{t-1} + b), each with weights of its own    Hochreiter and Schmidhuber 1997,
          g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)                                   Gers et al. 2000
          c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
          h_t = o_t ⊙ tanh(c_t)
    logits_t = V h_t + d                                                       V = E when tied (Press and Wolf 2017)
             = V P h_t + d, with an `embedding_width` of its own               Melis et al. 2018
    x_t = E[token_t][: input_width], with an `input_width` of its own

Two traps in the literature's GRU: Cho et al. let z_t keep the old state, as here and in torch, while Chung et al. 2014
write it the other way round; and they apply the reset gate to h_{t-1} before the product with U_n, torch after it
(which lets one matrix product serve all three gates). `tests/reference/test_rnn.py` checks these lines in float64.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from textwright.models.base import BaseConfig, Hidden, LanguageModel, Source, refuse_source
from textwright.models.layers import Dropout
from textwright.models.state import State, keep


@dataclass(frozen=True)
class RecurrentState(State):
    """hidden (rows, layers, width); for the LSTM a cell like it."""

    hidden: Tensor
    cell: tuple[Tensor, ...] = ()


class RecurrentConfig(BaseConfig):
    """What the three recurrent families share: the regularisation of Merity et al. 2018 ("AWD-LSTM"), in sections 2
    and 4 there, all of it off by default."""

    embedding_width: int | None = Field(None, gt=0, description="of a token's vector; None: as width")
    input_width: int | None = Field(
        None, gt=0, description="of what the first layer reads of a token's vector: its beginning; None: all of it"
    )
    input_dropout: float | None = Field(None, ge=0, lt=1, description="of the first layer's input; None: as dropout")
    output_dropout: float | None = Field(None, ge=0, lt=1, description="of the last layer's output; None: as dropout")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="of whole words, wherever they stand in a batch")
    weight_drop: float = Field(0.0, ge=0, lt=1, description="of recurrent weights, one mask a batch (DropConnect)")
    locked: bool = Field(False, description="one dropout mask for all steps of a row (variational dropout)")
    activation_penalty: float = Field(0.0, ge=0, description="α: weight of the outputs' mean square")
    change_penalty: float = Field(0.0, ge=0, description="β: weight of the mean square of the outputs' changes a step")

    @property
    def embedded(self) -> int:
        return self.embedding_width or self.width

    @property
    def read(self) -> int:
        return self.input_width or self.embedded

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.read > self.embedded:
            raise ValueError(f"input_width {self.read} is more than a token's vector has, {self.embedded}")
        if self.input_width is not None and not self.tied:
            raise ValueError(
                "input_width leaves a part of a token's vector to the head, which an untied head does not read: "
                "set embedding_width instead"
            )
        return self

    @abstractmethod
    def make_cell(self, inputs: int) -> nn.RNNBase:
        """One recurrent layer, inputs -> width, batch first."""

    def build(self) -> RecurrentLM:
        return RecurrentLM(self)


class RNNConfig(RecurrentConfig):
    family: Literal["rnn"] = "rnn"
    nonlinearity: Literal["tanh", "relu"] = Field("tanh", description="the function at every step")

    def make_cell(self, inputs: int) -> nn.RNNBase:
        return nn.RNN(inputs, self.width, batch_first=True, nonlinearity=self.nonlinearity)


class GRUConfig(RecurrentConfig):
    family: Literal["gru"] = "gru"

    def make_cell(self, inputs: int) -> nn.RNNBase:
        return nn.GRU(inputs, self.width, batch_first=True)


class LSTMConfig(RecurrentConfig):
    family: Literal["lstm"] = "lstm"

    def make_cell(self, inputs: int) -> nn.RNNBase:
        cell = nn.LSTM(inputs, self.width, batch_first=True)
        with torch.no_grad():  # remember by default (Jozefowicz et al. 2015); torch orders the gates i, f, g, o
            cell.get_parameter("bias_ih_l0")[self.width : 2 * self.width] = 1.0
        return cell


class RecurrentLM(LanguageModel):
    """Embedding, a stack of recurrent layers with dropout between them, and a head.

    Words need less room than what is remembered of a text: with an `embedding_width` of its own the first layer reads
    narrow vectors, and the last one's output is brought to their width before the head. With an `input_width` the first
    layer, whose products it saves, reads the beginning of vectors that the tied head compares as a whole.

    The layers are torch's fused kernels, one module a layer: fast on a CPU, cuDNN on a GPU.
    """

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.embedded)
        inputs = [config.read] + [config.width] * (config.layers - 1)
        self.cells = nn.ModuleList(config.make_cell(each) for each in inputs)
        self.project: nn.Module = nn.Identity()
        if config.embedding_width is not None:
            self.project = nn.Linear(config.width, config.embedded, bias=False)
        first, last = config.input_dropout, config.output_dropout
        self.input_dropout = Dropout(config.dropout if first is None else first, locked=config.locked)
        self.dropout = Dropout(config.dropout, locked=config.locked)
        self.output_dropout = Dropout(config.dropout if last is None else last, locked=config.locked)
        self.word_dropout, self.weight_drop = Dropout(config.word_dropout), Dropout(config.weight_drop)
        self.head = nn.Linear(config.embedded, config.vocab)
        self._init()

    def _init(self) -> None:
        # Tied weights are also the head's: a small spread, so that training starts from a uniform guess.
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        if self.config.tied:
            self.head.weight = self.embed.weight
        for cell in self.cells:
            for gate in torch.split(cell.get_parameter("weight_hh_l0").data, self.config.width):
                nn.init.orthogonal_(gate)  # keeps the length of the state, hence of the gradient (Saxe et al. 2014)

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> RecurrentState:
        refuse_source(self, source)
        zero = self.embed.weight.new_zeros(rows, self.config.layers, self.config.width)
        return RecurrentState(zero, (zero.clone(),) if isinstance(self.config, LSTMConfig) else ())

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        refuse_source(self, source)
        before = None if state is None else state.spend()
        assert before is None or isinstance(before, RecurrentState)
        x = self.input_dropout(self._embedded(tokens))
        finals = []
        for layer, cell in enumerate(self.cells):
            memory = None if before is None else tuple(leaf[:, layer] for leaf in (before.hidden, *before.cell))
            y, final = run(cell, x, lengths, memory, self.weight_drop)
            x = self.dropout(y) if layer + 1 < len(self.cells) else self.output_dropout(y)
            finals.append(final)
        hidden = Hidden(self.project(x), penalty=self._penalty(y, x))
        if before is None:
            return hidden, None
        states, *cell_states = (torch.stack(leaves, 1) for leaves in zip(*finals, strict=True))
        return hidden, RecurrentState(states, tuple(cell_states))

    @torch.no_grad()
    def adjust(self, scale: float, offset: Tensor) -> None:
        """From now on the logits are `scale` times what they were, which is above 0, plus `offset` (vocab,)."""
        self.head.bias.mul_(scale).add_(offset)
        if not self.config.tied:
            self.head.weight.mul_(scale)
        elif isinstance(self.project, nn.Linear):
            self.project.weight.mul_(scale)
        else:  # the words are longer then, and the first layer must not see it
            self.head.weight.mul_(scale)
            self.cells[0].get_parameter("weight_ih_l0").div_(scale)

    def _embedded(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)[..., : self.config.read]
        if not (self.training and self.config.word_dropout):
            return x
        kept = self.word_dropout(x.new_ones(self.config.vocab, 1))
        return x * F.embedding(tokens, kept)

    def _penalty(self, raw: Tensor, dropped: Tensor) -> Tensor | None:
        """(rows, time) from the last layer's outputs before and after dropout: Merity et al. 2017, "Revisiting
        Activation Regularization for Language RNNs", eq. 1 and 2."""
        alpha, beta = self.config.activation_penalty, self.config.change_penalty
        if not (self.training and (alpha or beta)):
            return None
        changes = F.pad(raw.diff(dim=1), (0, 0, 1, 0))  # the first step has nothing before it
        penalty: Tensor = alpha * dropped.float().square().mean(-1) + beta * changes.float().square().mean(-1)
        return penalty


class Stepped(nn.Module):
    """A recurrent layer that goes one step at a time.

    Attributes:
        width, leaves: what it remembers of a row are so many vectors of that width.
    """

    width: int
    leaves: int

    @abstractmethod
    def bring(self, x: Tensor) -> Tensor:
        """What a step needs of its input, for all steps at once: (rows, time, inputs) -> (rows, time, anything)."""

    @abstractmethod
    def step(self, new: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A brought input (rows, anything) and what the layer remembers, each (rows, width) -> what it remembers then,
        its output first."""


def run(
    cell: nn.Module,
    x: Tensor,
    lengths: Tensor | None,
    memory: tuple[Tensor, ...] | None,
    weight_drop: Dropout | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One recurrent layer over the first `lengths` steps of each row.

    Args:
        x: (rows, time, width).
        lengths: (rows,), or None when every step is real.
        memory: what the layer remembers, each (rows, width); None: zeros.
        weight_drop: what the recurrent weights go through in training.

    Returns:
        outputs (rows, time, width), anything after a row's length, and the memory after each row's last real step.
    """
    if isinstance(cell, Stepped):
        zero = x.new_zeros(len(x), cell.width)
        return _walk(cell.step, cell.bring(x), lengths, (zero,) * cell.leaves if memory is None else memory)
    assert isinstance(cell, nn.RNNBase)
    if kernels_want_float32(x):
        with torch.autocast("cuda", enabled=False):
            return run(cell, x.float(), lengths, memory, weight_drop)
    if x.shape[1] == 1 and memory is not None and x.device.type == "cpu" and not torch.is_grad_enabled():
        return _walk(partial(step, cell), x, lengths, memory)
    kernel = _dropped(cell, weight_drop)
    start = None if memory is None else [leaf.to(x.dtype).unsqueeze(0).contiguous() for leaf in memory]
    given = start if start is None or isinstance(cell, nn.LSTM) else start[0]
    if lengths is None or bool((lengths == x.shape[1]).all()):
        out, final = kernel(x, given)
        return out, _rows_first(final)
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
    out, final = kernel(packed, given)
    out, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    after = _rows_first(final)
    if memory is not None:
        after = tuple(keep(lengths, new, old.to(new.dtype)) for new, old in zip(after, memory, strict=True))
    return out, after


def kernels_want_float32(x: Tensor) -> bool:
    """Under autocast torch gives cuDNN's layers float16, whatever was asked for, and small gradients become 0 in it."""
    return x.device.type == "cuda" and torch.is_autocast_enabled("cuda")


def _dropped(cell: nn.RNNBase, weight_drop: Dropout | None) -> Callable[..., Any]:
    """The layer with some of its recurrent weights 0, the same ones for all steps and rows of this call."""
    if weight_drop is None or not weight_drop.training or not weight_drop.dropped:
        return cell
    weights = {"weight_hh_l0": weight_drop(cell.weight_hh_l0)}  # on a GPU torch puts them in one piece for cuDNN
    return lambda *inputs: functional_call(cell, weights, inputs)


def step(cell: nn.RNNBase, x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step of a layer, as `Stepped.step`: two products and the gates. On a CPU the kernel for whole texts arranges
    its weights anew in every call, which costs five to ten times more than a step."""
    weights = [getattr(cell, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    memory = tuple(leaf.to(x.dtype) for leaf in memory)
    if isinstance(cell, nn.LSTM):
        return torch.lstm_cell(x, memory, *weights)
    if isinstance(cell, nn.GRU):
        return (torch.gru_cell(x, memory[0], *weights),)
    kernel = torch.rnn_relu_cell if cell.mode == "RNN_RELU" else torch.rnn_tanh_cell
    return (kernel(x, memory[0], *weights),)


def _walk(
    move: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    x: Tensor,
    lengths: Tensor | None,
    memory: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `run`, one step after the other."""
    outputs = []
    for time in range(x.shape[1]):
        new = move(x[:, time], memory)
        outputs.append(new[0])
        if lengths is not None:
            new = tuple(keep(lengths - time, leaf, old.to(leaf.dtype)) for leaf, old in zip(new, memory, strict=True))
        memory = new
    return torch.stack(outputs, 1), memory


def _rows_first(final: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(leaf.squeeze(0) for leaf in (final if isinstance(final, tuple) else (final,)))
