"""Low-rank adapters on every family: what they compute, what learns, how they come on and off."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from torch import Tensor, nn

from textwright.adapting import lora
from textwright.adapting.lora import LowRankConfig
from textwright.errors import ConfigError
from textwright.models import EncoderDecoderConfig, LSTMConfig, Seq2SeqConfig, TransformerConfig
from textwright.models.base import LanguageModel, Source

KINDS = {
    "lora": LowRankConfig(rank=3, alpha=5.0),
    "rslora": LowRankConfig(rank=3, alpha=5.0, stabilised=True),
    "dora": LowRankConfig(rank=3, alpha=5.0, magnitude=True),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])


def build(family: str) -> LanguageModel:
    torch.manual_seed(0)
    return FAMILIES[family].build().eval()


def logits(model: LanguageModel) -> Tensor:
    source = None
    if isinstance(model.config, Seq2SeqConfig | EncoderDecoderConfig):
        source = Source(torch.tensor([[1, 2, 3], [3, 2, 1]]), torch.tensor([3, 2]))
    result: Tensor = model(TOKENS, source=source).logits
    return result


def stir(model: nn.Module, amount: float = 0.2) -> None:
    """Give what learns other values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_adapter_begins_as_nothing_and_merges_as_what_it_is(family: str, kind: str) -> None:
    model = build(family)
    names, before = {name for name, _ in model.named_parameters()}, logits(model)
    lora.attach(model, KINDS[kind])
    torch.testing.assert_close(logits(model), before)
    stir(model)
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-3)
    with lora.merged(model):
        torch.testing.assert_close(logits(model), after, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(model), after, atol=1e-6, rtol=1e-5)
    lora.activate(model)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)
    lora.activate(model, lora.FIRST)
    lora.merge(model)
    torch.testing.assert_close(logits(model), after, atol=1e-5, rtol=1e-4)
    assert {name for name, _ in model.named_parameters()} == names
    assert not lora.adapters(model)


@pytest.mark.parametrize("family", ["llama-like", "gpt2-like", "lstm", "gru", "seq2seq-additive", "encdec"])
def test_only_the_adapter_learns(family: str) -> None:
    model = build(family)
    before = {name: value.clone() for name, value in model.named_parameters()}
    lora.attach(model, KINDS["dora"])
    stir(model)
    logits(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        ours = "named" in name
        assert (parameter.grad is not None) == ours, name
        if not ours:
            assert torch.equal(parameter, before[name.replace("parametrizations.", "").replace(".original", "")])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [(12,), (4, 8)])
def test_beside_a_layer_it_is_the_formula_with_its_gradients(kind: str, parts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 12).double(), torch.randn(7, 5, dtype=torch.float64)
    config = KINDS[kind]
    adapter = lora.LowRank(layer.weight, parts, config).double()
    stir(adapter, 0.5)
    beside = layer(x) + adapter.beside(x, layer(x), layer)
    # The formulas in float64, written once more: blocks of rows, each with an A and a B of its own.
    rows = torch.split(layer.weight, list(parts))
    s = 5.0 / (math.sqrt(3) if kind == "rslora" else 3)
    changed = torch.cat([w + s * adapter.up[n] @ adapter.down[3 * n : 3 * n + 3] for n, w in enumerate(rows)])
    if adapter.magnitude is not None:
        changed = adapter.magnitude[:, None] * changed / changed.detach().norm(dim=1, keepdim=True)
    formula = F.linear(x, changed, layer.bias)
    torch.testing.assert_close(beside, formula)
    own = list(adapter.parameters())
    for got, want in zip(
        torch.autograd.grad(beside.square().sum(), own),
        torch.autograd.grad(formula.square().sum(), own),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_no_gradient_of_a_frozen_weight_is_formed() -> None:
    model = build("llama-like")
    lora.attach(model, KINDS["lora"])
    inside = model.get_submodule("blocks.0.attention.qkv")
    assert not inside.weight.requires_grad  # type: ignore[union-attr]
    assert not model.head.weight.requires_grad


@torch.no_grad()
def test_several_by_name() -> None:
    model = build("transformer")
    plain = logits(model)
    changes = {}
    for name in ("poems", "sums"):
        lora.attach(model, KINDS["lora"], name)
        stir(model)
        changes[name] = logits(model) - plain
    assert all(set(one.named) == {"poems", "sums"} for one in lora.adapters(model).values())
    lora.activate(model, "poems")
    assert torch.equal(logits(model) - plain, changes["poems"])
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name in learning if ".poems." in name} != set()
    lora.activate(model, "poems", "sums")
    both = logits(model)
    assert not torch.allclose(both - plain, changes["poems"], atol=1e-3)
    lora.merge(model)
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-4)


def test_values_go_out_and_in() -> None:
    first, second = build("lstm"), build("lstm")
    lora.attach(first, KINDS["dora"])
    stir(first)
    lora.attach(second, KINDS["dora"])
    assert lora.tensors(first).keys() == lora.tensors(second).keys()
    assert "cells.0.weight_hh_l0.down" in lora.tensors(first)
    with torch.no_grad():
        for name, value in lora.tensors(second).items():
            value.copy_(lora.tensors(first)[name])
        torch.testing.assert_close(logits(second), logits(first))


def test_a_copy_is_apart() -> None:
    model = build("transformer")
    lora.attach(model, KINDS["lora"])
    twin = copy.deepcopy(model)
    stir(twin)
    assert not torch.allclose(logits(twin), logits(model))
    lora.merge(twin)
    assert lora.adapters(model)


def test_targets() -> None:
    model = TransformerConfig(vocab=7, width=16, layers=2, heads=2, window=8).build()
    lora.attach(model, LowRankConfig(targets=("qkv.weight",)))
    assert set(lora.adapters(model)) == {f"blocks.{n}.attention.qkv.weight" for n in range(2)}
    assert len(lora.adapters(model)["blocks.0.attention.qkv.weight"][lora.FIRST].up) == 3
    with pytest.raises(ConfigError, match=r"ends with 'head\.weight': there are .*attention\.qkv\.weight"):
        lora.attach(model, LowRankConfig(targets=("head.weight",)), "other")
    with pytest.raises(ConfigError, match="already"):
        lora.attach(model, LowRankConfig())
    with pytest.raises(ConfigError, match="no adapter 'poem'"):
        lora.activate(model, "poem")
    with pytest.raises(ConfigError, match="no name"):
        lora.attach(LSTMConfig(vocab=7, width=8, layers=1).build(), LowRankConfig(), "a.b")
