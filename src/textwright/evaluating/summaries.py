"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), for words of any script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from textwright.errors import ConfigError
from textwright.evaluating.scores import Pairwise, mean
from textwright.evaluating.sequences import common_subsequence
from textwright.evaluating.signatures import describe
from textwright.evaluating.words import words

Kind = Literal["1", "2", "L"]


@dataclass(frozen=True)
class Rouge(Pairwise):
    """F1 of the units a summary shares with its reference, mean over items, in percent.

    The units are words, pairs of neighbouring words (Lin 2004, section 2, with clipped counts), or those of the longest
    common subsequence (section 3.1). Words are those of `words.words`: on English texts the figures are those of the
    `rouge_score` package without its stemmer. Of several references the one with the best F1 counts.

    "L" takes the whole summary for one sequence. The "ROUGE-L" of many papers on CNN/DailyMail is the summary-level one
    (section 3.2, `rougeLsum`), which matches sentence by sentence and comes out higher: the two do not compare.

    Two texts with the same words score 100 even if they hold no unit (one word has no pair; rouge_score gives 0).
    """

    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"expected ROUGE of kind '1', '2' or 'L', got {self.kind!r}: Rouge('L')")

    @property
    def name(self) -> str:
        return f"ROUGE-{self.kind}"

    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """Columns: F1, precision, recall, 1."""
        ours, theirs = words(hypothesis), words(reference)
        if ours == theirs:
            return 1.0, 1.0, 1.0, 1.0
        shared, mine, other = self._overlap(ours, theirs)
        precision, recall = shared / max(mine, 1), shared / max(other, 1)
        return 2 * precision * recall / max(precision + recall, 1e-9), precision, recall, 1.0

    def aggregate(self, sums: Tensor) -> Tensor:
        return mean(sums)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        how = "F1 of the best reference, mean of items|case:lc|punct:no|stem:no"
        return describe(references, f"{how}|tok:words, characters in unspaced scripts")

    def extras(self, sums: Tensor) -> dict[str, float]:
        """Mean precision and recall in percent."""
        return {"precision": 100 * float(sums[1] / sums[-1]), "recall": 100 * float(sums[2] / sums[-1])}

    def _overlap(self, ours: list[str], theirs: list[str]) -> tuple[int, int, int]:
        """Units in common, units of the one, units of the other."""
        if self.kind == "L":
            return common_subsequence(ours, theirs), len(ours), len(theirs)
        mine, other = _ngrams(ours, int(self.kind)), _ngrams(theirs, int(self.kind))
        return (mine & other).total(), mine.total(), other.total()


def _ngrams(items: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(items[start:] for start in range(order)), strict=False))
