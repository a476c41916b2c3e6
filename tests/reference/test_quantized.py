"""Small integers against the formulas they stand for, and quantised models against the contract."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from families import FAMILIES, VOCAB

from textwright.decoding import Request, Sampling, collect, generate
from textwright.models import EncoderDecoder, GRUConfig, LanguageModel, LSTMConfig, RNNConfig, TransformerConfig
from textwright.models import quantized as module
from textwright.models.base import Source
from textwright.models.quantized import Int4Linear, Int8Linear, Kind, int8_levels, linear, quantize, weight_bytes

SIZES = [(130, 96), (64, 33), (17, 1), (1000, 64)]


def layer_of(out: int, inside: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(out)
    return nn.Linear(inside, out, bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "inside"), SIZES)
def test_int8_is_its_formula(out: int, inside: int, bias: bool) -> None:
    """In float64, with integers made here; a product of the kernel may differ by one step of one input."""
    plain = layer_of(out, inside, bias)
    scale = plain.weight.double().abs().amax(1) / 127
    integers = (plain.weight.double() / scale[:, None]).round()
    x = torch.randn(3, 5, inside)
    x[0, 0] = 0
    x[0, 1] *= 1000  # a row's size does not touch the others
    levels = int8_levels() or 127  # 63 on a processor without VNNI
    step = x.double().abs().amax(-1, keepdim=True).clamp(min=1e-20) / levels
    want = (x.double() / step).round() @ integers.T * step * scale + (plain.bias if bias else 0)
    got = Int8Linear(plain.weight, plain.bias)
    torch.testing.assert_close(got.weight.double(), integers * scale[:, None], rtol=1e-6, atol=1e-9)
    one_step = step * scale.max() * 127
    assert ((got(x) - want).abs() <= 1.01 * one_step + 1e-5 * want.abs()).all()
    alone = got(x[1:2, 2])[0]  # whose scale the kernel is given as a number
    assert ((got(x)[1, 2] - alone).abs() <= 1.01 * one_step[1, 2] + 1e-6).all()


@pytest.mark.parametrize(("out", "inside"), SIZES)
def test_kernel_and_fallback_agree(out: int, inside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = layer_of(out, inside), torch.randn(7, inside)
    fast = {kind: linear(kind, plain.weight, plain.bias) for kind in module.KINDS}
    monkeypatch.setattr(module, "int8_levels", lambda: None)
    monkeypatch.setattr(module, "has_int4", lambda: False)
    slow = {kind: linear(kind, plain.weight, plain.bias) for kind in module.KINDS}
    assert isinstance(slow["int8"], Int8Linear) and slow["int8"].packed is None
    for kind, tolerance in (("int8", 2e-2), ("int4", 2e-2)):
        torch.testing.assert_close(fast[kind].weight, slow[kind].weight, rtol=1e-2, atol=1e-4)
        largest = float(slow[kind](x).abs().max())
        torch.testing.assert_close(fast[kind](x), slow[kind](x), rtol=0, atol=tolerance * largest)


@pytest.mark.skipif(int8_levels() is None, reason="this processor has no int8 kernel")
def test_fewer_levels_are_right_too() -> None:
    """What processors without VNNI get: 63 steps to each side."""
    plain, x = layer_of(64, 96), torch.randn(4, 96)
    got = Int8Linear(plain.weight, plain.bias)
    got.levels = 63
    assert (got(x) - F.linear(x, got.weight, plain.bias)).abs().max() < 0.05


def test_int4_rounds_to_the_nearest_of_sixteen() -> None:
    plain = layer_of(64, 64, bias=False)
    got = Int4Linear(plain.weight, None)
    groups = plain.weight.view(64, 2, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (got.weight.view(64, 2, 32) - groups).abs().amax(-1)
    assert (error <= 0.5 * step + 0.02 * groups.abs().amax(-1)).all()  # and the rounding of bfloat16 scales


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_is_written_with_less(family: str, kind: Kind) -> None:
    """Near the whole weights; by steps as at once; a row alone as beside others."""
    torch.manual_seed(0)
    model = FAMILIES[family].build().eval()
    tokens, lengths = torch.randint(0, VOCAB, (3, 7)), torch.tensor([7, 4, 1])
    source = None
    if isinstance(model, EncoderDecoder):
        source = Source(torch.randint(0, model.source_vocab, (3, 5)), torch.tensor([5, 2, 3]))
    want = model(tokens, source=source).logits
    quantize(model, kind)
    got = model(tokens, source=source).logits
    near = 0.25 * float((want - want.mean()).abs().max()) + 0.02
    assert (got - want).abs().max() < near
    state, parts = model.begin(3, source), []
    for step in range(7):
        output = model(tokens[:, step : step + 1], (lengths > step).long(), state)
        state, parts = output.after, [*parts, output.logits]
    by_steps = torch.cat(parts, 1)
    for row, length in enumerate(lengths.tolist()):
        one = (
            None
            if source is None
            else Source(source.values[row : row + 1, : source.lengths[row]], source.lengths[row : row + 1])
        )
        alone = model(tokens[row : row + 1, :length], source=one).logits[0]
        assert (by_steps[row, :length] - alone).abs().max() < near / 4


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("config", [RNNConfig, GRUConfig, LSTMConfig, TransformerConfig])
def test_a_text_does_not_depend_on_its_neighbours(config: type[RNNConfig], kind: Kind) -> None:
    torch.manual_seed(1)
    model: LanguageModel = config(vocab=40, width=32, layers=2).build().eval()
    before = weight_bytes(model)
    quantize(model, kind)
    assert weight_bytes(model) < before
    requests = [Request((1 + n, 2), Sampling(), seed=n, max_new_tokens=20) for n in range(6)]
    together = [result.tokens for result in collect(generate(model, requests, None))]
    assert together == [collect(generate(model, [request], None))[0].tokens for request in requests]
