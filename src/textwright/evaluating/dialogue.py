"""Figures of responses that need no references: how varied they are, and how long.

They say nothing about whether a response fits what was asked. They are no `Metric`, and the bootstrap refuses them, for
`Distinct` cannot be resampled: a response drawn twice adds words and nothing new, so that every resample looks duller
than the responses themselves, and the figure is no function of sums over items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from textwright.errors import ConfigError
from textwright.evaluating.scores import Score, check_texts
from textwright.evaluating.signatures import signed
from textwright.evaluating.words import words

_WORDS = "case:lc|punct:no|tok:words, characters in unspaced scripts"


class ResponseMetric(ABC):
    """A figure of a list of responses alone."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As the literature writes it."""

    @abstractmethod
    def corpus(self, responses: Sequence[str]) -> Score:
        """The figure of all responses together; `DataError` where there is none."""


@dataclass(frozen=True)
class Distinct(ResponseMetric):
    """distinct-n (Li et al. 2016): different n-grams ÷ words, over all responses together, in percent.

    The paper divides by words for every n; some programs divide by n-grams: `extras` holds all three counts. N-grams do
    not reach from one response into the next. The figure falls as responses are added: compare equal numbers only.
    Responses without a word give 0.
    """

    order: int

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ConfigError(f"expected n-grams of at least 1 word, got {self.order}: Distinct(1), Distinct(2)")

    @property
    def name(self) -> str:
        return f"distinct-{self.order}"

    def corpus(self, responses: Sequence[str]) -> Score:
        check_texts(responses, "responses")
        texts = [words(text) for text in responses]
        ngrams = [tuple(t[i : i + self.order]) for t in texts for i in range(len(t) - self.order + 1)]
        counts = {"distinct": len(set(ngrams)), "ngrams": len(ngrams), "words": sum(map(len, texts))}
        return Score(
            name=self.name,
            value=100 * counts["distinct"] / max(counts["words"], 1),
            higher_is_better=True,
            signature=signed(f"distinct n-grams÷words|{_WORDS}"),
            extras={key: float(count) for key, count in counts.items()},
        )


class MeanLength(ResponseMetric):
    """Words of a response, mean; neither long nor short is better, but a collapse shows here."""

    name = "mean length"

    def corpus(self, responses: Sequence[str]) -> Score:
        check_texts(responses, "responses")
        lengths = [len(words(text)) for text in responses]
        return Score(
            name=self.name,
            value=sum(lengths) / len(lengths),
            unit="words",
            higher_is_better=None,
            signature=signed(f"mean of items|{_WORDS}"),
            extras={"shortest": float(min(lengths)), "longest": float(max(lengths))},
        )
