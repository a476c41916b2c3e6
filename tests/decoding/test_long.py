"""Long prompts in bounded memory, long texts in constant memory, and what is said when numbers break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from textwright.decoding import Request, Sampling, collect, generate
from textwright.decoding import engine as loop
from textwright.decoding.largest import first_largest, largest
from textwright.errors import TextwrightError
from textwright.models import GRUConfig, LanguageModel, LSTMConfig, RNNConfig, State, TransformerConfig
from textwright.models.damage import damaged

MODELS = [
    TransformerConfig(vocab=30, width=16, heads=2, window=64, positions="rotary"),
    TransformerConfig(vocab=30, width=16, heads=2, window=64, positions="learned"),
    LSTMConfig(vocab=30, width=16),
    GRUConfig(vocab=30, width=16),
]


@pytest.mark.parametrize("config", MODELS, ids=lambda config: f"{config.family}")
@pytest.mark.parametrize("at_once", [1, 7, 24])
def test_a_prompt_may_be_read_in_parts(config: Any, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = config.build().eval()
    lengths = [40, 1, 17, 8]
    requests = [
        Request(tuple(torch.randint(0, 30, (length,)).tolist()), Sampling(), seed=length, max_new_tokens=9)
        for length in lengths
    ]
    whole = [result.tokens for result in collect(generate(model, requests, None))]
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    monkeypatch.setattr(loop, "AT_ONCE", at_once)
    assert [result.tokens for result in collect(generate(model, requests, None))] == whole
    assert max(seen) <= max(at_once, len(requests))


@pytest.mark.parametrize("config", [RNNConfig, GRUConfig, LSTMConfig])
@torch.no_grad()
def test_a_recurrent_model_remembers_in_constant_memory(config: type[RNNConfig]) -> None:
    """100,000 tokens, one at a time and in large parts: as many bytes as after the first one, and the same memory."""
    torch.manual_seed(0)
    model: LanguageModel = config(vocab=20, width=8, layers=2).build().eval()
    tokens = torch.randint(0, 20, (1, 100_000))
    parts = model.begin(1)
    for part in tokens.split(10_000, 1):
        parts = model(part, None, parts, last_only=True).after
    count = 100_000 if config is LSTMConfig else 1_000
    state, size = model.begin(1), 0
    for step in range(count):
        state = model(tokens[:, step : step + 1], None, state).after
        if step == 0:
            size = held(state)
    assert held(state) == size == held(parts)
    if count == 100_000:
        for field in fields(state):
            for got, want in zip(leaves(getattr(state, field.name)), leaves(getattr(parts, field.name)), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def leaves(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    else:
        for leaf in part:
            yield from leaves(leaf)


def held(state: State) -> int:
    """Bytes of storage, not only of what is looked at."""
    return sum(
        leaf.untyped_storage().nbytes() for field in fields(state) for leaf in leaves(getattr(state, field.name))
    )


@given(st.integers(1, 3), st.integers(1, 10_000), st.integers(0, 2**31), st.booleans())
def test_the_largest_are_found(rows: int, width: int, seed: int, coarse: bool) -> None:
    """As by torch; of equal ones the first, where only one is wanted."""
    torch.manual_seed(seed)
    values = torch.randn(rows, width)
    values = values.round() if coarse else values
    assert torch.equal(first_largest(values), values.argmax(-1))
    count = min(width, 1 + seed % 40)
    best, places = largest(values, count)
    assert torch.equal(best, values.topk(count, -1).values)
    assert torch.equal(values.gather(1, places), best)
    assert all(len(set(row)) == count for row in places.tolist())


def test_the_weight_that_is_damaged_is_named() -> None:
    model = TransformerConfig(vocab=20, width=8, heads=2).build().eval()
    model.get_parameter("blocks.1.feed_forward.up.weight").data[3, 2] = float("nan")
    with pytest.raises(
        TextwrightError, match=r"not a finite number: its weight blocks\.1\.feed_forward\.up\.weight is"
    ):
        collect(generate(model, [Request((1, 2))], None))


def test_the_layer_that_overflows_is_named() -> None:
    """Every weight is finite, and a product of two is not; also where it happens only while writing."""
    model = TransformerConfig(vocab=20, width=8, heads=2).build().eval()
    up, down = (model.get_parameter(f"blocks.1.feed_forward.{name}.weight").data for name in ("up", "down"))
    up.fill_(0.0)
    up[0, 0], up[1, 0] = 1e30, -1e30  # whatever the sign of what comes in, one of the two is not cut off
    down.fill_(1e30)
    with pytest.raises(TextwrightError, match=r"its layer blocks\.1\.feed_forward\.down overflows"):
        collect(generate(model, [Request((1, 2))], None))
    model = GRUConfig(vocab=20, width=8).build().eval()
    assert "every layer that reads this text anew" in damaged(model, torch.tensor([[1, 2]]))
    engine = loop.Engine(model, None)
    engine.admit([Request((1, 2), Sampling(temperature=0.0))])
    assert isinstance(model.head, nn.Linear)
    model.head.weight.data.fill_(float("inf"))
    engine.step()
    with pytest.raises(TextwrightError, match="is damaged"):
        engine.step()
