"""BPE dropout (Provilkov, Emelianenko and Voita 2020): the same word in other pieces at every epoch.

Merges of byte pairs are left out at random while a word is put together, so that a model sees how words are composed.
Here the pieces of a word are a function of (seed, word, variant): a run that was killed goes on with the same ones.
"""

from __future__ import annotations

import random
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from textwright.errors import ConfigError
from textwright.noise import mix
from textwright.text.buckets import Sides
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

    def __call__(self, side: int, number: int, epoch: int) -> Tensor:
        return self.sides[side].document(number, epoch)


class _Side:
    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, rate: float, seed: int, longest: int | None) -> None:
        check_dropout(tokenizer)
        self.longest = longest
        self.corpus, self.tokenizer, self.rate, self.seed = corpus, tokenizer, rate, seed
        self.merges, self.entries = tokenizer.merges, tokenizer.entries
        self._words: dict[str, int] = {}
        self._names: list[str] = []
        self._whole: dict[str, list[str]] = {}
        self._cut: dict[tuple[int, int], list[int]] = {}

    @cached_property
    def documents(self) -> list[Tensor]:
        """The numbers of the words of every document."""
        starts = [0, *self.corpus.ends.tolist()]
        documents = []
        for start, stop in pairwise(starts):
            ids = self.corpus.tokens[start : stop - 1].tolist()
            words = self.tokenizer.words(self.tokenizer.decode(ids))
            # A text that was cut inside a character has no words that spell it: it is read as it is.
            whole = [self.entries.get(piece) for word in words for piece in self._plain(word)] == ids
            documents.append(torch.tensor([self._number(word) for word in words] if whole else [], dtype=torch.long))
        return documents

    def _plain(self, word: str) -> list[str]:
        if word not in self._whole:
            self._whole[word] = segment(word, self.merges, 0.0, random.Random(0))
        return self._whole[word]

    def document(self, number: int, epoch: int) -> Tensor:
        """Ids of a document as they are read in an epoch, the end included."""
        words = self.documents[number]
        key = mix(mix(torch.tensor(self.seed)) + epoch)
        place = torch.arange(len(words)) + int(self.corpus.ends[number])
        variants = (mix(mix(place) + key) % VARIANTS).tolist()
        ids: list[int] = []
        for pair in zip(words.tolist(), variants, strict=True):
            ids += self._cut[pair] if pair in self._cut else self._cut.setdefault(pair, self._draw(*pair))
        if not ids or (self.longest is not None and len(ids) >= self.longest):
            start = int(self.corpus.ends[number - 1]) if number else 0
            return self.corpus.tokens[start : int(self.corpus.ends[number])].long()
        return torch.tensor([*ids, self.tokenizer.end])

    def _number(self, word: str) -> int:
        if word not in self._words:
            self._words[word] = len(self._names)
            self._names.append(word)
        return self._words[word]

    def _draw(self, word: int, variant: int) -> list[int]:
        name = self._names[word]
        draws = random.Random(f"{self.seed}/{variant}/{name}")
        return [self.entries[piece] for piece in segment(name, self.merges, self.rate, draws)]


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
