"""The continuous cache against its formula, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from textwright.errors import ConfigError
from textwright.evaluating.cache import CacheSettings, Memory, cached_losses, cached_panel, choose_cache
from textwright.evaluating.perplexity import panel
from textwright.models import GRUConfig, LSTMConfig, TransformerConfig
from textwright.models.base import LanguageModel
from textwright.text.batching import Batch
from textwright.text.corpus import Corpus, Facts

VOCAB, END = 9, 0


def corpus(lengths: list[int], seed: int = 0) -> Corpus:
    torch.manual_seed(seed)
    parts = [torch.cat([torch.randint(1, VOCAB, (n - 1,)), torch.tensor([END])]) for n in lengths]
    facts = Facts(vocabulary=VOCAB, tokens=sum(lengths), documents=len(lengths), bytes=1, characters=1, words=1)
    return Corpus(torch.cat(parts).to(torch.uint8), torch.tensor(lengths).cumsum(0), facts)


def by_hand(model: LanguageModel, text: Corpus, settings: CacheSettings) -> float:
    """One document after the other, one token at a time, in plain Python."""
    total, start = 0.0, 0
    for stop in text.ends.tolist():
        ids = text.tokens[start:stop].tolist()
        state, past, before = model.begin(1), [], END
        for word in ids:
            hidden, state = model.hidden(torch.tensor([[before]]), None, state, None)
            h = hidden.values[0, 0]
            own = float(model.logits(hidden)[0, 0].softmax(-1)[word])
            near = past[-settings.size :]
            if near:
                weigh = [math.exp(settings.theta * float(h @ other)) for other, _ in near]
                hit = sum(w for w, (_, seen) in zip(weigh, near, strict=True) if seen == word)
                own = (1 - settings.weight) * own + settings.weight * hit / sum(weigh)
            total -= math.log(own)
            past.append((h, word))
            before = word
        start = stop
    return total


@pytest.mark.parametrize("size", [1, 3, 50, 1000])
@pytest.mark.parametrize("lengths", [[300], [5, 200, 1, 140]])
@torch.no_grad()
def test_equals_its_formula(size: int, lengths: list[int]) -> None:
    torch.manual_seed(0)
    model = LSTMConfig(vocab=VOCAB, width=12, layers=1).build().eval()
    text, settings = corpus(lengths), CacheSettings(size, 0.7, 0.3)
    found = cached_panel(model, text, END, settings)
    assert found.loss * found.tokens == pytest.approx(by_hand(model, text, settings), rel=1e-5)
    assert found.tokens == sum(lengths)
    assert f"continuous cache of {size:,} (θ 0.7, λ 0.3)" in found.context


def test_several_rows_and_no_weight_give_the_plain_loss() -> None:
    torch.manual_seed(0)
    model = GRUConfig(vocab=VOCAB, width=12, layers=2).build()
    text = corpus([2500, 900, 1600])  # long enough to be read in several rows
    losses, tokens, _ = cached_losses(model, text, END, 40, [0.0, 1.0], [0.0, 0.5])
    plain = panel(model, text, END)
    assert tokens == plain.tokens
    for theta in range(2):
        assert float(losses[theta, 0]) / tokens == pytest.approx(plain.loss, rel=1e-5)
    assert abs(float(losses[0, 1] - losses[0, 0])) > 1  # and a weight changes it


def test_the_best_of_the_grid_is_chosen_and_helps_where_words_come_again() -> None:
    torch.manual_seed(0)
    model = LSTMConfig(vocab=VOCAB, width=12, layers=1).build()
    text = corpus([400])
    text.tokens[:] = torch.tensor([3, 5]).repeat(200).to(torch.uint8)  # two words of nine, forever
    chosen = choose_cache(model, text, END, 30)
    assert chosen.weight >= 0.25
    assert cached_panel(model, text, END, chosen).loss < panel(model, text, END).loss - 0.5


def test_a_window_is_refused() -> None:
    model = TransformerConfig(vocab=VOCAB, width=8, layers=1, heads=1, window=8).build()
    with pytest.raises(ConfigError, match="carry their state"):
        choose_cache(model, corpus([50]), END, 10)


def test_memory_does_not_grow() -> None:
    states = torch.zeros(2, 5, 4)
    memory = Memory.empty(states)
    batch = Batch(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long), None, None)
    for _ in range(10):
        memory = memory.with_steps(states, batch, 12)
    assert memory.states.shape == (2, 12, 4)
