"""Tokens on disk: a corpus is written in one stream, mapped into memory and never loaded whole.

A corpus is a folder: `tokens.bin` (uint8, uint16 or int32 by the size of the vocabulary), `ends.bin` (int64) and
`facts.json`, all in the byte order of the machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import sys
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from textwright.config import Config
from textwright.errors import CheckpointError, ConfigError, DataError
from textwright.text.segmenters import count_words
from textwright.text.sources import Piece, SourceConfig, read
from textwright.text.tokenizers import Tokenizer, TokenizerConfig, train

BATCH = 2_000_000  # characters encoded at once
LEAST = 32  # characters without which there is nothing to learn
DOCUMENTS = 20  # from this many on, splits are made of whole documents
LOOK = 4000  # characters within which a cut moves to a line end
SHARE = 0.05  # of a text that is held back for validation, and for the test, unless another share is asked for
MOST = 2_000_000  # characters that a text then gives to each: more would take hours to measure, and tell no more

AROUND = 1 << 21  # bytes around a place that Linux maps at most when the place is read
KEPT = 64  # such stretches

Pieces = Callable[[], Iterator[Piece]]
Progress = Callable[[str, float], None]  # (what is being done, characters done)


class Facts(Config):
    """What is in a corpus; bytes, characters and words are those of the text before tokenisation.

    `unknown` counts the tokens in `Tokenizer.fallback`: unknown words, or single bytes of unknown characters.
    """

    vocabulary: int
    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    unknown: int = 0


class Pages:
    """A file in memory, of which a process keeps about `KEPT` stretches, however much of it is read.

    Forgotten pages stay in the system's cache, from where they are mapped again; so it costs little, but not nothing.
    On Windows nothing is forgotten: there the system takes pages back by itself.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = mapping
        self._stretches = 0

    def touched(self, stretches: int) -> None:
        """Count stretches that were read, and forget all of them when they are too many."""
        self._stretches += stretches
        if self._stretches > KEPT and sys.platform != "win32":
            self.mapping.madvise(mmap.MADV_DONTNEED)
            self._stretches = 0


