"""From a corpus to batches: shuffled windows, or contiguous streams whose state is carried over.

Both are endless, deterministic, and resume from a cursor, a small value that is saved with the training state. Neither
lets a row cross the boundary of a document. A batch is always the *global* one: ranks and accumulation take rows of it,
so the same batches are trained on whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from statistics import NormalDist
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from textwright.config import Config
from textwright.noise import below, permuted, uniform
from textwright.text.corpus import Corpus

IGNORE = -100  # target that carries no loss: padding, prompts
RESTARTS = 0.02  # share of a stream's stretches that begin without memory, so that beginnings are learned, too
HALVED, SPREAD, SHORTEST = 0.05, 5.0, 5  # varied stretches: share of half length, standard deviation and least tokens
POOL = 64  # batches whose windows are sorted by length together, to pad little


@dataclass(frozen=True)
class Contrast:
    """For each row of a batch another text, which is liked less.

    Attributes:
        tokens, targets, lengths: as in `Batch`; every row has a length.
        margin: (rows,) float32, log-probability of the batch's own targets less that of these, by the model that
            training began with.
        beta: how far the model may go from there.
    """

    tokens: Tensor
    targets: Tensor
    lengths: Tensor
    margin: Tensor
    beta: float


@dataclass(frozen=True)
class Batch:
    """Rows of text to learn from.

    Attributes:
        tokens: (rows, time) int64, what the model reads.
        targets: (rows, time) int64, the token after each; IGNORE after a row's length, and where no loss is wanted.
        lengths: (rows,) real steps of each row; None: all of them.
        fresh: (rows,) bool, rows that do not go on from the previous batch; None: no row ever does.
        source: (rows, places) int64, what the text is written from, zeros after `source_lengths` (rows,); None where
            texts go on from themselves alone.
        plain: number of targets as the corpus counts them, where they are read in other pieces; None: as they are.
        share: of the usual length; the learning rate follows it.
        contrast: texts that are liked less; then a row is one target.
    """

    tokens: Tensor
    targets: Tensor
    lengths: Tensor | None
    fresh: Tensor | None
    source: Tensor | None = None
    source_lengths: Tensor | None = None
    plain: int | None = None
    share: float = 1.0
    contrast: Contrast | None = None

    @property
    def count(self) -> int:
        """Number of targets that carry loss."""
        learned = self.targets != IGNORE
        return int(learned.sum() if self.contrast is None else learned.any(1).sum())

    def rows(self, start: int, stop: int | None, stride: int = 1) -> Batch:
        """Some of the rows; where there is none, one row without a target, so that every process has work."""
        part = slice(start, stop, stride)
        if len(self.tokens[part]) == 0:
            first, nothing = self.rows(0, 1), torch.zeros(1, dtype=torch.long)
            return replace(first, targets=torch.full_like(first.targets, IGNORE), lengths=nothing, fresh=None)
        return self._map(lambda leaf: leaf[part])

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda leaf: leaf.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In memory that a GPU can copy from by itself."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = _changed(self, change)
        if self.contrast is not None:
            changed["contrast"] = replace(self.contrast, **_changed(self.contrast, change))
        return replace(self, **changed)


def _changed(item: Batch | Contrast, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    given = {field.name: getattr(item, field.name) for field in fields(item)}
    return {name: change(leaf) for name, leaf in given.items() if isinstance(leaf, Tensor)}


class Cursor(Config):
    """Where to go on: everything before it was given out."""

    epoch: int = Field(0, ge=0)
    pool: int = Field(0, ge=0, description="windows: the pool of batches")
    batch: int = Field(0, ge=0, description="windows: the batch in the pool")
    read: tuple[int, ...] = Field((), description="streams: tokens each row has read in this epoch")


class Batches(Protocol):
    """An endless supply of batches."""

    def batches(self, cursor: Cursor) -> Iterator[tuple[Batch, Cursor]]:
        """Batches from `cursor` on, each with the cursor after it."""


class Windows:
    """Windows of at most `context` tokens in random order, anew every epoch: for models without a carried state.

    A document longer than `context` is cut at a random phase each epoch. Windows of similar length share a batch.

    Args:
        corpus: the tokens.
        context: tokens a window has at most.
        batch_tokens: tokens a batch has at most, padding included.
        first: the id that stands before the first token of a document.
        seed: of the order.
    """

    def __init__(self, corpus: Corpus, context: int, batch_tokens: int, first: int, seed: int) -> None:
        self.corpus, self.context, self.first, self.seed = corpus, context, first, seed
        self.batch_tokens = max(batch_tokens, context)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.long), corpus.ends[:-1]])
        self.lengths = corpus.ends - self.starts

    def batches(self, cursor: Cursor) -> Iterator[tuple[Batch, Cursor]]:
        while True:
            phase, last = self._cut(cursor.epoch)
            count = int(last[-1])
            size = POOL * (self.batch_tokens // self.context)
            for pool in range(cursor.pool, -(-count // size)):
                chosen = torch.arange(pool * size, min(count, (pool + 1) * size))
                begin, length = self._windows(permuted(chosen, count, self.seed, cursor.epoch), phase, last)
                groups = self._group(length, cursor.epoch, pool)
                for number in range(cursor.batch, len(groups)):
                    group = groups[number]
                    cursor = Cursor(epoch=cursor.epoch, pool=pool, batch=number + 1)
                    yield gather(self.corpus, begin[group], length[group], self.first, None), cursor
                cursor = Cursor(epoch=cursor.epoch, pool=pool + 1)
            cursor = Cursor(epoch=cursor.epoch + 1)

    def _cut(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Each document's phase (documents,), and the running number of windows after it."""
        phase = torch.tensor([below(self.context, self.seed, epoch, 1)])
        phase = torch.where(self.lengths > self.context, (phase + self.starts * 31) % self.context, 0)
        return phase, ((self.lengths + phase + self.context - 1) // self.context).cumsum(0)

    def _windows(self, number: Tensor, phase: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """First token and length of windows, by number."""
        document = torch.searchsorted(last, number, right=True)
        before = torch.where(document > 0, last[document - 1], 0)
        begin = (number - before) * self.context - phase[document]
        stop = torch.minimum(begin + self.context, self.lengths[document])
        begin = begin.clamp(min=0)
        return self.starts[document] + begin, stop - begin

    def _group(self, length: Tensor, epoch: int, pool: int) -> list[Tensor]:
        """Places of windows in batches, the batches in random order."""
        groups = by_length(length, self.batch_tokens)
        order = permuted(torch.arange(len(groups)), len(groups), self.seed, epoch, pool, 2)
        return [groups[place] for place in order.tolist()]


class Streams:
    """Rows that read on where they stopped, `time` tokens a batch: for recurrent models, whose state is carried over.

    The corpus is cut into `rows` stretches of equal length, at a random phase each epoch (at none without a seed). A
    row stops at the end of a document and begins the next one fresh in the next batch. Now and then a row forgets in
    the middle of a document: a model that never begins relies on a memory that no reader starts with.

    With `varied`, batches are of different lengths around `time`, so that stretches are not cut at the same places in
    every epoch and no token is always the last that a gradient reaches (Merity et al. 2018, section 4.1).
    """

    def __init__(
        self, corpus: Corpus, rows: int, time: int, first: int, seed: int | None, *, varied: bool = False
    ) -> None:
        self.corpus, self.time, self.first, self.seed, self.varied = corpus, time, first, seed, varied
        self.total = len(corpus.tokens)
        self.rows = max(1, min(rows, self.total // max(1, min(time, self.total))))

    def batches(self, cursor: Cursor) -> Iterator[tuple[Batch, Cursor]]:
        bounds = torch.arange(self.rows + 1) * self.total // self.rows
        goal = bounds.diff()
        while True:
            read = torch.tensor(cursor.read) if cursor.read else torch.zeros(self.rows, dtype=torch.long)
            first = bounds[:-1] + (0 if self.seed is None else below(self.total, self.seed, cursor.epoch))
            while bool((read < goal).any()):
                place = (first + read) % self.total
                stop = self.corpus.ends[torch.searchsorted(self.corpus.ends, place, right=True)]
                time = self._time(cursor.epoch, read)
                length = torch.minimum(goal - read, stop - place).clamp(max=time)
                fresh = (read == 0) | self.corpus.begins(place) | self._restarts(cursor.epoch, read)
                read = read + length
                cursor = Cursor(epoch=cursor.epoch, read=tuple(read.tolist()))
                batch = gather(self.corpus, place, length, self.first, fresh)
                yield replace(batch, share=time / self.time), cursor
            cursor = Cursor(epoch=cursor.epoch + 1)

    def _time(self, epoch: int, read: Tensor) -> int:
        """Most tokens of a row in the batch that comes after `read`."""
        if not self.varied or self.seed is None:
            return self.time
        key = (self.seed, epoch, int(read.sum()))
        mean = self.time / 2 if below(1000, *key, 4) < 1000 * HALVED else self.time
        drawn = NormalDist(mean, SPREAD).inv_cdf((below(2**30, *key, 5) + 0.5) / 2**30)
        return max(min(SHORTEST, self.time), round(drawn))

    def _restarts(self, epoch: int, read: Tensor) -> Tensor:
        """(rows,) bool: the row forgets here, by chance; never without a seed."""
        if self.seed is None:
            return torch.zeros(self.rows, dtype=torch.bool)
        key = torch.full_like(read, below(2**62, self.seed, epoch, 3))
        return uniform(key, torch.arange(self.rows) + self.rows * read) < RESTARTS


def by_length(length: Tensor, batch_tokens: int) -> list[Tensor]:
    """Places of windows, longest first, in groups that hold `batch_tokens` with padding; equals keep their order."""
    ordered, places = length.sort(descending=True, stable=True)
    groups, start = [], 0
    while start < len(places):
        rows = max(1, batch_tokens // int(ordered[start]))
        groups.append(places[start : start + rows])
        start += rows
    return groups


def strided(corpus: Corpus, window: int, stride: int, batch_tokens: int, first: int) -> Iterator[Batch]:
    """Every token of a corpus as a target exactly once, with at least window - stride tokens of its document before it
    (or all there are): what perplexity is measured on. Targets that only give context are IGNOREd.
    """
    starts = torch.cat([torch.zeros(1, dtype=torch.long), corpus.ends[:-1]])
    lengths = corpus.ends - starts
    last = (1 + ((lengths - window).clamp(min=0) + stride - 1) // stride).cumsum(0)
    size = POOL * max(1, batch_tokens // window)
    for start in range(0, int(last[-1]), size):
        number = torch.arange(start, min(start + size, int(last[-1])))
        document = torch.searchsorted(last, number, right=True)
        turn = number - torch.where(document > 0, last[document - 1], 0)
        scored = torch.where(turn > 0, window + (turn - 1) * stride, 0)  # first target of the document that counts here
        stop = torch.minimum(window + turn * stride, lengths[document])
        begin = (stop - window).clamp(min=0)
        for group in by_length(stop - begin, batch_tokens):
            batch = gather(corpus, (starts[document] + begin)[group], (stop - begin)[group], first, None)
            context = torch.arange(batch.targets.shape[1]) < (scored - begin)[group][:, None]
            yield replace(batch, targets=batch.targets.masked_fill(context, IGNORE))


def gather(corpus: Corpus, begin: Tensor, length: Tensor, first: int, fresh: Tensor | None) -> Batch:
    """The batch of windows that begin at `begin` (rows,) and have `length` (rows,) targets, none of them with tokens of
    two documents. `first` stands in front of a document's first token."""
    step = torch.arange(int(length.max()))
    real = step < length[:, None]
    place = torch.where(real, begin[:, None] + step, 0)
    targets = corpus.tokens[place].long()
    before = torch.where(place > 0, corpus.tokens[(place - 1).clamp(min=0)].long(), first)
    before[:, 0] = torch.where(corpus.begins(begin), first, before[:, 0])
    corpus.touched(len(begin), len(step))
    full = bool(real.all())
    return Batch(before, targets if full else targets.where(real, IGNORE), None if full else length, fresh)
