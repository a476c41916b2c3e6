"""Muon for the inner matrices, AdamW for the rest, as one optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import MODELS, VOCAB, trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from textwright.models import Seq2SeqConfig
from textwright.models.base import LanguageModel
from textwright.training import muon
from textwright.training.hardware import has_bfloat16
from textwright.training.muon import Together
from textwright.training.optimizer import AdamConfig, MuonConfig, inner
from textwright.training.rows import RATE

RATES = {"learning_rate": 0.01, "weight_decay": 0.0}


def with_gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", MODELS)
def test_inner_matrices_move_by_orthogonal_steps_and_the_rest_as_under_adamw(family: str) -> None:
    torch.manual_seed(0)
    model, other = (MODELS[family].build() for _ in range(2))
    other.load_state_dict(model.state_dict())
    before = with_gradients(model)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    MuonConfig(**RATES).build(model).step()
    AdamConfig(**RATES).build(other).step()
    matrices = {id(weight) for weight in inner(model)}
    assert matrices
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if id(ours) not in matrices:
            assert torch.equal(ours, theirs), name
            continue
        step = (ours.detach() - before[name]) / (0.01 * 0.2 * max(ours.shape) ** 0.5)
        values = torch.linalg.svdvals(step)  # the iteration ends near 1, see `orthogonal`
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.6, name


def pairs_of_matrices() -> tuple[list[Tensor], list[Tensor]]:
    """Wide, tall and square matrices, and the same once more."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(8, 24), (24, 8), (8, 8), (8, 24), (5, 7)]]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in matrices] for _ in range(2))
    return ours, theirs


@pytest.mark.parametrize("at_once", [1, 2**22])
def test_it_steps_as_torchs_does(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and several together, over three steps, in bfloat16 as torch's does."""
    monkeypatch.setattr(muon, "TOGETHER", at_once)
    ours, theirs = pairs_of_matrices()
    first = muon.Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    second = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        with torch.autocast("cpu", torch.bfloat16):
            first.step()
        second.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=0)  # products in bfloat16 may round otherwise


def test_without_autocast_it_steps_in_float32() -> None:
    """The formulas of the module in double precision; products in bfloat16 would be off by some 1e-3."""
    ours, expected = pairs_of_matrices()
    rate, momentum, decay = 0.02, 0.95, 0.1
    optimizer = muon.Muon(ours, lr=rate, momentum=momentum, weight_decay=decay)
    means = [torch.zeros(matrix.shape, dtype=torch.float64) for matrix in ours]
    for _ in range(3):
        for matrix in ours:
            matrix.grad = torch.randn_like(matrix)
        optimizer.step()
        for number, matrix in enumerate(ours):
            gradient = matrix.grad.double()
            means[number] = momentum * means[number] + (1 - momentum) * gradient
            x = (1 - momentum) * gradient + momentum * means[number]
            x = x / x.norm()
            for _ in range(5):
                x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
            with torch.no_grad():
                expected[number].mul_(1 - rate * decay).sub_(rate * 0.2 * max(matrix.shape) ** 0.5 * x.float())
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


class Products(TorchDispatchMode):
    """Notes the type of every tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.types |= {
            part.dtype for part in (out if isinstance(out, list | tuple) else [out]) if torch.is_tensor(part)
        }
        return out


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_has_products_in_its_own_precision_alone(tmp_path: Path, precision: str, family: str) -> None:
    """A processor without bfloat16 takes many times as long for a product in it, and has no LSTM layer in it."""
    training = trainer(tmp_path, family, steps=2, optimizer=MuonConfig(learning_rate=0.02), precision=precision)
    with Products() as products:
        training.run()
    wanted = precision == "bfloat16" and has_bfloat16(torch.device("cpu"))
    assert (torch.bfloat16 in products.types) is wanted


def test_tables_of_words_and_the_head_are_not_inner() -> None:
    for tied in (True, False):
        for config in (*MODELS.values(), Seq2SeqConfig(vocab=VOCAB, width=16, layers=1, source_vocab=9, shared=False)):
            model = config.model_copy(update={"tied": tied}).build()
            names = {name for name, weight in model.named_parameters() if any(weight is w for w in inner(model))}
            assert names
            assert not [name for name in names if "embed" in name or "head." in name or "table" in name]


def test_rows_rest_beside_it() -> None:
    torch.manual_seed(0)
    model = MODELS["lstm"].build()
    before = with_gradients(model)
    gradient = torch.zeros_like(model.embed.weight)
    gradient[3] = 1.0
    model.embed.weight.grad = gradient.to_sparse(1)
    optimizer = MuonConfig(**RATES).build_by_rows(model, [model.embed.weight])
    optimizer.step()
    moved = (model.embed.weight - before["embed.weight"]).detach()
    assert moved.any(1).nonzero().flatten().tolist() == [3]
    torch.testing.assert_close(moved[3], torch.full((16,), -RATE * 0.01))


@pytest.mark.parametrize("family", MODELS)
def test_a_run_with_it_learns(tmp_path: Path, family: str) -> None:
    looks = trainer(tmp_path, family, steps=100, optimizer=MuonConfig(learning_rate=0.02)).run().evaluations
    assert looks[-1].valid_loss < looks[0].valid_loss - 0.03  # little can be learnt of this text


def test_its_state_stays_one_when_it_is_read() -> None:
    optimizer, other = (MuonConfig().build(MODELS["gru"].build()) for _ in range(2))
    other.load_state_dict(optimizer.state_dict())
    assert isinstance(other, Together)
    assert other.first.state is other.second.state is other.state
    groups = [*other.first.param_groups, *other.second.param_groups]
    assert all(mine is group for mine, group in zip(other.param_groups, groups, strict=True))
