"""Direct preference optimisation against its formula, written with loops in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from textwright.text.batching import IGNORE, Batch, Contrast
from textwright.training.objective import Objective

CHOSEN, REJECTED = ((3, 1, 4, 1), (2, 6), (5, 3, 5)), ((3, 1, 2), (2, 6, 6, 6, 1), (5, 0))
ANSWERS = (2, 1, 1)  # where in each row what carries loss begins
MARGINS = (0.5, -1.0, 0.0)
BETA = 0.3


def padded(rows: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.long)
    targets, lengths = torch.full_like(tokens, IGNORE), torch.tensor([len(row) - 1 for row in rows])
    for number, (row, answer) in enumerate(zip(rows, ANSWERS, strict=True)):
        tokens[number, : len(row) - 1] = torch.tensor(row[:-1])
        targets[number, answer - 1 : len(row) - 1] = torch.tensor(row[answer:])
    return tokens, targets, lengths


def batch() -> Batch:
    tokens, targets, lengths = padded(CHOSEN)
    return Batch(tokens, targets, lengths, None, contrast=Contrast(*padded(REJECTED), torch.tensor(MARGINS), BETA))


def naive(model: Any, rows: tuple[tuple[int, ...], ...], number: int) -> Tensor:
    row, answer = rows[number], ANSWERS[number]
    logarithms = model(torch.tensor([row[:-1]])).logits[0].log_softmax(-1)
    return sum(logarithms[place - 1, row[place]] for place in range(answer, len(row)))  # type: ignore[return-value]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("family", ["lstm", "transformer", "llama-like"])
def test_loss_and_gradient_are_those_of_the_formula(family: str, smoothing: float) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family].build().double()
    objective = Objective(model, smoothing).train()
    losses = objective(batch())
    total, plain = torch.zeros((), dtype=torch.double), 0.0
    for number, margin in enumerate(MARGINS):
        z = BETA * (naive(model, CHOSEN, number) - naive(model, REJECTED, number) - margin)
        total = total - (1 - smoothing) * torch.log(1 / (1 + torch.exp(-z)))
        total = total - smoothing * torch.log(1 / (1 + torch.exp(z)))
        plain += math.log(1 + math.exp(-float(z.detach())))
    assert float(losses.loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    assert float(losses.plain) == pytest.approx(plain, rel=1e-5)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(losses.loss, parameters)
    for mine, want in zip(ours, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_parts_of_a_batch_add_up_and_empty_rows_count_nothing() -> None:
    torch.manual_seed(0)
    objective, whole = Objective(FAMILIES["lstm"].build()).eval(), batch()
    assert whole.count == 3
    parts = [whole.rows(0, 2), whole.rows(2, None), whole.rows(3, None)]  # the last is for a process without work
    assert [part.count for part in parts] == [2, 1, 0]
    sums = [float(objective(part).loss) for part in parts]
    assert sums[2] == 0
    assert sum(sums) == pytest.approx(float(objective(whole).loss), rel=1e-5)


@torch.no_grad()
def test_a_model_at_its_beginning_loses_a_bit_a_pair() -> None:
    torch.manual_seed(0)
    model = FAMILIES["transformer"].build().eval()
    margins = torch.stack([naive(model, CHOSEN, n) - naive(model, REJECTED, n) for n in range(3)])
    given = batch()
    assert given.contrast is not None
    given = replace(given, contrast=replace(given.contrast, margin=margins))
    assert float(Objective(model)(given).loss) == pytest.approx(3 * math.log(2), rel=1e-4)
