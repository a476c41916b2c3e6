"""BLEU and TER as sacrebleu computes them, from statistics that add up over items. chrF is in chrf.py.

The statistics are the counts that sacrebleu publishes with the score of a sentence. The formulas over their sums stand
here, vectorised for the bootstrap, and are tested against sacrebleu's own figures of a corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textwright.errors import ConfigError, nearest
from textwright.evaluating.languages import CHINESE, UNSPACED, installed, known, tokenizer_for
from textwright.evaluating.sacre import sacrebleu, signature_of
from textwright.evaluating.scores import Metric, check, rate

TOKENIZERS = ("13a", "char", "intl", "ja-mecab", "ko-mecab", "none", "zh")  # the others of sacrebleu download a model


@dataclass(frozen=True)
class BLEU(Metric):
    """BLEU (Papineni et al. 2002, section 2.3), n-grams up to 4, in percent; zero counts smoothed as NIST does ("exp").

    Plain BLEU gives 0 to perfect short texts, because they hold no 4-gram. So where every item has a reference of fewer
    than 4 tokens, only the orders that occur are counted (`eff:yes` in the signature, as sacrebleu does for sentences);
    and where neither side has any token, the score is 100.

    Attributes:
        language: code of the target language, which chooses the tokenizer (see `tokenizer_for`).
        tokenizer: one of sacrebleu's instead; "none" for texts that are tokenised already, as in older papers.
        lowercase: compare without regard to case.
    """

    language: str | None = None
    tokenizer: str | None = None
    lowercase: bool = False
    name = "BLEU"

    def __post_init__(self) -> None:
        sacrebleu("BLEU")
        if (self.language is None) == (self.tokenizer is None):
            raise ConfigError("BLEU expects a language or a tokenizer, one of them: BLEU('de'), BLEU(tokenizer='none')")
        if self._tokenizer() not in TOKENIZERS:
            raise ConfigError(f"unknown tokenizer {self.tokenizer!r}.{nearest(self._tokenizer(), TOKENIZERS)}")
        if not installed(self._tokenizer()):
            extra = self._tokenizer()[:2]
            raise ConfigError(f'tokenizer {self.tokenizer!r} needs MeCab: pip install "sacrebleu[{extra}]"')

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """Columns: tokens; tokens of the nearest reference; matches, n-grams (4 each); 1 if all references are long."""
        check(hypotheses, references)
        scorer, rows = self._scorer(), []
        for hypothesis, several in zip(hypotheses, references, strict=True):
            score = scorer.sentence_score(hypothesis, several)
            shortest = scorer.sentence_score("", several).ref_len  # to an empty text the shortest is the nearest
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals, shortest >= 4])
        return torch.tensor(rows, dtype=torch.float64)

    def aggregate(self, sums: Tensor) -> Tensor:
        effective, occurring = sums[..., 10:] == 0, sums[..., 6:10] > 0
        order = torch.where(effective, occurring.sum(-1, keepdim=True).clamp(min=1), 4)
        logs = torch.where(effective & ~occurring, 0.0, _precisions(sums).log())
        score = 100 * _brevity(sums) * (logs / order).sum(-1).exp()
        return torch.where((sums[..., :2] == 0).all(-1), 100.0, score)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        signature = signature_of(self._scorer(), references)
        signature.update("eff", "yes" if sums[10] == 0 else "no")
        return str(signature)

    def extras(self, sums: Tensor) -> dict[str, float]:
        """Brevity penalty (0 to 1), lengths in tokens, precisions of the four orders in percent."""
        figures = {"brevity_penalty": float(_brevity(sums)), "tokens": float(sums[0])}
        precisions = {f"precision_{order}": 100 * float(share) for order, share in enumerate(_precisions(sums), 1)}
        return figures | {"reference_tokens": float(sums[1])} | precisions

    def _tokenizer(self) -> str:
        return self.tokenizer or tokenizer_for(self.language or "")

    def _scorer(self) -> Any:
        # Effective order, because sacrebleu logs a warning for sentences without; it does not touch the counts.
        return sacrebleu("BLEU").BLEU(lowercase=self.lowercase, tokenize=self._tokenizer(), effective_order=True)


def _precisions(sums: Tensor) -> Tensor:
    """Shares of n-grams that match; orders without any count 1/2, 1/4 … a match (Chen and Cherry 2014, method 3)."""
    matches, total = sums[..., 2:6], sums[..., 6:10]
    missed = ((matches == 0) & (total > 0)).cumsum(-1)
    shares = torch.where(matches > 0, matches, 0.5**missed) / total.clamp(min=1)
    return torch.where((total > 0) & (matches[..., :1] > 0), shares, 0.0)  # without any match there is no smoothing


def _brevity(sums: Tensor) -> Tensor:
    """exp(1 - reference length ÷ length), at most 1; 0 where nothing was said."""
    length, reference = sums[..., 0], sums[..., 1]
    penalty = (1 - reference / length.clamp(min=1)).clamp(max=0).exp()
    return torch.where((length == 0) & (reference > 0), 0.0, penalty)


@dataclass(frozen=True)
class TER(Metric):
    """Translation edit rate (Snover et al. 2006): edits and shifts ÷ mean length of the references, in percent.

    Chinese is split into characters by sacrebleu's rules (`asian:yes`); other languages without spaces are split into
    characters here (`tok:char`), because its rules do not reach kana or Thai, and a line would be a single word.

    Attributes:
        language: code of the target language.
        lowercase: compare without regard to case, which is TER's default.
    """

    language: str
    lowercase: bool = True
    name = "TER"
    higher_is_better = False

    def __post_init__(self) -> None:
        sacrebleu("TER")
        known(self.language)

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """Columns: edits against the nearest reference, mean tokens of the references."""
        check(hypotheses, references)
        scorer, split = self._scorer(), " ".join if self._by_character() else str
        pairs = zip(hypotheses, references, strict=True)
        scores = [scorer.sentence_score(split(text), [split(one) for one in several]) for text, several in pairs]
        return torch.tensor([[score.num_edits, score.ref_length] for score in scores], dtype=torch.float64)

    def aggregate(self, sums: Tensor) -> Tensor:
        return rate(sums)

    def signature(self, references: Sequence[Sequence[str]], sums: Tensor) -> str:
        signature = signature_of(self._scorer(), references)
        if self._by_character():
            signature.update("tok", "char")
        return str(signature)

    def _by_character(self) -> bool:
        return known(self.language) in UNSPACED

    def _scorer(self) -> Any:
        asian = known(self.language) in CHINESE
        return sacrebleu("TER").TER(normalized=asian, asian_support=asian, case_sensitive=not self.lowercase)
