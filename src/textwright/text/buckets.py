"""From pairs, or other short texts, to batches: buckets of similar length under a budget of tokens, the longest batch
first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.noise import permuted
from textwright.text.batching import IGNORE, Batch, Cursor, by_length
from textwright.text.corpus import Corpus


class Sides(NamedTuple):
    """Two corpora whose documents belong together: document i of `target` is written from document i of `source`."""

    source: Corpus
    target: Corpus

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.target.ends)

    def lengths(self) -> tuple[Tensor, Tensor]:
        """(pairs,) tokens of each source and of each target, the end included."""
        return lengths_of(self.source), lengths_of(self.target)


class Rows(NamedTuple):
    """ids (rows, longest), 0 after the `lengths` (rows,) of each."""

    ids: Tensor
    lengths: Tensor


class Reader(Protocol):
    """How documents become ids; another one than the corpus's own may read them differently at every epoch."""

    def __call__(self, side: int, numbers: Tensor, epoch: int) -> Rows:
        """Documents `numbers` (rows,) of the source (side 0) or the target (side 1), the end included."""


class Plain:
    """Documents as they were encoded once."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        self.starts = [torch.cat([torch.zeros(1, dtype=torch.long), corpus.ends[:-1]]) for corpus in sides]

    def __call__(self, side: int, numbers: Tensor, epoch: int) -> Rows:
        corpus, starts = self.sides[side], self.starts[side][numbers]
        lengths = corpus.ends[numbers] - starts
        step = torch.arange(int(lengths.max()))
        real = step < lengths[:, None]
        ids = corpus.tokens[torch.where(real, starts[:, None] + step, 0)].long()
        corpus.touched(len(numbers), len(step))
        return Rows(ids.masked_fill_(~real, 0), lengths)


class LengthBuckets(ABC):
    """All items in random order, anew every epoch; items of similar lengths share a batch.

    The very first batch is the one with the longest items: what does not fit the memory fails at once, and not after an
    hour.

    Args:
        longer: (items,) tokens by which batches are filled.
        other: (items,) by which items of the same length are sorted.
        batch_tokens: tokens that a batch has at most, padding included.
        seed: of the order.
    """

    def __init__(self, longer: Tensor, other: Tensor, batch_tokens: int, seed: int) -> None:
        self.longer, self.other, self.batch_tokens, self.seed = longer, other, batch_tokens, seed

    @abstractmethod
    def gather(self, numbers: Tensor, epoch: int) -> Batch:
        """The batch of these items."""

    def batches(self, cursor: Cursor) -> Iterator[tuple[Batch, Cursor]]:
        while True:
            groups = self._groups(cursor.epoch)
            for number in range(cursor.batch, len(groups)):
                cursor = Cursor(epoch=cursor.epoch, batch=number + 1)
                yield self.gather(groups[number], cursor.epoch), cursor
            cursor = Cursor(epoch=cursor.epoch + 1)

    def first(self, targets: Tensor, tokens: int | None) -> Iterator[Batch]:
        """Every item once, or the first ones that hold so many targets (items,): what a loss is measured on."""
        count = len(targets) if tokens is None else 1 + int((targets.cumsum(0) < tokens).sum())
        for group in by_length(self.longer[:count], self.batch_tokens):
            yield self.gather(group, 0)

    def _groups(self, epoch: int) -> list[Tensor]:
        """Numbers of the items of each batch of an epoch."""
        order = permuted(torch.arange(len(self.longer)), len(self.longer), self.seed, epoch)
        # By the longer side, then by the other one, then by chance: sorting is stable, so the last comes first.
        order = order[self.other[order].argsort(stable=True)]
        groups = [order[places] for places in by_length(self.longer[order], self.batch_tokens)]
        shuffled = permuted(torch.arange(len(groups)), len(groups), self.seed, epoch, 1).tolist()
        if epoch == 0:
            shuffled.remove(0)
            shuffled.insert(0, 0)
        return [groups[place] for place in shuffled]


class Buckets(LengthBuckets):
    """Pairs of similar lengths.

    Args:
        sides: the pairs.
        batch_tokens: tokens that the longer side of a batch has at most, padding included.
        start: the ids before the first token of a text. None of them carries loss.
        seed: of the order.
        reader: gives the ids of a document.
    """

    def __init__(
        self, sides: Sides, batch_tokens: int, start: Sequence[int], seed: int, reader: Reader | None = None
    ) -> None:
        source, target = sides.lengths()
        super().__init__(torch.maximum(source, target), torch.minimum(source, target), batch_tokens, seed)
        self.sides, self.start, self.target_lengths = sides, torch.tensor(start), target
        self.reader = reader or Plain(sides)

    def in_order(self, tokens: int | None = None) -> Iterator[Batch]:
        """Every pair once, or the first pairs that hold so many target tokens."""
        return self.first(self.target_lengths, tokens)

    def gather(self, numbers: Tensor, epoch: int) -> Batch:
        """The batch of these pairs."""
        source, target = self.reader(0, numbers, epoch), self.reader(1, numbers, epoch)
        tokens = torch.cat([self.start.expand(len(numbers), -1), target.ids[:, :-1]], 1)
        step = torch.arange(tokens.shape[1]) - (len(self.start) - 1)  # 0 is where the first target is
        after = step >= target.lengths[:, None]
        targets = F.pad(target.ids, (len(self.start) - 1, 0)).masked_fill_(after | (step < 0), IGNORE)
        lengths = target.lengths + len(self.start) - 1
        return Batch(
            tokens.masked_fill_(after, 0),
            targets,
            None if bool((lengths == tokens.shape[1]).all()) else lengths,
            None,
            source.ids,
            source.lengths,
            int(self.target_lengths[numbers].sum()),
        )


def lengths_of(corpus: Corpus) -> Tensor:
    """(documents,) tokens of each, the end included."""
    return corpus.ends.diff(prepend=torch.zeros(1, dtype=torch.long))
