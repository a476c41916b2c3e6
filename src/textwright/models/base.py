"""The contract every model keeps.

    state  = model.begin(rows)                           # an encoder-decoder reads its source here: begin(rows, source)
    output = model(prompt, lengths, state)         # prefill: time > 1
    output = model(token[:, None], state=output.state)   # a decoding step: time = 1
    output = model(tokens)                         # training: no state, the fast path

Five invariants hold for every family, and `tests/contract` runs them on each: one token at a time equals chunks equals
all at once; steps at or after `lengths[r]` do not move row r; rows do not see each other; a state is spent by the call
it is passed to; exhaustive beam search equals brute force, and continuous batching equals each request alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from textwright.config import Config
from textwright.models.state import State

TINY = 1e-30  # a probability of 0 has no logarithm
MOST = 1 - 2**-15  # that is ever copied, so that what is left to the head can be told from rounding


class Source(NamedTuple):
    """What an encoder-decoder reads: token ids (rows, time), or features (rows, time, width), and their lengths."""

    values: Tensor
    lengths: Tensor


class Hidden(NamedTuple):
    """Everything a head reads.

    Attributes:
        values: (rows, time, width).
        copied: (rows, time, source), for models that copy: the probability that the next token is the one at each place
            of the source; what is missing to 1 is left to the head. None: all of it.
        ids: (rows, source), the tokens that stand there.
        penalty: (rows, time), nats that training adds to the loss of each step, or None.
    """

    values: Tensor
    copied: Tensor | None = None
    ids: Tensor | None = None
    penalty: Tensor | None = None

    def flat(self) -> Hidden:
        """The same with one dimension for rows and time: values (rows · time, width), ids (rows · time, source)."""
        ids = self.ids
        if self.copied is not None and ids is not None:
            ids = ids[:, None].expand_as(self.copied).flatten(0, 1)
        copied, penalty = (None if part is None else part.flatten(0, 1) for part in (self.copied, self.penalty))
        return Hidden(self.values.flatten(0, 1), copied, ids, penalty)

    def split(self, size: int) -> list[Hidden]:
        """A flat one, in parts of `size` steps."""
        starts = range(0, len(self.values), size)
        return [Hidden(self.values[n : n + size], *(_part(leaf, n, n + size) for leaf in self[1:])) for n in starts]

    @staticmethod
    def joined(steps: Sequence[Hidden]) -> Hidden:
        """Steps of the same rows, one after the other in time."""
        values = torch.cat([step.values for step in steps], 1)
        copied = [step.copied for step in steps if step.copied is not None]
        penalty = [step.penalty for step in steps if step.penalty is not None]
        return Hidden(
            values, torch.cat(copied, 1) if copied else None, steps[0].ids, torch.cat(penalty, 1) if penalty else None
        )

    def last(self, lengths: Tensor | None) -> Hidden:
        """The last real step of each row."""
        copied = None if self.copied is None else last(self.copied, lengths)
        return Hidden(last(self.values, lengths), copied, self.ids)


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


Precision = Literal["float32", "bfloat16"]


@contextmanager
def building(precision: Precision) -> Iterator[None]:
    """Models that are built meanwhile have weights of this precision from the beginning: there is no larger copy."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class BaseConfig(Config):
    """What every family's configuration has."""

    vocab: int = Field(gt=0)
    width: int = Field(256, gt=0, description="numbers in every layer's output")
    layers: int = Field(2, gt=0, description="layers on top of each other; with a source, on both sides")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of numbers between layers that are set to 0 in training")
    tied: bool = Field(True, description="the head compares with the embedding's own vectors")

    @property
    def embedded(self) -> int:
        """Width of a token's vector."""
        return self.width

    @property
    def read(self) -> int:
        """Numbers at the beginning of a token's vector that the layers read; only a tied head reads the others."""
        return self.embedded

    def build(self) -> LanguageModel:
        raise NotImplementedError


class LanguageModel(nn.Module, ABC):
    """Base of every family.

    Attributes:
        config: frozen; `config.build()` makes a model of the same shape.
        embed: token ids -> (…, embedded).
        head: what `hidden` gives, (…, embedded) -> logits (…, vocab).
        window: the most tokens a row may hold, or None where memory does not grow with the text.
        slides: past the window a text may be read again from its last part.
        has_source: it writes with a source before its eyes.
    """

    config: BaseConfig
    embed: nn.Embedding
    head: nn.Linear
    window: int | None = None
    slides: bool = True
    has_source: bool = False

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
    ) -> tuple[Hidden, State | None]:
        """Everything before the head: tokens (rows, time) -> what the head reads, and the state after them."""

    def logits(self, hidden: Hidden) -> Tensor:
        """The head: (…, embedded) -> (…, vocab); for models that copy, log-probabilities of the mixture."""
        logits: Tensor = self.head(hidden.values)
        return logits if hidden.copied is None else mixed(logits, hidden)

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
        return Output(self.logits(hidden.last(lengths) if last_only else hidden), state)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def count_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


class EncoderDecoder(LanguageModel):
    """Base of the families that write with a source before their eyes.

    Attributes:
        source_vocab: number of ids a source may hold.
        source_window: the most tokens a source may have, or None.
    """

    source_vocab: int
    source_window: int | None = None
    has_source = True

    @abstractmethod
    def attention(self, tokens: Tensor, lengths: Tensor | None, source: Source) -> Tensor | None:
        """What the model looked at while it chose the token after each: tokens (rows, time) -> (rows, time, source),
        weights that sum to 1 over the real places of the source. None: this model has no attention."""

    def check_source(self, source: Source | None) -> Source:
        """The source, if there is one that fits.

        Raises:
            ValueError: none was given, a row of it is empty, or one is longer than `source_window`.
        """
        if source is None:
            raise ValueError(f"{type(self).__name__} writes with a source: give one, source=Source(ids, lengths)")
        if len(source.lengths) and int(source.lengths.min()) < 1:
            raise ValueError("every row needs a source of at least one token")
        longest = int(source.lengths.max()) if len(source.lengths) else 0
        if self.source_window is not None and longest > self.source_window:
            raise ValueError(f"{longest} source tokens do not fit this model's window of {self.source_window}")
        return source


def _part(leaf: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if leaf is None else leaf[start:stop]


def mixed(logits: Tensor, hidden: Hidden) -> Tensor:
    """log(p_gen · softmax(logits) + Σ copied), (…, vocab): See et al. 2017, "Get To The Point", eq. 9, over one
    vocabulary that source and target share."""
    copied, ids = hidden.copied, hidden.ids
    assert copied is not None and ids is not None
    places = ids if ids.ndim == copied.ndim else ids[:, None].expand_as(copied)
    copied = copied.float()
    tokens = torch.zeros(logits.shape, device=logits.device).scatter_add(-1, places, copied)
    generated = (1 - copied.sum(-1, keepdim=True)).clamp(min=TINY).log()
    return torch.logaddexp(logits.float().log_softmax(-1) + generated, tokens.clamp(min=TINY).log())


def copy_share(pointer: Tensor) -> Tensor:
    """The probability of copying, from a pointer's output of any shape; in float32 also under autocast."""
    return torch.sigmoid(pointer.float()) * MOST


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
