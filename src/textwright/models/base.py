"""The contract every model keeps.

    state  = model.begin(rows)
    output = model(prompt, lengths, state)         # prefill: time > 1
    output = model(token[:, None], state=output.state)   # a decoding step: time = 1
    output = model(tokens)                         # training: no state, the fast path

Five invariants hold for every family, and `tests/contract` runs them on each: one token at a time equals chunks equals
all at once; steps at or after `lengths[r]` do not move row r; rows do not see each other; a state is spent by the call
it is passed to; exhaustive beam search equals brute force, and continuous batching equals each request alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from textwright.config import Config
from textwright.models.state import State


class Source(NamedTuple):
    """What an encoder-decoder reads: token ids (rows, time), or features (rows, time, width), and their lengths."""

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Output:
    """What a model call gives.

    Attributes:
        logits: (rows, time, vocab), or (rows, 1, vocab) for `last_only`. Steps after a row's length mean nothing.
        state: the state after the tokens; None when the call got none (training keeps nothing).
    """

    logits: Tensor
    state: State | None

    @property
    def after(self) -> State:
        """The state, for callers that passed one in."""
        assert self.state is not None
        return self.state


class BaseConfig(Config):
    """What every family's configuration has."""

    vocab: int = Field(gt=0)
    width: int = Field(256, gt=0)
    layers: int = Field(2, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    tied: bool = True

    def build(self) -> LanguageModel:
        raise NotImplementedError


class LanguageModel(nn.Module, ABC):
    """Base of every family.

    Attributes:
        config: frozen; `config.build()` makes a model of the same shape.
        embed: token ids -> (…, width).
        head: hidden states (…, width) -> logits (…, vocab).
        window: the most tokens a row may hold, or None where memory does not grow with the text.
    """

    config: BaseConfig
    embed: nn.Embedding
    head: nn.Linear
    window: int | None = None

    @abstractmethod
    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> State:
        """State before any token.

        Args:
            rows: number of sequences.
            source: what an encoder-decoder reads; other families refuse one.
            capacity: tokens to reserve room for, for static shapes; without it memory grows in chunks.
        """

    @abstractmethod
    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Tensor, State | None]:
        """Everything before the head: tokens (rows, time) -> hidden (rows, time, width) and the state after them."""

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        source: Source | None = None,
        last_only: bool = False,
    ) -> Output:
        """Feed tokens and give the logits of the token after each.

        Args:
            tokens: (rows, time) ids, padded on the right with anything.
            lengths: (rows,) how many of them are real; None: all. A row of length 0 does not move.
            state: from `begin` or an earlier call; spent by this one. None: start fresh and keep nothing.
            source: for an encoder-decoder in training.
            last_only: logits of each row's last real token only, (rows, 1, vocab).
        """
        hidden, state = self.hidden(tokens, lengths, state, source)
        if last_only:
            hidden = last(hidden, lengths)
        return Output(self.head(hidden), state)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def count_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def last(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(rows, time, …) -> (rows, 1, …): the last real step of each row; of a row of length 0, its first."""
    if lengths is None:
        return x[:, -1:]
    rows = torch.arange(x.shape[0], device=x.device)
    return x[rows, lengths.clamp(min=1) - 1].unsqueeze(1)


def renewed(model: LanguageModel, state: State | None, fresh: Tensor) -> State:
    """A carried state (None: at the beginning) in which the rows marked in `fresh` (rows,) begin anew."""
    rows = len(fresh)
    if state is None:
        return model.begin(rows)
    # One state of zeros is put behind the carried ones: fresh rows select it.
    places = torch.where(fresh, rows, torch.arange(rows, device=fresh.device))
    return state.concat(model.begin(1)).select(places)


def refuse_source(model: LanguageModel, source: Source | None) -> None:
    """Raise ValueError for families that generate from a prompt alone."""
    if source is not None:
        raise ValueError(f"{type(model).__name__} reads no source: give the text as a prompt instead")
