"""Paired bootstrap resampling (Koehn 2004): is one system better than another, or were these items kind to it?

A resample draws as many items as there are, with replacement, and scores both systems on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from textwright.config import Config
from textwright.errors import ConfigError
from textwright.evaluating.dialogue import ResponseMetric
from textwright.evaluating.resampling import LEVEL, Interval, middle, p_value, resample
from textwright.evaluating.scores import Metric, Score

FEW = 50  # items below which the middle of the resamples is known to cover the truth too rarely


class Comparison(Config):
    """Two systems on the same items.

    Attributes:
        difference: second - first, in the metric's unit.
        wins: share of resamples in which the second system is better (0 to 1).
        p: two-sided: twice the smaller of the shares of resamples with difference ≤ 0 and with difference ≥ 0, where
            each share is (count + 1) ÷ (samples + 1), so that it is never 0 (Davison and Hinkley 1997, chapter 4);
            at most 1. It is at most 0.05 exactly where the interval of the difference leaves out 0.
        items, samples, seed: what was resampled, how often, and from which noise.
    """

    first: Score
    second: Score
    first_interval: Interval
    second_interval: Interval
    difference: float
    difference_interval: Interval
    wins: float
    p: float
    items: int
    samples: int
    seed: int

    @property
    def sentence(self) -> str:
        """What came out, in words."""
        moved = self.difference > 0
        ahead = "the second system" if moved == self.second.higher_is_better else "the first system"
        verdict = f"{ahead} is better, and a difference like this is unlikely to be chance"
        if self.p > LEVEL:
            verdict = "the systems cannot be told apart on these items"
        few = f" {self.items} items are few: the interval is likely too narrow." if self.items < FEW else ""
        interval = self.difference_interval
        return (
            f"{self.first.name} {self.first.value:.2f} for the first system, {self.second.value:.2f} for the second: "
            f"a difference of {self.difference:+.2f} (95 % interval {interval.low:+.2f} to {interval.high:+.2f}), "
            f"p = {self.p:.3f} from {self.samples:,} resamples of {self.items:,} items: {verdict}.{few}"
        )


def paired_bootstrap(
    metric: Metric | ResponseMetric,
    references: Sequence[Sequence[str]],
    first: Sequence[str],
    second: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the same resamples of the same items.

    Args:
        metric: one that needs references; see dialogue.py for why the others cannot be resampled.
        first, second: hypotheses of the two systems for each item.

    Raises:
        ConfigError: a metric without references, or fewer than 100 samples.
        DataError: fewer than 6 items, or whatever the metric refuses.
    """
    metric = _resampled(metric, samples)
    statistics = [metric.statistics(texts, references) for texts in (first, second)]
    figures = resample(metric, statistics, samples, seed)
    difference = (figures[1] - figures[0]).round(decimals=9)  # equal sums in another order differ in the last bit
    scores = [metric.score(rows, references) for rows in statistics]
    return Comparison(
        first=scores[0],
        second=scores[1],
        first_interval=middle(figures[0]),
        second_interval=middle(figures[1]),
        difference=scores[1].value - scores[0].value,
        difference_interval=middle(difference),
        wins=float((difference > 0 if metric.higher_is_better else difference < 0).double().mean()),
        p=p_value(difference),
        items=len(references),
        samples=samples,
        seed=seed,
    )


def interval(
    metric: Metric | ResponseMetric,
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """How far the figure of one system moves with the choice of the items; arguments and errors as above."""
    metric = _resampled(metric, samples)
    return middle(resample(metric, [metric.statistics(hypotheses, references)], samples, seed)[0])


def _resampled(metric: Metric | ResponseMetric, samples: int) -> Metric:
    if isinstance(metric, ResponseMetric):
        raise ConfigError(f"{metric.name} has no references and cannot be resampled: report it as it is")
    if samples < 100:
        raise ConfigError(f"expected at least 100 samples for a 95 % interval, got {samples}: samples=1000 is usual")
    return metric
