"""The estimated softmax against the whole one, against autograd, and on average."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from textwright.training import sampled
from textwright.training.cross_entropy import cross_entropy
from textwright.training.sampled import Sampler, inclusion

IGNORE = -100


def leaves(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    shapes = (rows, 6), (vocabulary, 6), (vocabulary,)
    hidden, weight, bias = (torch.randn(shape).requires_grad_() for shape in shapes)
    return hidden, weight, bias


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=40), data=st.data())
def test_inclusion(weights: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(weights)))
    given_weights = torch.tensor(weights, dtype=torch.float64)
    chances = inclusion(given_weights, size)
    assert float(chances.sum()) == pytest.approx(size)
    assert bool(((chances > 0) & (chances <= 1)).all())
    below = chances < 1
    ratios = chances[below] / given_weights[below]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    if bool(below.any()):  # who is always there would have more than 1 by the same ratio
        assert bool((given_weights[~below] * ratios[0] >= 1 - 1e-9).all())


def test_all_words_give_the_whole_softmax() -> None:
    inputs = leaves(9, 30)
    targets = torch.randint(0, 30, (9,))
    targets[4] = IGNORE
    found, _ = Sampler(torch.randint(0, 50, (30,)), 30).loss(*inputs, targets, IGNORE)
    want, _ = cross_entropy(*inputs, targets, IGNORE)
    torch.testing.assert_close(found, want)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("ignored", [0, 3])
def test_equals_its_formula(ignored: int) -> None:
    """The estimate written down naively, position by position, and differentiated by autograd."""
    vocabulary, rows = 40, 8
    hidden, weight, bias = leaves(rows, vocabulary)
    counts, targets = torch.randint(0, 100, (vocabulary,)), torch.randint(0, vocabulary, (rows,))
    targets[:ignored] = IGNORE
    sampler = Sampler(counts, 10)
    torch.manual_seed(5)
    found, plain = sampler.loss(hidden, weight, bias, targets, IGNORE)
    torch.manual_seed(5)
    drawn = torch.rand(vocabulary) < sampler.drawn
    share = (counts.double() + 1) / (counts.double() + 1).sum()
    members = set(drawn.nonzero()[:, 0].tolist()) | {t for t in targets.tolist() if t != IGNORE}
    real, want = rows - ignored, torch.zeros(())
    for row, target in enumerate(targets.tolist()):
        if target == IGNORE:
            continue
        scores = F.linear(hidden[row], weight, bias)
        total = scores[target].exp()
        for word in members - {target}:
            chance = 1 - (1 - float(sampler.drawn[word])) * (1 - float(share[word])) ** (real - 1)
            total = total + scores[word].exp() / chance
        want = want + total.log() - scores[target]
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(plain, want.detach())
    inputs = hidden, weight, bias
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_the_normaliser_is_right_on_average() -> None:
    """Over sets of words and over the other positions' targets, Z' of the first position has the mean Z."""
    vocabulary, rows, trials = 12, 4, 20_000
    hidden, weight, bias = (leaf.detach() for leaf in leaves(rows, vocabulary))
    counts = torch.tensor([60, 30, 20, 10, 8, 6, 5, 4, 3, 2, 1, 0])
    sampler = Sampler(counts, 4)
    scores = F.linear(hidden[0], weight, bias)
    generator = torch.Generator().manual_seed(0)
    others = torch.multinomial(sampler.share, trials * (rows - 1), replacement=True, generator=generator)
    torch.manual_seed(2)
    first = torch.tensor([7])
    estimates = []
    with pytest.MonkeyPatch.context() as patch:
        # The loss of the first position alone: the others only lend their targets.
        def only_first(
            h: Tensor, w: Tensor, b: Tensor, t: Tensor, ignore: int, **more: Tensor
        ) -> tuple[Tensor, Tensor]:
            return cross_entropy(h[:1], w, b, t[:1], ignore, own=more["own"][:1])

        patch.setattr(sampled, "cross_entropy", only_first)
        for turn in others.view(trials, rows - 1):
            loss, _ = sampler.loss(hidden, weight, bias, torch.cat([first, turn]), IGNORE)
            estimates.append(loss)
    values = (torch.stack(estimates) + scores[7]).exp()
    error = values.std() / trials**0.5
    assert abs(float(values.mean() - scores.exp().sum())) < 4 * float(error)
    assert float(error) < 0.02 * float(scores.exp().sum())  # or the line above would prove little
