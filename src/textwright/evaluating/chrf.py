"""chrF (Popović 2015) and chrF++ (Popović 2017) as sacrebleu computes them, from statistics that add up over items."""

from __future__ import annotations

import importlib
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textwright.evaluating.sacre import sacrebleu, signature_of
from textwright.evaluating.scores import Pairwise

CHARACTERS, WORDS, BETA = 6, 2, 2  # longest n-grams; how many times as much recall weighs as precision


@dataclass(frozen=True)
class ChrF(Pairwise):
    """F2 of character n-grams up to 6, in percent: for every script, without a tokenizer or a language.

    Where both sides are blank the score is 100 (0 in sacrebleu), so that equal texts always get 100.

    Attributes:
        plus: chrF++, with n-grams of one and two words besides.
        lowercase: compare without regard to case.
    """

    plus: bool = False
    lowercase: bool = False

    def __post_init__(self) -> None:
        sacrebleu("chrF")

    @property
    def name(self) -> str:
        return "chrF++" if self.plus else "chrF"

    def pair(self, hypothesis: str, reference: str) -> list[int]:
        """Columns: n-grams of the hypothesis, of the reference, matches, for each order; characters without a match."""
        ours, theirs = self._ngrams(hypothesis), self._ngrams(reference)
        row: list[int] = []
        for mine, other in zip(ours, theirs, strict=True):
            matches = sum(min(count, other[ngram]) for ngram, count in mine.items())
            # As in sacrebleu: an order that the reference does not have takes no part.
            row += [mine.total() if other else 0, other.total(), matches]
        return [*row, 0 if theirs[0] else ours[0].total()]

    def aggregate(self, sums: Tensor) -> Tensor:
        # One order after the other, as sacrebleu adds them: of equally good references both must take the same one.
        precision, recall, orders = torch.zeros(3, *sums.shape[:-1], dtype=torch.float64)
        for first in range(0, sums.shape[-1] - 1, 3):
            ours, theirs, matches = sums[..., first : first + 3].unbind(-1)
            both = (ours > 0) & (theirs > 0)
            precision = precision + torch.where(both, matches / ours.clamp(min=1), 0.0)
            recall = recall + torch.where(both, matches / theirs.clamp(min=1), 0.0)
            orders = orders + both
        precision, recall = precision / orders.clamp(min=1), recall / orders.clamp(min=1)
        below = BETA**2 * precision + recall
        score = (1 + BETA**2) * precision * recall / torch.where(below > 0, below, 1.0)
        return 100 * torch.where((sums == 0).all(-1), 1.0, score)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        scorer = sacrebleu("chrF").CHRF(
            char_order=CHARACTERS, word_order=WORDS if self.plus else 0, beta=BETA, lowercase=self.lowercase
        )
        return str(signature_of(scorer, references))

    def _ngrams(self, text: str) -> list[Counter[str]]:
        helpers = importlib.import_module("sacrebleu.metrics.helpers")
        text = text.lower() if self.lowercase else text
        ngrams: list[Counter[str]] = helpers.extract_all_char_ngrams(text, CHARACTERS)
        if self.plus:
            words = [part for word in text.split() for part in _parts(word)]
            ngrams += [helpers.extract_word_ngrams(words, order) for order in range(1, WORDS + 1)]
        return ngrams


def _parts(word: str) -> list[str]:
    """A word with one sign of punctuation split off, at its end or else at its beginning, as Popović's script does."""
    if len(word) > 1 and word[-1] in string.punctuation:
        return [word[:-1], word[-1]]
    if len(word) > 1 and word[0] in string.punctuation:
        return [word[0], word[1:]]
    return [word]
