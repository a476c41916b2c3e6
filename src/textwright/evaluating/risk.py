"""Minimum Bayes risk (Kumar and Byrne 2004; Eikema and Aziz 2020, "Is MAP decoding all you need?", eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from textwright.evaluating.chrf import ChrF


def least_risk(samples: Sequence[str], utility: Callable[[str, str], float] | None = None) -> int:
    """The sample with the greatest expected utility, the samples themselves standing for what may be right.

    Args:
        samples: texts drawn from one distribution, at least one; what was drawn twice counts twice.
        utility: of a text (first) where another is right (second); None: chrF, which needs no language.

    Returns:
        the place of the first sample with the largest mean utility.
    """
    judged = cache(utility or likeness())
    means = [sum(judged(text, other) for other in samples) / len(samples) for text in samples]
    return max(range(len(samples)), key=means.__getitem__)


def likeness() -> Callable[[str, str], float]:
    """chrF of a text (first) where another is right (second).

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    metric = ChrF()

    def utility(text: str, right: str) -> float:
        return float(metric.aggregate(torch.tensor(metric.pair(text, right), dtype=torch.float64)))

    return utility
