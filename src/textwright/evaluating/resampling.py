"""Drawing items with replacement, and what the figures of the resamples say.

Every metric is a function of summed statistics, so a resample is a row of counts, one for each item, and the sums of
all resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textwright.config import Config
from textwright.errors import DataError
from textwright.evaluating.scores import Metric
from textwright.noise import uniform

LEVEL = 0.05
FEWEST = 6  # of fewer items all may favour one system by chance more often than 1 time in 20: 2 × 2⁻⁵ > 0.05
_CELLS = 2**22  # counts held at once: 32 MiB


class Interval(Config):
    """The middle 95 % of the resamples' figures, in the metric's unit."""

    low: float
    high: float


def resample(metric: Metric, statistics: Sequence[Tensor], samples: int, seed: int) -> list[Tensor]:
    """Figures of each system on the same resamples. Shape: (items, k) each to (samples,) each."""
    items = len(statistics[0])
    if items < FEWEST:
        raise DataError(f"expected at least {FEWEST} items to resample, got {items}: fewer cannot tell chance apart")
    parts = [[metric.aggregate(counts @ rows) for rows in statistics] for counts in _counts(items, samples, seed)]
    return [torch.cat(figures) for figures in zip(*parts, strict=True)]


def _counts(items: int, samples: int, seed: int) -> Iterator[Tensor]:
    """How often each resample drew each item, some resamples at a time. Shape: (some, items), float64."""
    step = max(1, _CELLS // items)
    for start in range(0, samples, step):
        position = torch.arange(start * items, min(start + step, samples) * items).view(-1, items)
        drawn = (uniform(torch.tensor(seed), position) * items).long()
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def middle(figures: Tensor) -> Interval:
    """Order statistics rather than interpolation, so that it leaves out 0 exactly where `p_value` is at most 0.05."""
    ordered = figures.sort().values
    rank = int(LEVEL / 2 * (len(ordered) + 1) + 1e-9) - 1
    return Interval(low=float(ordered[rank]), high=float(ordered[-1 - rank]))


def p_value(difference: Tensor) -> float:
    smaller = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(difference) + 1))