@dataclass(frozen=True)
class Corpus:
    """One split.

    Attributes:
        tokens: (tokens,), uint8, uint16 or int32, mapped from disk.
        ends: (documents,), int64, mapped from disk: the index after the last token of each document.
        facts: counts.
        pages: of `tokens`; None where they lie in memory.
    """

    tokens: Tensor
    ends: Tensor
    facts: Facts
    pages: Pages | None = None

    def begins(self, places: Tensor) -> Tensor:
        """Whether each place is the first of a document."""
        at = torch.searchsorted(self.ends, places, right=True) - 1
        return (places == 0) | ((at >= 0) & (self.ends[at.clamp(min=0)] == places))

    def touched(self, places: int, length: int) -> None:
        """Say that `length` tokens were read at each of so many places; see `Pages`."""
        if self.pages is not None:
            self.pages.touched(places * (1 + length * self.tokens.itemsize // AROUND))


class Prepared(NamedTuple):
    """A corpus for each purpose (`test` may be empty) and the tokenizer they share."""

    train: Corpus
    valid: Corpus
    test: Corpus
    tokenizer: Tokenizer


def prepare(
    source: SourceConfig,
    valid: SourceConfig | None,
    test: SourceConfig | None,
    tokenizer: TokenizerConfig,
    folder: Path,
    valid_fraction: float | None = None,
    test_fraction: float | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Train a tokenizer on the training split and write the corpora `train`, `valid`, `test` and tokenizer.json.

    What is not given as a source of its own is split off from `source`, except that no test split is made where only
    `valid` is given. The fractions are relative to all of `source`; None: `SHARE`, of long texts about `MOST`
    characters. Nothing is random: see `split`.

    Raises:
        DataError: a source cannot be read, or there is too little text for the splits.
    """
    pieces = partial(read, source)
    wanted = (0.0 if valid else valid_fraction, 0.0 if valid or test else test_fraction)
    parts = split(lambda: _watched(pieces(), "reading", progress), *wanted)
    texts = parts[0]
    made = train(tokenizer, lambda: (piece.text for piece in _watched(texts(), "learning the vocabulary", progress)))
    own = (None, valid, test)
    corpora = []
    for name, part, extra, needed in zip(("train", "valid", "test"), parts, own, (1.0, *wanted), strict=True):
        stream = read(extra) if extra else part()
        corpora.append(write(folder / name, _watched(stream, f"encoding {name}", progress), made))
        if (extra or needed != 0.0) and not corpora[-1].facts.tokens:
            raise DataError(f"{source.path} is too short: nothing is left for the {name} split")
    made.save(folder / "tokenizer.json")
    return Prepared(corpora[0], corpora[1], corpora[2], made)


def open_prepared(folder: Path) -> Prepared:
    """Open what `prepare` wrote."""
    first, second, third = (open_corpus(folder / name) for name in ("train", "valid", "test"))
    return Prepared(first, second, third, Tokenizer.load(folder / "tokenizer.json"))


# Splits ----------------------------------------------------------------------------------------------------------


def split(pieces: Pieces, valid_fraction: float | None, test_fraction: float | None) -> tuple[Pieces, Pieces, Pieces]:
    """Training, validation and test pieces of one source, the same ones every time; for fractions see `prepare`.

    A hash of its text says where a document goes, so equal documents stay together. With fewer than 20 documents, or
    where a split would get none, the text is cut in order instead, after a line end if there is one nearby.

    Raises:
        DataError: the text is too short.
    """
    fractions(valid_fraction, test_fraction)  # wrong ones are told before a long text is read
    hashes, characters = _measure(pieces())
    if characters < LEAST:
        raise DataError(f"too little text: {characters} characters; at least {LEAST} are needed, better 100,000")
    valid_fraction, test_fraction = fractions(valid_fraction, test_fraction, min(SHARE, MOST / characters))
    places = bytes(place_of(value, valid_fraction, test_fraction) for value in hashes)
    wanted = {0} | ({1} if valid_fraction else set()) | ({2} if test_fraction else set())
    if len(places) >= DOCUMENTS and set(places) == wanted:
        chosen = [partial(_documents, pieces, places, place) for place in range(3)]
        return chosen[0], chosen[1], chosen[2]
    first, second = _cuts(pieces, characters, valid_fraction, test_fraction)
    return (
        lambda: _between(pieces(), 0, first),
        lambda: _between(pieces(), first, second),
        lambda: _between(pieces(), second, characters),
    )


def fractions(valid: float | None, test: float | None, usual: float = SHARE) -> tuple[float, float]:
    """What is held back, None being the usual share; ConfigError where nothing would be left to learn from."""
    first, second = (usual if fraction is None else fraction for fraction in (valid, test))
    if not (first >= 0 and second >= 0 and first + second < 1):
        raise ConfigError(
            f"expected a valid_fraction and a test_fraction of 0 or more, below 1 together, got {first} and {second}"
        )
    return first, second


def _measure(pieces: Iterable[Piece]) -> tuple[array[int], int]:
    """A hash of 64 bits for every document, and the number of characters."""
    hashes, characters, digest = array("Q"), 0, hashlib.sha256()
    for piece in pieces:
        characters += len(piece.text)
        digest.update(piece.text.encode())
        if piece.last:
            hashes.append(int.from_bytes(digest.digest()[:8], "big"))
            digest = hashlib.sha256()
    return hashes, characters


def lowest(places: Sequence[int], valid: float, test: float) -> tuple[int, int]:
    """Of few hashes: below which of them the test lies, and below which the validation, at least one place for each
    that has a share. `places` are sorted and differ."""
    counts = [math.ceil(share * len(places)) for share in (test, valid)]
    first, second = (places[min(count, len(places) - 1)] for count in (counts[0], sum(counts)))
    return first, second


def place_of(value: int, valid_fraction: float, test_fraction: float) -> int:
    share = value / 2**64
    return 2 if share < test_fraction else 1 if share < test_fraction + valid_fraction else 0


def _documents(pieces: Pieces, places: bytes, place: int) -> Iterator[Piece]:
    document = 0
    for piece in pieces():
        if places[document] == place:
            yield piece
        document += piece.last


def _cuts(pieces: Pieces, characters: int, valid_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Where the validation and the test split begin, in characters."""
    second = characters - _share(characters, test_fraction)
    first = second - _share(characters, valid_fraction)
    # Half of a short split must stay, so its beginning moves no further than to its middle.
    limits = (min(LOOK, (second - first) // 2), min(LOOK, (characters - second) // 2))
    return _line_end(pieces, first, limits[0]), _line_end(pieces, second, limits[1])


def _share(characters: int, fraction: float) -> int:
    return max(1, round(characters * fraction)) if fraction else 0


def _line_end(pieces: Pieces, place: int, limit: int) -> int:
    around = "".join(piece.text for piece in _between(pieces(), place - 1, place + limit))
    return place + max(0, around.find("\n"))  # `around` begins one character before `place`


def _between(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    """Characters `start` to `stop`; a document that is cut does not end at the cut."""
    position = 0
    for piece in pieces:
        if position >= stop:
            return
        text = piece.text[max(0, start - position) : stop - position]
        position += len(piece.text)
        if text:
            yield Piece(text, piece.last and position <= stop)


def _watched(pieces: Iterable[Piece], what: str, progress: Progress | None) -> Iterator[Piece]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece.text)
        if progress:
            progress(what, done)


# Files -----------------------------------------------------------------------------------------------------------


def write(folder: Path, pieces: Iterable[Piece], tokenizer: Tokenizer) -> Corpus:
    """Encode a stream of pieces into a corpus; an older corpus in `folder` is replaced when the new one is complete.

    Every document ends with the `end` id, which is added unless its own tokens end with it; a last document that is
    cut off by the end of the stream gets none.
    """
    with writing(folder, tokenizer) as writer:
        for batch in _batches(pieces):
            writer.add(batch)
    return open_corpus(folder)


@contextmanager
def writing(folder: Path, tokenizer: Tokenizer, vocabulary: int | None = None) -> Iterator[CorpusWriter]:
    """A writer of a corpus, which takes the place of an older one in `folder` when all is written.

    Args:
        vocabulary: where more ids are appended than the tokenizer has.

    Raises:
        DataError: the folder holds something else.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "facts.json").is_file()):
        raise DataError(f"{folder} holds something that is not a corpus; move it away or choose another folder")
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with (unfinished / "tokens.bin").open("wb") as tokens, (unfinished / "ends.bin").open("wb") as ends:
        writer = CorpusWriter(tokens, ends, tokenizer, vocabulary or tokenizer.size)
        yield writer
        facts = writer.close()
        for file in (tokens, ends):
            file.flush()
            os.fsync(file.fileno())
    (unfinished / "facts.json").write_text(json.dumps(facts.dump(), indent=1), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.replace(folder)


def open_corpus(folder: Path) -> Corpus:
    """Map a corpus into memory.

    Raises:
        CheckpointError: a file is missing, or its size is not what facts.json says.
    """
    try:
        facts = Facts.parse(json.loads((folder / "facts.json").read_text(encoding="utf-8")), "facts.json")
    except OSError as error:
        raise CheckpointError(f"{folder} is not a corpus: {error.strerror or error}; prepare it again") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}; prepare it again") from None
    _, dtype = _storage(facts.vocabulary)
    tokens, pages = _paged(folder / "tokens.bin", facts.tokens, dtype)
    ends = mapped(folder / "ends.bin", facts.documents, torch.int64)
    if facts.documents and int(ends[-1]) != facts.tokens:
        raise CheckpointError(f"{folder} is damaged: its documents do not end where its tokens do; prepare it again")
    return Corpus(tokens, ends, facts, pages)


def counted(corpus: Corpus, vocabulary: int) -> Tensor:
    """(vocabulary,) int64: how often each id occurs, read in parts."""
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    for part in torch.split(corpus.tokens, BATCH):
        counts += torch.bincount(part.int(), minlength=vocabulary)
        corpus.touched(1, len(part))
    return counts


def _storage(vocabulary: int) -> tuple[str, torch.dtype]:
    """The smallest type that holds every id, as `array` and torch call it."""
    if vocabulary <= 1 << 8:
        return "B", torch.uint8
    return ("H", torch.uint16) if vocabulary <= 1 << 16 else ("i", torch.int32)


def mapped(path: Path, length: int, dtype: torch.dtype) -> Tensor:
    """A file as a tensor (length,).

    Raises:
        CheckpointError: it is missing, or of another size.
    """
    return _paged(path, length, dtype)[0]


def _paged(path: Path, length: int, dtype: torch.dtype) -> tuple[Tensor, Pages | None]:
    size = path.stat().st_size if path.is_file() else "no file"
    expected = length * dtype.itemsize
    if length < 0 or size != expected:
        raise CheckpointError(f"{path} is damaged: expected {expected} bytes, got {size}; prepare it again")
    if not length:
        return torch.empty(0, dtype=dtype), None  # an empty file cannot be mapped
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # a writable one may be no larger than memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes
        return torch.frombuffer(mapping, dtype=dtype), Pages(mapping)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text) + 100  # an empty piece costs something too
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class CorpusWriter:
    """Appends documents to the files of a corpus, see `writing`."""

    def __init__(self, tokens: BinaryIO, ends: BinaryIO, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokens, self._ends, self._tokenizer = tokens, ends, tokenizer
        self._code, _ = _storage(vocabulary)
        self._previous: int | None = None  # the token before, in the same document
        self._counts = dict.fromkeys(Facts.model_fields, 0) | {"vocabulary": vocabulary}

    def add(self, batch: list[Piece]) -> None:
        """Encode pieces and append them."""
        for piece, ids in zip(batch, self._tokenizer.encode_many([piece.text for piece in batch]), strict=True):
            self.append(piece, ids)

    def append(self, piece: Piece, ids: list[int]) -> None:
        """Append one piece that was encoded as `ids`; the end of a document is added to them."""
        self._count(piece.text, ids)
        self._previous = ids[-1] if ids else self._previous
        if piece.last and self._previous != self._tokenizer.end:
            ids = [*ids, self._tokenizer.end]
        self._counts["tokens"] += len(ids)
        self._tokens.write(array(self._code, ids).tobytes())
        if piece.last:
            self._end()

    def close(self) -> Facts:
        """End a last document that was cut off, and count."""
        if self._previous is not None:
            self._end()
        return Facts(**self._counts)

    def _end(self) -> None:
        self._previous = None
        self._counts["documents"] += 1
        self._ends.write(array("q", [self._counts["tokens"]]).tobytes())

    def _count(self, text: str, ids: list[int]) -> None:
        fallback = self._tokenizer.fallback
        self._counts["bytes"] += len(text.encode())
        self._counts["characters"] += len(text)
        self._counts["words"] += count_words(text)
        self._counts["unknown"] += sum(map(fallback.__contains__, ids)) if fallback else 0
