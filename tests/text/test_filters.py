"""Filters: what is dropped is counted and named; sides that have changed places are noticed, others never."""

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from textwright.errors import ConfigError, DataError
from textwright.text.filters import FilterReport, Filters, Sieve, looks_swapped
from textwright.text.pairs import Pair, PairSource, read_pairs

DATA = Path(os.environ.get("TEXTWRIGHT_DATA", Path(__file__).parents[2] / "../shared/data"))


def sift(filters: Filters, pairs: Iterable[tuple[str, str]]) -> tuple[list[int], FilterReport]:
    """The numbers of the pairs that are kept, from 1, where a character is a token."""
    sieve, kept = Sieve(filters), []
    for number, (source, target) in enumerate(pairs, 1):
        if sieve.keeps(Pair(source, target, f"a.de:{number}"), len(source), len(target)):
            kept.append(number)
    return kept, sieve.report()


def test_report_for_people() -> None:
    pairs = [("good", "gut"), ("", "x"), ("x", " "), ("long " * 30, "lang"), ("good", "gut"), (" ", ""), ("a", "b" * 9)]
    filters = Filters(max_source=100, max_target=100, ratio=8, duplicates="drop")
    kept, report = sift(filters, pairs)
    assert kept == [1]
    assert report.kept == 1
    assert report.text() == (
        "dropped 6 of 7 pairs: 2 empty on one side (first: a.de:2), 1 with a source longer than 100 tokens "
        "(first: a.de:4), 1 the same as an earlier one (first: a.de:5), 1 empty on both sides (first: a.de:6), "
        "1 with one side more than 8 times as long as the other (first: a.de:7)"
    )
    assert FilterReport.parse(report.dump()) == report
    assert sift(Filters(), pairs[:1])[1].text() == "kept all 1 pairs"


def test_limits_are_inclusive_and_off_unless_given() -> None:
    pairs = [("a" * 10, "b" * 5), ("a" * 11, "b" * 6)]
    assert sift(Filters(max_source=10, max_target=5, ratio=2), pairs)[0] == [1]
    assert sift(Filters(), [("a" * 9999, "b"), ("a" * 9999, "b")])[0] == [1, 2]
    assert sift(Filters(duplicates="drop"), [("ab", "c"), ("a", "bc"), ("ab", "c"), ("ab", "d")])[0] == [1, 2, 4]


def test_text_that_has_no_tokens_is_empty() -> None:
    sieve = Sieve(Filters())
    assert not sieve.keeps(Pair("\u200b", "x", "a:1"), 0, 1)
    assert sieve.keeps(Pair("x", "x", "a:2"), 1, 1)
    assert sieve.report().dropped[0].reason == "empty on one side"


def test_everything_dropped() -> None:
    with pytest.raises(DataError, match=r"no pair is left: dropped 1 of 1 pairs: 1 with a target longer than 2 tokens"):
        sift(Filters(max_target=2), [("abc", "abc")])


