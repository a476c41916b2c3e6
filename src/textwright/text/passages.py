"""Places of a corpus where a text may begin: how it begins there, how it goes on, and all of it as a stream."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from textwright.text.corpus import Corpus
from textwright.text.tokenizers import Tokenizer

PART = 100_000  # tokens decoded at once


class Passage(NamedTuple):
    """The first words of a text, and its next `length` tokens at most."""

    prompt: str
    rest: str


def text_of(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of a corpus in parts, a line end after each document; in constant memory."""
    pieces = list(tokenizer.pieces)
    pieces[tokenizer.end] = b"\n"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in torch.split(corpus.tokens, PART):
        yield decoder.decode(b"".join(map(pieces.__getitem__, part.tolist())))
        corpus.touched(1, len(part))
    yield decoder.decode(b"", final=True)


def passages(
    corpus: Corpus, tokenizer: Tokenizer, count: int, length: int, words: int, split: Callable[[str], Sequence[str]]
) -> list[Passage]:
    """At most `count` passages from all over a corpus, none of which reaches into another one or a second document.

    They are the beginnings of documents where there are enough of them, and otherwise of lines. They are fewer where
    the corpus is short. Nothing is random.

    Args:
        length: tokens of what follows the prompt, at most.
        words: of a prompt, at most; half of a text that has fewer than twice as many.
        split: a text into its words.
    """
    spans = _spans(corpus, count, length + length // 2)
    texts = [(tokenizer.decode(corpus.tokens[start:stop].tolist()), whole) for start, stop, whole in spans]
    found = [_passage(text if whole else _from_line(text), words, split) for text, whole in texts]
    cut = [Passage(prompt, tokenizer.decode(tokenizer.encode(rest)[:length])) for prompt, rest in found]
    return [passage for passage in cut if passage.rest.strip()]


def _spans(corpus: Corpus, count: int, size: int) -> list[tuple[int, int, bool]]:
    """First token, end, and whether a document begins there."""
    ends, tokens, documents = corpus.ends, corpus.facts.tokens, corpus.facts.documents
    if documents >= count:
        chosen = [number * documents // count for number in range(count)]
        starts = [int(ends[document - 1]) if document else 0 for document in chosen]
    else:
        parts = min(count, max(1, tokens // size)) if tokens else 0
        starts = [number * tokens // parts for number in range(parts)]
    stops = [int(ends[torch.searchsorted(ends, start, right=True)]) for start in starts]
    places = zip(starts, stops, strict=True)
    return [(start, min(stop, start + size), documents >= count or not start) for start, stop in places]


def _from_line(text: str) -> str:
    """From its first line, or else its first word, that begins in the first quarter."""
    quarter = len(text) // 4
    place = text.find("\n", 0, quarter)
    place = text.find(" ", 0, quarter) if place < 0 else place
    return text[place + 1 :].strip("\ufffd")  # which stands for a part of a character


def _passage(text: str, words: int, split: Callable[[str], Sequence[str]]) -> Passage:
    text = text.lstrip()
    words = min(words, len(split(text)) // 2)
    end = next((end for end in range(len(text)) if len(split(text[: end + 1])) > words), len(text))
    prompt = text[:end].rstrip()
    return Passage(prompt, text[len(prompt) :])
