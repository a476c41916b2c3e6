"""BPE dropout changes how a text is cut and never the text: the published algorithm, repeatable, anew every epoch."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from textwright.errors import ConfigError
from textwright.text.buckets import Plain, Reader, Sides
from textwright.text.corpus import Corpus, Facts
from textwright.text.resegment import Resegmented, segment
from textwright.text.tokenizers import Tokenizer, TokenizerConfig, train

LINES = [
    "the lower the newest tower, the wider the widest river",
    "Die niedrigen Türme stehen am breiten Fluss, der niedrigste am breitesten.",
    "我们去公园玩，天气很好。我们去公园。",
    "lower lowest newer newest wider widest 12345 12346 !!! ... 🙂🙂 🙂",
    "a  text   with    many     spaces",
]
MERGES = {pair: rank for rank, pair in enumerate([("l", "o"), ("e", "r"), ("lo", "w"), ("low", "er"), ("w", "e")])}
DRAWS = 20_000
many = settings(max_examples=60, deadline=None)

words = st.sampled_from(" ".join(LINES).split())
texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=30),
    st.lists(
        st.one_of(words, st.sampled_from([" ", "  ", "\n", "\t", "的", "👩‍👩‍👧", "é", "e\u0301"])), max_size=12
    ).map("".join),
    st.lists(words, max_size=8).map(" ".join),
)


@cache
def tokenizer() -> Tokenizer:
    return train(TokenizerConfig(kind="bpe", vocabulary=420), lambda: iter(LINES * 4))


def corpus(lines: list[str]) -> Corpus:
    one = tokenizer()
    ids = [[*one.encode(line), one.end] for line in lines]
    ends = torch.tensor([len(part) for part in ids]).cumsum(0)
    return Corpus(
        torch.tensor([token for part in ids for token in part]), ends, Facts(vocabulary=one.size, documents=len(lines))
    )


def sides(lines: list[str]) -> Sides:
    return Sides(corpus(lines), corpus([line[::-1] for line in lines]))


def reader(data: Sides, rate: float, seed: int = 0) -> Resegmented:
    return Resegmented(data, (tokenizer(), tokenizer()), rate, seed)


def document(subject: Reader, side: int, number: int, epoch: int) -> Tensor:
    """One alone, so without padding."""
    return subject(side, torch.tensor([number]), epoch).ids[0]


def whole(subject: Resegmented, data: Sides, epoch: int) -> list[list[int]]:
    return [document(subject, side, number, epoch).tolist() for side in (0, 1) for number in range(data.pairs)]


# The text stays ------------------------------------------------------------------------------------------------------


@given(texts)
@many
def test_nothing_left_out_is_plain_bpe(text: str) -> None:
    one, draws = tokenizer(), random.Random(0)
    pieces = [piece for word in one.words(text) for piece in segment(word, one.merges, 0.0, draws)]
    assert [one.entries[piece] for piece in pieces] == one.encode(text)


def test_there_are_merges_to_leave_out() -> None:
    """Else every test here would hold for an empty list of merges."""
    assert len(tokenizer().merges) > 100
    assert len(tokenizer().encode(" lowest")) <= 2


def test_a_reader_that_leaves_nothing_out_reads_what_was_encoded() -> None:
    data = sides(LINES)
    plain, subject = Plain(data), reader(data, 0.0)
    for side in (0, 1):
        for number in range(data.pairs):
            assert document(subject, side, number, 3).tolist() == document(plain, side, number, 3).tolist()


def test_a_text_that_was_cut_inside_a_character_stays() -> None:
    """As `cut` does to long sources: a character that never was learned is three tokens."""
    one = tokenizer()
    for stop in range(1, 7):
        ids = torch.tensor([*one.encode("lower 龘龘")[:stop], one.end])
        data = Corpus(ids, torch.tensor([len(ids)]), Facts(vocabulary=one.size, documents=1))
        assert torch.equal(document(reader(Sides(data, data), 0.0), 0, 0, 0), ids)


@given(st.lists(texts.filter(bool), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**63 - 1))
@many
def test_the_text_stays_whatever_is_left_out(lines: list[str], rate: float, seed: int) -> None:
    subject, one = reader(sides(lines), rate, seed), tokenizer()
    for number, line in enumerate(lines):
        ids = document(subject, 0, number, 1).tolist()
        assert ids[-1] == one.end
        assert one.end not in ids[:-1]
        assert one.decode(ids[:-1]) == line
        assert one.decode(document(subject, 1, number, 1).tolist()[:-1]) == line[::-1]


@given(st.text("lower", max_size=12), st.floats(0, 1), st.integers(0, 99))
@many
def test_pieces_are_the_word_and_only_merges_make_them(word: str, rate: float, seed: int) -> None:
    pieces = segment(word, MERGES, rate, random.Random(seed))
    assert "".join(pieces) == word
    assert set(pieces) <= {*word, *(left + right for left, right in MERGES)}


@pytest.mark.parametrize("text", ["lower", " newest", "我们去公园", "🙂🙂", "Türme"])
def test_all_left_out_is_bytes(text: str) -> None:
    one = tokenizer()
    pieces = [piece for word in one.words(text) for piece in segment(word, one.merges, 1.0, random.Random(0))]
    assert [one.pieces[one.entries[piece]] for piece in pieces] == [bytes([byte]) for byte in text.encode()]
    assert len(document(reader(sides([text]), 1.0), 0, 0, 0)) == len(text.encode()) + 1


# The algorithm -------------------------------------------------------------------------------------------------------


def shares(word: str, merges: dict[tuple[str, str], int], rate: float) -> dict[tuple[str, ...], float]:
    """The probability of every way to cut a word: Provilkov et al. 2020, algorithm 1, with every subset of the possible
    merges left out in turn instead of one that is drawn."""
    found: Counter[tuple[str, ...]] = Counter()

    def go(pieces: tuple[str, ...], probability: float) -> None:
        possible = [(merges[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in merges]
        for subset in range(2 ** len(possible)):
            kept = [merge for bit, merge in enumerate(possible) if subset >> bit & 1]
            chance = probability * (1 - rate) ** len(kept) * rate ** (len(possible) - len(kept))
            if not kept:
                found[pieces] += chance
                continue
            _, at = min(kept)
            go((*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]), chance)

    go(tuple(word), 1.0)
    return found


def agree(counts: Counter[tuple[str, ...]], expected: dict[tuple[str, ...], float], draws: int) -> None:
    """Every share is within four and a half standard deviations of what it should be."""
    assert sum(expected.values()) == pytest.approx(1)
    assert set(counts) <= set(expected)
    for pieces, share in expected.items():
        spread = math.sqrt(draws * share * (1 - share))
        assert abs(counts[pieces] - draws * share) <= 4.5 * spread + 1, (pieces, counts[pieces], draws * share)


def test_the_enumeration_by_hand() -> None:
    """ "er" of "er" is left out with the rate; of "low" every end can be reached in one way."""
    assert shares("er", MERGES, 0.3) == pytest.approx({("er",): 0.7, ("e", "r"): 0.3})
    low = {("low",): 0.49, ("lo", "w"): 0.21, ("l", "o", "w"): 0.3}
    assert shares("low", MERGES, 0.3) == pytest.approx(low)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("word", ["lower", "lolo", "werer"])
def test_words_are_cut_as_often_as_the_paper_says(word: str, rate: float) -> None:
    draws = random.Random(f"{word} {rate}")
    counts = Counter(tuple(segment(word, MERGES, rate, draws)) for _ in range(DRAWS))
    agree(counts, shares(word, MERGES, rate), DRAWS)


def test_readers_of_many_seeds_cut_as_often_as_the_paper_says() -> None:
    """What is drawn once and kept follows the same distribution: one word, one epoch, many seeds."""
    one, data, draws = tokenizer(), sides(["lower"]), 1500
    cuts = [document(reader(data, 0.4, seed), 0, 0, 2).tolist()[:-1] for seed in range(draws)]
    counts = Counter(tuple(one.decode([i]) for i in cut) for cut in cuts)
    expected = shares("lower", one.merges, 0.4)
    assert len(expected) > 5
    agree(counts, expected, draws)


# When it is cut anew -------------------------------------------------------------------------------------------------


def test_a_function_of_seed_and_epoch_alone() -> None:
    """Also in whatever order documents are read: a run that was resumed has read other ones before."""
    data = sides(LINES * 3)
    expected = {epoch: whole(reader(data, 0.3, 7), data, epoch) for epoch in (2, 5)}
    other = reader(data, 0.3, 7)
    order = [(epoch, side, number) for epoch in (5, 2) for side in (1, 0) for number in range(data.pairs)]
    random.Random(0).shuffle(order)
    for epoch, side, number in order:
        assert document(other, side, number, epoch).tolist() == expected[epoch][side * data.pairs + number]


def test_epochs_and_seeds_differ() -> None:
    data = sides(LINES)
    first = reader(data, 0.3, 7)
    assert whole(first, data, 0) != whole(first, data, 1)
    assert whole(first, data, 0) != whole(reader(data, 0.3, 8), data, 0)


def test_equal_words_and_equal_texts_are_cut_independently() -> None:
    data = sides([" lower" * 30, " lower" * 30])
    one, subject = tokenizer(), reader(data, 0.5)
    cuts = document(subject, 0, 0, 0).tolist()
    texts = "|".join(one.decode([i]) for i in cuts[:-1]).split("| ")
    assert len(set(texts)) >= 4
    assert cuts != document(subject, 0, 1, 0).tolist()


def test_more_is_left_out_at_a_higher_rate() -> None:
    data = sides(LINES * 10)
    counts = [sum(map(len, whole(reader(data, rate), data, 0))) for rate in (0.0, 0.1, 0.4, 0.8, 1.0)]
    assert all(low * 1.05 < high for low, high in pairwise(counts))


@pytest.mark.parametrize("kind", ["char", "word", "byte"])
@pytest.mark.parametrize("side", [0, 1])
def test_other_tokenizers_are_refused(kind: str, side: int) -> None:
    other = train(TokenizerConfig(kind=kind), lambda: iter(LINES))
    tokenizers = (other, tokenizer()) if side == 0 else (tokenizer(), other)
    with pytest.raises(ConfigError, match=rf"for --tokenizer bpe, this one is {kind}: set bpe_dropout to 0"):
        Resegmented(sides(LINES), tokenizers, 0.1, 0)
