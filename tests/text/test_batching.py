"""Batches hold every token of an epoch as a target exactly once, never cross a document, and resume from any cursor."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.text.batching import IGNORE, Batch, Batches, Cursor, Streams, Windows, strided
from textwright.text.corpus import Corpus, Facts

END = 0
documents = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def corpus(lengths: list[int]) -> Corpus:
    """Every token is unique (but the end), so that a target tells where it came from."""
    total = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.arange(1, total + 1, dtype=torch.int32)
    return Corpus(tokens, ends, Facts(vocabulary=total + 1, tokens=total, documents=len(lengths)))


def epoch(batches: Batches, number: int = 0) -> list[Batch]:
    found = []
    for batch, cursor in batches.batches(Cursor(epoch=number)):
        if cursor.epoch > number:
            return found
        found.append(batch)
    raise AssertionError


def check(data: Corpus, batches: list[Batch]) -> None:
    targets = torch.cat([batch.targets[batch.targets != IGNORE] for batch in batches])
    assert sorted(targets.tolist()) == data.tokens.tolist()
    for batch in batches:
        for row in range(len(batch.tokens)):
            length = batch.tokens.shape[1] if batch.lengths is None else int(batch.lengths[row])
            real = batch.targets[row, :length]
            assert (batch.targets[row, length:] == IGNORE).all()
            if length == 0:
                continue
            # the input is the token before; what stands there in front of a document is no token of another one
            begins = {1, *(int(end) + 1 for end in data.ends)}
            assert batch.tokens[row, :length].tolist() == [END if t in begins else t - 1 for t in real.tolist()]
            assert real.tolist() == list(range(int(real[0]), int(real[0]) + length))
            crossing = [int(end) for end in data.ends if int(real[0]) <= int(end) < int(real[-1])]
            assert not crossing, "a row crosses the boundary of a document"


@given(documents, st.integers(1, 20), st.integers(1, 100), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_windows(lengths: list[int], context: int, batch_tokens: int, seed: int) -> None:
    data = corpus(lengths)
    supply = Windows(data, context, batch_tokens, END, seed)
    for number in range(2):
        batches = epoch(supply, number)
        check(data, batches)
        assert all(batch.tokens.numel() <= max(batch_tokens, context) for batch in batches)
        assert all(batch.fresh is None for batch in batches)


@given(documents, st.integers(1, 6), st.integers(1, 20), st.integers(0, 5), st.booleans())
@settings(max_examples=80, deadline=None)
def test_streams(lengths: list[int], rows: int, time: int, seed: int, varied: bool) -> None:
    data = corpus(lengths)
    supply = Streams(data, rows, time, END, seed, varied=varied)
    for number in range(2):
        batches = epoch(supply, number)
        check(data, batches)
        last, restarts = [None] * supply.rows, 0
        starts = {1, *(int(end) + 1 for end in data.ends)}
        for batch in batches:
            for row in range(supply.rows):
                length = batch.tokens.shape[1] if batch.lengths is None else int(batch.lengths[row])
                if length:
                    first = int(batch.targets[row, 0])
                    goes_on = last[row] is not None and first == last[row] + 1 and first not in starts
                    assert bool(batch.fresh[row]) or goes_on
                    restarts += bool(batch.fresh[row]) and goes_on
                    last[row] = int(batch.targets[row, length - 1])
        assert restarts <= 0.1 * supply.rows * len(batches) + 2


@pytest.mark.parametrize("kind", ["windows", "streams", "varied"])
@pytest.mark.parametrize("skip", [1, 7, 23])
def test_resume_from_a_cursor(kind: str, skip: int) -> None:
    data = corpus([50, 3, 200, 1, 77, 18])
    streams = Streams(data, 4, 9, END, 3, varied=kind == "varied")
    supply = Windows(data, 16, 64, END, 3) if kind == "windows" else streams
    through = list(islice(supply.batches(Cursor()), skip + 15))
    saved = Cursor.parse(through[skip - 1][1].dump())
    resumed = list(islice(supply.batches(saved), 15))
    for (batch, cursor), (again, cursor_again) in zip(through[skip:], resumed, strict=True):
        assert cursor == cursor_again
        assert torch.equal(batch.tokens, again.tokens)
        assert torch.equal(batch.targets, again.targets)
        assert batch.share == again.share


def test_epochs_differ_in_order_and_in_cuts() -> None:
    supply = Windows(corpus([500]), 16, 32, END, 0)
    first, second = ([batch.targets[0, 0].item() for batch in epoch(supply, number)] for number in range(2))
    assert first != second
    assert {start % 16 for start in first if start > 16} != {start % 16 for start in second if start > 16}


def test_parts_and_ranks_share_a_batch() -> None:
    (batch, *_) = epoch(Windows(corpus([5, 9, 9, 3, 7]), 16, 200, END, 0))
    parts = [batch.rows(rank, None, 2) for rank in range(2)]
    targets = torch.cat([part.targets for part in parts])
    assert sorted(targets[targets != IGNORE].tolist()) == list(range(1, 34))
    assert sum(part.count for part in parts) == batch.count == 33


def test_a_rank_without_rows_gets_one_without_targets() -> None:
    (batch, *_) = epoch(Windows(corpus([5]), 16, 16, END, 0))
    nothing = batch.rows(1, None, 2)
    assert nothing.tokens.shape == (1, 5)
    assert nothing.count == 0
    assert (nothing.targets == IGNORE).all()


@given(documents, st.integers(1, 20), st.integers(1, 20), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_strided_scores_every_token_once_with_its_context(
    lengths: list[int], window: int, stride: int, batch_tokens: int
) -> None:
    stride = min(stride, window)
    data = corpus(lengths)
    starts = [1, *(int(end) + 1 for end in data.ends)]
    seen: list[int] = []
    for batch in strided(data, window, stride, batch_tokens, END):
        for row in range(len(batch.tokens)):
            length = batch.tokens.shape[1] if batch.lengths is None else int(batch.lengths[row])
            assert length <= window
            scored = [place for place in range(length) if batch.targets[row, place] != IGNORE]
            for place in scored:
                target = int(batch.targets[row, place])
                document = max(start for start in starts if start <= target)
                assert place >= min(window - stride, target - document), "too little context"
                seen.append(target)
    assert sorted(seen) == data.tokens.tolist()


def test_the_order_does_not_depend_on_memory() -> None:
    """A corpus of many windows is shuffled without a list of them."""
    supply = Windows(corpus([100_000]), 10, 1000, END, 0)
    batch, _ = next(supply.batches(Cursor()))
    starts = batch.targets[:, 0].double()
    assert float(starts.std()) > 20_000  # windows come from everywhere


def test_streams_restart_now_and_then_but_never_when_they_are_scored() -> None:
    data = corpus([40_000])
    shares = []
    for seed in (0, None):
        batches = epoch(Streams(data, 8, 10, END, seed))
        shares.append(float(torch.stack([batch.fresh for batch in batches]).double().mean()))
    assert 0.01 < shares[0] < 0.03
    assert shares[1] == pytest.approx(1 / len(batches))


def test_varied_streams_have_lengths_around_the_usual_one() -> None:
    batches = epoch(Streams(corpus([400_000]), 4, 70, END, 1, varied=True))[:-8]  # the last ones end with the corpus
    lengths = torch.tensor([batch.tokens.shape[1] for batch in batches]).double()
    assert [batch.share for batch in batches] == pytest.approx((lengths / 70).tolist())
    short = lengths < 52
    assert 0.02 < float(short.double().mean()) < 0.08
    assert abs(float(lengths[~short].mean()) - 70) < 1
    assert abs(float(lengths[short].mean()) - 35) < 3
    assert 4 < float(lengths[~short].std()) < 6
    assert all(batch.share == 1 for batch in epoch(Streams(corpus([4000]), 4, 70, END, 1)))
