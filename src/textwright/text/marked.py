"""Texts of which only some tokens carry loss: a corpus with a mark for each token, on disk and in batches.

data/train, data/valid, data/test     corpora, a document for each example, and marks.bin: a byte for each token
data/rejected/train, …                the same of the answers that are liked less, where there are two
data/examples.json                    what was kept and what was left out
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.config import Config
from textwright.errors import CheckpointError, DataError
from textwright.text.batching import IGNORE, Batch
from textwright.text.buckets import LengthBuckets, lengths_of
from textwright.text.corpus import (
    DOCUMENTS,
    Corpus,
    Facts,
    Prepared,
    Progress,
    fractions,
    lowest,
    mapped,
    open_corpus,
    open_prepared,
    writing,
)
from textwright.text.examples import Example, Speller
from textwright.text.sources import Piece

Rows = Callable[[], Iterator[tuple[Example, ...]]]  # an example each, or the better one of two answers and the other
REJECTED = "rejected"
FACTS = "examples.json"
MARKS = "marks.bin"


class ExampleFacts(Config):
    """What was kept of the training examples.

    Attributes:
        kept: how many.
        longest: tokens of the longest one in any split.
        long: how many were left out because they are longer than the context, and `where` the first of them stands.
        template: how conversations are spelled, as Jinja; None: a prompt is followed by its completion.
        end: the id that ends a reply.
    """

    kept: int
    longest: int
    long: int
    where: str
    template: str | None
    end: int

    def left_out(self, longest: int) -> str:
        """In words."""
        if not self.long:
            return "none left out"
        return f"{self.long:,} left out because they have more than {longest} tokens, first {self.where}"


class Marked(NamedTuple):
    """A corpus, and which of its tokens carry loss (tokens,), uint8."""

    corpus: Corpus
    marks: Tensor


class MarkedBuckets(LengthBuckets):
    """Whole texts of similar lengths, so that none sees another; padding carries no loss.

    Args:
        marked: the texts.
        batch_tokens, seed: see `LengthBuckets`.
    """

    def __init__(self, marked: Marked, batch_tokens: int, seed: int) -> None:
        corpus = marked.corpus
        lengths = lengths_of(corpus)
        self.marked, self.starts = marked, corpus.ends - lengths
        sums = torch.cat([torch.zeros(1, dtype=torch.long), marked.marks.long().cumsum(0)])
        self.targets = sums[corpus.ends] - sums[self.starts]
        super().__init__(lengths, self.targets, batch_tokens, seed)

    def in_order(self, tokens: int | None = None) -> Iterator[Batch]:
        """Every text once, or the first ones that hold so many tokens that carry loss."""
        return self.first(self.targets, tokens)

    def gather(self, numbers: Tensor, epoch: int) -> Batch:
        """The batch of these texts."""
        texts, targets = [], []
        for number in numbers.tolist():
            part = slice(int(self.starts[number]), int(self.marked.corpus.ends[number]))
            ids = self.marked.corpus.tokens[part].long()
            self.marked.corpus.touched(1, len(ids))
            texts.append(ids[:-1])
            targets.append(ids[1:].masked_fill(self.marked.marks[part][1:] == 0, IGNORE))
        lengths = torch.tensor([len(text) for text in texts])
        tokens = pad_sequence(texts, batch_first=True)
        return Batch(
            tokens,
            pad_sequence(targets, batch_first=True, padding_value=IGNORE),
            None if bool((lengths == tokens.shape[1]).all()) else lengths,
            None,
        )


def prepare_examples(
    splits: tuple[Rows, Rows, Rows], speller: Speller, longest: int, folder: Path, progress: Progress
) -> None:
    """Write the training, validation and test examples into `folder`; what is longer than `longest` is left out.

    Raises:
        DataError: an example cannot be spelled, or none is left for training or validation.
    """
    kept, long, where, most = [], 0, "", 0
    first = next(splits[0](), ())
    for name, rows in zip(("train", "valid", "test"), splits, strict=True):
        places = [folder, folder / REJECTED][: len(first)]
        marks, count, done = [bytearray() for _ in places], 0, 0
        with ExitStack() as stack:
            corpora = [stack.enter_context(writing(place / name, speller.tokenizer)) for place in places]
            for row in rows():
                spelled = [speller.spell(example) for example in row]
                done += sum(len(said(example)) for example in row)
                progress(f"encoding {name}", done)
                size = max(len(one.ids) for one in spelled)
                if size > longest:
                    long, where = long + 1, where or row[0].where
                    continue
                count, most = count + 1, max(most, size)
                for corpus, side, one, example in zip(corpora, marks, spelled, row, strict=True):
                    corpus.append(Piece(said(example), last=True), one.ids)
                    side += bytes(one.learned)
        for place, side in zip(places, marks, strict=True):
            (place / name / MARKS).write_bytes(side)
        kept.append(count)
    if not kept[0] or not kept[1]:
        lost = f"{long:,} are longer than {longest} tokens: --set examples.longest=…" if long else "give more of them"
        raise DataError(f"of the examples none is left {'to train on' if not kept[0] else 'to validate on'}: {lost}")
    template = None if speller.template is None else speller.template.source
    facts = ExampleFacts(kept=kept[0], longest=most, long=long, where=where, template=template, end=speller.end)
    speller.tokenizer.save(folder / "tokenizer.json")
    (folder / FACTS).write_text(facts.model_dump_json(indent=1), encoding="utf-8")


def in_memory(examples: Sequence[Example], speller: Speller, longest: int | None) -> tuple[Marked, str]:
    """The examples that have no more tokens than `longest`, and what was left out, in words.

    Raises:
        DataError: none is left, or one cannot be spelled.
    """
    ids: list[int] = []
    learned: list[bool] = []
    ends, long = [], []
    for example in examples:
        spelled = speller.spell(example)
        if longest is not None and len(spelled.ids) > longest:
            long.append(example.where)
            continue
        ids += spelled.ids
        learned += spelled.learned
        ends.append(len(ids))
    lost = f"left out {len(long):,} of {len(examples):,} examples, which have more than {longest} tokens"
    told = f"{lost}, first {long[0]}" if long else ""
    if not ends:
        raise DataError(told)
    facts = Facts(vocabulary=speller.tokenizer.size, tokens=len(ids), documents=len(ends))
    return Marked(Corpus(torch.tensor(ids), torch.tensor(ends), facts), torch.tensor(learned, dtype=torch.uint8)), told


def open_examples(folder: Path) -> tuple[Prepared, ExampleFacts]:
    """Open what `prepare_examples` wrote: the corpora, and facts."""
    try:
        facts = ExampleFacts.model_validate_json((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}; prepare it again") from None
    return open_prepared(folder), facts


def open_marked(folder: Path) -> Marked:
    """A split."""
    corpus = open_corpus(folder)
    return Marked(corpus, mapped(folder / MARKS, corpus.facts.tokens, torch.uint8))


def held_back(rows: Rows, valid: float | None, test: float | None) -> tuple[Rows, Rows, Rows]:
    """Training, validation and test examples of one source. A hash of what was said first, a system's instructions
    aside, says where an example goes, so that equal ones stay together: the lowest ones are held back, at least one for
    each purpose that has a share.

    Raises:
        DataError: there are too few.
        ConfigError: nothing would be left to train on.
    """
    shares = fractions(valid, test)
    places = sorted({_place(row) for row in rows()})
    if len(places) < DOCUMENTS:
        raise DataError(
            f"{len(places)} different examples are too few to hold some back: give --valid, or {DOCUMENTS} of them"
        )
    first, second = lowest(places, *shares)

    def part(low: int, high: int) -> Iterator[tuple[Example, ...]]:
        return (row for row in rows() if low <= _place(row) < high)

    return partial(part, second, 2**64), partial(part, first, second), partial(part, 0, first)


def said(example: Example) -> str:
    """The text of an example, for counts of characters and words."""
    return "\n".join(message["content"] for message in example.messages)


def _place(row: tuple[Example, ...]) -> int:
    messages = row[0].messages
    asked = next((each for each in messages if each["role"] != "system"), messages[0])  # which all rows may share
    digest = hashlib.sha256(asked["content"].encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big")
