"""The bootstrap on equal systems, on unequal ones, and over many experiments with a known answer."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textwright.errors import ConfigError, DataError
from textwright.evaluating.bootstrap import Comparison, interval, paired_bootstrap
from textwright.evaluating.chrf import ChrF
from textwright.evaluating.edits import ErrorRate, ExactStrings
from textwright.evaluating.resampling import middle, p_value, resample
from textwright.evaluating.scores import Metric
from textwright.evaluating.summaries import Rouge
from textwright.evaluating.translation import BLEU

METRICS: list[Metric] = [BLEU("en"), ChrF(), Rouge("L"), ErrorRate("word"), ExactStrings()]
each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def corpus(items: int, errors: float, seed: int) -> tuple[list[list[str]], list[str]]:
    """References that do not depend on `errors`, and a system that gets each word wrong so often."""
    source, noise = random.Random(0), random.Random(seed)
    references = [[f"w{source.randrange(50)}" for _ in range(source.randint(4, 12))] for _ in range(items)]
    wrong = [" ".join(word if noise.random() > errors else "wrong" for word in words) for words in references]
    return [[" ".join(words)] for words in references], wrong


@each_metric
def test_equal_systems_cannot_be_told_apart(metric: Metric) -> None:
    references, system = corpus(60, 0.3, seed=1)
    result = paired_bootstrap(metric, references, system, list(system), samples=200)
    assert (result.difference, result.p, result.wins) == (0, 1, 0)
    assert (result.difference_interval.low, result.difference_interval.high) == (0, 0)
    assert "cannot be told apart" in result.sentence


@each_metric
def test_a_clearly_better_system_is_found(metric: Metric) -> None:
    references, worse = corpus(100, 0.5, seed=1)
    _, better = corpus(100, 0.05, seed=2)
    result = paired_bootstrap(metric, references, worse, better)
    assert result.wins == 1 and result.p == pytest.approx(2 / 1001)
    assert (result.difference > 0) == metric.higher_is_better
    assert "the second system is better" in result.sentence and "p = 0.002" in result.sentence
    turned = paired_bootstrap(metric, references, better, worse)
    assert "the first system is better" in turned.sentence
    assert turned.difference == -result.difference and turned.p == result.p and turned.wins == 0


@each_metric
def test_the_seed_decides_everything(metric: Metric) -> None:
    references, first = corpus(40, 0.3, seed=1)
    _, second = corpus(40, 0.28, seed=2)
    result = paired_bootstrap(metric, references, first, second, samples=150, seed=7)
    assert paired_bootstrap(metric, references, first, second, samples=150, seed=7) == result
    other = paired_bootstrap(metric, references, first, second, samples=150, seed=8)
    assert other.difference_interval != result.difference_interval and other.difference == result.difference
    assert result.first_interval == interval(metric, first, references, samples=150, seed=7)
    assert result.second_interval == interval(metric, second, references, samples=150, seed=7)
    assert Comparison.parse(result.dump()) == result


@each_metric
def test_intervals_hold_the_figure(metric: Metric) -> None:
    references, system = corpus(80, 0.4, seed=3)
    bounds = interval(metric, system, references)
    assert bounds.low < metric.corpus(system, references).value < bounds.high


def test_resamples_are_drawn_evenly_and_independently() -> None:
    """Each item once on average, with the variance of the multinomial, 1 - 1/n."""

    class Counts(ExactStrings):
        def aggregate(self, sums: torch.Tensor) -> torch.Tensor:
            return sums  # (samples, items): how often each item was drawn

    counts = resample(Counts(), [torch.eye(20, dtype=torch.float64)], 4000, seed=5)[0]
    assert bool((counts.sum(1) == 20).all())
    assert counts.mean(0).tolist() == pytest.approx([1] * 20, abs=0.08)
    assert counts.var(0).tolist() == pytest.approx([19 / 20] * 20, rel=0.15)
    assert torch.corrcoef(counts.T).fill_diagonal_(0).abs().max() < 0.15


def test_calibration_without_a_difference() -> None:
    """Two systems right with the same probability: at most about 5 % of experiments may say otherwise."""
    noise, found = random.Random(0), 0
    references = [["x"]] * 80
    for trial in range(100):
        first, second = (["x" if noise.random() < 0.6 else "y" for _ in references] for _ in range(2))
        found += paired_bootstrap(ExactStrings(), references, first, second, samples=199, seed=trial).p <= 0.05
    assert 1 <= found <= 11


def test_calibration_of_the_interval() -> None:
    """A system right 60 % of the time: about 95 % of the intervals hold 60."""
    noise, held = random.Random(1), 0
    references = [["x"]] * 80
    for trial in range(100):
        answers = ["x" if noise.random() < 0.6 else "y" for _ in references]
        bounds = interval(ExactStrings(), answers, references, samples=199, seed=trial)
        held += bounds.low <= 60 <= bounds.high
    assert 88 <= held <= 99


@given(
    below=st.integers(0, 40), zeros=st.integers(0, 40), samples=st.integers(100, 1200), sign=st.sampled_from([-1, 1])
)
def test_p_and_the_interval_agree(below: int, zeros: int, samples: int, sign: int) -> None:
    figures = torch.arange(samples).double() - below
    figures[below : below + zeros] = 0
    figures = sign * figures
    bounds = middle(figures)
    assert (p_value(figures) <= 0.05) == (bounds.low > 0 or bounds.high < 0)


def test_p_by_hand() -> None:
    assert p_value(torch.tensor([1.0] * 98 + [-1.0])) == pytest.approx(2 * 2 / 100)
    assert p_value(torch.tensor([1.0] * 999)) == pytest.approx(2 / 1000)
    assert p_value(torch.zeros(99)) == 1


def test_the_interval_leaves_out_25_of_999_on_each_side() -> None:
    bounds = middle(torch.arange(1.0, 1000.0).double())
    assert (bounds.low, bounds.high) == (25, 975)


def test_few_items_are_mentioned_and_fewer_refused() -> None:
    references, first = corpus(12, 0.3, seed=1)
    result = paired_bootstrap(ExactStrings(), references, first, first, samples=100)
    assert "12 items are few" in result.sentence
    with pytest.raises(DataError, match="at least 6 items to resample, got 5"):
        paired_bootstrap(ExactStrings(), references[:5], first[:5], first[:5])
    with pytest.raises(ConfigError, match="at least 100 samples"):
        interval(ExactStrings(), first, references, samples=10)
    with pytest.raises(DataError, match="got 12 for 11 hypotheses"):
        paired_bootstrap(ExactStrings(), references, first, first[:-1])
