"""BPE dropout (Provilkov, Emelianenko and Voita 2020): the same word in other pieces at every epoch.

Merges of byte pairs are left out at random while a word is put together, so that a model sees how words are composed.
Here the pieces of a word are a function of (seed, word, variant): a run that was killed goes on with the same ones.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.errors import ConfigError
from textwright.noise import mix
from textwright.text.buckets import Rows, Sides
from textwright.text.corpus import Corpus
from textwright.text.tokenizers import Tokenizer

STRETCH = 2.5  # texts grow by about this times the rate, measured on Multi30k at rates from 0.1 to 0.3
VARIANTS = 16  # ways to cut a word that are drawn, and kept once they were


class Resegmented:
    """A `Reader` that cuts words into other pieces at every epoch.

    Args:
        sides: pairs encoded by `tokenizers` (source, target), without dropout.
        rate: the share of merges that are left out.
        seed: of all draws.
        longest: the most ids that a model takes of either side, or None; a text that would become longer stays whole.
    """

    def __init__(
        self,
        sides: Sides,
        tokenizers: tuple[Tokenizer, Tokenizer],
        rate: float,
        seed: int,
        longest: tuple[int | None, int | None] = (None, None),
    ) -> None:
        parts = zip(sides, tokenizers, longest, strict=True)
        self.sides = [_Side(corpus, tokenizer, rate, seed, most) for corpus, tokenizer, most in parts]

    def __call__(self, side: int, numbers: Tensor, epoch: int) -> Rows:
        texts = [self.sides[side].document(number, epoch) for number in numbers.tolist()]
        return Rows(pad_sequence(texts, batch_first=True), torch.tensor([len(text) for text in texts]))


class _Side:
    """One side of the pairs: its words, the pieces of every (word, variant) drawn so far, and the texts of an epoch."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, rate: float, seed: int, longest: int | None) -> None:
        check_dropout(tokenizer)
        self.corpus, self.tokenizer, self.rate, self.seed = corpus, tokenizer, rate, seed
        self.merges, self.entries = tokenizer.merges, tokenizer.entries
        self.most = math.inf if longest is None else longest
        self.text = self._words()
        self.epoch = -1
        # The pieces of slot word · VARIANTS + variant are pieces[first : first + count]; no count: not drawn yet.
        self.first, self.count = torch.zeros(2, len(self.text.names) * VARIANTS, dtype=torch.long)
        self.pieces = torch.empty(0, dtype=torch.int32)

    def document(self, number: int, epoch: int) -> Tensor:
        """Ids of a document as they are read in an epoch, the end included."""
        if epoch != self.epoch:
            self._read(epoch)
        ids = self.ids[int(self.ends[number]) - int(self.lengths[number]) : int(self.ends[number])]
        if not len(ids) or len(ids) >= self.most:
            start = int(self.corpus.ends[number - 1]) if number else 0
            return self.corpus.tokens[start : int(self.corpus.ends[number])].long()
        return torch.cat([ids.long(), torch.tensor([self.tokenizer.end])])

    def _read(self, epoch: int) -> None:
        """All texts of an epoch, at once: a variant for every word, and its pieces one after the other."""
        key = mix(mix(torch.tensor(self.seed)) + epoch)
        variants = mix(mix(torch.arange(len(self.text.words))) + key) % VARIANTS
        slots = self.text.words * VARIANTS + variants
        self._draw(torch.unique(slots))
        first, count = self.first[slots], self.count[slots]
        stops = count.cumsum(0)
        self.ids = self.pieces[torch.arange(int(count.sum())) + (first - stops + count).repeat_interleave(count)]
        self.ends = torch.cat([torch.zeros(1, dtype=torch.long), stops])[self.text.ends]
        self.lengths = self.ends.diff(prepend=torch.zeros(1, dtype=torch.long))
        self.epoch = epoch

    def _draw(self, slots: Tensor) -> None:
        """Draw the pieces of those slots that were never drawn."""
        drawn: list[int] = []
        for slot in slots[self.count[slots] == 0].tolist():
            name, variant = self.text.names[slot // VARIANTS], slot % VARIANTS
            draws = random.Random(f"{self.seed}/{variant}/{name}")
            ids = [self.entries[piece] for piece in segment(name, self.merges, self.rate, draws)]
            self.first[slot], self.count[slot] = len(self.pieces) + len(drawn), len(ids)
            drawn += ids
        self.pieces = torch.cat([self.pieces, torch.tensor(drawn, dtype=torch.int32)])

    def _words(self) -> _Words:
        numbers: dict[str, int] = {}
        whole: dict[str, list[int | None]] = {}
        words, ends = [], []
        for start, stop in pairwise([0, *self.corpus.ends.tolist()]):
            ids = self.corpus.tokens[start : stop - 1].tolist()
            found = self.tokenizer.words(self.tokenizer.decode(ids))
            for word in found:
                if word not in whole:
                    whole[word] = [self.entries.get(piece) for piece in segment(word, self.merges, 0, random.Random(0))]
            # A text that was cut inside a character has no words that spell it: it is read as it is.
            if [token for word in found for token in whole[word]] == ids:
                words += [numbers.setdefault(word, len(numbers)) for word in found]
            ends.append(len(words))
        return _Words(list(numbers), torch.tensor(words, dtype=torch.long), torch.tensor(ends))


class _Words(NamedTuple):
    """All documents as numbers of `names`; `ends` says where each document ends."""

    names: list[str]
    words: Tensor
    ends: Tensor


def check_dropout(tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a tokenizer that has no merges to leave out."""
    if tokenizer.kind != "bpe":
        raise ConfigError(f"BPE dropout is for --tokenizer bpe, this one is {tokenizer.kind}: set bpe_dropout to 0")


def segment(word: str, merges: dict[tuple[str, str], int], rate: float, draws: random.Random) -> list[str]:
    """The pieces of a word: algorithm 1 of the paper. With a rate of 0 they are those of plain BPE."""
    pieces = list(word)
    while len(pieces) > 1:
        pairs = enumerate(pairwise(pieces))
        left = [(merges[pair], at) for at, pair in pairs if pair in merges and draws.random() >= rate]
        if not left:
            break
        _, at = min(left)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces
