"""A base in few bits: what its integers stand for, products with them, and what is opened afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

from textwright.adapting import lora
from textwright.adapting.lora import LowRankConfig
from textwright.adapting.packed import GROUP, LARGEST, PackedLinear, Packing, pack, rounded
from textwright.models.base import EncoderDecoder, Source
from textwright.models.quantized import weight_bytes

KINDS: tuple[Packing, ...] = ("int8", "int4")


def layer(out: int = 7, inside: int = 100, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inside, out, bias)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_rounded_to_the_nearest_step_of_its_group(kind: Packing) -> None:
    plain = layer()
    packed = PackedLinear(plain, kind)
    assert packed.weight.shape == plain.weight.shape
    for row, other in zip(plain.weight.tolist(), packed.weight.tolist(), strict=True):
        for start in range(0, len(row), GROUP):
            group, got = row[start : start + GROUP], other[start : start + GROUP]
            step = max(map(abs, group)) / LARGEST[kind]
            for value, near in zip(group, got, strict=True):
                assert abs(value - near) <= step * 0.5001
                assert abs(near / step - round(near / step)) < 1e-3
    zeros = layer()
    nn.init.zeros_(zeros.weight)
    assert PackedLinear(zeros, kind).weight.eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_those_of_the_rounded_weight(kind: Packing, dtype: torch.dtype) -> None:
    packed, x = PackedLinear(layer(), kind), torch.randn(2, 5, 100)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        got = packed(first)
        want = nn.functional.linear(second, packed.weight, packed.bias)
    assert got.dtype == want.dtype == dtype
    torch.testing.assert_close(got, want)
    got.float().square().sum().backward()
    want.float().square().sum().backward()
    assert first.grad is not None and second.grad is not None
    near: Any = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(first.grad, second.grad, **near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["transformer", "llama-like", "encdec"])
@torch.no_grad()
def test_what_is_trained_is_what_is_opened(family: str, kind: Packing) -> None:
    """Packed with an adapter beside it, and rounded with the adapter merged, are the same function."""
    torch.manual_seed(0)
    base = FAMILIES[family].build().eval()
    trained, opened = copy.deepcopy(base), copy.deepcopy(base)
    pack(trained, kind)
    rounded(opened, kind)
    assert sum(isinstance(module, PackedLinear) for module in trained.modules()) > 3
    assert weight_bytes(trained) < weight_bytes(base)
    for model in (trained, opened):
        lora.attach(model, LowRankConfig(rank=2))
        torch.manual_seed(1)
        for value in lora.tensors(model).values():
            value.copy_(torch.randn_like(value) * 0.3)
    want = logits(trained)
    assert not torch.allclose(want, logits(base), atol=1e-2)
    torch.testing.assert_close(logits(opened), want, rtol=1e-4, atol=1e-4)
    with lora.merged(trained):
        torch.testing.assert_close(logits(trained), want)
    lora.merge(opened)
    torch.testing.assert_close(logits(opened), want, rtol=1e-4, atol=1e-4)


def logits(model: Any) -> Tensor:
    paired = isinstance(model, EncoderDecoder)
    source = Source(torch.tensor([[1, 2, 3]]), torch.tensor([3])) if paired else None
    result: Tensor = model(torch.tensor([[3, 1, 4, 1, 5]]), source=source).logits
    return result
