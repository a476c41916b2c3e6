"""Error rates of words and phonemes by edit distance (Levenshtein 1966), and the share of strings without an error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from textwright.evaluating.scores import Pairwise, mean, rate
from textwright.evaluating.sequences import edit_distance
from textwright.evaluating.signatures import describe
from textwright.evaluating.words import tokens


class _ErrorRate(Pairwise):
    """All edits ÷ all reference tokens, in percent; lower is better, and it may pass 100.

    An edit inserts, deletes or replaces a token. Case and punctuation count. Of several references the one with the
    fewest edits counts, and its length.
    """

    higher_is_better = False

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """The tokens of a text."""

    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """Columns: edits, tokens of the reference."""
        theirs = self.split(reference)
        return edit_distance(self.split(hypothesis), theirs), len(theirs)

    def preference(self, rows: Tensor) -> Tensor:
        return -rows[:, 0]

    def aggregate(self, sums: Tensor) -> Tensor:
        return rate(sums)

    def extras(self, sums: Tensor) -> dict[str, float]:
        """The two sums, in tokens."""
        return {"edits": float(sums[0]), "reference_tokens": float(sums[1])}


class WordErrorRate(_ErrorRate):
    """Word error rate; in scripts without spaces each character is a word, so that it is their character error rate."""

    name = "word error rate"

    def split(self, text: str) -> list[str]:
        return tokens(text)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        return describe(references, "fewest edits|case:mixed|punct:yes|tok:spaces, characters in unspaced scripts")


class PhonemeErrorRate(_ErrorRate):
    """Phoneme error rate, of phonemes with spaces in between: `HH AH0 L OW1`; each character of a script without spaces
    counts as one, as in pinyin to 汉字."""

    name = "phoneme error rate"

    def split(self, text: str) -> list[str]:
        return tokens(text)

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
