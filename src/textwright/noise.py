"""Random numbers that belong to a seed and a position, not to a process.

A request draws the same noise alone or in any batch, and an epoch has the same order on any machine, because every
number is a function of what asks for it: SplitMix64 (Steele, Lea and Flood 2014), vectorised over int64 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mix(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers that scatters them; int64 in and out, arithmetic wraps around."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """float64 in [0, 1), a function of seed and position (int64, broadcast) alone; 40 random bits each."""
    return _shift(mix(mix(seed) + position), 24).double() / 2**40


def below(limit: int, *key: int) -> int:
    """An integer in [0, limit), a function of the key."""
    return int(_shift(_hash(*key), 1)) % limit


def permuted(index: Tensor, count: int, *key: int) -> Tensor:
    """The places of `index` (int64, each in [0, count)) in a random order of `count` things, in constant memory.

    A four-round Feistel network over the next even number of bits (Luby and Rackoff 1988); places that fall outside
    walk on until they fall inside (Black and Rogaway 2002), which keeps it a bijection.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    seeds = [_hash(*key, number) for number in range(4)]
    place = _feistel(index, half, seeds)
    while bool((outside := place >= count).any()):
        place = torch.where(outside, _feistel(place, half, seeds), place)
    return place


def _feistel(x: Tensor, half: int, seeds: list[Tensor]) -> Tensor:
    mask = (1 << half) - 1
    left, right = x >> half, x & mask
    for seed in seeds:
        left, right = right, left ^ (mix(right + seed) & mask)
    return (left << half) | right


def _hash(*key: int) -> Tensor:
    value = torch.zeros((), dtype=torch.int64)
    for part in key:
        value = mix(value + ((part + 2**63) % 2**64 - 2**63))
    return value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