@pytest.mark.parametrize("option", [{"max_source": 0}, {"ratio": 0.5}, {"duplicates": "maybe"}, {"max_length": 5}])
def test_bad_filters(option: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Filters.parse(option)


@given(
    st.lists(st.tuples(st.text("ab ", max_size=6), st.text("ab ", max_size=6)), max_size=30),
    st.none() | st.integers(1, 6),
    st.none() | st.floats(1, 4),
    st.sampled_from(["keep", "drop"]),
)
def test_every_pair_is_kept_or_counted_once(
    pairs: list[tuple[str, str]], longest: int | None, ratio: float | None, duplicates: str
) -> None:
    filters = Filters.parse({"max_source": longest, "max_target": longest, "ratio": ratio, "duplicates": duplicates})
    fit = [
        bool(a.strip() and b.strip())
        and max(len(a), len(b)) <= (longest or 99)
        and max(len(a), len(b)) <= (ratio or 99) * min(len(a), len(b))
        for a, b in [*pairs, ("c", "c")]
    ]
    kept, report = sift(filters, [*pairs, ("c", "c")])
    assert report.kept == len(kept)
    assert report.pairs == len(pairs) + 1
    chosen = [pair for pair, good in zip([*pairs, ("c", "c")], fit, strict=True) if good]
    assert len(kept) == (len(set(chosen)) if duplicates == "drop" else len(chosen))


# Sides that have changed places

CORPORA = {
    "de-en": ("multi30k/train.de", "multi30k/train.en", "multi30k/val.de", "multi30k/val.en"),
    "zh-en": (
        "tatoeba-cmn-eng/train.zh",
        "tatoeba-cmn-eng/train.en",
        "tatoeba-cmn-eng/valid.zh",
        "tatoeba-cmn-eng/valid.en",
    ),
    "summary": ("scitldr/train.jsonl", None, "scitldr/dev.jsonl", None),
    "title": ("csl-title/dev.jsonl", None, "csl-title/test.jsonl", None),
    "solution": ("gsm8k/train.jsonl", None, "gsm8k/test.jsonl", None),
    "sounds": ("cmudict-g2p/train.tsv", None, "cmudict-g2p/valid.tsv", None),
    "dialogue": ("self-dialogue/valid.jsonl.gz", None, "self-dialogue/test.jsonl.gz", None),
}


@cache
def sides(path: str, target: str | None) -> list[tuple[str, str]]:
    if not (DATA / path).is_file():
        pytest.skip(f"needs {path} in the folder that TEXTWRIGHT_DATA names")
    source = PairSource(path=str(DATA / path), target=str(DATA / target) if target else None)
    return [pair[:2] for _, pair in zip(range(5000), read_pairs(source), strict=False)]


def counts(texts: Iterable[str]) -> Tensor:
    """(65536,) of characters."""
    found = torch.zeros(65536, dtype=torch.int64)
    for character, count in Counter("".join(texts)).items():
        found[min(ord(character), 65535)] += count
    return found


def answers(name: str, train: int, valid: int, seed: int) -> tuple[bool, bool]:
    """The answer for pairs as they are, and for pairs with their sides exchanged."""
    paths = CORPORA[name]
    draws = random.Random(seed)
    chosen = [sides(*paths[:2]), sides(*paths[2:])]
    chosen = [draws.sample(pairs, min(size, len(pairs))) for pairs, size in zip(chosen, (train, valid), strict=True)]
    (a, b), (c, d) = ([counts(pair[side] for pair in pairs) for side in (0, 1)] for pairs in chosen)
    return looks_swapped(a, b, c, d), looks_swapped(a, b, d, c)


@pytest.mark.parametrize("name", CORPORA)
def test_swapped_sides_are_noticed_and_no_others(name: str) -> None:
    right, swapped = answers(name, 5000, 5000, 0)
    assert not right
    assert swapped or name in ("summary", "dialogue")  # both sides are alike there: nothing can be told


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize(("train", "valid"), [(200, 20), (20, 5), (1000, 1), (1, 1)])
def test_small_sets_are_never_flagged(name: str, train: int, valid: int) -> None:
    assert not any(answers(name, train, valid, seed)[0] for seed in range(3))


def test_swapped_token_counts() -> None:
    source, target = torch.tensor([50, 40, 10, 0, 0]), torch.tensor([0, 0, 10, 30, 60])
    assert looks_swapped(source, target, target, source)
    assert not looks_swapped(source, target, source, target)
    assert not looks_swapped(source, target, target, target)  # one side alone has not changed places
    assert not looks_swapped(source, source, source, source)
    assert not looks_swapped(source, target, 0 * source, 0 * source)


def test_counts_of_a_packed_file(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"src": "ab", "tgt": "AB"}) + "\n" for _ in range(9))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    pairs = list(read_pairs(PairSource(path=str(tmp_path / "a.jsonl.gz"))))
    source, target = counts(p.source for p in pairs), counts(p.target for p in pairs)
    assert looks_swapped(source, target, target, source)
