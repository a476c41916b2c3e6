"""Is a text of the side that a model reads, or of the side it writes?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from textwright.errors import CheckpointError
from textwright.text.corpus import open_corpus
from textwright.text.filters import leaning
from textwright.text.tokenizers import Tokenizer

LOOK = 2000  # texts by which the sides are known
CHARACTERS = "characters.txt"  # those of the training sources, beside their corpora
ENOUGH = 60  # characters without which nothing can be told


def characters(texts: Iterable[str]) -> Tensor:
    """(65536,) int64: how often each character occurs, by the lower 16 bits of its number."""
    codes = torch.tensor([ord(character) & 0xFFFF for text in texts for character in text], dtype=torch.int64)
    return torch.bincount(codes, minlength=1 << 16)


def looks_like_target(data: Path, texts: Sequence[str]) -> bool:
    """Whether texts look like the targets of a run's training pairs rather than its sources; False where the run's
    data is gone, where there is too little text, or where the sides are alike."""
    if sum(map(len, texts)) < ENOUGH:
        return False
    try:
        sides = [texts_of(data, side, LOOK) for side in ("source", "target")]
    except CheckpointError:
        return False
    return leaning(characters(sides[0]), characters(sides[1]), characters(texts))


def read_characters(data: Path) -> frozenset[str]:
    """The characters of a run's training sources; none where its data is gone or older than this list."""
    file = data / CHARACTERS
    return frozenset(file.read_text(encoding="utf-8")) if file.is_file() else frozenset()


def never_read(text: str, read: frozenset[str]) -> list[str]:
    """Characters of a text that are in no training source, in order of appearance. A tokenizer whose pieces are bytes
    reads them all the same, and its vocabulary does not tell."""
    return [one for one in dict.fromkeys(text) if one not in read and not one.isspace()] if read else []


def texts_of(data: Path, side: str, most: int | None = None) -> list[str]:
    """The training texts of a run's prepared pairs, "source" or "target", as their tokens spell them."""
    corpus = open_corpus(data / "train" / side)
    tokenizer = Tokenizer.load(data / ("source_tokenizer.json" if side == "source" else "tokenizer.json"))
    bounds = [0, *corpus.ends[:most].tolist()]
    return [tokenizer.decode(corpus.tokens[start : stop - 1].tolist()) for start, stop in pairwise(bounds)]
