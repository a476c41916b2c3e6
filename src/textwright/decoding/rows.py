"""What is asked of the decoder (`Request`), and the search itself as a generation state (`Rows`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.decoding.constraints import Constraint
from textwright.decoding.settings import Sampling
from textwright.decoding.steering import PLAIN, Steering
from textwright.decoding.stops import StopStrings
from textwright.errors import ConfigError
from textwright.models.state import State

BANNED = float("-inf")
COLD = 1e-6  # temperatures below are 0: float32 cannot divide by less without overflow
COLUMNS = {name: place for place, name in enumerate(Sampling.model_fields)}


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
        prompt: token ids to go on from, at least one.
        sampling: how tokens are drawn.
        seed: the noise of this request; the same seed gives the same text alone or in any batch.
        max_new_tokens: where the text is cut.
        min_new_tokens: no end and no stop before so many.
        stop: strings that end the text; None: only the end token and the length do.
        source: token ids an encoder-decoder reads, at least one; None for models that go on from the prompt alone.
        source_text: so many of them, from the beginning, are its text; behind them stand its end and what else is read
            beside it. None: all.
        avoid: strings that are never written, however they are cut into tokens; None: there are none.
        constraint: what the text must be; None: anything.
        steering: tokens and sequences that are favoured, forbidden, forced or exempt.
        top_logprobs: how many likeliest tokens every event lists.
        max_seconds: the text ends after so long, counted from its admission; None: it may take its time.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    stop: StopStrings | None = None
    source: tuple[int, ...] | None = None
    source_text: int | None = None
    avoid: StopStrings | None = None
    constraint: Constraint | None = None
    steering: Steering = PLAIN
    top_logprobs: int = 0
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a request needs at least one token to go on from")
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            bounds = f"{self.min_new_tokens} and {self.max_new_tokens}"
            raise ValueError(f"expected 0 <= min_new_tokens <= max_new_tokens and at least one new token, got {bounds}")
        if self.top_logprobs < 0 or (self.max_seconds is not None and self.max_seconds <= 0):
            raise ConfigError("expected top_logprobs of at least 0 and more than 0 max_seconds")


class Event(NamedTuple):
    """One token of one request, with its log-probability under the model.

    `finish` is None, or why the text ends: "end", "stop", "length", "loop" or "time". `top` holds the likeliest tokens
    of this place with their log-probabilities, as many as the request asked for.
    """

    request: int
    token: int
    logprob: float
    finish: str | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Rows(State):
    """The search, one row a text being written. Axis R of every leaf is the row.

    Attributes:
        tokens: (R, room) prompt and written ids; anything after `lengths`.
        lengths: (R,) tokens in the text; `prompts` (R,) of them came with the request.
        held: (R,) tokens the model's state holds: fewer than `lengths` once the window has slid.
        request: (R,) number of the request.
        seed: (R,) int64.
        score: (R,) float64, the sum of log-probabilities of the written tokens.
        automaton: (R,) state of the stop strings; `avoided` (R,) of the strings to avoid.
        constraint: (R,) number of the request's constraint, 0 for none; `allowed` (R,) state of its automaton.
        steering: (R,) number of the request's `Steering`; `steered` (R,) state of its automaton.
        surprise: (R,) float64, mirostat's μ in bits.
        limits: (R, 2) minimum and maximum of new tokens.
        sampling: (R, settings) float64, the fields of `Sampling` in their order.
        source: (R, places) ids of the source, (R, 0) where there is none; `source_lengths` (R,) of them are real, and
            of these `source_texts` (R,) are its text.
    """

    tokens: Tensor
    lengths: Tensor
    prompts: Tensor
    held: Tensor
    request: Tensor
    seed: Tensor
    score: Tensor
    automaton: Tensor
    avoided: Tensor
    constraint: Tensor
    allowed: Tensor
    steering: Tensor
    steered: Tensor
    surprise: Tensor
    limits: Tensor
    sampling: Tensor
    source: Tensor
    source_lengths: Tensor
    source_texts: Tensor

    @property
    def written(self) -> Tensor:
        """(R,) number of tokens written so far."""
        return self.lengths - self.prompts

    def setting(self, name: str) -> Tensor:
        """(R, 1) one field of `Sampling`."""
        column = COLUMNS[name]
        return self.sampling[:, column : column + 1]


Processor = Callable[[Tensor, Rows], Tensor]


def begin_rows(requests: Sequence[Request], first: int, device: torch.device) -> Rows:
    """Rows for new requests, numbered from `first`; automata start at 0 and are placed by the loop's `Rules`."""

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    lengths = column([len(request.prompt) for request in requests])
    sources = [request.source or () for request in requests]
    settings = [[float(getattr(request.sampling, name)) for name in COLUMNS] for request in requests]
    return Rows(
        tokens=_padded([request.prompt for request in requests], device),
        lengths=lengths,
        prompts=lengths.clone(),
        held=torch.zeros_like(lengths),
        request=torch.arange(first, first + len(requests), device=device),
        seed=column([signed(request.seed) for request in requests]),
        score=torch.zeros(len(requests), dtype=torch.float64, device=device),
        automaton=torch.zeros_like(lengths),
        avoided=torch.zeros_like(lengths),
        constraint=torch.zeros_like(lengths),
        allowed=torch.zeros_like(lengths),
        steering=torch.zeros_like(lengths),
        steered=torch.zeros_like(lengths),
        # Mirostat begins at twice its target (Basu et al. 2021, alg. 1).
        surprise=torch.tensor(
            [2 * request.sampling.mirostat_target for request in requests], dtype=torch.float64, device=device
        ),
        limits=torch.tensor([[r.min_new_tokens, r.max_new_tokens] for r in requests], device=device),
        sampling=torch.tensor(settings, dtype=torch.float64, device=device),
        source=_padded(sources, device),
        source_lengths=column([len(source) for source in sources]),
        source_texts=column([len(r.source or ()) if r.source_text is None else r.source_text for r in requests]),
    )


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], batch_first=True).to(device)


def signed(number: int) -> int:
    """Any integer as a 64-bit two's complement one."""
    return (number + 2**63) % 2**64 - 2**63
