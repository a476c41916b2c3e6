"""Prompt tuning: what is learned is what stands in front of every text, and the model stands still.

    y = model([P; E[tokens]])                P (k, W), the only parameters        Lester et al. 2021, section 2

P is read as k tokens that no text can hold. A state begins after them, so decoders, training and everything else that
is driven through states know nothing about them. They take k places of a window; of a recurrent model P is the state a
text begins with, as k steps can make it. P begins as the embeddings of k tokens drawn at random (section 3.2 there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from textwright.config import Config
from textwright.models.base import BaseConfig, Hidden, LanguageModel, Source, refuse_source
from textwright.models.state import State


class PromptConfig(Config):
    """How long the prompt is."""

    tokens: int = Field(20, gt=0, description="embeddings that stand in front of every text")


class Extended(nn.Embedding):
    """An embedding with rows behind its own: ids from `num_embeddings` on are those of `more`."""

    def __init__(self, table: nn.Embedding, more: nn.Parameter) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight, _freeze=True)
        self.weight = table.weight  # the same object, which a tied head shares
        self.more = more

    def forward(self, ids: Tensor) -> Tensor:
        own = F.embedding(ids.clamp(max=self.num_embeddings - 1), self.weight)
        beyond = (ids - self.num_embeddings).clamp(min=0)
        return torch.where((ids < self.num_embeddings)[..., None], own, F.embedding(beyond, self.more).to(own.dtype))


@dataclass(frozen=True)
class PromptedState(State):
    """What a model remembers after its prompt; a row's prompt has `read` (R,) tokens, which no caller counts."""

    inner: State
    read: Tensor

    @property
    def has_places(self) -> bool:
        return self.inner.has_places

    def truncate(self, lengths: Tensor) -> Self:
        kept = self.inner.truncate(lengths + self.read)
        return type(self)(kept, self.read)


class Prompted(LanguageModel):
    """A model that reads its prompt before every text.

    Attributes:
        model: the one that stands still; the embedding in it knows the prompt's ids, too.
        prompt: P, (k, W).
    """

    config: BaseConfig

    def __init__(self, model: LanguageModel, config: PromptConfig) -> None:
        super().__init__()
        model.requires_grad_(False)
        drawn = torch.randint(0, model.embed.num_embeddings, (config.tokens,), device=model.device)
        self.prompt = nn.Parameter(model.embed.weight.detach()[drawn].float())
        model.embed = Extended(model.embed, self.prompt)
        self.model, self.config = model, model.config
        self.head, self.embed = model.head, model.embed
        self.window = None if model.window is None else model.window - config.tokens

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> PromptedState:
        refuse_source(self, source)
        count = len(self.prompt)
        inner = self.model.begin(1, capacity=None if capacity is None else capacity + count)
        ids = torch.arange(count, device=self.device) + self.embed.num_embeddings
        _, after = self.model.hidden(ids[None], None, inner, None)
        assert after is not None
        state = PromptedState(after, torch.full((1,), count, device=self.device))
        return state.select(torch.zeros(rows, dtype=torch.long, device=self.device))

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        refuse_source(self, source)
        before = self.begin(len(tokens)) if state is None else state.spend()
        assert isinstance(before, PromptedState)
        hidden, after = self.model.hidden(tokens, lengths, before.inner, None)
        if state is None or after is None:
            return hidden, None
        return hidden, PromptedState(after, before.read)

    def logits(self, hidden: Hidden) -> Tensor:
        return self.model.logits(hidden)


def tensors(model: LanguageModel) -> dict[str, Tensor]:
    """What was learned, by its name in a file."""
    assert isinstance(model, Prompted)
    return {"prompt": model.prompt}
