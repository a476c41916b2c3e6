"""Noise belongs to the request and the position; draws follow the distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textwright.decoding import Request, Sampling
from textwright.decoding.processors import active
from textwright.decoding.rows import begin_rows
from textwright.decoding.rules import Rules
from textwright.decoding.sampling import choose_token, draw
from textwright.noise import below, mix, permuted, uniform


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected).square() / expected).sum())


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, -math.inf, 0.5, 1.0])
    draws = 200_000
    noise = uniform(torch.arange(draws), torch.zeros(draws, dtype=torch.long))
    tokens = draw(logits.expand(draws, -1), noise)
    counts, probability = torch.bincount(tokens, minlength=7).double(), logits.double().softmax(-1)
    assert counts[4] == 0
    possible = probability > 0
    # 5 degrees of freedom: 20.5 is passed once in a thousand, and this draw is always the same one
    assert chi_square(counts[possible], probability[possible] * draws) < 20.5


@pytest.mark.parametrize("temperature", [0.0, 1e-7, 1e-6, 1e-5])
def test_almost_no_temperature_is_almost_greedy(temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    requests = [Request((1,), sampling, seed) for seed in range(40)]
    rows = begin_rows(requests, 0, torch.device("cpu"))
    logits = torch.tensor([[0.0, 1.0, 1.1, 0.9]]).expand(40, -1)
    tokens, _ = choose_token(logits, rows, active(rows, Rules(4, torch.device("cpu")), None))
    assert tokens.tolist() == [2] * 40


def test_uniform_is_uniform_over_seeds_and_over_positions() -> None:
    many = torch.arange(100_000)
    for noise in (uniform(many, torch.zeros_like(many)), uniform(torch.zeros_like(many), many)):
        assert float(noise.min()) >= 0
        assert float(noise.max()) < 1
        counts = torch.histc(noise.float(), 50, 0, 1)
        assert chi_square(counts, torch.full((50,), 2000.0)) < 85  # 49 degrees of freedom, once in a thousand
    pairs = uniform(many, many)[:-1], uniform(many, many)[1:]
    correlation = float(torch.corrcoef(torch.stack(pairs))[0, 1])
    assert abs(correlation) < 0.01


def test_splitmix_reference_values() -> None:
    """The first outputs for seed 1234567, as published with the reference implementation of SplitMix64."""
    state, golden = 1234567, 0x9E3779B97F4A7C15
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    for number, value in enumerate(want):
        seed = (state + number * golden) % 2**64
        signed = seed - 2**64 if seed >= 2**63 else seed
        assert int(mix(torch.tensor(signed))) % 2**64 == value


@given(st.integers(1, 3000), st.integers(-(2**63), 2**63 - 1), st.integers(0, 100))
def test_permuted_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    places = permuted(torch.arange(count), count, seed, epoch)
    assert places.sort().values.tolist() == list(range(count))


def test_permutations_differ_by_key_and_mix_well() -> None:
    orders = [permuted(torch.arange(1000), 1000, 0, epoch) for epoch in range(2)]
    assert orders[0].tolist() != orders[1].tolist()
    for order in orders:
        correlation = float(torch.corrcoef(torch.stack([order.double(), torch.arange(1000).double()]))[0, 1])
        assert abs(correlation) < 0.1


def test_below_stays_below() -> None:
    values = [below(10, seed, 3) for seed in range(-500, 500)]
    assert set(values) == set(range(10))
