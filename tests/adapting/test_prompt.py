"""A learned prompt: tokens in front of every text, which nothing but the model's state knows of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from textwright.adapting.prompt import PromptConfig, Prompted, tensors
from textwright.decoding import Request, Sampling, generate
from textwright.models import GRUConfig, LanguageModel, LSTMConfig, TransformerConfig

VOCAB, COUNT = 11, 3
FAMILIES = {
    "lstm": LSTMConfig(vocab=VOCAB, width=8, layers=2),
    "gru": GRUConfig(vocab=VOCAB, width=8),
    "transformer": TransformerConfig(vocab=VOCAB, width=8, heads=2, window=16),
    "learned positions": TransformerConfig(vocab=VOCAB, width=8, heads=2, window=16, positions="learned"),
}
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def build(family: str) -> LanguageModel:
    torch.manual_seed(1)
    model = FAMILIES[family].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def spoken(family: str, ids: Tensor) -> Tensor:
    """Logits of the plain model after it read real tokens `ids` (k,) first."""
    rows = torch.cat([ids.expand(len(TOKENS), -1), TOKENS], 1)
    logits: Tensor = build(family)(rows).logits[:, len(ids) :]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_real_tokens_is_those_tokens(family: str) -> None:
    """Embeddings of tokens in the place of learned ones: the same as if the tokens stood there."""
    model = Prompted(build(family), PromptConfig(tokens=COUNT)).eval()
    ids = torch.tensor([9, 1, 4])
    with torch.no_grad():
        model.prompt.copy_(model.embed.weight[ids])
    torch.testing.assert_close(model(TOKENS).logits, spoken(family, ids))
    assert model.window == (None if build(family).window is None else 16 - COUNT)
    assert list(tensors(model)) == ["prompt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_prompt_learns(family: str) -> None:
    model = Prompted(build(family), PromptConfig(tokens=COUNT))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["prompt"]
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam([model.prompt], lr=0.05)
    losses = []
    for _ in range(30):
        logits = model(TOKENS[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.03
    assert [name for name, value in model.named_parameters() if not torch.equal(value, before[name])] == ["prompt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_begin_after_it(family: str) -> None:
    """Steps, ragged rows, chosen rows and texts that are cut back give what the whole text gives."""
    model = Prompted(build(family), PromptConfig(tokens=COUNT)).eval()
    with torch.no_grad():
        whole = model(TOKENS).logits
        first = model(TOKENS[:, :2], torch.tensor([2, 1]), model.begin(2))
        torch.testing.assert_close(first.logits[0], whole[0, :2])
        second = model(TOKENS[:, 1:3], torch.tensor([0, 2]), first.after.select(torch.tensor([0, 1])))
        torch.testing.assert_close(second.logits[1], whole[1, 1:3])
        if second.after.has_places:
            back = second.after.truncate(torch.tensor([1, 1]))
            torch.testing.assert_close(model(TOKENS[:, 1:], state=back).logits, whole[:, 1:])
        joined = model.begin(1).concat(model.begin(1, capacity=9))
        torch.testing.assert_close(model(TOKENS, state=joined).logits, whole)
    requests = [Request((1, 2), Sampling(), seed, 6) for seed in range(2)]
    texts: dict[int, list[int]] = {0: [], 1: []}
    for event in generate(model, requests, None):
        texts[event.request].append(event.token)
    assert all(len(text) == 6 and max(text) < VOCAB for text in texts.values())
