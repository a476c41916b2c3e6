"""What a metric of text-to-text tasks is: statistics that add up over items, and one figure from their sums.

So the figure of a corpus and of any resample of its items is `aggregate` of summed rows, and bootstrap.py fits all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from textwright.config import Config
from textwright.errors import DataError


class Score(Config):
    """One figure and how it came about.

    Attributes:
        name: of the metric, as the literature writes it.
        value: in `unit`.
        unit: "percent" (0 to 100; an error rate may pass 100) or "words".
        higher_is_better: None where neither direction is better, as for a length.
        signature: everything another person needs to compute the same figure.
        extras: further figures: BLEU's brevity penalty, precision and recall of ROUGE.
    """

    name: str
    value: float
    unit: str = "percent"
    higher_is_better: bool | None
    signature: str
    extras: dict[str, float] = Field(default_factory=dict)


class Metric(ABC):
    """A figure from hypotheses and references; references[i] are the acceptable texts of item i, at least one."""

    higher_is_better: bool = True

    @property
    @abstractmethod
    def name(self) -> str:
        """As the literature writes it."""

    @abstractmethod
    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """What is summed over items. Shape: (items, k), float64."""

    @abstractmethod
    def aggregate(self, sums: Tensor) -> Tensor:
        """The figures of summed statistics, in percent. Shape: (..., k) to (...)."""

    @abstractmethod
    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        """How the figure of these references and sums (k,) was computed."""

    def extras(self, sums: Tensor) -> dict[str, float]:
        """Further figures of summed statistics (k,)."""
        return {}

    def corpus(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
        """The figure of all items together.

        Raises:
            DataError: nothing to score, different numbers of items, or an item without a reference.
        """
        return self.score(self.statistics(hypotheses, references), references)

    def score(self, statistics: Tensor, references: Sequence[Sequence[str]]) -> Score:
        """The figure of statistics (items, k) that were taken against these references."""
        sums = statistics.sum(0)
        return Score(
            name=self.name,
            value=float(self.aggregate(sums)),
            higher_is_better=self.higher_is_better,
            signature=self.signature(references, sums),
            extras=self.extras(sums),
        )


class Pairwise(Metric):
    """A metric that compares a hypothesis with one reference at a time and keeps the reference that suits it best."""

    @abstractmethod
    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """The statistics (k) of one hypothesis and one reference."""

    def preference(self, rows: Tensor) -> Tensor:
        """How well each row suits; the highest is kept, the first of equals. Shape: (rows, k) to (rows,)."""
        return self.aggregate(rows) if self.higher_is_better else -self.aggregate(rows)

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        check(hypotheses, references)
        items = zip(hypotheses, references, strict=True)
        rows = torch.tensor([self.pair(text, one) for text, several in items for one in several], dtype=torch.float64)
        preference, chosen, start = self.preference(rows).tolist(), [], 0
        for several in references:
            chosen.append(max(range(start, start + len(several)), key=preference.__getitem__))
            start += len(several)
        return rows[chosen]


def check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise `DataError` unless there is at least one item, and a list of references for each."""
    check_texts(hypotheses, "hypotheses")
    if len(hypotheses) != len(references):
        raise DataError(
            f"expected references for each hypothesis, got {len(references)} for {len(hypotheses)} hypotheses:"
            ' references[i] holds the acceptable texts of item i, as in [["a text"], ["another", "or this"]]'
        )
    for number, several in enumerate(references):
        if isinstance(several, str):
            raise DataError(
                f"references[{number}] is a text, expected a list of texts: [[text] for text in references]"
            )
        if not several:
            raise DataError(f"item {number} has no reference: give it one, or leave the item out of both lists")


def check_texts(texts: Sequence[str], what: str) -> None:
    """Raise `DataError` unless `texts` is a list of at least one text."""
    if isinstance(texts, str):
        raise DataError(f"expected a list of {what}, got the one text {texts[:40]!r}: put it into a list, [text]")
    if not texts:
        raise DataError(f"expected at least one item, got an empty list of {what}: was the file empty?")


def mean(sums: Tensor) -> Tensor:
    """Mean over items in percent: the first column sums shares, the last counts items. Shape: (..., k) to (...)."""
    return 100 * sums[..., 0] / sums[..., -1]


def rate(sums: Tensor) -> Tensor:
    """Edits ÷ length in percent; over no length 0 or, with any edit, 100, as in sacrebleu. Shape: (..., 2) to (...)."""
    edits, length = sums[..., 0], sums[..., 1]
    return 100 * torch.where(length > 0, edits / length.clamp(min=1e-9), (edits > 0).double())
