"""Vectors from co-occurrence against the same sums written out, and against what they are for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from textwright.text.corpus import Corpus, Facts
from textwright.training import cooccurrence


def text(ids: Tensor, vocabulary: int) -> Corpus:
    facts = Facts(vocabulary=vocabulary, tokens=len(ids), documents=1, bytes=len(ids), characters=len(ids))
    return Corpus(ids.to(torch.uint8), torch.tensor([len(ids)]), facts)


def naive_counts(ids: list[int], vocabulary: int) -> Tensor:
    found = torch.zeros(vocabulary, vocabulary)
    for place, word in enumerate(ids):
        for distance in range(1, 5):
            if place + distance < len(ids):
                other = ids[place + distance]
                found[word, other] += 1 / distance
                found[other, word] += 1 / distance
    return found


def test_pairs_are_counted_by_how_near_they_stand() -> None:
    ids = torch.randint(0, 9, (300,), generator=torch.Generator().manual_seed(0))
    found = cooccurrence.counts(text(ids, 11), 11)
    torch.testing.assert_close(found.to_dense(), naive_counts(ids.tolist(), 11))


def test_a_long_text_is_read_in_parts_from_all_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "PART", 10)
    monkeypatch.setattr(cooccurrence, "PARTS", 3)
    ids = torch.randint(0, 9, (95,), generator=torch.Generator().manual_seed(1))
    parts = [ids[start : start + 10].tolist() for start in (0, 40, 90)]  # the first, a middle and the last of ten
    want = sum((naive_counts(part, 9) for part in parts), torch.zeros(9, 9))
    torch.testing.assert_close(cooccurrence.counts(text(ids, 9), 9).to_dense(), want)


@pytest.mark.parametrize("read", [5, 2])
def test_vectors_are_the_singular_vectors_of_the_information(read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a turn: the angles between them are the same, between their beginnings too. After more rounds the
    decomposition is exact."""
    monkeypatch.setattr(cooccurrence, "ROUNDS", 30)
    torch.manual_seed(2)
    vocabulary, width = 40, 5
    ids = (torch.rand(4000) ** 2 * vocabulary).long()
    ids[1::2] = (ids[::2] * 7 + torch.randint(0, 4, (2000,))) % vocabulary  # some order
    pairs = naive_counts(ids.tolist(), vocabulary)
    own = pairs.sum(1)
    smooth = own**0.75
    information = (pairs * smooth.sum() / (own[:, None] * smooth)).clamp(min=1e-9).log().clamp(min=0)
    left, values, _ = torch.linalg.svd(information.double())
    want = nn.functional.normalize(left[:, :width] * values[:width].sqrt())
    found = cooccurrence.vectors(pairs.to_sparse(), width, read).double()
    for numbers in (width, read):
        got, expected = found[:, :numbers], want[:, :numbers]
        torch.testing.assert_close(got @ got.T, expected @ expected.T, atol=1e-4, rtol=0)


def test_words_with_the_same_company_begin_alike() -> None:
    torch.manual_seed(3)
    groups = torch.randint(1, 3, (20_000,)).cumsum(0) % 10  # the next group is one or two further
    ids = groups * 6 + torch.randint(0, 6, (20_000,))  # six words a group, which are interchangeable
    table = nn.Embedding(70, 8)
    before = table.weight.detach().clone()
    cooccurrence.embed(table, text(ids, 70), seed=0, read=8)
    unit = nn.functional.normalize(table.weight.detach()[:60])
    alike = unit @ unit.T
    same = torch.arange(60)[:, None] // 6 == torch.arange(60) // 6
    assert alike[same].min() > alike[~same].max()
    torch.testing.assert_close(table.weight[60:], before[60:])  # words that the text does not have
    other = nn.Embedding(70, 8, _weight=before.clone())
    cooccurrence.embed(other, text(ids, 70), seed=0, read=8)
    torch.testing.assert_close(other.weight, table.weight)  # a seed decides all that chance does
    spread = before.square().mean().sqrt()
    torch.testing.assert_close(table.weight[:60].square().mean(1).sqrt(), spread.expand(60))


def test_words_without_a_pair_have_no_vector() -> None:
    """Also where the text has fewer words than the vectors have dimensions."""
    ids = torch.randint(0, 9, (400,), generator=torch.Generator().manual_seed(4)).square()
    found = cooccurrence.vectors(cooccurrence.counts(text(ids, 100), 100), 20, 20)
    lengths = torch.zeros(100)
    lengths[ids] = 1
    torch.testing.assert_close(found.norm(dim=1), lengths)


def test_a_table_without_a_pair_stays() -> None:
    table = nn.Embedding(60, 4)
    before = table.weight.detach().clone()
    cooccurrence.embed(table, text(torch.tensor([7]), 60), seed=0, read=4)
    torch.testing.assert_close(table.weight.detach(), before)
