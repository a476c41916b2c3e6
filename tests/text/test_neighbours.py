"""The nearest training pairs: an independent naive search by the formula, and what is composed from them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.errors import CheckpointError
from textwright.text import neighbours
from textwright.text.neighbours import LONGEST, Neighbours, Ragged, as_tensors, from_tensors

END = 9
TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7).map(lambda ids: [*ids, END]), min_size=2)


def grams(text: list[int]) -> set[tuple[int, ...]]:
    marked = [-1, *text]
    return {tuple(marked[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(marked) - n + 1)}


def likenesses(known: list[list[int]], wanted: set[tuple[int, ...]], text: list[int]) -> list[float]:
    count = Counter(gram for one in known for gram in grams(one))
    weight = {gram: math.log(len(known) / n) for gram, n in count.items()}
    return [
        0.0
        if one == text
        else sum(weight[gram] for gram in grams(one) & wanted)
        / math.sqrt(max(1e-6, sum(weight[g] for g in grams(one))))
        for one in known
    ]


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_the_nearest_are_those_of_a_naive_search(known: list[list[int]], asked: list[list[int]]) -> None:
    found = Neighbours(Ragged.of(known), Ragged.of(known), 2, 0).nearest(Ragged.of(asked + known)).tolist()
    for text, numbers in zip(asked + known, found, strict=True):
        wanted = grams(text)
        for number in numbers:
            scores = likenesses(known, wanted, text)
            best = max(scores)
            assert (number == -1) == (best <= 1e-5) or best < 1e-3
            if number < 0:
                break
            assert scores[number] >= best - 1e-4
            assert known[number] != text
            wanted -= grams(known[number])


def test_a_source_is_followed_by_its_neighbours_and_their_targets() -> None:
    sources = [[1, 2, 3, END], [1, 2, 3, 4, END], [5, 6, END], [7, 7, 7, END], [4, 6, END]]
    targets = [[number, 8] for number in range(5)]
    index = Neighbours(Ragged.of(sources), Ragged.of(targets), 2, 10)
    assert index.beside([[1, 2, 3, 5, 6, END]]) == [[1, 2, 3, 5, 6, END, 1, 2, 3, END, 10, END, 5, 6, END, 12, END]]
    (alone,) = index.beside([[0, 0]])
    assert alone == [0, 0]
    assert index.beside([[1, 2, 3, 5, 6, END]], most=12) == [[1, 2, 3, 5, 6, END, 1, 2, 3, END, 10, END]]
    assert index.beside([[1, 2, 3, 5, 6, END]], most=6) == [[1, 2, 3, 5, 6, END]]


def test_a_known_source_is_not_its_own_neighbour_even_where_it_stands_twice() -> None:
    sources = [[1, 2, END], [1, 2, END], [1, 2, 3, END], [4, 5, END]]
    index = Neighbours(Ragged.of(sources), Ragged.of(sources), 1, 0)
    assert index.nearest(Ragged.of(sources[:2])).tolist() == [[2], [2]]


def test_what_is_asked_beside_it_changes_nothing() -> None:
    torch.manual_seed(0)
    texts = [[*torch.randint(0, 4, (int(n),)).tolist(), END] for n in torch.randint(1, 8, (40,))]
    index = Neighbours(Ragged.of(texts), Ragged.of(texts), 2, 0)
    assert index.beside(texts) == [index.beside([text])[0] for text in texts]


def test_too_common_runs_are_not_looked_up_and_others_still_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "COMMON", 1)
    sources = [[1, 2, END], [1, 3, END], [1, 4, END]]
    index = Neighbours(Ragged.of(sources), Ragged.of(sources), 1, 0)
    assert index.nearest(Ragged.of([[5, 4, END], [1, 5, END]])).tolist() == [[2], [-1]]


def test_equal_indices_are_told_from_others() -> None:
    texts = Ragged.of([[1, END], [2, END]])
    others = Ragged.of([[1, END], [3, END]])
    assert Neighbours(texts, texts, 1, 0).same(Neighbours(texts, texts, 1, 0))
    assert not Neighbours(texts, texts, 1, 0).same(Neighbours(texts, texts, 2, 0))
    assert not Neighbours(texts, texts, 1, 0).same(Neighbours(texts, others, 1, 0))


def test_where_every_run_is_common_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "COMMON", 1)
    sources = Ragged.of([[1, END], [1, END], [2, END], [2, END]])
    assert Neighbours(sources, sources, 1, 0).nearest(Ragged.of([[1, END], [3, END]])).tolist() == [[-1], [-1]]


def test_stored_pairs_come_back_and_others_are_refused() -> None:
    sources, targets = Ragged.of([[1, END], [2, 3, END]]), Ragged.of([[4, 5], [4, 5]])
    stored = as_tensors(sources, targets)
    again = from_tensors(stored, (10, 6))
    assert [again[0][1], again[1][1]] == [[2, 3, END], [4, 5]]
    damaged = [
        {"weight": torch.zeros(3)},
        {**stored, "targets.ends": torch.tensor([2])},
        {**stored, "sources.ends": torch.tensor([5, 2])},
        {**stored, "sources.tokens": torch.tensor([1, END, 2, 30, END])},
        {**stored, "sources.ends": torch.zeros(0, dtype=torch.long)},
    ]
    for tensors in damaged:
        with pytest.raises(CheckpointError, match="neighbours are damaged"):
            from_tensors(tensors, (10, 6))
