"""Adam by rows against torch's AdamW, and gradients that are sparse against the same ones dense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from textwright.models import LSTMConfig
from textwright.models.base import LanguageModel
from textwright.text.batching import Batch
from textwright.training.forensics import blame
from textwright.training.gradients import clip, layer_norms
from textwright.training.objective import Objective
from textwright.training.rows import RATE, RowAdamW, used
from textwright.training.sampled import Sampler

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}


def table() -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(7, 3))


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_that_are_always_used_move_as_under_adamw(sparse: bool) -> None:
    """Three rows are used in every step, the others never; a vector beside them has the plain rate."""
    mine, other, vector, same = table(), table(), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    rows = RowAdamW([{"params": [mine]}, {"params": [vector], "weight_decay": 0.0}], [mine], **OPTIONS)
    plain = torch.optim.AdamW(
        [{"params": [other], "lr": RATE * 0.01}, {"params": [same], "weight_decay": 0.0}], **OPTIONS
    )
    before, places = mine.detach().clone(), torch.tensor([1, 4, 6])
    for _ in range(20):
        gradient = torch.zeros(7, 3).index_copy(0, places, torch.randn(3, 3))
        mine.grad = gradient.to_sparse(1) if sparse else gradient.clone()
        other.grad = gradient.clone()
        vector.grad = same.grad = torch.randn(4)
        rows.step()
        plain.step()
    torch.testing.assert_close(mine[places], other[places])
    torch.testing.assert_close(vector, same)
    rest = torch.tensor([0, 2, 3, 5])
    assert torch.equal(mine[rest], before[rest])


def test_a_row_rests_until_it_is_used_again() -> None:
    """The moments of a row that rests stay as they are: two uses far apart are two uses, but for the age of the run."""
    mine = table()
    optimizer = RowAdamW([{"params": [mine]}], [mine], **OPTIONS)
    for row in (0, 1, 1, 1, 0):
        before = mine.detach().clone()
        mine.grad = torch.zeros(7, 3).index_fill(0, torch.tensor([row]), 2.0)
        optimizer.step()
        moved = (mine != before).any(1).nonzero()[:, 0]
        assert moved.tolist() == [row]
    state = optimizer.state[mine]
    torch.testing.assert_close(state["exp_avg"][0], torch.full((3,), 2 * (1 - 0.9**2)))
    torch.testing.assert_close(state["exp_avg_sq"][1], torch.full((3,), 4 * (1 - 0.99**3)))
    assert float(state["step"]) == 5


def test_used() -> None:
    rows = torch.tensor([5, 2, 5, 3])  # one twice, and one that has no gradient
    values = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    sparse = torch.sparse_coo_tensor(rows[None], values, (7, 2), check_invariants=True)
    for gradient in (sparse, sparse.to_dense()):
        found, there = used(gradient)
        assert found.tolist() == [2, 5]
        assert there.tolist() == [[0.0, 3.0], [2.0, 1.0]]


def gradients(model: LanguageModel, sparse: bool) -> dict[str, Tensor]:
    sampler = Sampler(torch.arange(50), 10)
    model.embed.sparse = sampler.sparse = sparse
    model.zero_grad(set_to_none=True)
    torch.manual_seed(4)
    tokens = torch.randint(0, 50, (3, 9))
    loss, _, _ = Objective(model.train(), sampler=sampler)(Batch(tokens[:, :-1], tokens[:, 1:], None, None))
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_sparse_gradients_are_the_dense_ones(tied: bool) -> None:
    torch.manual_seed(0)
    model = LSTMConfig(vocab=50, width=8, layers=1, tied=tied).build()
    dense = {name: gradient.clone() for name, gradient in gradients(model, False).items()}
    want = layer_norms(model)
    norm = clip(model, 1.0)
    clipped = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert float(norm) > 1.5
    found = gradients(model, True)
    assert found["embed.weight"].is_sparse
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.to_dense() if gradient.is_sparse else gradient, dense[name])
    assert layer_norms(model) == pytest.approx(want)
    torch.testing.assert_close(clip(model, 1.0), norm)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad.to_dense() if weight.grad.is_sparse else weight.grad, clipped[name])


def test_a_sparse_gradient_that_is_not_finite_is_named() -> None:
    model = LSTMConfig(vocab=50, width=8, layers=1).build()
    gradients(model, True)
    assert model.embed.weight.grad is not None
    model.embed.weight.grad = model.embed.weight.grad * float("nan")
    assert blame(model, lambda: None) == "gradient of embed.weight"
