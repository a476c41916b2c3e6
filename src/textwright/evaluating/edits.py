"""Error rates of words and phonemes by edit distance (Levenshtein 1966), and the share of strings without an error."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from textwright.evaluating.scores import Pairwise, mean, rate
from textwright.evaluating.sequences import edit_distance
from textwright.evaluating.signatures import describe
from textwright.evaluating.words import tokens


class ErrorRate(Pairwise):
    """All edits ÷ all reference tokens, in percent; lower is better, and it may pass 100.

    An edit inserts, deletes or replaces a token. Case and punctuation count. Of several references the one with the
    fewest edits counts, and its length. Tokens stand between spaces, as in `HH AH0 L OW1`; in scripts without spaces
    each character is one.

    Args:
        unit: what a token is, for the name: "word", "phoneme".
    """

    higher_is_better = False

    def __init__(self, unit: str) -> None:
        self.unit = unit

    @property
    def name(self) -> str:
        return f"{self.unit} error rate"

    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """Columns: edits, tokens of the reference."""
        theirs = tokens(reference)
        return edit_distance(tokens(hypothesis), theirs), len(theirs)

    def preference(self, rows: Tensor) -> Tensor:
        return -rows[:, 0]

    def aggregate(self, sums: Tensor) -> Tensor:
        return rate(sums)

    def extras(self, sums: Tensor) -> dict[str, float]:
        """The two sums, in tokens."""
        return {"edits": float(sums[0]), "reference_tokens": float(sums[1])}

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        return describe(references, "fewest edits|case:mixed|punct:yes|tok:spaces, characters in unspaced scripts")


class ExactStrings(Pairwise):
    """Share of strings equal to one of their references, in percent: "exact words" of spelling to phonemes.

    Only white space may differ. 100 minus this is the "word error rate" of papers on pronunciation.
    """

    name = "exact"

    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """Columns: equal (0 or 1), 1."""
        return float(hypothesis.split() == reference.split()), 1.0

    def aggregate(self, sums: Tensor) -> Tensor:
        return mean(sums)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        return describe(references, "any reference, mean of items|case:mixed|punct:yes|space:collapsed")
