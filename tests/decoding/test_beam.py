"""The parts of a beam search; the search itself is proven in the contract."""

from __future__ import annotations

import pytest
import torch

from textwright.decoding.beam import largest


@pytest.mark.parametrize("width", [3, 64, 640, 1000, 4096])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_largest_of_long_rows(width: int, count: int) -> None:
    """As `topk`, wherever they lie: in one block, in many, behind the last whole one, or beside banned tokens."""
    draws = torch.Generator().manual_seed(width + count)
    values = torch.randn(40, width, generator=draws)
    values[10:20] = values[10:20].sort(-1).values  # all of them at the end
    values[20:30, torch.randperm(width, generator=draws)[: width // 2]] = float("-inf")
    values[30:] = values[30:].sort(-1, descending=True).values
    count = min(count, width)
    best, places = largest(values, count)
    torch.testing.assert_close(best, values.topk(count, -1).values, rtol=0, atol=0)
    torch.testing.assert_close(values.gather(1, places), best, rtol=0, atol=0)
    assert all(len(set(row)) == count for row in places.tolist())
