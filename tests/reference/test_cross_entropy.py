"""The loss with its own gradient against autograd's over torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from textwright.training import cross_entropy as subject

IGNORE = -100


def parts(rows: int, width: int, vocabulary: int, *, bias: bool, ignored: int, seed: int) -> list[Tensor | None]:
    torch.manual_seed(seed)
    targets = torch.randint(0, vocabulary, (rows,))
    targets[torch.randperm(rows)[:ignored]] = IGNORE
    matrix = torch.randn(vocabulary, width).requires_grad_()
    hidden, vector = torch.randn(rows, width).requires_grad_(), torch.randn(vocabulary).requires_grad_()
    return [hidden, matrix, vector if bias else None, targets]


def gradients(loss: Tensor, leaves: list[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, [leaf for leaf in leaves if leaf is not None]))


@settings(deadline=None)
@given(
    rows=st.integers(1, 9),
    vocabulary=st.integers(1, 12),
    bias=st.booleans(),
    ignored=st.integers(0, 3),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    chunk=st.integers(1, 60),
    block=st.integers(1, 60),
)
def test_equals_autograd(
    rows: int, vocabulary: int, bias: bool, ignored: int, smoothing: float, chunk: int, block: int
) -> None:
    *leaves, targets = parts(rows, 5, vocabulary, bias=bias, ignored=min(ignored, rows), seed=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "CHUNK", chunk)
        patch.setattr(subject, "BLOCK", block)
        loss, plain = subject.cross_entropy(*leaves, targets, IGNORE, smoothing=smoothing)
        found = gradients(loss, leaves)
    scores = F.linear(*leaves)
    want = F.cross_entropy(scores, targets, label_smoothing=smoothing, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(plain, F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="sum"))
    assert loss.requires_grad and not plain.requires_grad
    for one, other in zip(found, gradients(want, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_products_in_bfloat16_sums_in_float32() -> None:
    *leaves, targets = parts(300, 32, 500, bias=True, ignored=0, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = subject.cross_entropy(*leaves, targets, IGNORE)
        scores = F.linear(*leaves)
        want = F.cross_entropy(scores.float(), targets, reduction="sum")
    assert scores.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=0)
    for one, other in zip(gradients(loss, leaves), gradients(want, leaves), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 5e-3


def test_scores_far_apart_stay_finite() -> None:
    hidden, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[500.0], [-500.0]], requires_grad=True)
    loss, _ = subject.cross_entropy(hidden, weight, None, torch.tensor([1]), IGNORE)
    loss.backward()
    assert float(loss.detach()) == 1000.0
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0], [-1.0]]))
