"""Buckets hold every pair once an epoch within their budget, begin with the longest, and resume from any cursor."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.text.batching import IGNORE, Batch, Cursor
from textwright.text.buckets import Buckets, Plain, Rows, Sides
from textwright.text.corpus import Corpus, Facts

END = 1
NEW = 400_000  # in no document
shapes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)
budgets, seeds = st.integers(1, 120), st.integers(0, 9)
many = settings(max_examples=30, deadline=None)
MIXED = [(3 + 7 * n % 23, 2 + 11 * n % 19) for n in range(97)]


def documents(lengths: list[int], first: int) -> list[list[int]]:
    """Tokens that occur once each, behind them the end: a row tells which document it holds."""
    texts = []
    for length in lengths:
        texts.append([*range(first, first + length - 1), END])
        first += length
    return texts


def corpus(texts: list[list[int]]) -> Corpus:
    tokens = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return Corpus(tokens, ends, Facts(vocabulary=10**6, tokens=len(tokens), documents=len(texts)))


def pairs(lengths: list[tuple[int, int]]) -> tuple[Sides, list[list[int]], list[list[int]]]:
    sources = documents([source for source, _ in lengths], 2)
    targets = documents([target for _, target in lengths], 500_000)
    return Sides(corpus(sources), corpus(targets)), sources, targets


def epoch(supply: Buckets, number: int) -> list[Batch]:
    found = []
    for batch, cursor in supply.batches(Cursor(epoch=number)):
        if cursor.epoch > number:
            return found
        found.append(batch)
    raise AssertionError


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Source and target of every row; whatever else stands in the batch is checked on the way."""
    assert batch.source is not None and batch.source_lengths is not None
    found = []
    for row in range(len(batch.tokens)):
        length = batch.tokens.shape[1] if batch.lengths is None else int(batch.lengths[row])
        places = int(batch.source_lengths[row])
        source, target = batch.source[row, :places].tolist(), batch.targets[row, :length].tolist()
        assert batch.tokens[row, :length].tolist() == [END, *target[:-1]]
        assert (batch.targets[row, length:] == IGNORE).all()
        assert (batch.source[row, places:] == 0).all()
        assert source[-1] == target[-1] == END
        found.append((source, target))
    # No column is padding in every row.
    assert batch.tokens.shape[1] == max(len(target) for _, target in found)
    assert batch.source.shape[1] == max(len(source) for source, _ in found)
    assert batch.count == sum(len(target) for _, target in found)
    return found


@given(shapes, budgets, seeds)
@many
def test_every_pair_once_an_epoch(lengths: list[tuple[int, int]], budget: int, seed: int) -> None:
    sides, sources, targets = pairs(lengths)
    supply = Buckets(sides, budget, (END,), seed)
    for number in range(2):
        found = [row for batch in epoch(supply, number) for row in rows(batch)]
        assert sorted(found) == sorted(zip(sources, targets, strict=True))


