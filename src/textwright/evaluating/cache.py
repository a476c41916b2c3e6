"""The continuous cache: words that were read not long ago come again, most of all where the text is as it was then.

    p_cache(w | h_t) ∝ Σ_{t - size <= i < t} [w = x_{i+1}] exp(θ h_t · h_i)        Grave, Joulin and Usunier 2017, eq. 2
    p(w) = (1 - λ) p_model(w) + λ p_cache(w)                                      eq. 3

h_i is the hidden state that predicted the word x_{i+1}. Nothing is trained: θ and λ are chosen on the validation text.
It is a property of the measurement, not of the model, and is named in the result.

Axes: R rows, T time, M remembered steps, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from textwright.errors import ConfigError
from textwright.evaluating.perplexity import Panel, batches_of, panel_of
from textwright.models.base import LanguageModel, renewed
from textwright.models.state import State
from textwright.progress import Told, untold
from textwright.text.batching import IGNORE, Batch
from textwright.text.corpus import Corpus

THETAS = (0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
WEIGHTS = (0.0, 0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4)
TINY = 1e-30


class CacheSettings(NamedTuple):
    """size in tokens, θ and λ."""

    size: int
    theta: float
    weight: float


def cached_panel(
    model: LanguageModel, corpus: Corpus, first: int, settings: CacheSettings, progress: Told = untold
) -> Panel:
    """As `perplexity.panel`, with a continuous cache.

    Raises:
        ConfigError: the model carries no state.
    """
    size, theta, weight = settings
    losses, tokens, context = cached_losses(model, corpus, first, size, [theta], [weight], progress)
    context += f", continuous cache of {size:,} (θ {theta:g}, λ {weight:g})"
    return panel_of(float(losses), tokens, context, corpus.facts)


def choose_cache(model: LanguageModel, corpus: Corpus, first: int, size: int, progress: Told = untold) -> CacheSettings:
    """The best θ and λ of a grid on a validation text.

    Raises:
        ConfigError: the model carries no state.
    """
    losses, _, _ = cached_losses(model, corpus, first, size, THETAS, WEIGHTS, progress)
    theta, weight = divmod(int(losses.argmin()), len(WEIGHTS))
    return CacheSettings(size, THETAS[theta], WEIGHTS[weight])


@torch.no_grad()
def cached_losses(
    model: LanguageModel,
    corpus: Corpus,
    first: int,
    size: int,
    thetas: Sequence[float],
    weights: Sequence[float],
    progress: Told = untold,
) -> tuple[Tensor, int, str]:
    """Summed losses (thetas, weights) in nats, the number of targets, and the context policy without the cache."""
    if model.window is not None:
        raise ConfigError("a continuous cache is for models that carry their state: rnn, gru, lstm")
    model.eval()
    batches, context = batches_of(model, corpus, first, None)
    total = torch.zeros(len(thetas), len(weights), dtype=torch.float64)
    shares, tokens = torch.tensor(weights, device=model.device), 0
    state: State | None = None
    memory: Memory | None = None
    for batch in batches:
        batch = batch.to(model.device)
        assert batch.fresh is not None
        state = renewed(model, state, batch.fresh)
        hidden, state = model.hidden(batch.tokens, batch.lengths, state, None)
        memory = Memory.empty(hidden.values) if memory is None else memory.renewed(batch.fresh)
        real = batch.targets != IGNORE
        own = model.logits(hidden).float().log_softmax(-1)
        own = own.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0].exp()[real]
        found, some = memory.find(hidden.values.float(), batch, size, thetas)
        for row, one in enumerate(found):
            share = torch.where(some[real][:, None], shares, 0.0)  # there is nothing to look up in the beginning
            mixed = (1 - share) * own[:, None] + share * one[real][:, None]
            total[row] -= mixed.clamp(min=TINY).log().cpu().double().sum(0)
        memory = memory.with_steps(hidden.values.float(), batch, size)
        done = int(real.sum())
        tokens += done
        progress(done)
    return total, tokens, context


@dataclass(frozen=True)
class Memory:
    """Steps a row has read since its document began: hidden states (R, M, W), the words after them (R, M), and which of
    them count (R, M)."""

    states: Tensor
    words: Tensor
    counted: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> Memory:
        states = like.float()[:, :0]
        return cls(states, states.new_zeros(states.shape[:2], dtype=torch.long), states.new_zeros(states.shape[:2]) > 0)

    def renewed(self, fresh: Tensor) -> Memory:
        """Rows that begin anew forget."""
        return Memory(self.states, self.words, self.counted & ~fresh[:, None])

    def with_steps(self, states: Tensor, batch: Batch, size: int) -> Memory:
        """The last `size` steps, those of a batch with states (R, T, W) included."""
        parts = [(self.states, states), (self.words, batch.targets), (self.counted, batch.targets != IGNORE)]
        return Memory(*(torch.cat(pair, 1)[:, -size:] for pair in parts))

    def find(self, states: Tensor, batch: Batch, size: int, thetas: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        """The cache's probability of each target, (R, T) for each θ, and whether there was anything to look up."""
        time = states.shape[1]
        past = self.with_steps(states, batch, self.states.shape[1] + time)
        place = torch.arange(past.states.shape[1], device=states.device)
        now = place[-time:, None]
        seen = past.counted[:, None] & (place < now) & (place >= now - size)  # (R, T, M + T)
        same = seen & (past.words[:, None] == batch.targets[..., None])
        alike = states @ past.states.mT
        found = []
        for theta in thetas:
            scores = (theta * alike).masked_fill(~seen, float("-inf"))
            scores = (scores - scores.amax(-1, keepdim=True).clamp(min=-1e30)).exp()
            found.append((scores * same).sum(-1) / scores.sum(-1).clamp(min=TINY))
        return found, seen.any(-1)
