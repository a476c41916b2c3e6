"""Exact match and F1 of short answers: SQuAD's (Rajpurkar et al. 2016), and CMRC 2018's for Chinese (Cui et al. 2019).

CMRC's rules judge an answer and a reference where either has a letter of a script without spaces, SQuAD's all others.
The two F1 differ in substance:

- SQuAD counts shared words wherever they stand, after dropping case, ASCII punctuation and the articles a, an, the;
- CMRC counts the longest run of shared characters *without gaps* (its script calls it LCS: longest common string, not
  subsequence), after dropping case and a fixed list of punctuation.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from textwright.evaluating.scores import Pairwise, mean
from textwright.evaluating.sequences import common_run
from textwright.evaluating.signatures import describe
from textwright.evaluating.words import has_unspaced, is_alone

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII = str.maketrans("", "", string.punctuation)
_CMRC = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_SIGNATURE = "best reference, mean of items|norm:squad, cmrc2018 in unspaced scripts"


class ExactMatch(Pairwise):
    """Share of answers equal to a reference after normalisation, in percent."""

    name = "exact match"

    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """Columns: equal (0 or 1), 1."""
        if has_unspaced(hypothesis + reference):
            return float(_stripped(hypothesis) == _stripped(reference)), 1.0
        return float(_squad(hypothesis) == _squad(reference)), 1.0

    def aggregate(self, sums: Tensor) -> Tensor:
        return mean(sums)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        return describe(references, _SIGNATURE)


class AnswerF1(Pairwise):
    """F1 of the words (characters in scripts without spaces) shared with the best reference, mean of items, in percent.

    Two answers without any word are equal, and one without any shares nothing with one that has some (SQuAD 2.0).
    """

    name = "answer F1"

    def pair(self, hypothesis: str, reference: str) -> Sequence[float]:
        """Columns: F1, 1."""
        if has_unspaced(hypothesis + reference):
            ours, theirs = _cmrc(hypothesis), _cmrc(reference)
            shared = common_run(ours, theirs)
        else:
            ours, theirs = _squad(hypothesis), _squad(reference)
            shared = (Counter(ours) & Counter(theirs)).total()
        if not ours or not theirs:
            return float(ours == theirs), 1.0
        return 2 * shared / (len(ours) + len(theirs)), 1.0  # = 2PR ÷ (P + R)

    def aggregate(self, sums: Tensor) -> Tensor:
        return mean(sums)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        return describe(references, _SIGNATURE)


def _squad(text: str) -> list[str]:
    """`normalize_answer` of evaluate-v1.1.py: case, then punctuation, then articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII)).split()


def _stripped(text: str) -> str:
    return text.lower().strip().translate(_CMRC)


def _cmrc(text: str) -> list[str]:
    """`mixed_segmentation` of cmrc2018_evaluate.py: characters, and words in between.

    For the runs of other scripts it calls NLTK's English tokenizer; words, numbers and single signs come close. It
    splits Han alone; here kana, Thai and the like are split as well, or a Japanese answer would be a few long words.
    """
    spread = "".join(f" {sign} " if is_alone(sign) else sign for sign in _stripped(text))
    return re.findall(r"\d+(?:[.,]\d+)+|\w+|[^\w\s]", spread)
