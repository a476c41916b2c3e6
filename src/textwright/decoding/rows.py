"""What is asked of the decoder (`Request`), and the search itself as a generation state (`Rows`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.config import Config
from textwright.decoding.stops import StopStrings
from textwright.models.state import State


class Sampling(Config):
    """How the next token is drawn. Every field holds for one request; a batch may mix them freely."""

    temperature: float = Field(1.0, ge=0, description="0 takes the most likely token; more than 1 flattens")
    top_k: int = Field(0, ge=0, description="draw among the k most likely tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the fewest tokens whose probabilities reach p")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens less likely than this share of the likeliest")
    repetition_penalty: float = Field(1.0, gt=0, description="divide the logit of what already stands in the text")
    presence_penalty: float = Field(0.0, description="subtract from the logit of what was already written")
    frequency_penalty: float = Field(0.0, description="subtract for every time it was already written")
    no_repeat_ngram: int = Field(0, ge=0, description="never write the same n tokens twice; 0: off")


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
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    stop: StopStrings | None = None
    source: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a request needs at least one token to go on from")
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            bounds = f"{self.min_new_tokens} and {self.max_new_tokens}"
            raise ValueError(f"expected 0 <= min_new_tokens <= max_new_tokens and at least one new token, got {bounds}")


class Event(NamedTuple):
    """One token of one request; `finish` is None, or why the text ends: "end", "stop" or "length"."""

    request: int
    token: int
    logprob: float
    finish: str | None


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
        automaton: (R,) state of the stop strings.
        limits: (R, 2) minimum and maximum of new tokens.
        sampling: (R, 8) float64, the fields of `Sampling` in their order.
    """

    tokens: Tensor
    lengths: Tensor
    prompts: Tensor
    held: Tensor
    request: Tensor
    seed: Tensor
    score: Tensor
    automaton: Tensor
    limits: Tensor
    sampling: Tensor

    @property
    def written(self) -> Tensor:
        """(R,) number of tokens written so far."""
        return self.lengths - self.prompts

    def setting(self, name: str) -> Tensor:
        """(R, 1) one field of `Sampling`."""
        column = list(Sampling.model_fields).index(name)
        return self.sampling[:, column : column + 1]


def begin_rows(requests: Sequence[Request], first: int, device: torch.device) -> Rows:
    """Rows for new requests, numbered from `first`; stop automata start at 0 and are placed by the loop."""

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    lengths = column([len(request.prompt) for request in requests])
    tokens = pad_sequence([torch.tensor(request.prompt) for request in requests], batch_first=True)
    settings = [[float(value) for value in request.sampling.model_dump().values()] for request in requests]
    return Rows(
        tokens=tokens.to(device),
        lengths=lengths,
        prompts=lengths.clone(),
        held=torch.zeros_like(lengths),
        request=torch.arange(first, first + len(requests), device=device),
        seed=column([signed(request.seed) for request in requests]),
        score=torch.zeros(len(requests), dtype=torch.float64, device=device),
        automaton=torch.zeros_like(lengths),
        limits=torch.tensor([[r.min_new_tokens, r.max_new_tokens] for r in requests], device=device),
        sampling=torch.tensor(settings, dtype=torch.float64, device=device),
    )


def signed(number: int) -> int:
    """Any integer as a 64-bit two's complement one."""
    return (number + 2**63) % 2**64 - 2**63
