"""Dynamic evaluation against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from textwright.errors import ConfigError
from textwright.evaluating.cache import CacheSettings, cached_panel
from textwright.evaluating.dynamic import TRIALS, DynamicSettings, choose_dynamic, dynamic_loss, dynamic_panel
from textwright.evaluating.perplexity import panel
from textwright.models import GRUConfig, LSTMConfig, RNNConfig, TransformerConfig
from textwright.text.corpus import Corpus, Facts

VOCAB, END, PART = 9, 0, 64


def corpus(ids: Tensor) -> Corpus:
    n = len(ids)
    facts = Facts(vocabulary=VOCAB, tokens=n, documents=1, bytes=n, characters=n, words=n)
    return Corpus(ids.to(torch.uint8), torch.tensor([n]), facts)


def drawn(n: int) -> Corpus:
    torch.manual_seed(1)
    return corpus(torch.cat([torch.randint(1, VOCAB, (n - 1,)), torch.tensor([END])]))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_its_formula(decay: float) -> None:
    """Parts of 64 one after the other, with torch's own gradients, and the decay written out."""
    torch.manual_seed(0)
    config = GRUConfig(vocab=VOCAB, width=12, layers=1)
    model, text = config.build().eval(), drawn(200)
    found, count = dynamic_loss(model, text, END, DynamicSettings(0.3, decay))
    other = config.build().eval()
    other.load_state_dict(model.state_dict())
    origin = {name: weight.detach().clone() for name, weight in other.named_parameters()}
    ids = torch.cat([torch.tensor([END]), text.tokens.long()])
    total, state = 0.0, other.begin(1)
    for start in range(0, 200, PART):
        inputs, targets = ids[:-1][start : start + PART], ids[1:][start : start + PART]
        output = other(inputs[None], None, state.detach())
        state = output.after
        loss = torch.nn.functional.cross_entropy(output.logits[0], targets)
        total += float(loss.detach()) * len(targets)
        gradients = torch.autograd.grad(loss, list(other.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for (name, weight), gradient in zip(other.named_parameters(), gradients, strict=True):
                weight -= 0.3 * gradient * min(1.0, 1.0 / norm)
                weight += decay * (origin[name] - weight)
    assert count == 200
    assert found == pytest.approx(total, rel=1e-4)


def test_a_rate_of_nothing_is_the_plain_loss_and_the_model_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model, text = LSTMConfig(vocab=VOCAB, width=12, layers=2, dropout=0.3).build(), drawn(900)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = panel(model, text, END)  # 900 tokens are read in one row
    still = dynamic_panel(model, text, END, DynamicSettings(0.0, 0.0))
    assert still.loss == pytest.approx(plain.loss, rel=1e-5)
    assert still.tokens == plain.tokens
    dynamic_panel(model, text, END, DynamicSettings(1.0, 0.0))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_best_of_the_grid_is_chosen_and_helps_where_words_come_again() -> None:
    torch.manual_seed(0)
    model = RNNConfig(vocab=VOCAB, width=12, layers=1).build()
    text = corpus(torch.tensor([3, 5]).repeat(700))  # two words of nine, forever
    chosen = choose_dynamic(model, text, END)
    learned = dynamic_panel(model, text, END, chosen)
    assert learned.loss < panel(model, text, END).loss - 0.5
    assert f"η {chosen.rate:g}, λ {chosen.decay:g}" in learned.context


def test_progress_is_told_of_every_token() -> None:
    torch.manual_seed(0)
    model, text = GRUConfig(vocab=VOCAB, width=8, layers=1).build(), drawn(300)
    told: list[int] = []
    dynamic_panel(model, text, END, DynamicSettings(0.1, 0.0), told.append)
    panel(model, text, END, progress=told.append)
    cached_panel(model, text, END, CacheSettings(9, 0.3, 0.2), told.append)
    assert sum(told) == 900
    choose_dynamic(model, text, END, told.append)
    assert sum(told) == 900 + 300 * TRIALS


def test_a_window_is_refused() -> None:
    model = TransformerConfig(vocab=VOCAB, width=8, layers=1, heads=1, window=8).build()
    with pytest.raises(ConfigError, match="carry their state"):
        choose_dynamic(model, drawn(50), END)
