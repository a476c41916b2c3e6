"""Regularisation of recurrent models against masks and penalties written down by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from textwright.models import GRUConfig, LSTMConfig, RNNConfig, draws
from textwright.models.draws import random_bytes
from textwright.models.layers import Dropout
from textwright.models.rnn import RecurrentLM

CONFIGS = {"rnn": RNNConfig, "gru": GRUConfig, "lstm": LSTMConfig}
EVERYTHING = {
    "dropout": 0.3,
    "input_dropout": 0.4,
    "output_dropout": 0.2,
    "word_dropout": 0.1,
    "weight_drop": 0.5,
    "locked": True,
    "activation_penalty": 2.0,
    "change_penalty": 1.0,
}
families = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, **settings: Any) -> RecurrentLM:
    torch.manual_seed(0)
    model = CONFIGS[name](vocab=30, width=16, layers=2, **settings).build()
    assert isinstance(model, RecurrentLM)
    return model


def tokens(rows: int = 3, time: int = 6) -> torch.Tensor:
    return torch.randint(0, 30, (rows, time), generator=torch.Generator().manual_seed(1))


@families
def test_nothing_of_it_in_evaluation(name: str) -> None:
    plain, regular = build(name).eval(), build(name, **EVERYTHING).eval()
    regular.load_state_dict(plain.state_dict())
    torch.testing.assert_close(regular(tokens()).logits, plain(tokens()).logits, rtol=0, atol=0)


def test_locked_masks_stay_over_time_and_differ_between_rows() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 7, 40)
    y = Dropout(0.25, locked=True)(x)
    assert bool((y == y[:, :1]).all())
    assert len(y[:, 0].unique(dim=0)) == 50
    assert set(y.unique().tolist()) == {0.0, torch.tensor(256 / 192).item()}
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    free = Dropout(0.25)(x)
    assert not bool((free == free[:, :1]).all())


def test_a_dropped_word_is_dropped_everywhere() -> None:
    model = build("gru", word_dropout=0.5)
    torch.manual_seed(3)
    ids = torch.arange(30).repeat(4, 2)
    x = model._embedded(ids)
    gone = (x == 0).all(-1)
    assert bool((gone == gone[:1, :30].repeat(4, 2)).all())
    assert 5 < int(gone[0, :30].sum()) < 25
    torch.testing.assert_close(x[~gone], 2 * model.embed(ids)[~gone])


@families
def test_weight_drop_is_dropout_of_the_recurrent_weights(name: str) -> None:
    """By hand: the same mask on the weights of a plain layer; the gradient passes through the mask."""
    model = build(name, weight_drop=0.5)
    torch.manual_seed(4)
    found = model.hidden(tokens(), None, None, None)[0].values
    found.square().sum().backward()
    torch.manual_seed(4)
    x, masks = model.embed(tokens()), []
    for cell in model.cells:
        assert isinstance(cell, nn.RNNBase)
        masks.append(Dropout(0.5)(torch.ones_like(cell.weight_hh_l0)))
        x, _ = functional_call(cell, {"weight_hh_l0": cell.weight_hh_l0.detach() * masks[-1]}, (x,))
    torch.testing.assert_close(found, x)
    for cell, mask in zip(model.cells, masks, strict=True):
        assert 0.3 < float((mask == 0).float().mean()) < 0.7
        gradient = cell.get_parameter("weight_hh_l0").grad
        assert gradient is not None
        assert bool((gradient[mask == 0] == 0).all()) and bool((gradient[mask != 0] != 0).any())


@families
def test_penalties(name: str) -> None:
    model = build(name, output_dropout=0.4, activation_penalty=2.0, change_penalty=3.0)
    torch.manual_seed(5)
    hidden = model.hidden(tokens(), None, None, None)[0]
    raw = model.embed(tokens())
    for cell in model.cells:
        raw, _ = cell(raw)
    want = 2.0 * hidden.values.square().mean(-1)
    want[:, 1:] += 3.0 * (raw[:, 1:] - raw[:, :-1]).square().mean(-1)
    assert hidden.penalty is not None
    torch.testing.assert_close(hidden.penalty, want)
    assert float((hidden.values == 0).float().mean()) == pytest.approx(0.4, abs=0.15)


@families
def test_each_place_has_a_rate_of_its_own(name: str) -> None:
    model = build(name, dropout=0.5, input_dropout=0.0, output_dropout=0.0)
    assert [layer.dropped for layer in (model.input_dropout, model.dropout, model.output_dropout)] == [0, 128, 0]
    same = build(name, dropout=0.5)
    assert [layer.dropped for layer in (same.input_dropout, same.dropout, same.output_dropout)] == [128] * 3


def test_random_bytes_are_uniform_independent_and_the_same_for_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over several stretches: chi-square of the byte values and of pairs of neighbours, 5 standard deviations."""
    monkeypatch.setattr(draws, "STRETCH", 2**12)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.manual_seed(3)
        found.append(random_bytes(2**20 - 3, torch.device("cpu")))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    drawn = found[0].long()
    pairs = (drawn[:-1] >> 4) * 16 + (drawn[1:] >> 4)
    for values in (drawn, pairs, drawn[8:] ^ drawn[:-8], drawn[2**15 :] ^ drawn[: -(2**15)]):
        expected = len(values) / 256
        square = float(((torch.bincount(values, minlength=256) - expected) ** 2 / expected).sum())
        assert abs(square - 255) < 5 * (2 * 255) ** 0.5
    assert not torch.equal(found[0], random_bytes(2**20 - 3, torch.device("cpu")))
