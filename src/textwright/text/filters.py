"""Which pairs are worth training on: empty, overlong, lopsided and repeated ones are left out, counted and named."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from textwright.config import Config
from textwright.errors import DataError
from textwright.text.pairs import Pair

FAR = 0.05  # nats per token by which the sides must differ; of German and English characters it is 0.2 to 0.4


class Filters(Config):
    """Which pairs are dropped besides those that are empty on a side, which always are.

    Attributes:
        max_source: the most tokens a source may have.
        max_target: the most tokens a target may have, the one that ends it not counted.
        ratio: how many times as many tokens the longer side may have. There is no default, because none fits all
            tasks: an answer may have a hundredth of its context. For translation 9 is usual (Koehn et al. 2007).
        duplicates: drop pairs that are the same on both sides as an earlier one; about 100 bytes are held for each.
    """

    max_source: int | None = Field(None, gt=0)
    max_target: int | None = Field(None, gt=0)
    ratio: float | None = Field(None, ge=1)
    duplicates: Literal["keep", "drop"] = "keep"


class Dropped(Config):
    """How many pairs were dropped for one reason, and where the first of them stands."""

    reason: str
    count: int
    first: str


class FilterReport(Config):
    """What became of `pairs` pairs; reasons in the order in which they were met."""

    pairs: int
    dropped: tuple[Dropped, ...]

    @property
    def kept(self) -> int:
        return self.pairs - sum(drop.count for drop in self.dropped)

    def text(self) -> str:
        """The report for people: "dropped 3 of 29,000 pairs: 3 empty on one side (first: train.de:17)"."""
        if not self.dropped:
            return f"kept all {self.pairs:,} pairs" if self.pairs else "there were no pairs"
        told = ", ".join(f"{drop.count:,} {drop.reason} (first: {drop.first})" for drop in self.dropped)
        return f"dropped {self.pairs - self.kept:,} of {self.pairs:,} pairs: {told}"


class Sieve:
    """Filters a stream of pairs. It works on lengths in tokens, so the caller encodes first.

    sieve = Sieve(Filters(max_source=100))
    kept = [pair for pair in read_pairs(source) if sieve.keeps(pair, length(pair.source), length(pair.target))]
    print(sieve.report().text())
    """

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._pairs = 0
        self._dropped: dict[str, tuple[int, str]] = {}
        self._seen: set[bytes] = set()

    def keeps(self, pair: Pair, source_length: int, target_length: int) -> bool:
        """Whether to keep a pair whose sides have so many tokens, control tokens not counted."""
        self._pairs += 1
        reason = self._empty(pair, source_length, target_length)
        reason = reason or self._unfit(source_length, target_length) or self._repeated(pair)
        if reason is None:
            return True
        count, first = self._dropped.get(reason, (0, pair.where))
        self._dropped[reason] = (count + 1, first)
        return False

    def counted(self) -> FilterReport:
        """What was dropped so far."""
        dropped = [Dropped(reason=why, count=count, first=first) for why, (count, first) in self._dropped.items()]
        return FilterReport(pairs=self._pairs, dropped=tuple(dropped))

    def report(self) -> FilterReport:
        """The same, where something must be left.

        Raises:
            DataError: everything was dropped.
        """
        report = self.counted()
        if not report.kept:
            raise DataError(f"no pair is left: {report.text()}; mend the files, or raise max_source, max_target, ratio")
        return report

    def _empty(self, pair: Pair, source_length: int, target_length: int) -> str | None:
        sides = bool(pair.source.strip() and source_length) + bool(pair.target.strip() and target_length)
        return ("empty on both sides", "empty on one side", None)[sides]

    def _unfit(self, source_length: int, target_length: int) -> str | None:
        for side, length, most in (
            ("source", source_length, self._filters.max_source),
            ("target", target_length, self._filters.max_target),
        ):
            if most is not None and length > most:
                return f"with a {side} longer than {most:,} tokens"
        short, long = sorted((source_length, target_length))
        if self._filters.ratio is not None and long > self._filters.ratio * short:
            return f"with one side more than {self._filters.ratio:g} times as long as the other"
        return None

    def _repeated(self, pair: Pair) -> str | None:
        if self._filters.duplicates == "keep":
            return None
        # The length tells where the source ends, so ("ab", "c") is not ("a", "bc").
        text = f"{len(pair.source)}:{pair.source}{pair.target}"
        key = hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]
        if key in self._seen:
            return "the same as an earlier one"
        self._seen.add(key)
        return None


# Sides mixed up --------------------------------------------------------------------------------------------------


def looks_swapped(train_source: Tensor, train_target: Tensor, valid_source: Tensor, valid_target: Tensor) -> bool:
    """Whether the two sides of the second set have changed places, told by how often each token (or character) occurs.

    True if both its sides are likelier under the counts of the other training side, each by more than half of what the
    training sides themselves would gain if they changed places. Where the training sides hardly differ, as texts and
    their summaries do, nothing can be told and the answer is False.

    Shape:
        all four: (vocabulary,), counts over the same ids.
    """
    known = _Sides.of(train_source, train_target)
    return known.likes_target(valid_source) and known.likes_source(valid_target)


def leaning(train_source: Tensor, train_target: Tensor, text: Tensor) -> bool:
    """Whether a text looks like the targets and not like the sources, by the same measure; shapes as above."""
    return _Sides.of(train_source, train_target).likes_target(text)


class _Sides(NamedTuple):
    """How much likelier each token is on the target side (nats), and what the sides would gain by changing places."""

    leaning: Tensor
    to_target: float
    to_source: float

    @classmethod
    def of(cls, source: Tensor, target: Tensor) -> _Sides:
        source, target = source.double(), target.double()
        size = min(source.sum(), target.sum())
        leaning = _smooth(target, size) - _smooth(source, size)
        return cls(leaning, _mean(leaning, target), _mean(-leaning, source))

    def likes_target(self, counts: Tensor) -> bool:
        return self._differ and _mean(self.leaning, counts) > self.to_target / 2

    def likes_source(self, counts: Tensor) -> bool:
        return self._differ and _mean(-self.leaning, counts) > self.to_source / 2

    @property
    def _differ(self) -> bool:
        return min(self.to_target, self.to_source) >= FAR


def _smooth(counts: Tensor, size: Tensor) -> Tensor:
    """Log-probabilities with one added to every count, as if `size` tokens had been counted."""
    scaled = counts * (size / counts.sum().clamp(min=1)) + 1
    return (scaled / scaled.sum()).log()


def _mean(values: Tensor, counts: Tensor) -> float:
    return float((values * counts).sum() / counts.sum().clamp(min=1))