@given(shapes, budgets, seeds)
@many
def test_batches_are_as_full_as_the_budget_allows(lengths: list[tuple[int, int]], budget: int, seed: int) -> None:
    supply = Buckets(pairs(lengths)[0], budget, (END,), seed)
    for number in range(2):
        batches = epoch(supply, number)
        longest = [max(batch.tokens.shape[1], batch.source.shape[1]) for batch in batches]
        sizes = [len(batch.tokens) for batch in batches]
        full = [max(1, budget // side) for side in longest]
        assert all(size <= limit for size, limit in zip(sizes, full, strict=True))
        assert sum(size < limit for size, limit in zip(sizes, full, strict=True)) <= 1  # the rest of the epoch


@given(shapes, budgets, seeds)
@many
def test_similar_lengths_share_a_batch(lengths: list[tuple[int, int]], budget: int, seed: int) -> None:
    """By the longer side no batch reaches into another one."""
    batches = epoch(Buckets(pairs(lengths)[0], budget, (END,), seed), 1)
    longer = [sorted(max(map(len, row)) for row in rows(batch)) for batch in batches]
    assert all(first[-1] <= second[0] for first, second in pairwise(sorted(longer)))


def test_of_equal_longer_sides_the_shorter_ones_are_sorted_too() -> None:
    """Otherwise a batch of equally long targets would be padded to its longest source."""
    lengths = [(2 + n * 37 % 50, 60) for n in range(50)]
    batches = epoch(Buckets(pairs(lengths)[0], 600, (END,), 0), 0)
    shorter = sorted(sorted(len(source) for source, _ in rows(batch)) for batch in batches)
    assert [length for group in shorter for length in group] == list(range(2, 52))


@given(shapes, budgets, seeds)
@many
def test_training_begins_with_the_longest_pair(lengths: list[tuple[int, int]], budget: int, seed: int) -> None:
    (first, _) = next(Buckets(pairs(lengths)[0], budget, (END,), seed).batches(Cursor()))
    assert max(len(side) for row in rows(first) for side in row) == max(map(max, lengths))


def test_all_other_batches_are_shuffled() -> None:
    supply = Buckets(pairs(MIXED)[0], 60, (END,), 0)
    longest = [[max(batch.tokens.shape[1], batch.source.shape[1]) for batch in epoch(supply, n)] for n in range(6)]
    assert all(sizes != sorted(sizes, reverse=True) for sizes in longest)
    assert len({sizes.index(max(sizes)) for sizes in longest}) >= 4  # the longest comes first in the first epoch alone
    assert sorted(longest[0][1:]) != longest[0][1:]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    sides, _, _ = pairs(MIXED)

    def order(seed: int, number: int) -> list[list[int]]:
        return [batch.targets[:, 0].tolist() for batch in epoch(Buckets(sides, 60, (END,), seed), number)]

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(4, 1)
    assert order(3, 1) != order(3, 2)
    # Not only the batches come in another order: pairs of equal lengths meet others.
    first, second = ({frozenset(batch) for batch in order(3, number)} for number in (1, 2))
    assert first != second


@given(shapes, budgets, seeds, st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_resume_from_any_cursor(lengths: list[tuple[int, int]], budget: int, seed: int, skip: int) -> None:
    """The cursor of a batch is where the next one comes from, at the end of an epoch, too."""
    sides = pairs(lengths)[0]
    through = list(islice(Buckets(sides, budget, (END,), seed).batches(Cursor()), skip + 5))
    saved = Cursor.parse(through[skip - 1][1].dump())
    resumed = list(islice(Buckets(sides, budget, (END,), seed).batches(saved), 5))
    for (batch, cursor), (again, cursor_again) in zip(through[skip:], resumed, strict=True):
        assert cursor == cursor_again
        assert torch.equal(batch.targets, again.targets)
        assert torch.equal(batch.source, again.source)


@given(shapes, seeds, st.integers(1, 6))
@many
def test_ranks_share_a_batch(lengths: list[tuple[int, int]], seed: int, size: int) -> None:
    (batch, _) = next(Buckets(pairs(lengths)[0], 90, (END,), seed).batches(Cursor()))
    parts = [batch.rows(rank, None, size) for rank in range(size)]
    assert sum(part.count for part in parts) == batch.count
    found = []
    for part in parts:
        assert len(part.tokens) == len(part.source) == len(part.source_lengths) >= 1
        if part.count:
            found += [(part.source[n].tolist(), part.targets[n].tolist()) for n in range(len(part.tokens))]
    whole = [(batch.source[n].tolist(), batch.targets[n].tolist()) for n in range(len(batch.tokens))]
    assert sorted(found) == sorted(whole)


def test_a_rank_without_rows_has_a_source_to_read_but_nothing_to_learn() -> None:
    (batch, _) = next(Buckets(pairs([(4, 3)])[0], 64, (END,), 0).batches(Cursor()))
    nothing = batch.rows(2, None, 4)
    assert nothing.count == 0
    assert (nothing.targets == IGNORE).all()
    assert torch.equal(nothing.source, batch.source)
    assert int(nothing.source_lengths.min()) >= 1  # an encoder needs a token


def test_moving_a_batch_moves_its_source() -> None:
    batch = Buckets(pairs([(4, 3), (2, 5)])[0], 64, (END,), 0).gather(torch.tensor([0, 1]), 0)
    moved = batch.to(torch.device("meta"))
    leaves = (moved.tokens, moved.targets, moved.lengths, moved.source, moved.source_lengths)
    assert all(leaf.device.type == "meta" for leaf in leaves)
    assert moved.fresh is None


@given(shapes, budgets, st.one_of(st.none(), st.integers(1, 30), st.integers(1, 400)))
@many
def test_in_order_takes_the_first_pairs(lengths: list[tuple[int, int]], budget: int, tokens: int | None) -> None:
    """No more of them than are needed for so many target tokens, each one once."""
    sides, sources, targets = pairs(lengths)
    found = sorted(row for batch in Buckets(sides, budget, (END,), 5).in_order(tokens) for row in rows(batch))
    count = len(found)
    assert found == sorted(zip(sources[:count], targets[:count], strict=True))
    if tokens is None:
        assert count == len(lengths)
    else:
        assert sum(map(len, targets[: count - 1])) < tokens
        assert count == len(lengths) or sum(map(len, targets[:count])) >= tokens


@given(shapes, st.lists(st.integers(2, 9), min_size=1, max_size=3), st.data())
@many
def test_a_batch_is_its_texts_one_by_one(lengths: list[tuple[int, int]], start: list[int], data: st.DataObject) -> None:
    """What stands before a text carries no loss, however long it is; nothing stands after one."""
    sides, sources, targets = pairs(lengths)
    numbers = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    batch = Buckets(sides, 64, start, 0).gather(torch.tensor(numbers), 0)
    read = [torch.tensor([*start, *targets[number][:-1]]) for number in numbers]
    wanted = [torch.tensor([IGNORE] * (len(start) - 1) + targets[number]) for number in numbers]
    assert torch.equal(batch.tokens, pad_sequence(read, batch_first=True))
    assert torch.equal(batch.targets, pad_sequence(wanted, batch_first=True, padding_value=IGNORE))
    assert batch.source is not None and batch.source_lengths is not None
    given_ = [torch.tensor(sources[number]) for number in numbers]
    assert torch.equal(batch.source, pad_sequence(given_, batch_first=True))
    assert batch.source_lengths.tolist() == [len(source) for source in given_]
    lengths_ = [len(row) for row in read]
    assert (batch.lengths is None) == (len(set(lengths_)) == 1)
    assert batch.lengths is None or batch.lengths.tolist() == lengths_
    assert batch.plain == sum(len(targets[number]) for number in numbers)


def test_a_reader_may_read_otherwise_at_every_epoch() -> None:
    sides = pairs([(2, 2), (3, 3), (4, 2)])[0]

    class Longer(Plain):
        """As it was encoded, with a few more tokens in front."""

        def __call__(self, side: int, numbers: Tensor, epoch: int) -> Rows:
            rows, more = super().__call__(side, numbers, epoch), epoch + side
            return Rows(F.pad(rows.ids, (more, 0), value=NEW), rows.lengths + more)

    supply = Buckets(sides, 4, (END,), 0, Longer(sides))
    for number in range(3):
        for source, target in (row for batch in epoch(supply, number) for row in rows(batch)):
            assert source[:number] == [NEW] * number
            assert NEW not in source[number:]
            assert target[: number + 1] == [NEW] * (number + 1)
            assert NEW not in target[number + 1 :]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_ids_of_every_storage_come_out_whole(dtype: torch.dtype) -> None:
    highest = {torch.uint8: 255, torch.uint16: 65535, torch.int32: 2**31 - 1}[dtype]
    one = Corpus(torch.tensor([highest, END]).to(dtype), torch.tensor([2]), Facts(vocabulary=256))
    batch = Buckets(Sides(one, one), 8, (END,), 0).gather(torch.tensor([0]), 0)
    assert batch.targets.tolist() == batch.source.tolist() == [[highest, END]]
    assert batch.lengths is None  # nothing is padded
