"""Sources that were read, kept once each however many rows are written from them.

The beams of a request all look at one source. So a row holds the number of its source, and `select` moves numbers; the
encoded sources, which are most of what an encoder-decoder remembers, are copied only when some of them are done with.
Where rows come in equal groups, as in a beam search, attention treats the rows of a group as further queries on their
source: one product instead of many, and nothing to gather.

Axes: R rows, N sources, g rows of each source, T time, S places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from textwright.models.state import State, join, map_leaves


@dataclass(frozen=True)
class Memory(State):
    """What was read, and which row looks at what.

    Attributes:
        read: whatever the family keeps of a source, each (N, …); what grows with the source is padded with zeros.
        lengths: (N,) places of each source.
        ids: (N, S) its tokens.
        owner: (R,) number of each row's source. Of the leaves this one alone has a row a row.
    """

    read: tuple[Tensor, ...]
    lengths: Tensor
    ids: Tensor
    owner: Tensor

    @classmethod
    def of(cls, read: tuple[Tensor, ...], lengths: Tensor, ids: Tensor) -> Memory:
        """One row for each source."""
        return cls(read, lengths, ids, torch.arange(len(lengths), device=lengths.device))

    def select(self, rows: Tensor) -> Self:
        used, owner = self.owner[rows].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        if len(used) == len(self.lengths):
            return type(self)(self.read, self.lengths, self.ids, owner)
        return self._keep(used, owner)

    def concat(self, other: Self) -> Self:
        mine, theirs = ((part.read, part.lengths, part.ids) for part in (self, other))
        return type(self)(*map_leaves(join, mine, theirs), torch.cat([self.owner, other.owner + len(self.lengths)]))

    def in_groups(self) -> Self:
        """The same with rows in equal groups, N · g of them in the order of their sources; copies only if it must."""
        sources, rows = len(self.lengths), len(self.owner)
        every = torch.arange(sources, device=self.owner.device)
        if sources and rows % sources == 0 and torch.equal(self.owner, every.repeat_interleave(rows // sources)):
            return self
        return self.a_row_each()

    def fold(self, x: Tensor) -> Tensor:
        """(R, T, …) -> (N, g · T, …), for rows in groups."""
        return x.reshape(len(self.lengths), -1, *x.shape[2:])

    def unfold(self, x: Tensor) -> Tensor:
        """(N, g · T, …) -> (R, T, …): the inverse."""
        return x.reshape(len(self.owner), -1, *x.shape[2:])

    def a_row_each(self) -> Self:
        """The same with a copy of its source for every row."""
        rows = torch.arange(len(self.owner), device=self.owner.device)
        return self if torch.equal(self.owner, rows) else self._keep(self.owner, rows)

    def row_ids(self) -> Tensor:
        """(R, S): the tokens of each row's source."""
        return self.ids[self.owner]

    def _keep(self, sources: Tensor, owner: Tensor) -> Self:
        kept = map_leaves(lambda leaf: leaf.index_select(0, sources), (self.read, self.lengths, self.ids))
        return type(self)(*kept, owner)
